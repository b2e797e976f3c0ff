"""Whose device is which: files, annotations, templates; names that Linux takes, each once."""

from __future__ import annotations

from hashlib import sha256

import pytest

from datapath.pipeline.policy.devices import attach, read_mapping
from datapath.pipeline.policy.errors import PolicyError
from datapath.pipeline.policy.objects import Pod


def pod(name, **annotations):
    return Pod("shop", name, {}, (), node="n1", annotations={f"ctmirror/{key}": value for key, value in annotations.items()})


def test_without_anything_the_name_is_made_of_a_hash_and_zones_follow_the_names():
    found = attach([pod("web"), pod("db")])
    assert {title: tuple(each) for title, each in found.items()} == {
        "shop/db": ("veth" + sha256(b"shop/db").hexdigest()[:11], 1),
        "shop/web": ("veth" + sha256(b"shop/web").hexdigest()[:11], 2),
    }


def test_a_file_counts_before_annotations_and_those_before_the_template(tmp_path):
    (tmp_path / "devices.yaml").write_text("shop/a: eth0\nshop/b: {device: eth1, zone: 7}\nshop/c: {zone: 1}\nelsewhere/x: eth9\n")
    pods = [pod("a", device="no", zone="9"), pod("b", zone="8"), pod("c", device="pf0vf2"), pod("d")]
    found = attach(pods, "{namespace}-{name}-{node}", read_mapping(str(tmp_path / "devices.yaml")))
    assert {title: tuple(each) for title, each in found.items()} == {
        "shop/a": ("eth0", 9),
        "shop/b": ("eth1", 7),
        "shop/c": ("pf0vf2", 1),
        "shop/d": ("shop-d-n1", 2),
    }


def test_a_device_may_be_a_function_of_a_nic():
    assert attach([pod("a", device="pf0vf3@0000:08:00.0")])["shop/a"].device == "pf0vf3@0000:08:00.0"


@pytest.mark.parametrize(
    ("pods", "template", "expected"),
    [
        ([pod("a")], "{namespace}-{name}-toolong", "--device-of '{namespace}-{name}-toolong': shop/a: 'shop-a-toolong': expected a device's name of"),
        ([pod("a")], "{uid}", "--device-of '{uid}': '{uid}': expected {namespace}, {name}, {node} or {hash}"),
        ([pod("a"), pod("b")], "{node}", "--device-of '{node}': shop/b: 'n1' is the device of shop/a; expected a device for each pod"),
        ([pod("a", device="a/b")], "x", "annotations of pod shop/a: 'a/b': expected a device's name"),
        ([pod("a", device="..")], "x", "annotations of pod shop/a: '..': expected a device's name"),
        ([pod("a", device="a b;\n")], "x", "annotations of pod shop/a: 'a b;\\x0a': expected a device's name"),
        ([pod("a", zone="0")], "x", "annotations of pod shop/a: zone '0': expected a number from 1 to 65535"),
        ([pod("a", zone="-1")], "x", "zone '-1': expected a number"),
        ([pod("a", zone="5"), pod("b", zone="5")], "{name}", "annotations of pod shop/b: zone 5 is that of shop/a; expected a zone for each pod"),
    ],
)
def test_what_cannot_be_a_device_or_a_zone(pods, template, expected):
    if "toolong" in template:
        template, expected = template.replace("toolong", "longer-than-15"), expected.replace("toolong", "longer-than-15")
    with pytest.raises(PolicyError) as error:
        attach(pods, template)
    assert str(error.value).startswith(expected) or expected in str(error.value)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("- a", "expected a mapping of NAMESPACE/POD to a device"),
        ("web: eth0", "'web': expected NAMESPACE/POD: DEVICE"),
        ("shop/web: {dev: eth0}", "'shop/web': expected NAMESPACE/POD: DEVICE"),
        ("shop/web: [", "no YAML"),
    ],
)
def test_a_mapping_that_is_wrong(tmp_path, text, expected):
    (tmp_path / "devices.yaml").write_text(text)
    with pytest.raises(PolicyError, match=r"devices\.yaml") as error:
        read_mapping(str(tmp_path / "devices.yaml"))
    assert expected in str(error.value)


def test_there_are_no_more_zones_than_sixteen_bits_hold():
    with pytest.raises(PolicyError, match="expected at most 65,535"):
        attach([pod(f"p{i}") for i in range(65536)])
