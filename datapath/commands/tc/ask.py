"""Rules put into the kernel's TC and listed from it, in one network namespace.

A part that the kernel refuses is a Refusal: the part, what the kernel says, and the attribute it says it of, in a line that begins with where the
part is written. What was refused does not keep the others out.
Not here: which parts are to be there (whoever calls), messages (encode, decode), sockets (offload.netlink.channel).
"""

from __future__ import annotations

import errno
from collections.abc import Callable, Iterable, Iterator, Sequence
from types import TracebackType
from typing import NamedTuple, TypeVar

from datapath.commands.tc.decode import Decoder, Foreign, Installed, Tallied
from datapath.commands.tc.encode import Encoder, Part
from datapath.pipeline import rules as tc
from datapath.pipeline.tc_print import qdisc_line, rule_line, template_line
from offload.netlink.attributes import TC
from offload.netlink.channel import Channel
from offload.netlink.extack import Answer
from offload.netlink.filters import TCMSG, dump_chains, dump_filters, dump_qdiscs
from offload.netlink.links import links, running
from offload.netlink.read import read

Found = TypeVar("Found")
AT_ONCE = 1024  # messages made before they are sent


class Refusal(NamedTuple):
    """A part of a ruleset that the kernel has not taken."""

    part: Part
    answer: Answer

    def told(self) -> str:
        """FILE:LINE: the part as tc has it: what the kernel says, and what it takes."""
        return f"{self.about()}: {self.answer.advised()}"

    def about(self) -> str:
        """FILE:LINE: the part as tc has it."""
        place = str(self.part.place)
        return ": ".join([*([place] if place else []), line_of(self.part)])


class Unsaid(str):
    """What there are no words for in a rules file: what it has. place: of a filter, its hook, chain, prio and handle; None: of a template."""

    place: tuple[tc.Hook, int, int, int] | None = None


class Listed(NamedTuple):
    """What the kernel has at some hooks. foreign: what is no rule of ours."""

    qdiscs: tuple[tc.Qdisc, ...]
    templates: tuple[tc.Template, ...]
    rules: tuple[Installed, ...]
    foreign: tuple[Unsaid, ...]


def line_of(part: Part) -> str:
    if isinstance(part, tc.Qdisc):
        return qdisc_line(part)
    return template_line(part) if isinstance(part, tc.Template) else rule_line(part)


def hooks_of(qdisc: tc.Qdisc) -> Iterator[tc.Hook]:
    """Where chains hang that belong to a qdisc: blocks instead of a device's hooks, where it has them."""
    for direction, block in (("ingress", qdisc.ingress_block), ("egress", qdisc.egress_block)):
        if block is not None:
            yield tc.Hook("", "", block)
        elif direction == "ingress" or qdisc.kind == "clsact":
            yield tc.Hook(qdisc.device, direction)


class KernelTc:
    """TC of the network namespace that this thread is in now. cookie: marks what is ours. A context manager."""

    def __init__(self, cookie: bytes = b"") -> None:
        self.channel = Channel()
        self.numbers = links(self.channel)
        self.encoder = Encoder(self.numbers.__getitem__, cookie)
        self.names = {number: name for name, number in self.numbers.items()}
        self.decoder = Decoder(self.names.__getitem__)

    def look_again(self) -> None:
        """Interfaces may be others by now."""
        found = links(self.channel)
        self.numbers.clear()
        self.numbers |= found
        self.names.clear()
        self.names |= {number: name for name, number in found.items()}

    def running(self) -> dict[str, bool]:
        """Of each interface whether packets come through."""
        return running(self.channel)

    def __enter__(self) -> KernelTc:
        return self

    def __exit__(self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None) -> None:
        self.channel.close()

    # --- making -----------------------------------------------------------------------------------------------------------------------

    def make(self, ruleset: tc.Ruleset) -> list[Refusal]:
        """Qdiscs, templates and rules, in this order. Raises NetlinkError if the kernel does not answer."""
        refused: list[Refusal] = []
        for parts in (ruleset.qdiscs, ruleset.templates, ruleset.rules):
            refused += self.each(parts)
        return refused

    def remove(self, rules: Iterable[tc.Rule]) -> list[Refusal]:
        return self.each(rules, "delete")

    def each(self, parts: Iterable[Part], do: str = "add") -> list[Refusal]:
        """do: add, replace (rules), or delete: a qdisc or a template's chain with all that is in it."""
        refused: list[Refusal] = []
        sent: list[tuple[Part, bytes]] = []
        for part in parts:
            try:
                sent.append((part, self._request(part, do)))
            except KeyError as error:
                refused.append(Refusal(part, Answer(errno.ENODEV, f"no interface {error.args[0]}")))
            except ValueError as error:  # what no message can say
                refused.append(Refusal(part, Answer(errno.ERANGE, str(error))))
            if len(sent) == AT_ONCE:
                refused += self._ask(sent)
                sent = []
        return refused + self._ask(sent)

    def _request(self, part: Part, do: str) -> bytes:
        if do == "delete":
            return self.encoder.removal(part)
        if isinstance(part, tc.Qdisc):
            return self.encoder.qdisc(part)
        return self.encoder.template(part) if isinstance(part, tc.Template) else self.encoder.rule(part, replace=do == "replace")

    def _ask(self, sent: Sequence[tuple[Part, bytes]]) -> list[Refusal]:
        answers = self.channel.ask([request for _, request in sent])
        return [Refusal(part, answer) for (part, _), answer in zip(sent, answers, strict=True) if answer.error]

    # --- listing ----------------------------------------------------------------------------------------------------------------------

    def listed(self, hooks: Iterable[tc.Hook]) -> Listed:
        """All that hangs at hooks, and the qdiscs of their devices. Raises NetlinkError, Malformed, KeyError for a device that is not there."""
        hooks = tuple(hooks)
        devices = {hook.device for hook in hooks if hook.block is None}
        foreign: list[Unsaid] = []
        told = map(self.decoder.qdisc, self.channel.whole(dump_qdiscs()))
        qdiscs = [found for found in told if found is not None and found.device in devices]
        templates: list[tc.Template] = []
        rules: list[Installed] = []
        for hook in hooks:
            where = self.encoder.where(hook)
            for data in self.channel.whole(dump_chains(where)):
                templates += self._try(self.decoder.template, data, foreign)
            for data in self.channel.whole(dump_filters(where)):
                rules += self._try(self.decoder.rule, data, foreign, hook)
        return Listed(tuple(qdiscs), tuple(templates), tuple(rules), tuple(foreign))

    def hooks(self) -> list[tc.Hook]:
        """Every hook of this namespace that has a qdisc for filters, and every block; of interfaces as they were when they were last looked at."""
        found: dict[tc.Hook, None] = {}
        for data in self.channel.whole(dump_qdiscs()):
            qdisc = self.decoder.qdisc(data)
            if qdisc is not None:
                found |= dict.fromkeys(hooks_of(qdisc))
        return list(found)

    def tallied(self, hooks: Iterable[tc.Hook]) -> list[Tallied]:
        """What the rules at hooks have counted, without the rules themselves: for many of them, often."""
        listed = (data for hook in hooks for data in self.channel.whole(dump_filters(self.encoder.where(hook), terse=True)))
        return [found for data in listed if (found := self.decoder.tallied(data)) is not None]

    @staticmethod
    def _try(decoded: Callable[[bytes], Found | None], data: bytes, foreign: list[Unsaid], hook: tc.Hook | None = None) -> Iterator[Found]:
        try:
            found = decoded(data)
        except Foreign as error:
            foreign.append(Unsaid(error))
            if hook is not None:
                _, _, handle, _, info = TCMSG.unpack_from(data)
                foreign[-1].place = hook, read(TC, data[TCMSG.size :]).get("CHAIN", 0), info >> 16, handle
            return
        if found is not None:
            yield found
