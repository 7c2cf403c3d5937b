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
from collections.abc import Callable, Sequence
from typing import Final

from tidings import points
from tidings.claims import Claimer
from tidings.delivery import DeadLettered, Decision, Delivery, Done, Duplicate, Message, Retried
from tidings.errors import Contention, StoreUnavailable, TransactionEnded, WorldError
from tidings.grouping import UNLIMITED, Grouping, Work
from tidings.handler import Handler
from tidings.handling import Handling, we_are_cancelled
from tidings.limit import Limit
from tidings.order import Holds
from tidings.policy import BUSY_PAUSE, decide, describe
from tidings.ports import Broker, Claim, Claimed, State
from tidings.reading import read
from tidings.settling import COPY_PAUSE, COPY_TIMEOUT, Settler

log = logging.getLogger("tidings.pipeline")

DONE: Final = Done()
BATCH_SECONDS: Final = 0.05
"""A batch closes after this much time in handlers, so that what is done is settled soon."""

CRASH_PAUSE: Final = 5.0
"""How long a batch stays away over which the pipeline itself, not a handler, failed."""

Decided = dict[int, Decision]
Caused = list[tuple[int, Message]]  # with the place in the group of the event that caused it


class _Failed(Exception):
    """A call that failed, and takes back what is not its own: the others of its transaction, or of its batch."""

    def __init__(self, works: list[Work], error: Exception) -> None:
        super().__init__()
        self.works, self.error = works, error


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
    ) -> None:
        self._handler = handler
        self.rules = handler.rules
        self._broker = broker
        self._claimer = claimer
        self._handling = handling
        self.settler = settler
        self._holding = settler.holding
        self._grouping = Grouping(together)
        self.stopping = False  # set to end after the event that runs now: what is not begun is handed back undecided
        self.lenient = False  # the kill switch is off: what fails counts for nothing
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
        works = [read(delivery, self._handler, self._grouping) for delivery in batch]
        trouble = ""
        try:
            await self.settler.counts.ready(batch, in_place=holds is not None)
            while True:
                if any(work.decision for work in works):
                    await self._settle(works, holds, began, more)
                if self._holding is not None and self._holding.keep_back(works, holds):
                    continue
                if self.stopping or self.fence() or not (group := self._grouping.next(works, holds)):
                    break
                await self._attempt(group)
        except (WorldError, TransactionEnded) as error:
            trouble = describe(error)
            self.broken = trouble if isinstance(error, TransactionEnded) else ""
            if any(work.decision for work in works):
                await self._settle(works, holds, began)
        except (Exception, asyncio.CancelledError) as error:
            self._grouping.next(works, holds)  # what follows a held event stays behind it
            after, reason = (CRASH_PAUSE, describe(error)) if isinstance(error, Exception) else (0.0, "shutdown")
            for work in works:
                work.decision = Retried(after=after, reason=reason, counted=False)
            await self._settle(works, None, began)
            raise
        return [work.delivery for work in works], trouble

    # ── claim and handle: the decisions of a group count only once its claim has closed ─────────────────────────────

    async def _attempt(self, group: list[Work]) -> None:
        decided: Decided = {}
        try:
            async with self._claimer.open([(work.delivery, work.event) for work in group]) as claim:
                points.at(points.AFTER_CLAIM)
                caused = await self._handle_all(group, claim, decided)
                if caused and not await claim.emit([message for _, message in caused]):
                    await self._publish(group, caused, claim, decided)
        except _Failed as failed:
            self._grouping.fewer(group)
            if len(failed.works) > 1:
                return self._halve(group, failed.error)
            (work,) = failed.works
            work.failure = self._decide(failed.error, work)
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
            for index, decision in decided.items():
                group[index].decision = decision
        finally:
            self._keep_failures(group)

    def _keep_failures(self, group: list[Work]) -> None:
        """What failed has failed, also where the rest was taken back; but not behind what it has to wait for."""
        for index, work in enumerate(group):
            failure, work.failure = work.failure, None
            if failure is not None and work.decision is None:
                before = {name for earlier in group[:index] for name in self._names(earlier)}
                if before.isdisjoint(self._names(work)):
                    work.decision = failure
                work.first = True

    def _halve(self, group: list[Work], error: Exception) -> None:
        if len(group) == 1:
            group[0].decision = self._decide(error, group[0])
        elif group[0].most == UNLIMITED:
            text = "%s: %d events failed together and are handled in halves, to find the one that fails: %s"
            log.warning(text, self._handler.position, len(group), describe(error))
        self._grouping.halve(group)

    async def _handle_all(self, group: list[Work], claim: Claim, decided: Decided) -> Caused:
        """Handle what is new, and return what it caused. What is left out stays undecided."""
        caused: Caused = []
        together: list[int] = []
        left_out: set[str] = set()
        closes = time.monotonic() + BATCH_SECONDS
        with Limit(self._handler.rules.timeout) as limit:
            for index, work in enumerate(group):
                if (
                    claim.states[index].state is not State.NEW
                    or (index and (self.stopping or time.monotonic() > closes))
                    or (left_out and not left_out.isdisjoint(self._names(work)))
                ):
                    self._pass_over(index, work, claim, decided, left_out)
                elif self._handling.at_once:
                    together.append(index)
                else:
                    try:
                        messages = await self._handling.handle(work.event, work.delivery, claim, limit)
                    except Exception as error:
                        if self._claimer.shared and not (len(group) > 1 and self._claimer.undone(claim, error)):
                            raise self._blamed([work], error) from error
                        claim.fail(index)
                        decided[index] = decision = self._decide(error, work)
                        work.failure = decision if self._claimer.shared else None
                        left_out.update(self._names(work))
                    else:
                        decided[index] = DONE
                        if messages:
                            caused.extend((index, message) for message in messages)
            if together:
                works = [group[index] for index in together]
                try:
                    caused_by_each = await self._handling.handle_all(
                        [work.event for work in works], [work.delivery for work in works], claim, limit
                    )
                except Exception as error:
                    raise self._blamed(works, error) from error
                for index, messages in zip(together, caused_by_each, strict=True):
                    decided[index] = DONE
                    caused.extend((index, message) for message in messages)
        return caused

    def _pass_over(self, index: int, work: Work, claim: Claim, decided: Decided, left_out: set[str]) -> None:
        """An event that the function is not called for: known, held by others, or left for the next round."""
        claimed, names = claim.states[index], self._names(work)
        if claimed.state is State.NEW:
            claim.fail(index)
        elif left_out.isdisjoint(names):
            decided[index] = self._known(work, claimed)
            if claimed.state is not State.BUSY:
                return
        left_out.update(names)

    def _blamed(self, works: list[Work], error: Exception) -> Exception:
        """What is raised for a call that failed: what the store's errors mean, or that these works failed."""
        return (self._claimer.of_the_store(error) if self._claimer.shared else None) or _Failed(works, error)

    async def _publish(self, group: list[Work], caused: Caused, claim: Claim, decided: Decided) -> None:
        """Without a SQL store the broker has stored what was caused before the claim is marked done.

        Where it has not, the event is not done either, and what must wait for it is handled again after it.
        """
        errors = await self._broker.publish([message for _, message in caused], timeout=COPY_TIMEOUT)
        failed = {index: error for (index, _), error in zip(caused, errors, strict=True) if error is not None}
        left_out: set[str] = set()
        for index in sorted(decided) if failed else ():
            work = group[index]
            if (error := failed.get(index)) is not None:
                if self._claimer.shared:
                    raise _Failed([work], error)
                decided[index] = self._decide_unpublished(error, work)
            elif left_out and not left_out.isdisjoint(self._names(work)):
                del decided[index]
            else:
                continue
            left_out.update(self._names(work))
            if claim.states[index].state is State.NEW:
                claim.fail(index)

    def _known(self, work: Work, claimed: Claimed) -> Decision:
        if claimed.state is State.BUSY:
            return Retried(after=BUSY_PAUSE, reason="another worker holds its key", counted=False)
        if claimed.event_id in ("", work.delivery.event_id):
            return Duplicate()
        if self._handler.rules.conflict == "dead":
            reason = f"its key {self._handler.rules.once} was applied for event {claimed.event_id}"
            return DeadLettered(reason=reason, code="conflict")
        return Duplicate(of=claimed.event_id)

    def _names(self, work: Work) -> list[str]:
        """What makes an event wait for an earlier one that was not applied: same key once, same key in order."""
        names = [f"once {self._claimer.key(work.delivery, work.event).key}"]
        if self._handler.rules.ordered and work.delivery.key is not None:
            names.append(f"key {work.delivery.key}")
        return names

    def _decide_unpublished(self, error: Exception, work: Work) -> Decision:
        if isinstance(error, WorldError):  # the broker's failure, not the event's
            return Retried(after=COPY_PAUSE, reason=describe(error), counted=False)
        return self._decide(error, work)

    def _decide(self, error: Exception, work: Work) -> Decision:
        return decide(error, work.delivery, self._handler.rules.retry, lenient=self.lenient)

    # ── settle ──────────────────────────────────────────────────────────────────────────────────────────────────────

    async def _settle(self, works: list[Work], holds: Holds | None, began: float, more: bool = False) -> None:
        """Take out what was decided, and let it be told; a cancelled lane still tells the broker about its work."""
        ended = [(work.delivery, work.decision) for work in works if work.decision is not None]
        works[:] = [work for work in works if work.decision is None]
        self.settler.judge(ended)
        settling = asyncio.ensure_future(self.settler.settle(ended, holds, began))
        held = self._holding is not None and self._holding.keys  # then the next events have to know what was noted
        if more and not held and (holds is None or all(isinstance(one, (Done, Duplicate)) for _, one in ended)):
            return await self.settler.let_go(settling)
        try:
            await asyncio.shield(settling)
        except asyncio.CancelledError:
            await asyncio.wait({settling}, timeout=2 * COPY_TIMEOUT)
            raise
