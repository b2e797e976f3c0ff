"""Profiles: those that come with the package, and what is said of one that is wrong."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from ctcore.errors import ConfigError
from offload.simnic import profile


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


@pytest.mark.parametrize(("text", "said"), [
    ("[table]\ncapacity = -1\n", r"^x\.toml:2: table\.capacity: -1: expected .*greater than or equal to 0$"),
    ("[table]\nsize = 1\n", r"^x\.toml:2: table\.size: no such setting$"),
    ("\n[tables]\n", r"^x\.toml:2: tables: no such setting$"),
    ("[rules]\nresume = 'later'\n", r"^x\.toml:2: rules\.resume: 'later': expected 'action' or 'chain'$"),
    ("[faults]\nrefuse = 2\n", r"^x\.toml:2: faults\.refuse: 2: expected .*less than or equal to 1$"),
    ("trims = 'maybe'\n", r"^x\.toml:1: trims: 'maybe': "),
    ("[table\n", r"^x\.toml:1:7: "),
])  # fmt: skip
def test_an_error_is_one_line_with_its_place(text, said):
    with pytest.raises(ConfigError) as error:
        profile.parse(text, "x.toml")
    assert re.search(said, str(error.value)) and "\n" not in str(error.value)


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
    (code,) = re.findall(r"^```python\n(.*?)^```$", page, re.MULTILINE | re.DOTALL)
    exec(compile(code, "docs/offload-nic.md", "exec"), {})
