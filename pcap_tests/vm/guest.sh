# The guest's first process behind init.sh: runs the command, whose output goes to ports of its own, and says how it ended. @PLACES@ are filled in.
for port in /sys/class/virtio-ports/*; do
    read -r name <"$port/name"
    case $name in
    out) OUT=/dev/${port##*/} ;;
    err) ERR=/dev/${port##*/} ;;
    status) STATUS=/dev/${port##*/} ;;
    esac
done
echo "begun" >"$STATUS"
@ENVIRONMENT@
ulimit -n 65536
for module in @MODULES@; do modprobe "$module" 2>"$ERR" || echo "guest: modprobe $module failed" >"$ERR"; done
cd @FOLDER@ || echo "guest: no @FOLDER@" >"$ERR"
( trap - INT; exec setsid @COMMAND@ ) </dev/null >"$OUT" 2>"$ERR"
code=$?
sync
echo "ended $code" >"$STATUS"
/bin/busybox poweroff -f
sleep 10
