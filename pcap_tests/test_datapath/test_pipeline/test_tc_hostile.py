"""Whatever a rules file holds, it gives rules, or errors of one line each; and rules without error can be printed and read again."""

from __future__ import annotations

import shlex

from hypothesis import given
from hypothesis import strategies as st

from datapath.names import printable
from datapath.pipeline import tc_print, yaml_rules
from datapath.pipeline.findings import Findings
from datapath.pipeline.flower_keys import KEYS, REFUSED_KEYS
from datapath.pipeline.header_fields import HEADER_FIELDS, HEADERS
from datapath.pipeline.rules import RuleError
from datapath.pipeline.rules_file import parse
from datapath.pipeline.tc_actions import ACTIONS, CONTROL_WORDS, CSUM_WORDS, SHARED

OTHERS = """
tc qdisc filter chain add replace dev eth0 ingress egress clsact block parent protocol ip ipv6 arp 802.1Q prio pref handle flower skip_sw skip_hw
action zone mark label commit force clear nat src dst addr port helper redirect mirror ex munge set retain decrement and + rate burst mtu
conform-exceed drop/pass / push pop modify id priority queue_mapping ptype host tcp udp icmp 0 1 5 0x10 65536 -1 1/2 1-5 +trk+new -trk 192.0.2.1
192.0.2.0/24 2001:db8::1 02:00:00:00:00:01 10mbit 100k ipv4-tcp-ftp frag/nofirstfrag 1:a ffff: ffff:fff3 request 00ff 0xff/0x0f $x ' " # ; | > \\
"""
FIELDS_OF_PEDIT = {name for _, name in HEADER_FIELDS}
KNOWN = {*KEYS, *REFUSED_KEYS, *HEADERS, *FIELDS_OF_PEDIT, *ACTIONS, *CONTROL_WORDS, *CSUM_WORDS, *SHARED}
WORDS = sorted(KNOWN | set(OTHERS.split()) | {"\n"})
NAMES = st.sampled_from([*WORDS, "rules", "device", "match", "actions", "then"])
LINE = "tc filter add dev eth0 ingress protocol ip flower "


def sound(text: str) -> None:
    """The invariant above, of one text."""
    found = Findings()
    try:
        ruleset = parse(text, "rules", found)
    except RuleError as error:
        found.errors.append(error)
    for line in (*map(str, found.errors), *found.warnings):
        assert line and len(line) < 1000 and line == printable(line)
    if found.errors:
        return
    for again in (tc_print.print_ruleset(ruleset), yaml_rules.dump(ruleset)):
        assert parse(again, "again", found) == ruleset
        assert not found.errors


@given(st.lists(st.sampled_from(WORDS), max_size=30).map(" ".join))
def test_soup_of_known_words(text):
    sound(text)


@given(st.lists(st.sampled_from(WORDS), max_size=12).map(" ".join))
def test_soup_behind_a_sound_beginning(text):
    sound(LINE + text)


@given(st.sampled_from(sorted(ACTIONS)), st.lists(st.sampled_from(WORDS), max_size=8).map(" ".join))
def test_soup_behind_an_action(name, text):
    sound(f"{LINE}action {name} {text}")


@given(st.sampled_from(sorted(KEYS)), st.text(max_size=20))
def test_values_that_are_anything(name, value):
    sound(LINE + name + " " + shlex.quote(value.replace("\0", "")))


@given(st.text(max_size=200))
def test_text_that_is_anything(text):
    sound(text)


SCALARS = st.sampled_from(WORDS) | st.integers() | st.booleans() | st.none()
TREES = st.recursive(
    SCALARS,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(NAMES, inner, max_size=4),
)


@given(st.dictionaries(st.sampled_from(["rules", "qdiscs", "templates", "x"]), TREES))
def test_trees_that_are_anything(tree):
    import yaml

    sound(yaml.safe_dump(tree))


@given(
    st.dictionaries(st.sampled_from(sorted(KEYS)), SCALARS, max_size=4),
    st.lists(st.dictionaries(st.sampled_from(sorted(ACTIONS)), TREES, max_size=1) | SCALARS, max_size=3),
)
def test_trees_in_the_shape_of_rules(match, actions):
    import yaml

    sound(yaml.safe_dump({"rules": [{"device": "eth0", "protocol": "ip", "match": match, "actions": actions}]}))
