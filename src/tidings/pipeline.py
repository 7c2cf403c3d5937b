"""The life of a delivery, top to bottom: read, claim, handle, decide, settle.

Read `Pipeline.process` first; everything below it is one of its steps, in order. A batch is the unit, and a batch of
one is the ordinary case. Three rules hold on every path, and the fault walk under ``tests/`` takes all of them:

* each delivery is settled once, or kept in its lane, or reported as unsettled;
* nothing is acknowledged before its effect is durable: committed, known as a duplicate, or stored as a copy;
* a key is marked done only when its handler has returned and what it caused is stored.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable, Sequence
from typing import Final

from tidings import points
from tidings.calls import Calls, say_halved
from tidings.claims import Claimer
from tidings.delivery import Decision, Delivery, Retried
from tidings.errors import Contention, StoreUnavailable, TransactionEnded, WorldError
from tidings.grouping import Grouping, Work, keep_failures
from tidings.handler import Handler
from tidings.handling import Handling, we_are_cancelled
from tidings.leaving import Abandoned, Leaving, Leftovers
from tidings.newer import Newer
from tidings.order import Holds
from tidings.policy import describe
from tidings.ports import Broker, State
from tidings.reading import look_again, read
from tidings.settling import COPY_PAUSE, COPY_TIMEOUT, Settler, kinds_of
from tidings.supervision import ends_all
from tidings.turn import Failed, Left, Turn

log = logging.getLogger("tidings.pipeline")

CRASH_PAUSE: Final = 5.0
"""How long a batch stays away over which the pipeline itself, not a handler, failed."""


class Pipeline:
    """Brings the deliveries of one handler to their end, batch by batch."""

    def __init__(
        self,
        handler: Handler,
        *,
        broker: Broker,
        claimer: Claimer,
        handling: Handling,
        settler: Settler,
        together: int,
        leftovers: Leftovers | None = None,
    ) -> None:
        self._handler = handler
        self.rules = handler.rules
        self._broker = broker
        self._claimer = claimer
        self._handling = handling
        self.settler = settler
        self._holding = settler.holding
        self.leaving = Leaving(handler, handling.late, fenced=claimer.fenced, leftovers=leftovers)
        self._grouping = Grouping(together, blames_nobody=handler.batches and self.leaving.sets_aside)
        self.newer = Newer(handler.position, handler.reader.types, broker)
        self.calls = Calls(handler, claimer, handling)
        self.fence: Callable[[], str] = str  # see `ports.Fenced`; nothing is begun while it has something to say
        self.broken = ""  # why the handler must not run any more: it ended its transaction

    async def process(
        self, batch: Sequence[Delivery], holds: Holds | None = None, *, more: bool = False
    ) -> tuple[list[Delivery], str]:
        """Take a batch to its end; return what could not be begun, and why: the world is down, or we are stopping.

        With `holds` the order of keys is kept: what waits for its next attempt, or behind such an event, stays there,
        unsettled. While `more` waits, the broker may not have been told yet (`Settler.settled`). Raises nothing but
        cancellation or a mistake in here; whatever was neither decided nor held has been given back then.
        """
        began = time.monotonic()
        works = read(batch, self._handler, self._grouping)
        try:
            if trouble := await self._trouble(self._look_up(batch, works, in_place=holds is not None)):
                return list(batch), trouble
            while True:
                if any([work.decision for work in works]):
                    await self._settle(works, holds, began, more)
                if self._holding is not None and self._holding.keep_back(works, holds):
                    continue
                if trouble or self.calls.stopping or self.fence() or not (group := self._grouping.next(works, holds)):
                    break
                if group[0].event is None:  # for newer code; nothing is before it that has its key
                    group[0].decision = self.newer.put_off(group[0].delivery)
                    continue
                trouble = await self._trouble(self._attempt(group))
        except BaseException as error:
            if ends_all(error):
                raise
            self._grouping.next(works, holds)  # what follows a held event stays behind it
            cancelled = isinstance(error, asyncio.CancelledError)
            after, reason = (0.0, "shutdown") if cancelled else (CRASH_PAUSE, describe(error))
            for work in works:
                self.leaving.forget(work.delivery)
                work.decision = Retried(after=after, reason=reason, counted=False)
            await self._settle(works, None, began)
            raise
        return [work.delivery for work in works], trouble

    async def _look_up(self, batch: Sequence[Delivery], works: list[Work], *, in_place: bool) -> None:
        if self._grouping.unasked:
            self._grouping.unasked = False
            await self.newer.look_at(works, ordered=in_place)
            if not in_place:
                await self.settler.counts.note_survivors(one.delivery for one in works if type(one.decision) is Retried)
        if await self.settler.counts.ready(batch, in_place=in_place):
            look_again(works, self._handler, self._grouping)

    async def _trouble(self, step: Awaitable[None]) -> str:
        """Take a step, or say why it cannot be taken just now."""
        try:
            await step
        except (WorldError, TransactionEnded) as error:
            self.broken = describe(error) if isinstance(error, TransactionEnded) else ""
            return describe(error)
        return ""

    # ── claim and handle: the decisions of a group count only once its claim has closed ─────────────────────────────

    async def _attempt(self, group: list[Work]) -> None:
        try:
            async with self._claimer.open(group) as claim:
                points.at(points.AFTER_CLAIM)
                turn = self.leaving.turn(group, claim)
                await self._handle_all(turn)
                if turn.caused and not await claim.emit([message for _, message in turn.caused]):
                    await self._publish(turn)
        except Failed as failed:
            if not failed.named:
                self._grouping.fewer(group)
            if not failed.culprits:
                return self._halve(group, failed.error)
            for work, error in failed.culprits:
                work.failure = work.decision or self.calls.decide(error, work)
        except WorldError as error:
            if isinstance(error, Contention):
                self._grouping.locked(group)
            raise
        except asyncio.CancelledError as error:
            if we_are_cancelled():
                raise
            raise StoreUnavailable("the store or the broker cancelled what it was asked for") from error
        except Exception as error:
            self._grouping.fewer(group)
            self._halve(group, error)
        else:
            self._grouping.more()
            for index, decision in turn.decided.items():
                group[index].decision = decision
        finally:
            keep_failures(group, self.calls.names)

    def _halve(self, group: list[Work], error: Exception) -> None:
        if len(group) == 1:
            group[0].decision = group[0].decision or self.calls.decide(error, group[0])
        elif not isinstance(error, Abandoned):
            say_halved(self._handler.position, group, error)
        self._grouping.halve(group, alone=isinstance(error, Abandoned))

    async def _handle_all(self, turn: Turn) -> None:
        """Handle what is new, in a task of its own. What is left out stays undecided."""
        try:
            await turn.run(self.calls.run(turn))
        except Left as left:
            turn.claim.cut()
            error = left.error or self.leaving.leave(turn, self.calls.names, ending=left.cancelled is not None)
            if left.cancelled is not None:
                raise left.cancelled from None
            for work in turn.works:
                work.decision = self.leaving.decision(error, work.delivery)
            if self._claimer.shared or self._handling.at_once:
                raise Failed(turn.works, error) from None
            at = turn.group.index(turn.works[0])
            self.calls.failed(turn, at, error)
            for index in range(at + 1, len(turn.group)):
                self.calls.pass_over(turn, index)

    async def _publish(self, turn: Turn) -> None:
        """Without a SQL store the broker has stored what was caused before the claim is marked done.

        Where it has not, the event is not done either, and what must wait for it is handled again after it.
        """
        errors = await self._broker.publish([message for _, message in turn.caused], timeout=COPY_TIMEOUT)
        failed = {index: error for (index, _), error in zip(turn.caused, errors, strict=True) if error is not None}
        left_out: set[str] = set()
        for index in sorted(turn.decided) if failed else ():
            work = turn.group[index]
            if (error := failed.get(index)) is not None:
                if self._claimer.shared:
                    raise Failed([work], error)
                turn.decided[index] = self._decide_unpublished(error, work)
            elif left_out and not left_out.isdisjoint(self.calls.names(work)):
                del turn.decided[index]
            else:
                continue
            left_out.update(self.calls.names(work))
            if turn.claim.states[index].state is State.NEW:
                turn.claim.fail(index)

    def _decide_unpublished(self, error: Exception, work: Work) -> Decision:
        if isinstance(error, WorldError):  # the broker's failure, not the event's
            return Retried(after=COPY_PAUSE, reason=describe(error), counted=False)
        return self.calls.decide(error, work)

    # ── settle ──────────────────────────────────────────────────────────────────────────────────────────────────────

    async def _settle(self, works: list[Work], holds: Holds | None, began: float, more: bool = False) -> None:
        """Take out what was decided, and let it be told; a cancelled lane still tells the broker about its work."""
        self.leaving.settling(works, in_order=holds is not None)
        ended = [(work.delivery, work.decision) for work in works if work.decision is not None]
        works[:] = [work for work in works if work.decision is None] if len(ended) < len(works) else ()
        kinds = kinds_of(ended)
        self.settler.judge(ended)
        telling = self.settler.settle(ended, holds, began, kinds)
        if self.settler.tells_at_once(kinds):
            await telling
        else:
            settling = asyncio.ensure_future(telling)
            if self.settler.may_be_told_later(kinds, holds, more):
                return await self.settler.let_go(settling, ended, kinds, holds)
            try:
                await asyncio.shield(settling)
            except asyncio.CancelledError:
                await asyncio.wait({settling}, timeout=2 * COPY_TIMEOUT)
                raise
        if holds is not None:
            self.leaving.settled(ended)
