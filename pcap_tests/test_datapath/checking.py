"""`ctmirror check` as its tests call it, and a scenario that is as expected."""

from __future__ import annotations

from datapath.cli import main

GOOD = """\
# A client opens.

+0.000  A:40000 > B:80     S seq 100           => new SYN_SENT 120
+0.010  B:80    > A:40000  SA seq 500 ack 101  => established SYN_RECV 60 reply  # in time
+0.010  A:40000 > B:80     A seq 101 ack 501   => established ESTABLISHED 432000
"""


def run(capfd, *argv):
    """Exit code, stdout, stderr."""
    code = main(["check", *(str(word) for word in argv)])
    captured = capfd.readouterr()
    return code, captured.out, captured.err


def refused(capfd, *argv):
    """The line of a command that cannot work."""
    code, out, err = run(capfd, *argv)
    assert code == 2, (out, err)
    assert err.count("\n") == 1
    assert "Traceback" not in err
    return err
