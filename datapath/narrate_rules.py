"""One packet's way through rules as lines for people: hook after hook, chain after chain, rule after rule, action after action.

Not here: finding things out (explain_rules, watched). Every line is what the capture holds, what a rule says, or what was done, in words.
"""

from __future__ import annotations

from collections.abc import Iterator

from ctcore.reasons import NAMES, REASONS
from ctcore.types import Offload, Reason, RewriteFlag, Status, Verdict
from datapath import dissect, fields
from datapath.announced import appeared, expectation_text
from datapath.explain_rules import Ruled
from datapath.frame import LINK_ETHERNET, frames_of
from datapath.hints import counted
from datapath.leave import CHANGES
from datapath.names import printable
from datapath.narrate import conn_text, packet_line
from datapath.narrate_ct import ct_lines, stranger_text
from datapath.offload_words import WHY_NOT
from datapath.pipeline.flower_keys import SHOWN_STATES, ethertype_text, match_text
from datapath.pipeline.interpret import SECOND, Walk
from datapath.pipeline.rules import CT_STATES, ETH_IPV6, FIELD, Ct, Hook, Match, Mirred, Police, Rule, innermost
from datapath.pipeline.tc_print import action_text
from datapath.stages import Line
from datapath.watched import At, Done, Missed, Policed, Told, Turn
from datapath.wire import parse_batch

UNTIL_ASSURED = "tracked until it is assured, and served from then on"
SENTENCES = {reason.name: reason.sentence for reason in REASONS}


def rules_lines(it: Ruled) -> Iterator[Line]:
    """Everything about one packet and the rules."""
    yield "packet", packet_line(it.name, it.number, it.frame)
    yield from _headers(it)
    went = " it went out by, as the capture says" if it.at.walk.hook.direction == "egress" else ""
    where = f", by {'the' if went else 'its'} interface '{printable(it.iface)}'{went}" if it.iface == it.at.walk.hook.device else ""
    yield "arrives", hook_text(it.at.walk.hook) + where
    if it.served is not None and it.served.served:
        yield "", "no rule has tracked it: the flow table has served it; this is the way through the rules that such a packet takes"
    if it.slow:
        yield "", f"all packets before it have gone through the rules one by one, since {it.slow}"
    yield from _at_hook(it, it.at)
    yield from _result(it)
    yield from _flow_table(it)


def hook_text(hook: Hook) -> str:
    return f"block {hook.block}" if hook.block is not None else f"dev {printable(hook.device)} {hook.direction}"


def place_text(rule: Rule) -> str:
    return f"{printable(rule.place.file.rpartition('/')[2])}:{rule.place.line}"


def _headers(it: Ruled) -> Iterator[Line]:
    yield "link", dissect.link_line(it.data, int(it.frame["link"]))
    memory, frames = frames_of([it.data], link=int(it.frame["link"]))
    frames["len"] = it.frame["len"]
    batch = parse_batch(memory, frames, checksum=False, fragments="passed", at_hook=True)
    packet, l4 = batch.array[0], batch.l4_bytes(0)
    if not packet["key"]["family"]:
        return
    ip = it.data[int(packet["l3_off"]) :]
    yield "ip", dissect.ip_line(ip)
    proto, offset = int(packet["key"]["proto"]), dissect.fragment_offset(ip)
    if offset:
        yield fields.proto_name(proto), dissect.later_fragment_line(offset)
    elif l4 and dissect.has_header(proto, l4):
        yield fields.proto_name(proto), dissect.l4_line(proto, l4, int(packet["l4_len"]))


# --- hooks, chains, rules --------------------------------------------------------------------------------------------------------------


def _at_hook(it: Ruled, at: At) -> Iterator[Line]:
    """All of one hook."""
    for turn in at.turns:
        yield from _turn(it, at, turn)


def _turn(it: Ruled, at: At, turn: Turn) -> Iterator[Line]:
    label = f"chain {turn.chain}"
    if turn.empty:
        yield label, "has no rules: it passes"
    for tried in turn.tried:
        for text in [*_missed(tried.missed, tried.n_missed), f"{_rule_name(tried.rule)} matches: {_matches_text(tried.rule)}"]:
            yield label, text
            label = ""
        if not tried.rule.actions:
            yield "", "it has no actions: it passes"
        for done in tried.done:
            yield from _done(it, at, done)
    passed_over = [*_missed(turn.missed, turn.n_missed), *(["no rule of the chain is left: it passes"] if _falls_through(at, turn) else [])]
    for text in passed_over:
        yield label, text
        label = ""


def _falls_through(at: At, turn: Turn) -> bool:
    """Whether the chain ended without a rule that said how."""
    return not turn.empty and turn is at.turns[-1] and at.walk.decided is None and at.walk.verdict == "pass"


def _rule_name(rule: Rule) -> str:
    return f"{place_text(rule)} (prio {rule.prio})"


def _matches_text(rule: Rule) -> str:
    inner = innermost(rule.protocol, rule.matches)
    words = [f"protocol {ethertype_text(rule.protocol)}", *(_match_text(match, inner) for match in rule.matches)]
    return " ".join(words)


def _match_text(match: Match, inner: int) -> str:
    return f"indev {printable(match.device)}" if match.name == "indev" else match_text(match, inner)


def _missed(missed: list[Missed], total: int) -> Iterator[str]:
    for one in missed:
        yield f"{_rule_name(one.rule)} does not: {_missed_text(one)}"
    if total > len(missed):
        yield f"and {counted(total - len(missed), 'more rule')} that {'does' if total - len(missed) == 1 else 'do'} not"


def _missed_text(one: Missed) -> str:
    """The first key that differs, and what the packet has there."""
    if one.match is None:
        return f"protocol {ethertype_text(one.rule.protocol)}; the packet has {ethertype_text(one.value) if one.value else 'none'}"
    inner = innermost(one.rule.protocol, one.rule.matches)
    wanted = _match_text(one.match, inner)
    if one.match.name == "indev":
        return f"{wanted}; it is at another device"
    return f"{wanted}; the packet has {_value_text(one.match, one.value, inner)}"


def _value_text(match: Match, value: int, inner: int) -> str:
    """What a packet has, in the words in which a rule would ask for all of it."""
    if match.name == "ct_state":
        return state_text(value)
    name, bits = match.name, FIELD[match.name].bits
    if name in ("src_ip", "dst_ip") and inner != ETH_IPV6:
        bits = 32
    if name in ("src_ip", "dst_ip") and not value:
        return "no address"
    return match_text(Match(name, value, (1 << bits) - 1), inner).removeprefix(f"{name} ")


def state_text(bits: int) -> str:
    """ct_state of a packet: what is set."""
    return "".join(f"+{name}" for name in SHOWN_STATES if bits & CT_STATES[name]) or "-trk"


# --- actions ---------------------------------------------------------------------------------------------------------------------------


def _done(it: Ruled, at: At, done: Done) -> Iterator[Line]:
    yield "action", action_text(done.action)
    if isinstance(done.action, Ct) and not done.action.clear:
        yield from _ct(it, done, done.action)
    elif isinstance(done.action, Ct):
        yield "", "what was said of its connection is forgotten: -trk"
    elif isinstance(done.action, Police) and done.policed is not None:
        yield "", _policed_text(done.action, done.policed)
    for text in _changes(done):
        yield "", text
    if done.verdict == "drop":
        yield "", _reason_text(done.reason)
    if isinstance(done.action, Ct) and done.told is not None:
        yield from ct_lines(it, done.told, done.action)
    if isinstance(done.action, Mirred):
        for onward in done.onward:
            bare = len(onward.turns) == 1 and onward.turns[0].empty
            yield "at", hook_text(onward.walk.hook) + (" has no rules: it passes" if bare else ", where nothing is known of its connection any more")
            yield from () if bare else _at_hook(it, onward)
        if done.onward and not done.verdict:
            yield "at", f"{hook_text(at.walk.hook)} again, with the packet itself"


def _policed_text(action: Police, policed: Policed) -> str:
    """Whether there was a token, and how much was left and needed."""
    if action.longest is not None and policed.length > action.longest:
        return f"it exceeds: {policed.length:,} bytes, and none of more than {action.longest:,} has a token (mtu)"
    of_bytes, of_packets = policed.left
    parts = []
    if action.rate:
        parts.append(f"{of_bytes * action.rate // (8 * SECOND):,} bytes of tokens left, {max(policed.length - policed.free, 0):,} needed")
    if action.packet_rate:
        parts.append(f"{of_packets * action.packet_rate / SECOND:.2f} of a packet's token left, 1 needed")
    return f"it {'exceeds' if policed.exceeded else 'conforms'}: {'; '.join(parts)}"


def _ct(it: Ruled, done: Done, action: Ct) -> Iterator[Line]:
    """What tracking said of it."""
    told, tracked = done.told, done.tracked
    if told is None:
        yield "", _reason_text(done.reason or (tracked.reason if tracked else ""))
        return
    assert tracked is not None
    datagram = getattr(tracked.conn, "datagram", None)
    if datagram is not None:
        yield "", f"tracked as one datagram of {counted(len(datagram.parts), 'fragment')}; it leaves in fragments again"
    words = [f"ct_state {state_text(tracked.state)}", f"zone {action.zone}"]
    words += [f"mark {tracked.mark:#x}"] if tracked.mark else []
    words += [f"label {tracked.label:#x}"] if tracked.label else []
    yield "", ", ".join(words)
    yield "", _conn_text(it, told, action)
    yield from (("", f"its helper announces {expectation_text(row)}") for row in appeared(told.awaited, told.awaits))
    if told.conn is not None and not told.before and int(told.conn["status"]) & Status.EXPECTED:
        yield "", f"conn {int(told.conn['master'])} has announced it"
    reason = int(told.acted.decision["reason"][0])
    if reason != Reason.R_OK:
        yield "", _reason_text(NAMES[reason])


def _conn_text(it: Ruled, told: Told, action: Ct) -> str:
    number = int(told.acted.decision["conn"][0])
    if told.conn is None:
        if number >= 0:
            return f"conn {number}, which has ended with this packet"
        return "a connection that nobody has committed" if told.acted.association.token is not None else stranger_text(it, told, action)
    text = conn_text(told.conn, it.tracking.config.hz)
    if not told.before:
        return f"{text}: committed by this action"
    return f"{text}: had been committed before" if action.commit else text


def _reason_text(name: str) -> str:
    return f"{name}: {SENTENCES[name]}" if name in SENTENCES else "it is dropped"


def _changes(done: Done) -> Iterator[str]:
    """From what to what an action has changed addresses and ports, or that it has changed other bytes. Of a datagram: of its first fragment's."""
    if done.before == done.after or not done.after or done.verdict == "held":
        return
    datagram = getattr(done.tracked.conn, "datagram", None) if done.tracked is not None else None
    was, now = _ends(done.before if datagram is None else datagram.frame), _ends(done.after)
    found = [f"{side} {was[side]} -> {now[side]}" for side in ("source", "destination") if was and now and was[side] != now[side]]
    if found:
        yield f"translated: {', '.join(found)}" if isinstance(done.action, Ct) else f"changed: {', '.join(found)}"
    elif done.told is not None and int(done.told.acted.rewrite["flags"][0]) & CHANGES:
        helper = int(done.told.acted.rewrite["flags"][0]) & RewriteFlag.REWRITE_EDIT
        yield "its payload is changed by a helper" if helper else "what it carries is translated"
    elif done.told is None:
        yield "its bytes are changed"


def _ends(frame: bytes) -> dict[str, str]:
    packet = parse_batch(*frames_of([frame], link=LINK_ETHERNET), checksum=False, fragments="passed", at_hook=True).array[0]
    if not packet["key"]["family"]:
        return {}
    ends = fields.endpoints(packet["key"].tobytes())
    ports = [ends.get("sport"), ends.get("dport")]
    names = [ends["src"], ends["dst"]]
    whole = [name if port is None else f"[{name}]:{port}" if ":" in name else f"{name}:{port}" for name, port in zip(names, ports, strict=True)]
    return dict(zip(("source", "destination"), whole, strict=True))


# --- the end ---------------------------------------------------------------------------------------------------------------------------


def _result(it: Ruled) -> Iterator[Line]:
    last = it.delivery.last
    yield "result", _end_text(it, last.verdict, last.reason)
    parts = _parts_of_one(it.at, last)
    if len(parts) > 1:
        yield "", f"in {counted(len(parts), 'fragment')}, each on its own; what is told of the end is told of the last"
    for walk in it.delivery.passed:
        if walk is not last and id(walk) not in parts:
            yield "", f"and a copy passes {hook_text(walk.hook)}"
    if it.served is not None and (difference := _differently(it)):
        yield "", difference


def _parts_of_one(at: At, last: Walk) -> set[int]:
    """Where a packet was redirected in fragments: the walks of these (by id), with whatever became of them."""
    for done in (done for turn in at.turns for tried in turn.tried for done in tried.done if done.verdict == "redirect"):
        under = [set(_walks(onward)) for onward in done.onward]
        if len(under) > 1:
            return set().union(*under)
        if under and id(last) in under[0]:
            return _parts_of_one(done.onward[0], last)
    return set()


def _walks(at: At) -> Iterator[int]:
    yield id(at.walk)
    for onward in (onward for turn in at.turns for tried in turn.tried for done in tried.done for onward in done.onward):
        yield from _walks(onward)


def _end_text(it: Ruled, verdict: str, reason: str) -> str:
    last = it.delivery.last
    if verdict == "pass":
        where = f"{hook_text(last.hook)}: " + ("it leaves there" if last.hook.direction == "egress" else "the machine itself gets it")
        by = f", by {place_text(last.decided)}" if last.decided is not None else ""
        pieces = f", in {counted(len(last.pieces), 'fragment')}" if len(last.pieces) > 1 else ""
        return f"passes {where}{pieces}{by}"
    by = f" by {place_text(last.decided)}" if last.decided is not None else ""
    done = "held" if verdict == "held" else "dropped"
    return f"{done} at {hook_text(last.hook)}{by}: {_reason_text(reason)}"


def _differently(it: Ruled) -> str:
    """What the flow table has made of it, if that is something else."""
    assert it.served is not None
    verdict, reason = int(it.served.result["verdict"]), NAMES[int(it.served.result["reason"])]
    last = it.delivery.last
    if (verdict == Verdict.ACCEPT) == (last.verdict == "pass"):
        return ""
    came = f"{fields.VERDICT_NAMES[verdict]} at {it.devices[int(it.served.result['device'])]}"
    return f"with the flow table: {came} ({reason}); what is in the table is tracked liberally, and not packet by packet"


def _flow_table(it: Ruled) -> Iterator[Line]:
    if it.served is None:
        yield "flow table", "not in use (--no-flowtable)"
        return
    conn = f"conn {it.served.conn}"
    since = f" since #{it.served.since:,}" if it.served.since is not None and it.served.since >= 0 else ""
    since = since or (" since a capture before this one" if it.served.since is not None else "")
    told, there = it.served, f"{conn} is in it{since}"
    if told.served:
        yield "flow table", f"served: {there}, so that this packet was not tracked"
    elif told.offload == Offload.OFFLOAD_NONE:
        yield "flow table", "it has no connection of this packet"
    elif told.offload == Offload.OFFLOAD_SOFTWARE:
        yield "flow table", f"tracked, and {there}: its next packets are {'served' if told.assured else UNTIL_ASSURED}"
    elif told.offload == Offload.NOT_ASSURED and told.since is not None:
        rest = "has become assured with this packet: its next packets are served" if told.assured else f"its packets are {UNTIL_ASSURED}"
        yield "flow table", f"tracked ({fields.OFFLOAD_NAMES[told.offload]}): {there}, and {rest}"
    elif told.since is not None:
        yield "flow table", f"tracked ({fields.OFFLOAD_NAMES[told.offload]}): {there}, but does not get this packet: {WHY_NOT[told.offload]}"
    else:
        yield "flow table", f"not served ({fields.OFFLOAD_NAMES[told.offload]}): {WHY_NOT[told.offload]}"
    if told.since is not None and told.timeout not in (-1, _timeout_without(it.at)):
        left = fields.seconds_text(told.timeout, it.tracking.config.hz)
        yield "", f"{left} s left is its deadline, and what records have: a day from its coming into it; above is the time without the flow table"


def _timeout_without(at: At) -> int:
    """What a packet's connection had left behind the last `ct` at its hook (ticks), -1 without one."""
    conns = [done.told.conn for turn in at.turns for tried in turn.tried for done in tried.done if done.told is not None]
    return int(conns[-1]["timeout"]) if conns and conns[-1] is not None else -1
