"""Profiles: those that come with the package, and what is said of one that is wrong."""

from __future__ import annotations

import errno
import re
from pathlib import Path

import pytest

from ctcore.errors import ConfigError
from offload.simnic import profile
from offload.simnic.faults import KINDS, Fault
from offload.simnic.nic import Nic


def test_the_profiles_of_the_package_are_there_and_each_says_its_name():
    assert profile.names() == ["connectx-6dx-sw", "connectx-7-hw", "none", "perfect", "tiny"]
    assert [profile.load(name).name for name in profile.names()] == profile.names()


def test_a9_71_the_figures_of_the_contract():
    software, hardware = profile.load("connectx-6dx-sw"), profile.load("connectx-7-hw")
    assert (software.rates.inserts, hardware.rates.inserts) == (85_000, 600_000)
    assert software.table.capacity == hardware.table.capacity == 4 << 20
    assert software.period_ns == hardware.period_ns == 10**9
    assert (software.table.tables, hardware.table.tables) == ("both", "one")


def test_a_file_of_ones_own(tmp_path):
    path = tmp_path / "mine.toml"
    path.write_text("[table]\ncapacity = 7\n")
    assert (profile.load(str(path)).name, profile.load(str(path)).table.capacity) == ("mine", 7)


OF_TWO = "[[faults.script]]\nkind = 'reset'\n[[faults.script]]\n"


@pytest.mark.parametrize(("text", "said"), [
    ("[table]\ncapacity = -1\n", r"^x\.toml:2: table\.capacity: -1: expected .*at least 0$"),
    ("[table]\nsize = 1\n", r"^x\.toml:2: table\.size: no such setting: expected one of capacity, tables$"),
    ("\n[tables]\n", r"^x\.toml:2: tables: no such setting: expected one of name, trims, table, rates, counters, rules, faults$"),
    ("[[faults.script]]\nkind = 'reset'\nuntil = 3\n", r"^x\.toml:3: faults\.script\[0\]\.until: .* one of kind, from, to, share, delay, error$"),
    ("[rules]\nresume = 'later'\n", r"^x\.toml:2: rules\.resume: 'later': expected 'action' or 'chain'$"),
    ("[faults]\nrefuse = 2\n", r"^x\.toml:2: faults\.refuse: 2: expected .*at most 1$"),
    ("trims = 'maybe'\n", r"^x\.toml:1: trims: 'maybe': "),
    ("[table\n", r"^x\.toml:1:7: "),
    ("table = 3\n", r"^x\.toml:1: table: expected a section$"),
    ("[table]\ncapacity = 1.5\n", r"^x\.toml:2: table\.capacity: 1\.5: expected a whole number$"),
    ("[[faults.script]]\nkind = 'burn'\n", r"^x\.toml:2: faults\.script\[0\]\.kind: 'burn': expected 'refuse', 'delay', .* or 'stick'$"),
    (OF_TWO + "share = 1.5\nkind = 'refuse'\n", r"^x\.toml:4: faults\.script\[1\]\.share: 1\.5: expected at most 1$"),
    (OF_TWO + "from = 3\nto = 2\nkind = 'stick'\n", r"^x\.toml:3: faults\.script\[1\]: 'to' is 2: expected a time behind 'from', which is 3$"),
    (OF_TWO + "kind = 'reset'\nto = 2\n", r"^x\.toml:3: faults\.script\[1\]: 'to' is of refuse, delay, lose-command, lose-reply, stick only$"),
    (OF_TWO + "kind = 'delay'\n", r"^x\.toml:3: faults\.script\[1\]: expected 'delay' with it, in ms$"),
    (OF_TWO + "from = 2\n", r"^x\.toml:3: faults\.script\[1\]\.kind: expected one$"),
    (OF_TWO + "kind = 'refuse'\nerror = 'ENOENT'\n", r"^x\.toml:5: faults\.script\[1\]\.error: 'ENOENT': expected 'ENOSPC', "),
    (OF_TWO + "kind = 'stick'\nfrom = 'noon'\n", r"^x\.toml:5: faults\.script\[1\]\.from: 'noon': expected a number$"),
    ("[faults]\nscript = 3\n", r"^x\.toml:2: faults\.script: 3: expected a list of sections$"),
])  # fmt: skip
def test_an_error_is_one_line_with_its_place(text, said):
    with pytest.raises(ConfigError) as error:
        profile.parse(text, "x.toml")
    assert re.search(said, str(error.value)) and "\n" not in str(error.value)


def test_a_script_of_faults_counts_from_the_first_packet():
    text = "[faults]\nrefuse = 0.1\n[[faults.script]]\nkind = 'refuse'\nfrom = 1.5\nto = 3\nshare = 0.5\nerror = 'EIO'\n"
    text += "[[faults.script]]\nkind = 'delay'\ndelay = 20\n[[faults.script]]\nkind = 'reset'\nfrom = 4\n"
    of = profile.parse(text, "x.toml")
    faults = of.faults.all
    assert faults == [
        Fault("refuse", share=0.1), Fault("refuse", 1_500_000_000, 3_000_000_000, 0.5, error=errno.EIO), Fault("delay", delay=20_000_000),
        Fault("reset", 4_000_000_000),
    ]  # fmt: skip
    nic, start = Nic(of), 1_700_000_000 * 10**9
    nic.advance(start)
    nic.advance(start + 4_000_000_000 - 1)
    assert nic.resets == 0
    nic.advance(start + 4_000_000_000)
    assert nic.resets == 1


def test_what_is_no_profile(tmp_path):
    with pytest.raises(ConfigError, match="no such NIC: expected one of connectx-6dx-sw"):
        profile.load("connectx")
    with pytest.raises(ConfigError, match="cannot be read: No such file"):
        profile.load(str(tmp_path / "none.toml"))
    (tmp_path / "bad.toml").write_bytes(b"\xff")
    with pytest.raises(ConfigError, match="byte 0 is no UTF-8"):
        profile.load(str(tmp_path / "bad.toml"))


def test_the_documentation_has_every_profile_and_setting_and_its_example_works():
    page = (Path(__file__).parents[3] / "docs/offload-nic.md").read_text()
    for name in profile.names():
        assert f"| `{name}` |" in page
    for section, field in profile.Profile.model_fields.items():
        if section != "name" and section != "trims":
            assert field.annotation is not None
            assert all(f"`{section}.{key}`" in page for key in field.annotation.model_fields), section
    for name in (*profile.ScriptedFault.model_fields, *KINDS, *profile.ERRORS):
        assert profile.NAMED.get(name, name) in page
    (script,) = re.findall(r"^```toml\n(.*?)^```$", page, re.MULTILINE | re.DOTALL)
    assert [fault.kind for fault in profile.parse(script, "x.toml").faults.all] == ["refuse", "reset"]
    (code,) = re.findall(r"^```python\n(.*?)^```$", page, re.MULTILINE | re.DOTALL)
    exec(compile(code, "docs/offload-nic.md", "exec"), {})
