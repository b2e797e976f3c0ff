"""The tables as pyroute2's classes: what they encode is what we pack, and they decode it to the same values."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from offload.netlink import actions, classes, filters
from offload.netlink.attributes import ACTION, FLOWER, TC, Form
from offload.netlink.pack import attribute, text, u32
from offload.netlink.read import read

NUMBERS = st.sampled_from([(number, name, kind) for number, (name, kind) in FLOWER.attributes.items() if isinstance(kind, Form)])


def decoded(data: bytes):
    message = classes.tcmsg(data=data)
    message.decode()
    return message


@given(st.lists(st.tuples(NUMBERS, st.binary(min_size=16, max_size=16)), unique_by=lambda pair: pair[0][0], max_size=20))
def test_keys_are_read_by_either(pairs):
    options = b"".join(attribute(number, value[: kind.size]) for (number, _, kind), value in pairs)
    body = filters.TCMSG.pack(0, 1, 0, filters.INGRESS_PARENT, 0) + text(1, "flower") + attribute(2, options)
    ours = read(TC, body[filters.TCMSG.size :])["OPTIONS"]
    theirs = decoded(filters.message(filters.NEW_FILTER, 0, body)).get_attr("TCA_OPTIONS")
    assert {name.removeprefix("TCA_FLOWER_") for name, _ in theirs["attrs"]} == ours.keys()
    for (_, name, kind), value in pairs:
        told = theirs.get_attr(f"TCA_FLOWER_{name}")
        if kind.pyroute2.startswith(("uint", "be")):
            assert told == ours[name]
        elif kind.name == "label":
            assert int.from_bytes(bytes(told), "little") == ours[name] == int.from_bytes(value, "little")


def test_actions_are_read_by_either():
    packed = [
        actions.ct(actions.PIPE, actions.COMMIT, 5, (0x42, 0xFF), (1, 3), actions.Nat(actions.NAT_SRC, 4, 0xC0000201, 0xC0000209, (5, 9))),
        actions.pedit(actions.PIPE, [actions.Word(actions.IP4, 8, 0xFF000000, 0xFF000000, actions.ADD)]),
        actions.csum(actions.PIPE, ["ip4h", "tcp"]),
        actions.mirred(actions.STOLEN, actions.EGRESS_REDIRECT, 7),
        actions.gact(actions.goto(9)),
    ]
    data = filters.new_filter(filters.Where(3), filters.Name(1, 2, 0x0800, 4), filters.filter_options(b"", actions.listed(packed, b"ours", 2), 8))
    message = decoded(data)
    assert (message["index"], message["handle"], message["info"] >> 16, message.get_attr("TCA_CHAIN")) == (3, 4, 2, 1)
    acts = [each for _, each in message.get_attr("TCA_OPTIONS").get_attr("TCA_FLOWER_ACT")["attrs"]]
    ct, pedit, csum, mirred, gact = [each.get_attr("TCA_ACT_OPTIONS") for each in acts]
    assert [each.get_attr("TCA_ACT_KIND") for each in acts] == ["ct", "pedit", "csum", "mirred", "gact"]
    assert {bytes(each.get_attr("TCA_ACT_COOKIE")) for each in acts} == {b"ours"}
    assert {each.get_attr("TCA_ACT_HW_STATS")["selector"] for each in acts} == {2}
    assert (ct.get_attr("TCA_CT_ZONE"), ct.get_attr("TCA_CT_MARK_MASK"), ct.get_attr("TCA_CT_NAT_IPV4_MAX")) == (5, 0xFF, "192.0.2.9")
    assert ct.get_attr("TCA_CT_NAT_PORT_MIN") == 5
    assert pedit.get_attr("TCA_PEDIT_KEYS_EX")["attrs"][0][1].get_attr("TCA_PEDIT_KEY_EX_CMD") == 1
    assert csum.get_attr("TCA_CSUM_PARMS")["update_flags"] == 9
    assert (mirred.get_attr("TCA_MIRRED_PARMS")["eaction"], mirred.get_attr("TCA_MIRRED_PARMS")["ifindex"]) == (1, 7)
    assert gact.get_attr("TCA_GACT_PARMS")["action"] == 0x20000009


@pytest.mark.parametrize("kind", ["u32", "matchall"])
def test_options_of_others_stay_bytes(kind):
    body = filters.TCMSG.pack(0, 1, 0, 0, 0) + text(1, kind) + attribute(2, u32(1, 5))
    assert bytes(decoded(filters.message(filters.NEW_FILTER, 0, body)).get_attr("TCA_OPTIONS"))[-4:] == b"\5\0\0\0"


def test_what_classes_encode_we_read():
    message = classes.tcmsg()
    message["index"] = 5
    key = [["TCA_FLOWER_KEY_CT_STATE", 9], ["TCA_FLOWER_KEY_CT_STATE_MASK", 9], ["TCA_FLOWER_KEY_IPV4_SRC", "10.0.0.1"]]
    act = [["TCA_ACT_KIND", "ct"], ["TCA_ACT_OPTIONS", {"attrs": [["TCA_CT_ZONE", 7], ["TCA_CT_PARMS", {"action": 3}]]}]]
    options = {"attrs": [*key, ["TCA_FLOWER_ACT", {"attrs": [["TCA_ACT_1", {"attrs": act}]]}]]}
    message["attrs"] = [["TCA_KIND", "flower"], ["TCA_CHAIN", 3], ["TCA_OPTIONS", options]]
    message.encode()
    told = read(TC, bytes(message.data)[16 + filters.TCMSG.size :])
    assert (told["CHAIN"], told["OPTIONS"]["KEY_CT_STATE"], told["OPTIONS"]["KEY_IPV4_SRC"]) == (3, 9, 0x0A000001)
    (one,) = told["OPTIONS"]["ACT"]
    assert (one["KIND"], one["OPTIONS"]["ZONE"], one["OPTIONS"]["PARMS"]["action"]) == ("ct", 7, 3)
    assert ACTION.numbers["KIND"] == 1
