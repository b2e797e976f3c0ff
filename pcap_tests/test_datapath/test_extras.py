"""What to type for a library that is missing, by the commands that want it: one line, and no traceback."""

from __future__ import annotations

import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

from datapath.doctor import EXTRAS
from datapath.extras import remedy

DEMO = Path(__file__).parents[1] / "captures" / "demo.pcap"
# A process that has none of the extras.
BARE = """
import sys
sys.modules.update(dict.fromkeys(("llvmlite", "matplotlib", "numba", "prometheus_client", "pyarrow", "pydantic", "yaml")))
from datapath.cli import main
sys.exit(main(sys.argv[1:]))
"""
NODE = "rules = 'node.tc'\n[[iface]]\nname = 'eth0'\n"


def test_the_python_at_work_is_named_and_both_ways_of_having_ctmirror(monkeypatch):
    monkeypatch.setattr(sys, "executable", "/home/me/my clone/.venv/bin/python")
    assert remedy("rules") == "'/home/me/my clone/.venv/bin/python' -m pip install 'ctmirror[rules]', in a clone '.[rules]'"


def test_every_extra_that_is_named_is_one():
    known = tomllib.loads((Path(__file__).parents[2] / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    assert {name for name, *_ in EXTRAS.values()} <= set(known)


@pytest.mark.parametrize(
    ("words", "extra"),
    [
        (("replay", DEMO, "--nic", "tiny"), "nic"),
        (("offload", "plan", DEMO, "--nic", "tiny"), "nic"),
        (("offload", "why", DEMO, "--conn", "0"), "nic"),
        (("offload", "audit", DEMO), "nic"),
        (("run", "--config", "node.toml"), "live"),
        (("run", "--config", "node.toml", "--check"), "live"),
        (("policy", "compile", "cluster.yaml"), "policy"),
        (("rules", "yaml", "node.tc"), "rules"),
        (("replay", DEMO, "-q", "--conns", "conns.parquet"), "arrow"),
    ],
)
def test_a_command_without_its_libraries_says_what_to_type(tmp_path, words, extra):
    (tmp_path / "node.toml").write_text(NODE)
    (tmp_path / "node.tc").write_text("filter add dev eth0 ingress protocol ip prio 1 flower action drop\n")
    done = subprocess.run([sys.executable, "-c", BARE, *map(str, words)], cwd=tmp_path, capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.startswith("ctmirror: ") and done.stderr.endswith("\n") and done.stderr.count("\n") == 1
    assert remedy(extra) in done.stderr
