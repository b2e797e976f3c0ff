"""What the kernel's TC and a NIC take, found out by rules that are tried: made where no packet comes, and deleted at once.

    trials(channel, Where(eth0), to, hardware=True)  ->  flower, chains, exact filters, ct, each with the kernel's answer
    decided(features, of hardware, of software)       ->  pipeline, exact or software, and why not more

Theory of operation: drivers say what they do not take only when they are asked, and differ with firmware and mode; a list of drivers would be wrong.
Trial rules lie in a chain that nothing leads to. With `hardware` they are skip_sw, so that the kernel refuses what the NIC does.
Invariants: what was made is deleted, the qdisc included if it was made for this; chains that exist are left alone.
Not here: features of interfaces (who asks), what is installed then (exact_rules; rules files).
"""

from __future__ import annotations

import socket
from collections.abc import Iterable, Sequence
from typing import NamedTuple

from offload.netlink import actions, filters, flower
from offload.netlink.attributes import TC
from offload.netlink.channel import GROUP, Channel
from offload.netlink.exact import DPORT, DST, SPORT, SRC, Course, Key, Prios, Shape, filling_of, whole
from offload.netlink.extack import LOST, Answer, once
from offload.netlink.filters import TCMSG, Name, Where
from offload.netlink.read import read

PIPELINE, EXACT, SOFTWARE = "pipeline", "exact", "software"
ZONE = 0xCAFE
ESTABLISHED, NEW = 0x0A, 0x09  # TCA_FLOWER_KEY_CT_FLAGS_TRACKED | _ESTABLISHED, | _NEW
MOST_CHAINS = 1 << 16


class Trial(NamedTuple):
    """says: what it is."""

    name: str
    says: str


FLOWER = Trial("flower", "a filter")
COUNTERS = Trial("counters", "its counters")
PLAIN = Trial("exact", "one direction of a connection, to a device")
TRANSLATED = Trial("exact-nat", "the same, translated")
TRANSLATED6 = Trial("exact-nat6", "the same of IPv6")
CHAINS = Trial("chains", "goto chain")
CT = Trial("ct", "action ct, and on in a chain")
STATE = Trial("ct-state", "a match of ct_state and ct_zone")
COMMIT = Trial("ct-commit", "action ct commit with a mark and translation")
TRIALS = (FLOWER, COUNTERS, PLAIN, TRANSLATED, TRANSLATED6, CHAINS, CT, STATE, COMMIT)
# The better way first.
NEEDED = {PIPELINE: {FLOWER, COUNTERS, CHAINS, CT, STATE, COMMIT}, EXACT: {FLOWER, COUNTERS, PLAIN, TRANSLATED, TRANSLATED6}}


class Tried(NamedTuple):
    """A trial and what the kernel said."""

    trial: Trial
    answer: Answer

    @property
    def ok(self) -> bool:
        return not self.answer.error


class Decision(NamedTuple):
    """way: PIPELINE, EXACT or SOFTWARE; why: it is no more than that, in a line for each reason."""

    way: str
    why: tuple[str, ...]


def trials(channel: Channel, where: Where, to: int = 0, *, hardware: bool = False) -> tuple[Tried, ...]:
    """At a hook without shared block. to: the interface that packets would be sent to, 0: the same. Raises NetlinkError."""
    (made,) = channel.ask([filters.new_qdisc(where.ifindex)])
    try:
        chain = _free_chain(channel, where)
        requests = dict(_requests(where, to or where.ifindex, chain, flower.SKIP_SW if hardware else 0))
        answers = dict(zip(requests, channel.ask(list(requests.values())), strict=True))
        try:
            there = answers[FLOWER]
            answers[COUNTERS] = there if there.error else _counters(channel, where, Name(chain, 1, flower.ETH_IP, 1))
        finally:
            names = [Name(chain, number, _protocol(request), 1) for number, request in enumerate(requests.values(), 1)]
            channel.ask([filters.delete_filter(where, name) for name in names])
    finally:
        if not made.error:
            channel.ask([filters.delete_qdisc(where.ifindex)])
    return tuple(Tried(trial, answers[trial]) for trial in TRIALS)


def _requests(where: Where, to: int, chain: int, flags: int) -> Iterable[tuple[Trial, bytes]]:
    """Each in a priority of its own."""
    redirect = actions.mirred(actions.STOLEN, actions.EGRESS_REDIRECT, to)
    ahead = actions.goto(chain + 1)
    nat = actions.Nat(actions.NAT_SRC, 4, 0xC0000201, 0xC0000201, (1024, 2047))
    tcp, established = Key("ip_proto", 6, 0xFF), (Key("ct_state", ESTABLISHED, ESTABLISHED), Key("ct_zone", ZONE, 0xFFFF))
    plain: tuple[tuple[Trial, Sequence[Key], Sequence[actions.Packed]], ...] = (
        (FLOWER, (tcp,), (actions.gact(actions.DROP),)),
        (CHAINS, (tcp,), (actions.gact(ahead),)),
        (CT, (tcp,), (actions.ct(ahead, zone=ZONE, nat=actions.Nat()),)),
        (STATE, (tcp, *established), (redirect,)),
        (COMMIT, (tcp, Key("ct_state", NEW, NEW)), (actions.ct(actions.PIPE, actions.COMMIT, ZONE, (1, 0xFFFFFFFF), nat=nat), redirect)),
    )
    prio = 0
    for trial, keys, does in plain:
        prio += 1
        options = filters.filter_options(flower.keys(flower.ETH_IP, keys), actions.listed(does), flags)
        yield trial, filters.new_filter(where, Name(chain, prio, flower.ETH_IP, 1), options)
    address, other = bytes([192, 0, 2, 1]).ljust(16, b"\0"), bytes([198, 51, 100, 7]).ljust(16, b"\0")
    for trial, family, written in ((PLAIN, 4, 0), (TRANSLATED, 4, SRC | DST | SPORT | DPORT), (TRANSLATED6, 6, SRC | DST | SPORT | DPORT)):
        prio += 1
        # Prios gives IPv6 the next priority, which is the same here as the one before plus one.
        course = Course(where, to, None, bool(flags))
        shape = Shape(course, Prios(chain, prio - (family == 6)), family, flower.TCP, written)
        yield trial, whole(shape, filling_of(1, 0, (address, other, 1, 2), (other, address, 3, 4), 4 if family == 4 else 16))


def _protocol(request: bytes) -> int:
    """The ethertype of a filter's request."""
    return socket.ntohs(TCMSG.unpack_from(request, filters.MESSAGE.size)[4] & 0xFFFF)


def _counters(channel: Channel, where: Where, name: Name) -> Answer:
    """Asked for as often as is sent at once, so that it shows whether that many answers fit."""
    answers = channel.ask([filters.get_filter(where, name)] * GROUP)
    lost = sum(answer is LOST for answer in answers)
    if lost:
        return Answer(LOST.error, f"{lost} of {GROUP} answers did not fit into the socket's buffer: expected a larger net.core.rmem_max")
    return next((answer for answer in answers if answer.error), Answer(0))


def _free_chain(channel: Channel, where: Where) -> int:
    """The first chain that is not there, nor the one behind it: NICs may have few."""
    taken = {read(TC, data[TCMSG.size :]).get("CHAIN", 0) for data in channel.whole(filters.dump_chains(where))}
    taken |= {read(TC, data[TCMSG.size :]).get("CHAIN", 0) for data in channel.whole(filters.dump_filters(where, terse=True))}
    return next(chain for chain in range(1, MOST_CHAINS) if not taken & {chain, chain + 1})


def decided(feature: str, hardware: Sequence[Tried], software: Sequence[Tried] = ()) -> Decision:
    """feature: hw-tc-offload: on, off, or "" where there is none; then nothing was tried in hardware. software: what the kernel takes."""
    missing = once((f"the kernel: {what(each)}", each.answer.advised()) for each in software if not each.ok)
    if feature != "on":
        missing.append("hw-tc-offload is off: ethtool -K DEVICE hw-tc-offload on" if feature == "off" else "the interface has no hw-tc-offload")
        return Decision(SOFTWARE, tuple(missing))
    missing += once((f"the NIC: {what(each)}", each.answer.advised()) for each in hardware if not each.ok)
    bad = {each.trial for each in hardware if not each.ok}
    for way, needed in NEEDED.items():
        if hardware and not bad & needed:
            return Decision(way, tuple(missing))
    return Decision(SOFTWARE, tuple(missing))


def what(tried: Tried) -> str:
    """What was tried."""
    return f"{tried.trial.name} ({tried.trial.says})"
