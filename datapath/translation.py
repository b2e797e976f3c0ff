"""The stage of an explained packet in which its addresses are translated: which rule decided, what was chosen from, and why this and nothing else.

Not here: deciding (the engine has), the other stages (narrate). Which rule matches and which ports there were to search, the model is asked; what
stood in the way is looked up among the connections there were before the packet.
Invariant: what is said to be chosen is what the connection has, or the packet left with; only the reason is worked out here.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np

from ctcore.model import nat, nat_choice
from ctcore.model.conn import Key
from ctcore.nat_rules import NatRule
from ctcore.types import Dir, Manip, Reason, RewriteFlag, State, Status
from datapath import fields
from datapath.app import end_text
from datapath.explain import Explained, find_conn, inverse_of
from datapath.rule_text import rule_text

Line = tuple[str, str]
SRC, DST = Manip.MANIP_SRC, Manip.MANIP_DST
NOUN: dict[int, str] = {SRC: "source", DST: "destination"}
ENDS: dict[int, tuple[str, str]] = {SRC: ("src", "sport"), DST: ("dst", "dport")}
PORTS = ("sport", "dport", "id", "key")


def nat_lines(it: Explained) -> Iterator[Line]:
    """What translation did with the packet, if there are any rules."""
    reason = int(it.decision["reason"])
    exhausted = reason == Reason.R_NAT_EXHAUSTED
    if not it.tracking.config.nat or it.decision["state"] == State.INVALID or (it.conn is None and not exhausted):
        return
    if it.error:
        yield "nat", _error_text(it)
    elif exhausted or it.begins:
        yield from _decided(it)
    elif it.had is not None and not int(it.had["status"]) & (Status.SRC_NAT | Status.DST_NAT):
        yield "nat", "not translated: its first packet was not"
    else:
        yield "nat", "as its first packet was: " + ", ".join(_changes(it))
    if it.rewrite is not None and it.rewrite["flags"] & RewriteFlag.REWRITE_SEQ:
        yield "", _moved_text(it, it.rewrite)
    if (out := out_of(it)) is not None:
        yield "leaves", f"as {out['src']} > {out['dst']}" + "".join(f" {name} {out[name]}" for name in PORTS if out.get(name) is not None)


def _moved_text(it: Explained, rewrite: np.void) -> str:
    """By how much numbers are moved, since a helper has made payload before them longer or shorter."""
    seq, ack = int(rewrite["seq_delta"]), int(rewrite["ack_delta"])
    if it.error:
        return f"and moved like a segment of it, as in Linux: the last word of its header by {seq:+}, the first one that it quotes by {ack:+}"
    came = int(it.packet["seq"]), int(it.packet["ack"])
    parts = [f"{name} {old} -> {(old + by) & 0xFFFFFFFF}" for name, old, by in zip(("seq", "ack"), came, (seq, ack), strict=True) if by]
    return f"numbers moved by what a helper has changed before: {', '.join(parts)}"


def out_of(it: Explained) -> fields.Record | None:
    """What the packet leaves with where that is something else."""
    if it.rewrite is None:
        return None
    return dict(fields.outs(np.asarray(it.key).reshape(1), np.asarray(it.rewrite).reshape(1))).get(0)


def _changes(it: Explained) -> Iterator[str]:
    """The halves of the packet's own tuple that differ."""
    out = out_of(it)
    came = fields.endpoints(it.key.tobytes())
    for manip, (address, port) in ENDS.items():
        if out and (out[address] != came[address] or out.get(port) != came.get(port)):
            yield f"{NOUN[manip]} {end_text(came, address, port)} -> {end_text(out, address, port)}"


def _error_text(it: Explained) -> str:
    if it.decision["reason"] == Reason.R_NAT_ICMP:
        return "this error cannot be translated, and is dropped"
    if it.about is None or out_of(it) is None:
        return "not translated: the connection it is about is not"
    return "as the connection it is about: " + ", ".join(_changes(it)) + "; the packet it quotes the other way round"


def _decided(it: Explained) -> Iterator[Line]:
    """Both halves of a new connection's tuple, in the order of their decision."""
    leaving = it.row.key
    chosen = Key.of(it.conn["flow"][Dir.REPLY]["key"].tobytes()).inverted() if it.conn is not None else None
    for label, manip in (("nat", DST), ("", SRC)):
        rule = next((rule for rule in it.tracking.config.nat if rule.source == (manip == SRC) and nat.matches(rule, leaving)), None)
        after = None if chosen is None else with_half(leaving, chosen, manip)
        yield label, f"{NOUN[manip]}: {half_text(it, leaving, after, rule, manip)}"
        leaving = after or leaving


def with_half(leaving: Key, chosen: Key, manip: int) -> Key:
    """The tuple once one half is decided. An ICMP id is changed with the source at the latest."""
    if manip == SRC:
        return chosen
    return leaving._replace(dst=chosen.dst, dport=leaving.dport if leaving.proto in fields.WITH_TYPE else chosen.dport)


def half_text(it: Explained, leaving: Key, after: Key | None, rule: NatRule | None, manip: int) -> str:
    by = f"{rule.kind} {rule.text or rule_text(rule)}" if rule else "no rule matches"
    if after is None:
        return f"{by}: nothing free was found in it" if rule else f"{by}, and without one nothing free was found" if manip == SRC else by
    if after == leaving:
        return f"{by}: {_end(leaving, manip)} kept" + (", which lies in the range and is free" if rule else "")
    return f"{by}: {_end(leaving, manip)} -> {_end(after, manip)}, {_why(it, leaving, after, nat_choice.choice_of(rule, leaving, manip), manip)}"


def _end(key: Key, manip: int) -> str:
    ends = fields.endpoints(key.raw())
    text = end_text(ends, *ENDS[manip])
    return text if manip == SRC else text.removesuffix(f" id {ends.get('id')}")


def _why(it: Explained, leaving: Key, after: Key, choice: nat_choice.Choice, manip: int) -> str:
    """Why this address and port."""
    if manip == SRC and not choice.random and not choice.holds(leaving):
        other = _mapping(it, leaving, after)
        if other is not None:
            return f"as conn {other['flow'][Dir.ORIG]['id']} of the same source has it"
    several = choice.low is not None and choice.low != choice.high
    parts = ["the address by a hash of the source" + ("" if choice.persistent else " and the destination")] if several else []
    if not nat_choice.has_port(leaving.proto):
        return ", ".join(parts) or "by its address alone"
    old = nat_choice.port_of(leaving, manip)
    name = "id" if leaving.proto in fields.WITH_TYPE else "port" if leaving.proto in fields.WITH_PORTS else "key"
    if nat_choice.port_of(after, manip) == old:
        return ", ".join([*parts, f"{name} kept"])
    return ", ".join([*parts, _search_text(it, leaving, after, choice, manip, f"{name} {old}")])


def _search_text(it: Explained, leaving: Key, after: Key, choice: nat_choice.Choice, manip: int, what: str) -> str:
    """Why a port was searched, and where. what: the one the packet came with."""
    if choice.ports and choice.ports[0] == choice.ports[1]:
        return "the only one of the range"
    space = nat_choice.ports_to_search(leaving, choice, manip, announced=int(it.conn["master"]) >= 0) or (0, 0xFFFF)
    name, where = what.split()[0], f"{space[0]}-{space[1]}"
    start = "the lowest" if manip == DST and not choice.random else "a random one"
    searched = f"the first free one of {where} from {start} on"
    if choice.random:
        return f"{searched}: the rule asks for another {name}"
    if choice.ports and not nat_choice.port_within(leaving, choice.ports, manip):
        return f"{searched}: {what} is not among them"
    holder = _holder(it, nat_choice.with_port(after, manip, nat_choice.port_of(leaving, manip)))
    return f"{searched}: {what} is taken" + (f" by conn {holder['flow'][Dir.ORIG]['id']}" if holder is not None else "")


def _holder(it: Explained, leaving: Key) -> Any:
    """Whose tuple the answers to packets leaving so would have had."""
    answer = inverse_of(np.frombuffer(leaving.raw(), it.key.dtype)[0])
    return None if answer is None else find_conn(it.others, answer)


def _mapping(it: Explained, leaving: Key, after: Key) -> Any:
    """The latest connection there was of the same source that has been given the same one."""
    source = nat.source_of(leaving._replace(zone=int(it.conn["flow"][Dir.ORIG]["key"]["zone"])))
    for conn in it.others[np.argsort(-it.others["flow"]["id"][:, Dir.ORIG])]:
        original, reply = (Key.of(conn["flow"][d]["key"].tobytes()) for d in Dir)
        if nat.source_of(original) == source and (reply.dst, nat.answer_to(reply).sport) == (after.src, after.sport):
            return conn
    return None
