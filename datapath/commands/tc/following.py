"""A node's rules in the kernel's TC as long as it runs: installed, changed when the node gets others, and put back when somebody has changed them.

    kept = KernelRules(kernel, monitor, ruleset, broken=..., mended=...)       installed, or Unfit
    kept.start(); kept.take(other rules); kept.close()

Theory of operation: what has to be done is found by comparison with what is there (tc.install), each time anew. A thread waits for other rules, and
for what the monitor hears. As soon as something of ours may be missing it looks; and if it is, `broken` is called before anything is done, for then
what the kernel forwards meets no rules any more, and connections have to be software's; `mended` when all is as it should be. What others have put
in the place of a rule of ours is replaced in turn; filters of theirs that packets meet before ours are told once each, and stay. A device that has
gone leaves rules that send packets to it, and go nowhere: all devices that rules name are watched, and waited for. What the kernel refuses is tried
again after a pause that gets longer, and others are blamed only for what has been whole before. The sockets are opened by the maker, and are used
by the thread alone from start() on; what others want to know of them (ask) is done there.
Invariants: `mended` comes once after one `broken` or several, each with a newer reason; whatever goes wrong here is in the log and leads to
`broken`; close() returns within LIMIT seconds.
Order: `broken` has returned before rules are put back, go before other ones come, or are taken away, while connections may be in the kernel; `mended`
comes when all are there.
Not here: which rules a node can have in TC (offload_ways), what becomes of connections (offload_tc).
"""

from __future__ import annotations

import logging
import os
import select
import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from contextlib import suppress
from functools import partial
from queue import Empty, SimpleQueue
from typing import Any, TypeVar

from ctcore.errors import CtmirrorError
from datapath.commands.tc.ask import KernelTc, line_of
from datapath.commands.tc.install import ADD, DELETE, REPLACE, Plan, carried_out, hooks_of, marked, name, ours, planned, taken_away
from datapath.commands.tc.overwritten import Overwritten
from datapath.hints import counted
from datapath.pipeline import rules as tc
from datapath.pipeline.renamed import named_devices
from offload.idle_devices import IdleDevices
from offload.netlink.extack import once
from offload.netlink.filters import BLOCK_IFINDEX
from offload.netlink.links import NEW_LINK
from offload.netlink.monitor import DELETE_LINK, Monitor
from offload.threaded import settle

LOG = logging.getLogger("ctmirror")
LINKS = (NEW_LINK, DELETE_LINK)
LIMIT = 10.0  # seconds that the thread has for ending
SETTLE, MOST_SETTLE = 0.02, 0.5  # seconds in which changes by others are gathered: as long as the last look took, but for these
PAUSE, MOST_PAUSE = 1.0, 64.0  # seconds until what was refused is tried again
PATIENCE = 30.0  # seconds that who asks waits
MOST_SAID = 5  # lines of what is wrong

T = TypeVar("T")


class Unfit(CtmirrorError):
    """Rules that the kernel's TC, or hardware, does not take as they are. lines: why, one for each reason."""

    def __init__(self, lines: Sequence[str]) -> None:
        super().__init__("; ".join(some(lines)))
        self.lines = tuple(lines)


def some(lines: Sequence[str]) -> list[str]:
    more = len(lines) - MOST_SAID
    return [*lines[:MOST_SAID], *([f"and {more:,} more"] if more > 0 else [])]


class KernelRules:
    """Rules in TC. kernel: with MARK as its cookie; keep: they stay at the end; in_hardware: each has to be in a NIC, too; broken: is called with why
    rules are missing, mended when none is: from the thread; idle: is told of devices. Raises Unfit: then nothing is left of them; NetlinkError."""

    def __init__(
        self, kernel: KernelTc, monitor: Monitor, wanted: tc.Ruleset, *, keep: bool = False, in_hardware: bool = False,
        broken: Callable[[str], None] = lambda why: None, mended: Callable[[], None] = lambda: None, pause: float = PAUSE,
        idle: IdleDevices | None = None,
    ) -> None:  # fmt: skip
        self.kernel, self.monitor, self.keep, self.in_hardware = kernel, monitor, keep, in_hardware
        self._want(wanted)
        self.said = ""  # why they are not whole
        self.changes = self.repairs = self.heard = self.refused = 0
        self._broken, self._mended = broken, mended
        self._first_pause, self._pause, self._due = pause, pause, 0.0
        self._hooks: dict[tc.Hook, None] = {}  # where something of ours may be
        self._templates: dict[tc.Template, None] = {}
        self._made: dict[str, tc.Qdisc] = {}
        self.idle = IdleDevices() if idle is None else idle
        self._overwritten = Overwritten()
        self._ahead: tuple[str, ...] = ()  # filters of others that are told
        self._took = 0.0  # seconds of the last look
        self._jobs: SimpleQueue[tuple[Callable[[tc.Ruleset, KernelTc], Any], Future[Any]]] = SimpleQueue()
        self._coming: deque[tc.Ruleset] = deque()
        self._bell = os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC)
        self._at_bell = threading.Lock()  # its number may be another file's when it is closed
        self._ending = False
        self._closed = False
        self._thread: threading.Thread | None = None
        try:
            wrong, self.plan = self._install()
            self._look_at_devices()
        except BaseException:
            self._end()
            raise
        if wrong:
            self.keep = False
            self._end()
            raise Unfit(wrong)

    # --- from any thread ------------------------------------------------------------------------------------------------------------------

    def start(self) -> None:
        self._thread = threading.Thread(target=self._run, name="offload-rules", daemon=True)
        self._thread.start()

    def take(self, wanted: tc.Ruleset) -> None:
        """Go on with these; does not wait."""
        self._coming.append(wanted)
        self._ring()

    def ask(self, job: Callable[[tc.Ruleset, KernelTc], T], patience: float = PATIENCE) -> T:
        """What it makes of the rules and the kernel, in the thread, behind what is being done there. Its exception is raised here; CtmirrorError if
        the thread has ended, or there is no answer."""
        if self._thread is None:
            self.kernel.look_again()
            return job(self.wanted, self.kernel)
        future: Future[T] = Future()
        self._jobs.put((job, future))
        self._ring()
        if self._closed:
            self._refuse_all()
        try:
            return future.result(patience)
        except TimeoutError:
            raise CtmirrorError(f"rules in TC: no answer within {patience:g} s") from None

    def close(self) -> None:
        """Take them away, unless they are to stay; a second time, nothing. A thread that hangs is left behind, and the log says so."""
        if self._thread is None:
            self._end()
            return
        self._ending = True
        self._ring()
        self._thread.join(LIMIT)
        if self._thread.is_alive():
            LOG.error(f"{self._thread.name}: does not end within {LIMIT:g} s: rules may be left in TC")

    def figures(self) -> dict[str, Any]:
        """rules: of the node, in TC; refused: of these, by kernel or hardware; changes: times that the node had others; heard: changes by others;
        repairs: times that something was put back; ahead: filters of others that packets meet before ours."""
        return {
            "rules": len(self.wanted.rules), "refused": self.refused, "changes": self.changes, "heard": self.heard, "repairs": self.repairs,
            "ahead": len(self._ahead), "whole": int(not self.said),
        }  # fmt: skip

    def _ring(self) -> None:
        with self._at_bell:
            if self._bell >= 0:  # it has not ended
                os.eventfd_write(self._bell, 1)

    # --- the thread -----------------------------------------------------------------------------------------------------------------------

    def _run(self) -> None:
        try:
            while not self._ending:
                self._wait()
                if not self._ending:
                    self._attend()
        except BaseException as error:
            LOG.exception("the thread of rules in TC has ended")
            self._break(f"rules in TC are not looked after any more: {error}")
        finally:
            self._end()
            self._refuse_all()

    def _wait(self) -> None:
        poll = select.poll()
        poll.register(self.monitor.socket, select.POLLIN)
        poll.register(self._bell, select.POLLIN)
        poll.poll(max(self._due - time.monotonic(), 0) * 1000 if self.said else None)
        with suppress(BlockingIOError):
            os.eventfd_read(self._bell)

    def _attend(self) -> None:
        """Other rules, changes by others, what is due again, and what is asked."""
        if self._concerned():
            time.sleep(min(max(SETTLE, self._took), MOST_SETTLE))
            self._concerned()
            begun = time.monotonic()
            self._try(self._repair)
            self._took = time.monotonic() - begun
        if self._coming:
            wanted = self._coming.popleft()
            self._try(lambda: self._change(wanted))
            if self._coming:
                self._ring()
        elif self.said and time.monotonic() >= self._due:
            self._try(self._repair)
        self._answer()

    def _try(self, what: Callable[[], list[str]]) -> None:
        """Do it, and say what came of it."""
        try:
            wrong = what()
        except (CtmirrorError, OSError) as error:
            wrong = [str(error)]
        if wrong:
            self._failed(wrong)
        else:
            self._pause = self._first_pause
            if self.said:
                self.said = ""
                self._mended()
        self._look_at_devices()

    def _failed(self, wrong: Sequence[str]) -> None:
        self._break(wrong[0])
        self._due = time.monotonic() + self._pause
        for line in some(wrong):
            LOG.error(f"rules in TC: {line}")
        LOG.error(f"rules in TC are not as they should be: connections are software's; tried again in {self._pause:g} s")
        self._pause = min(2 * self._pause, MOST_PAUSE)

    def _break(self, why: str) -> None:
        before, self.said = self.said, why
        if before != why:
            self._broken(why)

    def _break_for(self, why: str) -> None:
        """Before anything is done; where it is broken already, the reason that was told is the better one."""
        if not self.said:
            self._break(why)

    def _concerned(self) -> bool:
        """Whether anything was heard that may concern what is ours: also of a device that packets are only sent to, of which no filter tells."""
        numbers = {self.kernel.numbers.get(device) for device in {*self._devices, *(hook.device for hook in self._hooks if hook.block is None)}}
        blocks = any(hook.block is not None for hook in self._hooks)
        found = 0
        for change in self.monitor.changes():
            awaited = change.kind in LINKS and None in numbers  # it may be one that is not there, or is not any more
            found += change.ifindex in numbers or (blocks and change.ifindex == BLOCK_IFINDEX) or awaited
            self._overwritten.heard(change)
        if self.monitor.overrun:
            self.monitor.overrun = False
            self._overwritten.unheard()
            found += 1
        self.heard += found
        return found > 0

    def _answer(self) -> None:
        """What is asked, in the order in which it was."""
        with suppress(Empty):
            while True:
                job, future = self._jobs.get_nowait()
                settle(partial(self._asked, job), future)

    def _asked(self, job: Callable[[tc.Ruleset, KernelTc], T]) -> T:
        self.kernel.look_again()
        return job(self.wanted, self.kernel)

    def _refuse_all(self) -> None:
        with suppress(Empty):
            while True:
                _, future = self._jobs.get_nowait()
                if future.set_running_or_notify_cancel():
                    future.set_exception(CtmirrorError("rules in TC are not looked after any more"))

    def _look_at_devices(self) -> None:
        """What is not known of them says nothing of rules."""
        try:
            self.idle.look(self.kernel.running, {hook.device for hook in hooks_of(self.wanted) if hook.block is None})
        except (CtmirrorError, OSError) as error:
            LOG.warning(f"offload: devices cannot be looked at: {error}")

    # --- rules ----------------------------------------------------------------------------------------------------------------------------

    def _want(self, wanted: tc.Ruleset) -> None:
        self.wanted, self._whole = wanted, False  # whether all of these have been there
        self._devices = tuple(dict.fromkeys(device for device, _ in named_devices(wanted)))

    def _install(self, before: str = "") -> tuple[list[str], Plan]:
        """What is wrong, each as a line; nothing is done where something is in the way. before: why it is broken before anything is done."""
        self.kernel.look_again()
        plan = self._planned()
        if plan.conflicts:
            return list(plan.conflicts), plan
        if before and plan.steps:
            self._break_for(before)
        return self._carried_out(plan), plan

    def _planned(self) -> Plan:
        """Raises CtmirrorError if an interface is not there."""
        for device in self._devices:
            if device not in self.kernel.numbers:
                raise CtmirrorError(f"no interface {device}")
        there = [hook for hook in self._hooks if hook.block is not None or hook.device in self.kernel.numbers]
        plan = planned(self.wanted, self.kernel.listed(dict.fromkeys([*there, *hooks_of(self.wanted)])), self._overwritten.names)
        before, self._ahead = self._ahead, plan.ahead
        for line in some([line for line in plan.ahead if line not in before]):
            LOG.error(f"rules in TC: {line}")
        return plan

    def _carried_out(self, plan: Plan) -> list[str]:
        """Where a rule of the node's goes before another one comes, connections are software's meanwhile; what is replaced is there all the time."""
        if self._thread is not None and plan.count(DELETE):
            self._break_for("they are being changed")
        self._hooks |= dict.fromkeys(hooks_of(self.wanted))
        self._templates |= dict.fromkeys(self.wanted.templates)
        self._made |= {step.part.device: step.part for step in plan.steps if step.do == ADD and isinstance(step.part, tc.Qdisc)}
        refused = carried_out(self.kernel, plan)
        wrong = [(each.about(), each.answer.advised()) for each in refused]
        if self.in_hardware and not wrong:
            there = self.kernel.listed(hooks_of(self.wanted)).rules
            wrong = [(line_of(each.rule), "not in hardware") for each in there if ours(each) and not each.in_hw]
        self.refused = len(wrong)
        if not wrong:
            self._whole, self._hooks = True, dict.fromkeys(hooks_of(self.wanted))
            self._overwritten.whole(map(name, map(marked, self.wanted.rules)), lambda which: self.kernel.encoder.where(which[0]))
        return once(wrong)

    def _change(self, wanted: tc.Ruleset) -> list[str]:
        self._want(wanted)
        try:
            wrong, plan = self._install()
        finally:
            self.changes += 1
        if not wrong:
            LOG.info(f"rules in TC: {plan.told()}")
        return wrong

    def _repair(self) -> list[str]:
        """What lacks is put back, and until then it is broken; or what was not taken of the node's own rules is tried again, which nobody else is to
        blame for."""
        changed_by_others = self._whole
        wrong, plan = self._install("others have changed rules in TC")
        if wrong or not plan.steps:
            return wrong
        if not changed_by_others:
            LOG.info(f"rules in TC: taken now that they were tried again: {plan.told()}")
            return []
        self.repairs += 1
        back = plan.count(ADD) + plan.count(REPLACE)
        done = f"{counted(back, 'rule')} put back, {len(plan.steps) - back} other steps"
        LOG.warning(f"rules in TC were changed by others: {done}", extra={"repairs": self.repairs})
        return []

    def _end(self) -> None:
        """Everything is taken away and closed."""
        if self._closed:
            return
        self._closed = True
        try:
            if not self.keep:
                self.kernel.look_again()
                there = [hook for hook in self._hooks if hook.block is not None or hook.device in self.kernel.numbers]
                taken_away(self.kernel, there, self._templates, [made for made in self._made.values() if made.device in self.kernel.numbers])
        except Exception as error:
            LOG.error(f"rules may be left in TC: {error}")
        finally:
            self.monitor.close()
            self.kernel.channel.close()
            with self._at_bell:
                os.close(self._bell)
                self._bell = -1
