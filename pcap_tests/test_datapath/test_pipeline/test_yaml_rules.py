"""Rules in YAML: the same rules as in tc lines; errors with their places; nothing hostile does harm."""

from __future__ import annotations

import json
import subprocess
import sys
from itertools import pairwise

import pytest

from datapath.pipeline import tc_text, yaml_rules, yaml_text
from datapath.pipeline.findings import Findings
from datapath.pipeline.flower_keys import KEYS
from datapath.pipeline.rules import Place, RuleError
from datapath.pipeline.rules_file import is_yaml, parse
from datapath.pipeline.validate import validate

WHOLE = """\
qdiscs:
  - {device: eth0, kind: clsact, egress_block: 7}
templates:
  - {device: eth0, protocol: ip, chain: 2, match: {dst_ip: 0.0.0.0/24}}
rules:
  # what is not tracked yet
  - device: eth0
    protocol: ip
    prio: 2
    match: {ct_state: -trk, ip_proto: tcp, dst_port: 80-90, src_mac: 12:34:56:12:34:56, ip_ttl: 0x40/0xf0}
    actions:
      - ct: {zone: 5}
      - goto chain 1
  - device: eth0
    protocol: ip
    chain: 1
    prio: 1
    handle: 3
    skip_hw: true
    match: {ct_state: +trk+new, ct_label: 0x0201, ct_mark: 3/3}
    actions:
      - ct: {zone: 5, commit: true, force: true, mark: 1/0xff, label: 1, nat: {src: 192.0.2.1-192.0.2.9, port: 1024-2048}, helper: ipv4-tcp-ftp}
      - ct: {nat: {}}
      - pedit: {munge: [ip ttl decrement, eth dst set 02:00:00:00:00:01]}
      - csum: {of: [udp, ip4h]}
      - skbedit: {mark: 5, priority: "1:a", queue: 3, ptype: host}
      - vlan: {kind: push, id: 5, protocol: 802.1ad, priority: 3}
      - police: {rate: 10mbit, burst: 100k, exceed: drop, then: pipe}
      - mirred: {mirror: eth1, direction: ingress}
      - mirred: {redirect: eth1}
  - {block: 7, actions: [drop]}
"""
SAME = """\
tc qdisc add dev eth0 egress_block 7 clsact
tc chain add dev eth0 ingress protocol ip chain 2 flower dst_ip 0.0.0.0/24
tc filter add dev eth0 ingress protocol ip prio 2 flower ct_state -trk ip_proto tcp dst_port 80-90 src_mac 12:34:56:12:34:56 ip_ttl 64/f0 \
    action ct zone 5 action goto chain 1
tc filter add dev eth0 ingress protocol ip prio 1 chain 1 handle 3 flower skip_hw ct_state +trk+new ct_label 0102 ct_mark 3/3 \
    action ct zone 5 commit force mark 1/0xff label 01 nat src addr 192.0.2.1-192.0.2.9 port 1024-2048 helper ipv4-tcp-ftp \
    action ct nat pipe \
    action pedit ex munge ip ttl decrement munge eth dst set 02:00:00:00:00:01 pipe \
    action csum udp ip4h pipe \
    action skbedit mark 5 priority 1:a queue_mapping 3 ptype host \
    action vlan push id 5 protocol 802.1ad priority 3 \
    action police rate 10mbit burst 100k conform-exceed drop/pipe \
    action mirred ingress mirror dev eth1 \
    action mirred egress redirect dev eth1
tc filter add block 7 flower action drop
"""


def errors(text: str) -> list[str]:
    found = Findings()
    assert is_yaml(text)
    parse(text, "rules.yaml", found)
    return [str(error) for error in found.in_order()]


def one_rule(rest: str) -> str:
    return "rules:\n  - {device: eth0, " + rest + "}\n"


def test_yaml_says_what_tc_lines_say():
    found = Findings()
    assert validate(yaml_rules.parse(WHOLE, "rules.yaml", found), found) == validate(tc_text.parse(SAME, "rules.tc", found), found)
    assert [str(error) for error in found.errors] == []


def test_rules_and_their_parts_know_their_places():
    ruleset = yaml_rules.parse(WHOLE, "rules.yaml", Findings())
    assert ruleset.rules[1].place == Place("rules.yaml", 14, 5)
    assert ruleset.rules[0].parts["dst_port"] == Place("rules.yaml", 10, 44)
    assert ruleset.rules[0].parts["action 1"] == Place("rules.yaml", 13, 9)
    assert (ruleset.qdiscs[0].place.line, ruleset.templates[0].place.line) == (2, 4)


def test_numbers_are_decimal_wherever_they_stand():
    """010 is ten, as YAML has it: by itself, in quotes, beside a mask, and in a mask; 0x10 is sixteen."""
    text = one_rule("protocol: ip, prio: 010, match: {ip_proto: tcp, dst_port: 010, src_port: '010', ct_mark: 010/010, ct_zone: 0x10}, "
                    "actions: [{ct: {commit: true, mark: 010/0x1f}}]")  # fmt: skip
    (rule,) = parse(text, "rules.yaml", Findings()).rules
    assert [rule.prio, *(match.value for match in rule.matches[1:]), rule.matches[-1].mask] == [10, 10, 10, 16, 10, 10]
    assert rule.actions[0].mark == (10, 0x1F)


def test_json_is_yaml():
    text = json.dumps({"rules": [{"device": "eth0", "protocol": "ip", "match": {"ip_proto": 6, "dst_port": 80}, "actions": ["drop"]}]})
    found = Findings()
    (rule,) = parse(text, "rules.json", found).rules
    assert [(match.name, match.value) for match in rule.matches] == [("ip_proto", 6), ("dst_port", 80)]
    assert not found.errors


@pytest.mark.parametrize(
    ("text", "error"),
    [
        ("rules:\n  - device: eth0\n    actions: [drop, {ct: {zoen: 5}}]\n", "3:27: 'zoen: 5': no such key here: did you mean zone?"),
        ("rule: []\n", "1:1: 'rule': no such key here: did you mean rules?"),
        (one_rule("match: {dst_prt: 80}"), "2:28: 'dst_prt: 80': no such key here: did you mean dst_port?"),
        (one_rule("match: {ipproto: tcp}"), "2:28: 'ipproto: tcp': no such key here: did you mean ip_proto?"),
        (one_rule("pio: 5"), "2:20: 'pio: 5': no such key here: did you mean prio?"),
        (one_rule("action: [drop]"), "2:20: 'action': no such key here: did you mean actions?"),
        (one_rule("actions: [{mirrd: {redirect: eth1}}]"), "2:31: 'mirrd': no such key here: did you mean mirred?"),
        (one_rule("actions: [{ct: {commit: true, nat: {scr: 192.0.2.1}}}]"), "2:56: 'scr: 192.0.2.1': no such key here: did you mean src?"),
        ("qdiscs:\n  - {device: eth0, knd: clsact}\n", "2:20: 'knd: clsact': no such key here: did you mean kind?"),
        ("rules: 5\n", "1:1: 'rules: 5': expected a list, each item of it as in `- {device: eth0, protocol: ip, prio: 1, actions: [drop]}`"),
        ("rules:\n  - {protocol: ip}\n", "2:5: expected one of device, block"),
        ("rules:\n  - {device: eth0, block: 3}\n", "2:5: expected one of device, block"),
        (one_rule("protocol: ipq"), "2:20: 'protocol: ipq': expected an ethertype, as in ip, ipv6, arp"),
        (one_rule("prio: 0"), "2:20: 'prio: 0': expected greater than or equal to 1"),
        (one_rule("prio: '5'"), "2:20: 'prio: '5'': expected a number without quotes: 5"),
        (one_rule("skip_sw: yes"), "2:20: 'skip_sw: yes': expected true or false"),
        (one_rule("prio: some"), "2:20: 'prio: some': expected a whole number"),
        (one_rule("match: "), "2:20: 'match': expected keys, as in `match: {ip_proto: tcp, dst_port: 80}`"),
        (one_rule("match: [ip_proto, tcp]"), "2:20: 'match': expected keys, as in `match: {ip_proto: tcp, dst_port: 80}`"),
        (one_rule("actions: drop"), "2:20: 'actions: drop': expected a list: `actions: [drop]`"),
        (one_rule("actions: [5]"), "2:30: '5': expected keys, as in `- drop` or `- ct: {zone: 5}`"),
        (one_rule("actions: [{vlan: pop}]"), "2:31: 'vlan: pop': expected keys, as in `vlan: {kind: pop}`"),
        (one_rule("actions: [{ct: zone 5}]"), "2:31: 'ct: zone 5': expected keys, as in `ct: {zone: 5, commit: true}`"),
        (one_rule("actions: [{mirred: eth1}]"), "2:31: 'mirred: eth1': expected keys, as in `mirred: {redirect: eth1}`"),
        (one_rule("actions: [{ct: {nat: true}}]"), "2:36: 'nat: true': expected keys, as in `nat: {src: 192.0.2.1}`, or `nat: {}`"),
        (one_rule("actions: [{pedit: {munge: ip ttl set 3}}]"), "2:39: 'munge: ip ttl set 3': expected a list: `munge: [ip ttl set 3]`"),
        (one_rule("actions: [{csum: {of: []}}]"), "2:38: 'of': expected at least one"),
        (one_rule("actions: [{vlan: {id: 5}}]"), "2:31: 'vlan': kind is missing: expected it"),
        ("rules: [drop]\n", "1:9: 'drop': expected keys, as in `- {device: eth0,"),
        (one_rule("match: {dst_port: [80, 443]}"), "2:28: 'dst_port': expected one value, or a range, as in 80-90: a rule for each"),
        (one_rule("match: {src_ip: [192.0.2.1]}"), "2:28: 'src_ip': expected one value: a rule for each"),
        (one_rule("protocol: ip, match: {ip_proto: tcp, dst_port: '80,443'}"), "2:57: 'dst_port: '80,443'': expected one value, or a range, as in"),
        (one_rule("match: {bogus: 5}"), "2:28: 'bogus: 5': no such key here: expected one of indev, dst_mac, src_mac, vlan_id"),
        (one_rule("protocol: ip, match: {src_ip: 2001:db8::1}"), "2:42: 'src_ip: 2001:db8::1': expected an IPv4 address, as in 192.0.2.1"),
        (one_rule("match: {src_ip: 192.0.2.1}"), "2:28: 'src_ip: 192.0.2.1': expected protocol ip or ipv6 with it"),
        (one_rule("match: {ct_state: +new}"), "2:28: 'ct_state +new': new is of tracked packets: expected +trk with it"),
        (one_rule("match: {ct_mark: [1]}"), "2:28: 'ct_mark': expected one value: a rule for each"),
        (one_rule("match: {ct_mark: true}"), "2:28: 'ct_mark: true': expected a text or a number"),
        (one_rule("actions: [pas]"), "2:30: 'pas': expected an action, pass, pipe, drop, continue, reclassify or goto chain N"),
        (one_rule("actions: [goto 5]"), "2:30: 'goto 5': expected goto chain N"),
        (one_rule("actions: [jump 5]"), "2:30: 'jump 5': jump skips actions, which no chain needs"),
        (one_rule("actions: [drop now]"), "2:30: 'drop now': expected nothing behind 'drop'"),
        (one_rule("actions: [{ct: {}, csum: {of: [tcp]}}]"), "2:30: expected one of ct, mirred, pedit, csum, skbedit, vlan, police"),
        (one_rule("actions: [{ct: }]"), "2:30: expected a mapping with what the action is to do"),
        (one_rule("actions: [{ct: {zone: 70000}}]"), "2:36: 'zone: 70000': expected less than or equal to 65535"),
        (one_rule("actions: [{ct: {nat: {port: 80}}}]"), "2:36: 'nat': expected one of src, dst"),
        (one_rule("actions: [{ct: {nat: {src: 192.0.2.1}}}]"), "2:30: 'ct': expected commit with nat src"),
        (one_rule("actions: [{mirred: {redirect: eth1, then: drop}}]"), "2:31: 'mirred': expected no `then` with redirect: nothing follows it"),
        (one_rule("actions: [{pedit: {munge: [ip ttl set 300]}}]"), "2:47: 'ip ttl set 300': expected a value from 0 to 255"),
        (one_rule("actions: [{csum: {of: [tpc]}}]"), "2:43: 'tpc': expected 'ip4h', 'icmp', 'igmp', 'tcp', 'udp', 'udplite' or 'sctp'"),
        (one_rule("actions: [{police: {rate: 10mb, burst: 5}}]"), "2:40: 'rate: 10mb': expected a rate, as in 10mbit"),
        (one_rule("actions: [{police: {rate: 1mbit}}]"), "2:30: 'police': burst is missing: expected it with rate"),
        (one_rule("actions: [{police: {packet_burst: 1}}]"), "'police': pkts_rate is missing: expected it with pkts_burst (in YAML packet_rate and"),
        (one_rule("actions: [{vlan: {kind: push}}]"), "2:30: 'vlan': id is missing: expected push with an id"),
        (one_rule("actions: [acept]"), "reclassify or goto chain N; did you mean pass?"),
        (one_rule("device: eth1"), "2:20: 'device': expected it once"),
        ("rules: [\n", "2:1: no YAML: "),
        ("rules: !custom []\n", "1:8: '!custom': expected no tag"),
        ("rules: \x01\n", ": no YAML: "),
        ("? [a]\n: b\n", ""),
        ("{" * 200, ": "),
        ("[" * 100_000, ": no YAML: "),
        ("[" * 200, "1:51: expected at most 50 levels"),
        ("rules: [*one]\n", "1:9: '*one': expected an anchor of this name before it"),
        ("rules: []\n---\nrules: []\n", "2:1: expected one document"),
    ],
)  # fmt: skip
def test_an_error_says_where_and_what_was_expected(text, error):
    found = Findings()
    yaml_rules_only = parse if is_yaml(text) else lambda *told: validate(yaml_rules.parse(*told), found)
    yaml_rules_only(text, "rules.yaml", found)
    shown = [str(each) for each in found.in_order()]
    assert shown
    assert all(each.startswith("rules.yaml:") and "\n" not in each for each in shown)
    assert error in shown[0]


def test_all_errors_are_found_in_their_order():
    text = "rules:\n  - {device: eth0, prio: 0}\n  - {device: eth0, chain: -1, actions: [nothing]}\n"
    assert [error.split(":")[1] for error in errors(text)] == ["2", "3", "3"]


@pytest.mark.parametrize("item", ["prio: 0", "actions: drop", "match: {dst_prt: 80, src_ip: 300.0.0.1}"])
def test_what_is_wrong_with_a_key_hides_nothing_else(item):
    """Neither in the other rules, nor in the other keys to match of the same one."""
    text = one_rule(f"protocol: ip, {item}") + "  - {device: eth1, protocol: ip, match: {ct_state: +new, dst_ip: 1.2.x}}\n"
    text += "  - {device: eth0, bogus: 1}\n  - {device: eth2, protocol: ip, match: {dst_port: 80}}\nqdiscs: [{device: eth0, kind: none}]\n"
    shown = [error.split(":", 3) for error in errors(text)]
    assert [where[1] for where in shown] == ["2", "2", "3", "3", "4", "5", "6"][item[0] != "m" :]
    assert "".join(where[3] for where in shown).count("dst_ip: 1.2.x") == 1


def test_what_is_left_of_a_wrong_file_makes_no_errors_and_no_warnings():
    """A qdisc with an error is there, and so is the chain that a rule with an error is in."""
    text = "qdiscs:\n  - {device: eth0}\n  - {device: eth1, kind: none}\nrules:\n"
    text += "  - {device: eth1, protocol: ip, actions: [goto chain 1]}\n  - {device: eth1, protocol: ip, chain: 1, prio: 0}\n"
    found = Findings()
    parse(text, "rules.yaml", found)
    assert [str(error).split(":")[1] for error in found.in_order()] == ["3", "6"]
    assert not found.warnings


def test_values_of_a_rule_whose_protocol_is_wrong_are_not_judged():
    assert [error.split(":")[2] for error in errors(one_rule("protocol: ipq, match: {src_ip: 2001:db8::1}"))] == ["20"]
    assert len(errors(one_rule("protocol: 802.1q, match: {vlan_ethtype: [ip], src_ip: 2001:db8::1}"))) == 1


@pytest.mark.parametrize("text", ["- {device: eth0, actions: [drop]}\n", "# rules\n-\n  device: eth0\n", "[]", "--- drop\n"])
def test_a_file_that_is_no_mapping_is_told_where_rules_go(text):
    (error,) = errors(text)
    assert "YAML rules go under `rules:`, as in `rules: [{device: eth0," in error


@pytest.mark.parametrize(
    ("text", "place"),
    [
        ("rules:\n\t- {device: eth0}\n", "2:1"),
        ("rules:\n  \t- {device: eth0}\n", "2:3"),
        ("rules:\n  - device: eth0\n\tprio: 1\n", "3:1"),
        ("rules:\n  - device: eth0\n    \tprio: 1\n", "3:5"),
        ("rules:\n  -\tdevice: eth0\n", "2:4"),
    ],
)
def test_a_tab_is_called_one(text, place):
    assert errors(text) == [f"rules.yaml:{place}: no YAML: a tab: expected spaces, YAML takes no tabs to indent lines"]


def test_aliases_are_copied():
    text = "rules:\n  - &one {device: eth0, prio: 1, actions: [&drop drop]}\n  - {device: eth1, prio: 2, actions: [*drop, *drop]}\n"
    found = Findings()
    assert [len(rule.actions) for rule in parse(text, "rules.yaml", found).rules] == [1, 2]


def test_a_list_at_the_top_may_be_an_alias():
    found = Findings()
    ruleset = parse("templates: &all [{block: 1}]\nrules: *all\n", "rules.yaml", found)
    assert not found.errors
    assert ruleset.rules[0].place == ruleset.templates[0].place == Place("rules.yaml", 1, 18)


def test_aliases_of_aliases_end_in_one_line():
    lines = [f"{name}: &{name} [{','.join([f'*{last}'] * 9)}]" for last, name in zip("abcdefgh", "bcdefghi", strict=True)]
    text = "\n".join(["a: &a [x,x,x,x,x,x,x,x,x]", *lines])
    assert errors(text)[0].endswith("levels and 4,000,000 values, aliases counted")


def test_an_alias_of_itself_ends_in_one_line():
    assert errors("rules: &a [*a]\n") == ["rules.yaml:1:12: '*a': expected an anchor of this name before it"]


def test_levels_that_aliases_add_are_counted():
    names = [f"n{i}" for i in range(60)]
    text = "a: &n0 [x]\n" + "".join(f"{name}: &{name} [*{last}]\n" for last, name in pairwise(names))
    assert errors(text) == ["rules.yaml:50:12: expected at most 50 levels and 4,000,000 values, aliases counted"]


def test_places_are_looked_up_only_where_something_is_wrong(monkeypatch):
    """Which takes as long as reading does."""
    looked: list[yaml_text.Loc] = []
    find = yaml_text.Document.find
    monkeypatch.setattr(yaml_text.Document, "find", lambda self, loc: looked.append(loc) or find(self, loc))
    monkeypatch.setattr(yaml_text.Document, "place", lambda self, loc: looked.append(loc))
    assert not errors(WHOLE) and not looked
    assert errors(one_rule("prio: 0")) and looked == [("rules", 0, "prio")]


def test_a_rule_and_its_parts_that_are_aliases_have_places():
    text = "rules:\n  - {device: eth0, prio: 1, match: &one {ct_state: +trk}, actions: [drop]}\n  - {device: eth1, prio: 2, match: *one}\n"
    ruleset = parse(text, "rules.yaml", Findings())
    assert [rule.place.line for rule in ruleset.rules] == [2, 3]
    assert dict(ruleset.rules[1].parts) == {
        "dev": Place("rules.yaml", 3, 6), "prio": Place("rules.yaml", 3, 20), "ct_state": Place("rules.yaml", 2, 42),
    }  # fmt: skip


def test_equal_actions_are_read_once_and_stay_what_they_are():
    text = one_rule("actions: [{ct: {zone: 1}}, {ct: {zone: 1}}, {ct: {commit: true}}]") + "  - {device: eth1, actions: [{ct: {zone: 1}}]}\n"
    first, second = parse(text, "rules.yaml", Findings()).rules
    assert first.actions[0] is first.actions[1] is second.actions[0]
    assert errors(one_rule("actions: [{ct: {zone: '1'}}]"))[0].startswith("rules.yaml:2:36: 'zone: '1'': expected a number without quotes: 1")


def test_the_schema_knows_every_key_and_refuses_others():
    schema = json.loads(yaml_rules.schema_text())
    assert list(schema["$defs"]["Matches"]["properties"]) == list(KEYS)
    assert all(each.get("additionalProperties") is False for each in [schema, *schema["$defs"].values()] if each.get("type") == "object")


def test_defaults_in_the_schema_are_written_as_people_write_them():
    defs = json.loads(yaml_rules.schema_text())["$defs"]
    assert [defs[name]["properties"]["then"]["default"] for name in ("Ct", "Police")] == ["pipe", "pass"]
    assert defs["Rule"]["properties"]["protocol"]["default"] == "all"
    assert defs["Rule"]["properties"]["prio"] == {"maximum": 65535, "minimum": 1, "type": "integer"}
    assert "title" not in defs["Ct"]


def test_without_its_libraries_yaml_is_one_line():
    """And tc lines need none of them."""
    program = (
        "import sys; sys.modules['yaml'] = None\n"
        "from datapath.pipeline.rules_file import parse; from datapath.pipeline.findings import Findings\n"
        "found = Findings(); parse('tc filter add dev a ingress flower action drop', 'x', found); assert not found.errors\n"
        "assert 'pydantic' not in sys.modules\n"
        "parse('rules: []', 'x', found); print(found.errors[0])\n"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout == f"{yaml_text.MISSING}\n"


def test_rules_without_anything_are_yaml_too():
    found = Findings()
    assert parse(yaml_rules.dump(parse("", "x", found)), "x", found) == parse("", "x", found)
    assert not found.errors


@pytest.mark.parametrize("text", ["rules: []", "{}", "---\nrules: []", '"rules": []', "# c\n\nqdiscs:\n", "%YAML 1.2\n---\n{}"])
def test_yaml_is_recognised(text):
    assert is_yaml(text)


@pytest.mark.parametrize("text", ["", "tc filter add", "# tc\nfilter add", "tc: a", "ip link", "\x00"])
def test_all_else_is_tc_lines(text):
    assert is_yaml(text) == text.startswith("tc:")


def test_a_missing_file_is_one_line(tmp_path):
    from datapath.pipeline.rules_file import load

    with pytest.raises(RuleError, match="cannot be read: No such file or directory"):
        load(str(tmp_path / "nothing"))
    (tmp_path / "bytes").write_bytes(b"tc filter\n\xff\n")
    with pytest.raises(RuleError, match=r"bytes:2: byte 10 is no UTF-8: expected tc lines or YAML"):
        load(str(tmp_path / "bytes"))
