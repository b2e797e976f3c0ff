"""The command line as tests call it: within this process, or in one of its own."""

from __future__ import annotations

import json
import subprocess
import sys

from datapath.cli import main


def run(capfd, *argv):
    """Exit code, stdout, stderr of a command."""
    code = main([str(word) for word in argv])
    captured = capfd.readouterr()
    return code, captured.out, captured.err


def records(text):
    return [json.loads(line) for line in text.splitlines()]


def in_process(*argv, **how):
    """The command in a process of its own."""
    return subprocess.run([sys.executable, "-m", "datapath", *map(str, argv)], capture_output=True, text=True, timeout=60, **how)
