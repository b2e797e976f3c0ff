#!/bin/busybox sh
# The guest's first process: loads what the root needs, puts a writable layer over the host's files, and goes on in there with guest.sh.
# Names of what is shared, and of modules, come in /boot.env. Nothing of the host is ever written but the folders that are shared to be written.
B=/bin/busybox
$B mount -t devtmpfs dev /dev
$B mount -t proc proc /proc
$B mount -t sysfs sys /sys
. /boot.env

fail() {
    echo "init: $*" >/dev/kmsg
    $B poweroff -f
}

for module in $(cat /modules/order); do $B insmod "/modules/$module" || fail "insmod $module"; done

shared() { # tag, folder, options
    $B mount -t 9p -o "trans=virtio,version=9p2000.L,msize=512000,$3" "$1" "$2" || fail "mount of $1 at $2"
}

$B mkdir -p /lower /layer /root
shared root /lower ro,cache=loose
$B mount -t tmpfs -o mode=755,size=75% tmpfs /layer || fail "tmpfs"
$B mkdir /layer/upper /layer/work
$B mount -t overlay -o lowerdir=/lower,upperdir=/layer/upper,workdir=/layer/work,xino=off,metacopy=off root /root || fail "overlay"
cd /root || fail "no root"
$B mkdir -p proc sys dev run tmp root
$B mount -t proc proc proc
$B mount -t sysfs sys sys
$B mount -t devtmpfs dev dev
$B mkdir -p dev/pts dev/shm
$B mount -t devpts -o ptmxmode=666 devpts dev/pts
$B mount -t tmpfs tmpfs dev/shm
$B ln -sfn /proc/self/fd dev/fd
$B mount -t tmpfs -o mode=755 tmpfs run
$B mkdir -p run/netns run/lock
$B mount -t bpf bpf sys/fs/bpf
$B mount -t debugfs debugfs sys/kernel/debug
# The guest's own modules, where modprobe looks for them.
$B mkdir -p "lib/modules/$RELEASE"
$B mount -o bind "/lower$MODULES" "lib/modules/$RELEASE" || fail "modules"
number=0
for folder in $WRITABLE; do
    $B mkdir -p ".$folder"
    shared "shared$number" ".$folder" cache=none
    number=$((number + 1))
done
$B cp /guest.sh run/guest.sh
$B ip link set lo up
exec $B switch_root /root /bin/sh /run/guest.sh
