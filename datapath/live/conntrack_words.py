"""conntrack(8)'s options as what a node is asked, and its lines for what comes back.

Invariant: an option that means nothing for a command is an error, never ignored.
Not here: the command's declarations (commands.conntrack), the lines themselves (export).
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from ipaddress import ip_network
from pathlib import Path
from typing import Any

from ctcore.errors import CtmirrorError
from datapath.export import NUMBERS, conntrack_line
from datapath.fields import Record
from datapath.live.message import Message

LABEL_NAMES = Path("/etc/xtables/connlabel.conf")
MOST_LABEL = 127
# Words of -u: as a condition, the bits that are set, and those that are not; and whether they can be set by -U.
STATUS = {
    "ASSURED": (["assured"], []), "SEEN_REPLY": (["seen-reply"], []), "UNREPLIED": ([], ["seen-reply"]), "FIXED_TIMEOUT": (["fixed-timeout"], []),
    "EXPECTED": (["expected"], []), "CONFIRMED": (["confirmed"], []), "SRC_NAT": (["snat"], []), "DST_NAT": (["dnat"], []),
    "HELPER": (["helper"], []), "OFFLOAD": (["offload"], []), "HW_OFFLOAD": (["hw-offload"], []), "UNASSURED": ([], ["assured"]),
}  # fmt: skip
SETTABLE = ("ASSURED", "SEEN_REPLY", "FIXED_TIMEOUT")
EVENTS = {"NEW": ["new"], "UPDATES": ["update"], "DESTROY": ["destroy"], "ALL": ["new", "update", "destroy"]}
OUTPUTS = ("json", "extended", "timestamp", "id", "labels")
FAMILIES = {"ipv4": 4, "ipv6": 6}
# Options that are a field of `which` as they are.
PLAIN = ("src", "dst", "reply_src", "reply_dst", "sport", "dport", "reply_sport", "reply_dport", "zone", "l4state")

NETWORKS = {"src": "-s", "dst": "-d", "reply_src": "-r", "reply_dst": "-q"}


def proto_number(text: str) -> int:
    """A protocol by name or number."""
    number = NUMBERS.get(text.lower(), int(text) if text.isdecimal() else -1)
    if not 0 <= number <= 255:
        raise CtmirrorError(f"-p {text}: expected a protocol, as tcp, or its number")
    return number


def number_of(option: str, text: str, most: int) -> int:
    """A whole number, also in hexadecimal."""
    try:
        number = int(text, 0)
    except ValueError:
        number = -1
    if not 0 <= number <= most:
        raise CtmirrorError(f"{option} {text}: expected a whole number from 0 to {most}")
    return number


def value_and_mask(option: str, text: str) -> tuple[int, int]:
    """VALUE[/MASK]."""
    value, _, mask = text.partition("/")
    return number_of(option, value, 0xFFFFFFFF), number_of(option, mask or "0xffffffff", 0xFFFFFFFF)


def statuses(text: str) -> tuple[list[str], list[str]]:
    """ASSURED,UNREPLIED,...: status names that are set, and that are not."""
    yes: list[str] = []
    no: list[str] = []
    for word in text.upper().split(","):
        if word not in STATUS:
            raise CtmirrorError(f"-u {word}: expected {', '.join(STATUS)}")
        yes += STATUS[word][0]
        no += STATUS[word][1]
    return yes, no


def label_names() -> dict[str, int]:
    """Names of label bits on this machine, which xtables and conntrack(8) know as well. None where there is no such file."""
    try:
        text = LABEL_NAMES.read_text(errors="replace")
    except OSError:
        return {}
    found = re.findall(r"^\s*(\d+)\s+(\S+)", text, re.MULTILINE)
    return {name: int(bit) for bit, name in found if int(bit) <= MOST_LABEL}


def label_bits(option: str, text: str) -> int:
    """Names or numbers of bits, separated by commas; as a mask."""
    names, bits = label_names(), 0
    for word in text.split(","):
        bit = names.get(word, int(word) if word.isdecimal() else -1)
        if not 0 <= bit <= MOST_LABEL:
            raise CtmirrorError(f"{option} {word}: expected bits from 0 to {MOST_LABEL}, or their names in {LABEL_NAMES}")
        bits |= 1 << bit
    return bits


def kinds_of(text: str) -> list[str]:
    kinds: list[str] = []
    for word in text.upper().split(","):
        if word not in EVENTS:
            raise CtmirrorError(f"-e {word}: expected {', '.join(EVENTS)}")
        kinds += EVENTS[word]
    return sorted(set(kinds))


def outputs_of(words: Iterable[str]) -> set[str]:
    """What -o asks for."""
    wanted = {word for text in words for word in text.split(",")}
    for word in sorted(wanted - set(OUTPUTS)):
        raise CtmirrorError(f"-o {word}: " + ("xml is not made here: expected json" if word == "xml" else f"expected {', '.join(OUTPUTS)}"))
    return wanted


def which_of(given: Mapping[str, Any], *, updating: bool) -> Message:
    """What is asked for, as a request's `which`. With -U, marks, labels and status are what is to be set instead."""
    which: Message = {name: given[name] for name in PLAIN if given.get(name) is not None}
    for name, option in NETWORKS.items():
        if name in which:
            _check_network(option, which[name])
    if "l4state" in which:
        which["l4state"] = which["l4state"].upper()
    if given.get("family"):
        which["family"] = FAMILIES[given["family"]]
    if given.get("proto") is not None:
        which["proto"] = proto_number(given["proto"])
    status, unset = statuses(given["status"]) if given.get("status") and not updating else ([], [])
    if not updating and given.get("mark") is not None:
        which["mark"], which["mark_mask"] = value_and_mask("-m", given["mark"])
    if not updating and given.get("label") is not None:
        which["label"] = which["label_mask"] = hex(label_bits("-l", given["label"]))
    for option, bit, field in (("src_nat", "snat", "reply_dst"), ("dst_nat", "dnat", "reply_src")):
        address = given.get(option)
        if address is not None:
            status.append(bit)
            if address and which.setdefault(field, address) != address:
                raise CtmirrorError(f"--{option.replace('_', '-')} {address}: contradicts --{field.replace('_', '-')} {which[field]}")
    if given.get("any_nat") is not None:
        which["translated"] = given["any_nat"] or "any"
    which |= {"status": status} if status else {}
    which |= {"not_status": unset} if unset else {}
    return which


def _check_network(option: str, text: str) -> None:
    try:
        ip_network(text)
    except ValueError:
        raise CtmirrorError(f"{option} {text}: expected an address, or a network without bits behind its prefix, as in 10.0.0.0/8") from None


def change_of(given: Mapping[str, Any]) -> Message:
    """What -U is to set."""
    change: Message = {}
    if given.get("mark") is not None:
        value, mask = value_and_mask("-m", given["mark"])
        if value & ~mask:
            raise CtmirrorError(f"-m {given['mark']}: expected a value without bits outside of its mask")
        change |= {"mark": value, "mark_mask": mask}
    if given.get("timeout") is not None:
        change["timeout"] = given["timeout"]
    if given.get("status"):
        words = given["status"].upper().split(",")
        if wrong := [word for word in words if word not in SETTABLE]:
            raise CtmirrorError(f"-u {wrong[0]}: Linux lets it not be set: expected {', '.join(SETTABLE)}")
        change["status"] = statuses(given["status"])[0]
    added = label_bits("--label-add", given["label_add"]) if given.get("label_add") else 0
    added |= label_bits("-l", given["label"]) if given.get("label") else 0
    gone = given.get("label_del")
    gone = 0 if gone is None else (1 << MOST_LABEL + 1) - 1 if gone == "" else label_bits("--label-del", gone)
    if added | gone:
        change |= {"label": hex(added), "label_mask": hex(added | gone)}
    if not change:
        raise CtmirrorError("-U: nothing to change: expected -m, -t, -u, -l, --label-add or --label-del")
    return change


def line_of(record: Record, outputs: set[str], names: Mapping[int, str]) -> str:
    """A connection or an event as conntrack(8) has it. names: of label bits."""
    parts = [f"[{record['ts'] // 10**9}.{record['ts'] // 1000 % 10**6:06d}]\t"] if "timestamp" in outputs and "ts" in record else []
    parts.append(conntrack_line(record, extended="extended" in outputs))
    labels = int(record["labels"], 16)
    if "labels" in outputs and labels:
        bits = [bit for bit in range(MOST_LABEL + 1) if labels >> bit & 1]
        parts.append(f" labels={','.join(names.get(bit, str(bit)) for bit in bits)}")
    parts += [f" id={record['conn']}"] if "id" in outputs else []
    return "".join(parts)
