"""docs/control.md is true: what it lists exists, and what exists is listed; and who only asks needs no more than asking takes."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

from ctcore.config import Config
from datapath.commands.conntrack import command
from datapath.live import control, feed, message, requests
from datapath.live.conntrack_words import OUTPUTS, STATUS
from datapath.live.wanted import _NAMES
from pcap_tests.test_datapath.test_live.noded import running

PAGE = (Path(__file__).parents[3] / "docs/control.md").read_text()


def test_every_request_is_on_the_page(tmp_path):
    with running(tmp_path) as rig:
        rig.until(lambda: hasattr(rig.control, "desk"))
        known = {*rig.control.desk.known, "events"}
    listed = PAGE[PAGE.index("| `do` | takes") : PAGE.index("`which` has any of")]
    assert set(re.findall(r"^\| `(\w+)` \|", listed, re.MULTILINE)) - {"do"} == known


def test_every_field_of_which_is_on_the_page():
    listed = PAGE[PAGE.index("`which` has any of") : PAGE.index("Of ICMP, `sport`")]
    assert set(re.findall(r"`(\w+)`", listed)) - {"which"} == _NAMES


@pytest.mark.parametrize(
    "number",
    [
        control.MOST_CLIENTS,
        int(control.PATIENCE),
        int(control.LISTENER_PATIENCE),
        requests.SLOTS,
        feed.QUEUE,
        message.LARGEST_REQUEST,
        Config().event_buffer,
    ],
)
def test_limits_are_those_of_the_page(number):
    assert re.search(rf"(?<![\d,]){number:,}(?![\d,])", PAGE)


def test_every_option_of_conntrack_is_on_the_page():
    names = {option for parameter in command.params for option in parameter.opts if option.startswith("-")}
    short = {option for option in names if len(option) == 2}
    missing = {option for option in short | {"--label-add", "--label-del", "--state", "--sport", "--dport"} if option not in PAGE}
    assert not missing
    assert all(word in PAGE for word in (*STATUS, *OUTPUTS))


def test_who_only_asks_loads_neither_pydantic_nor_the_datapath():
    code = (
        "import sys; import datapath.live.client, datapath.live.conntrack_words, datapath.commands.conntrack\n"
        "print(*sorted({'pydantic', 'datapath.live.loop', 'datapath.ruled', 'asyncio'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=Path(__file__).parents[3])
    assert done.stdout.strip() == ""
