"""docs/config.md is true: it has every setting there is, with its default, and none besides; its example is a configuration."""

from __future__ import annotations

import re
import tomllib
from dataclasses import MISSING
from dataclasses import fields as dataclass_fields
from pathlib import Path
from typing import Any

import pytest
from pydantic_core import PydanticUndefined

from ctcore.config import Config as Tracking
from datapath.live import config, config_offload

DOCS = Path(__file__).parents[3] / "docs"
PAGE, ROUTER = (DOCS / "config.md").read_text(), (DOCS / "router.md").read_text()


def told(heading: str, page: str = PAGE) -> dict[str, Any]:
    """Keys of the tables below a heading, each with its default; None where none is written."""
    part = re.split(r"^#", page.split(f"\n{heading}\n", 1)[1], maxsplit=1, flags=re.M)[0]
    rows = re.findall(r"^\| `([\w.]+)` \| (?:`(.*?)`)? ?\|", part, re.M)
    return {key: tomllib.loads(f"value = {default}")["value"] if default else None for key, default in rows}


def defaults(section: type[config.Section], *without: str) -> dict[str, Any]:
    found = {}
    for name, field in section.model_fields.items():
        value = None if field.default is PydanticUndefined else field.default
        found[name] = {} if isinstance(value, config.Section) else value
    return {name: value for name, value in found.items() if name not in without}


SECTIONS = {"iface", "conntrack", "router", "route", "memory", "control", "metrics", "state", "privileges", "offload", "log"}


@pytest.mark.parametrize(
    ("heading", "keys"),
    [
        ("## The node", defaults(config.NodeConfig, *SECTIONS)),
        ("## `[[iface]]`: interfaces", defaults(config.IfaceSection)),
        ("### `filter`", defaults(config.FilterSection)),
        ("## `[memory]`", defaults(config.MemorySection)),
        ("## `[control]`", defaults(config.ControlSection)),
        ("## `[offload]`", defaults(config.OffloadSection)),
        ("### `side`", defaults(config_offload.SideSection)),
    ],
    ids=["node", "iface", "filter", "memory", "control", "offload", "side"],
)
def test_a_section_is_told_as_it_is(heading, keys):
    assert told(heading) == keys


def test_small_sections_stand_in_one_table():
    sections = {"metrics": config.MetricsSection, "state": config.StateSection, "privileges": config.PrivilegesSection, "log": config.LogSection}
    keys = {f"{name}.{key}": value for name, section in sections.items() for key, value in defaults(section).items()}
    assert told("## `[metrics]`, `[state]`, `[privileges]`, `[log]`") == keys


def test_tracking_is_told_as_it_is():
    keys = {}
    for field in dataclass_fields(Tracking):
        if field.name in config._TRACKING:
            keys[field.name] = field.default if field.default is not MISSING else field.default_factory()  # type: ignore[misc]
    assert told("## `[conntrack]`: tracking") == {**keys, "seed": None}, "without a seed a node draws one"


def test_every_section_is_named():
    assert set(config.NodeConfig.model_fields) - set(told("## The node")) == SECTIONS
    assert all(f"`[{name}]`" in PAGE or f"`[[{name}]]`" in PAGE for name in SECTIONS)


def test_the_router_s_keys_are_on_its_page():
    for section in (config.RouterSection, config.RouteSection):
        for key in section.model_fields:
            assert re.search(rf"^\|[^|]*`{key}`", ROUTER, re.M), key


def test_the_example_is_a_configuration(tmp_path):
    (example,) = re.findall(r"^```toml\n(.*?)^```$", PAGE, re.M | re.S)
    (tmp_path / "node.toml").write_text(example)
    found = config.load(str(tmp_path / "node.toml"))
    assert [(iface.name, iface.inward, iface.filter.all) for iface in found.iface] == [("eth0", "eth1", True), ("eth1", "eth0", True)]
