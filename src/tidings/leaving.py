"""What becomes of the calls of a handler that do not end: given up, or set aside, and told.

A call is given up where nothing that it still does can count twice: its transaction is closed under it, or its effect
may repeat at any time. Its event has failed then. Elsewhere only the lane is freed. The event waits, and in order its
key with it, until the call has ended, which then counts; or until the process has, which is asked for by its health.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable, Iterable, Sequence
from typing import Any, Final

from tidings import stacks
from tidings.delivery import UNTIL_IT_ENDS, DeadLettered, Decision, Delivery, Retried, deliveries_repr
from tidings.grouping import Work
from tidings.handler import Handler
from tidings.handling import Late
from tidings.limit import Limit
from tidings.policy import decide, describe
from tidings.ports import Claim
from tidings.turn import Turn

log = logging.getLogger("tidings.leaving")

MOST: Final = 8
"""How many calls of a process may be left behind at a time. Then only a new process helps, and it says so."""


class Abandoned(TimeoutError):
    """A call did not end, although its time was long over, and was left behind."""


class Leftovers:
    """The calls of all handlers of a process that were left behind and have not ended."""

    def __init__(self, most: int = MOST) -> None:
        self._most = most
        self._living: set[asyncio.Future[Any]] = set()

    def __len__(self) -> int:
        return len(self._living)

    @property
    def full(self) -> bool:
        return len(self._living) >= self._most

    def add(self, ended: asyncio.Future[Any]) -> None:
        self._living.add(ended)
        ended.add_done_callback(self._living.discard)


class Leaving:
    """Of one handler."""

    def __init__(self, handler: Handler, late: Late, *, fenced: bool, leftovers: Leftovers | None = None) -> None:
        self._position, self._retry = handler.position, handler.rules.retry
        self._seconds, self._patience = handler.rules.timeout, handler.rules.abandon_after
        self.sets_aside = not fenced and bool(handler.rules.once or handler.rules.ordered)
        """What it does can neither be taken back nor be repeated at any time."""
        self._whole = handler.batches
        self.late = late
        self._leftovers = Leftovers() if leftovers is None else leftovers
        self._said_full = False
        self.living = 0
        """Calls that were left behind and have not ended."""
        self.count = 0
        """How many there were."""
        self._over: set[Limit] = set()
        """The limits of the calls that go on although their time is over."""
        self.aside: dict[Delivery, Turn] = {}
        """The events that wait until their call has ended."""
        self._settled: set[Delivery] = set()
        """Of these, whose waiting is settled: they are held somewhere, and their failure counts."""
        self._early: set[Delivery] = set()
        """Whose call ended before that, while its claim closed."""
        self.back: Callable[[Delivery], object] = lambda delivery: None
        """Told of each event whose call has ended while it waited for that."""

    @property
    def stuck(self) -> str:
        """Why only a new process can go on; empty while none is needed."""
        if self.aside:
            return (
                f"a call for {deliveries_repr(list(self.aside))} does not end, and what it does cannot be undone: what"
                " waits for it waits until it ends, or until this process is replaced"
            )
        if self.living and self._leftovers.full:
            return f"{len(self._leftovers)} calls do not end and were left behind; no more can be in this process"
        return ""

    @property
    def overdue(self) -> float:
        """For how many seconds the longest of the calls goes on whose time is over; 0 where none does."""
        now = asyncio.get_running_loop().time()
        return max((now - one.over for one in self._over if one.over is not None), default=0.0)

    def turn(self, group: Sequence[Work], claim: Claim) -> Turn:
        return Turn(
            group,
            claim,
            seconds=self._seconds,
            patience=self._patience,
            may_leave=self._may_leave,
            whole=self._whole,
            late=self._over,
        )

    def _may_leave(self, turn: Turn) -> bool:
        if not self._leftovers.full:
            return True
        if not self._said_full:
            self._said_full = True
            text = "%s: a call does not end, and as %d were left behind already, its lane waits. Restart this process"
            stacks.log_with(log, logging.ERROR, turn.stack, text, self._position, len(self._leftovers))
        return False

    def leave(self, turn: Turn, names: Callable[[Work], Iterable[str]], *, ending: bool) -> Abandoned:
        """Let a call be: give it up, or set its events aside. Returns the failure that it is.

        `names` are those of the keys of an event.
        """
        deliveries, stack, began = [work.delivery for work in turn.works], turn.stack, time.monotonic()
        gives_up = ending or not self.sets_aside
        log_text = self._told(deliveries, gives_up=gives_up, ending=ending)
        stacks.log_with(log, logging.ERROR, stack, "%s", log_text)
        self.living += 1
        self.count += 1
        if gives_up:
            turn.abandon()
        else:
            self.aside.update(dict.fromkeys(deliveries, turn))
            self.late.names.update((name, work.delivery) for work in turn.works for name in names(work))
        ended = turn.ended if gives_up else turn.task
        self._leftovers.add(ended)
        ended.add_done_callback(lambda ended: self._ended(ended, turn, deliveries, began))
        return self._failure(stack)

    def decision(self, error: Exception, delivery: Delivery) -> Decision | None:
        """What becomes of an event that waits until its call has ended; None where it does not."""
        if delivery not in self.aside:
            return None
        return Retried(after=UNTIL_IT_ENDS, reason=describe(error), error=error)

    def settling(self, works: Sequence[Work], *, in_order: bool) -> None:
        """They are settled next. In no order, what has come to the end of its call by now needs not wait."""
        for work in works if self.count else ():
            if not _waits(work.decision):
                continue
            if work.delivery in self.aside:
                self._settled.add(work.delivery)
            elif not in_order:
                self._early.discard(work.delivery)
                work.decision = None

    def settled(self, ended: Sequence[tuple[Delivery, Decision]]) -> None:
        """They are held now, in order, and those go on whose call ended before they were."""
        for delivery, decision in ended if self.count else ():
            if _waits(decision) and delivery not in self.aside:
                if delivery in self._early:
                    self._goes_on(delivery)
                elif delivery.key is not None:
                    self.back(delivery)

    def _goes_on(self, delivery: Delivery) -> None:
        self._settled.discard(delivery)
        self._early.discard(delivery)
        delivery.failures = max(0, delivery.failures - 1)  # what came of it counts, and not that it was late
        self.back(delivery)

    def forget(self, delivery: Delivery) -> None:
        """An event is given back, and so does not wait for its call any more."""
        self._settled.discard(delivery)
        self._early.discard(delivery)
        if (turn := self.aside.pop(delivery, None)) is not None:
            turn.abandon()
            self.late.let_go(delivery)

    def give_up(self) -> list[tuple[Delivery, Decision]]:
        """Wait for no call any more, and say of each event what becomes of it: its failure counts already."""
        asides = dict(self.aside)
        self.aside.clear()
        self._settled.clear()
        self._early.clear()
        self.late.clear()
        ended: list[tuple[Delivery, Decision]] = []
        for delivery, turn in asides.items():
            turn.abandon()
            delivery.failures = max(0, delivery.failures - 1)
            decision = decide(self._failure(), delivery, self._retry)
            if isinstance(decision, DeadLettered) and len(turn.works) > 1:  # which of them it was, is not known
                decision = Retried(after=0.0, reason=decision.reason, error=decision.error)
            ended.append((delivery, decision))
        return ended

    def _failure(self, stack: str = "") -> Abandoned:
        error = Abandoned(f"the handler did not end, {self._patience or 0:g} s after its {self._seconds:g} s were over")
        if stack:
            error.add_note(f"It stood here:\n{stack}")
        return error

    def _told(self, deliveries: Sequence[Delivery], *, gives_up: bool, ending: bool) -> str:
        what = f"{self._position}: the call for {deliveries_repr(deliveries)} did not end"
        if ending:
            return f"{what} when its handler was stopped; it is left behind, and its event is given back"
        what += f", {self._patience or 0:g} s after its {self._seconds:g} s were over"
        if gives_up:
            return f"{what}; it is left behind, and its event has failed"
        return f"{what}; its lane goes on, and its event waits for it. If it never ends, replace this process"

    def _ended(self, ended: asyncio.Future[Any], turn: Turn, deliveries: Sequence[Delivery], began: float) -> None:
        self.living -= 1
        self._said_full = False
        if not ended.cancelled():
            ended.exception()  # looked at, or it would be complained about
        log.warning(
            "%s: the call for %s ended, %.0f s after it was left behind",
            self._position,
            deliveries_repr(deliveries),
            time.monotonic() - began,
        )
        for delivery in deliveries:
            if self.aside.get(delivery) is turn:
                del self.aside[delivery]
                results = {} if delivery.withdrawn else turn.results([delivery])
                self.late.results.update(results)
                if not results:
                    self.late.let_go(delivery)
                if delivery in self._settled:
                    self._goes_on(delivery)
                else:
                    self._early.add(delivery)


def _waits(decision: Decision | None) -> bool:
    return isinstance(decision, Retried) and decision.after == UNTIL_IT_ENDS
