"""Settling: the only place that speaks to the broker about deliveries.

It acts on decisions and takes none, but for one: a copy too large for the retry route becomes a dead letter.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable, Sequence, Set
from functools import partial
from typing import Final

from tidings import points
from tidings.copies import dead_letter, retry_copy
from tidings.counting import Counts
from tidings.delivery import (
    ACK,
    NO_HEADERS,
    UNTIL_IT_ENDS,
    DeadLettered,
    Decision,
    Delivery,
    Done,
    Duplicate,
    Message,
    Outcome,
    Release,
    Retried,
    Unsettled,
    Verdict,
)
from tidings.errors import EventTooLarge, WorldError
from tidings.holding import Holding
from tidings.order import Holds
from tidings.outcomes import Outcomes
from tidings.policy import describe
from tidings.ports import Broker, Observer
from tidings.sight import Watchers
from tidings.together import Answers, Together

log = logging.getLogger("tidings.settling")

COPY_TIMEOUT: Final = 10.0
"""How long a retry copy or dead letter may take to be stored, in seconds."""

COPY_PAUSE: Final = 5.0
"""How long a delivery stays away whose copy could not be stored, in seconds."""

MOST_WAVES: Final = 16
"""How many batches the broker may be behind: what it stores for several of them together takes as long as for one."""

_KNOWN: Final = frozenset({Done, Duplicate})
_KNOWN_OR_DEAD: Final = frozenset({Done, Duplicate, DeadLettered})

_CHOSEN: Final = frozenset({"rejected", "conflict", "behind"})
"""What the handler, or its rules, said of an event on purpose: nothing failed."""

Ended = list[tuple[Delivery, Decision]]
Kinds = Set[type[Decision]]
Verdicts = list[tuple[int, Verdict]]  # with the place of the delivery among those that ended


class Settler:
    """Stores the copies of a handler's failures, tells the broker, and then the observers."""

    def __init__(
        self,
        position: str,
        broker: Broker,
        *,
        service_version: str = "",
        observers: Sequence[Observer] = (),
        holding: Holding | None = None,
    ) -> None:
        self.holding = holding
        self._position = position
        self._broker = broker
        self._service_version = service_version
        self._observers = observers
        self._watchers = Watchers(observers)
        self.counts = Counts(broker, position)
        self._waves: set[asyncio.Future[None]] = set()
        self._together = Together(self._publish)
        self.judge: Callable[[Ended], None] = lambda ended: None
        """Shown what was decided of each batch, before the next one is begun."""

    def tells_at_once(self, kinds: Kinds) -> bool:
        """Whether nothing would be waited for: no copy, no note and no broker. Then it needs no task of its own."""
        at_once = self._broker.features.settles_at_once
        return at_once and self.holding is None and kinds <= _KNOWN and not self.counts.knows_any

    def may_be_told_later(self, kinds: Kinds, holds: Holds | None, more: bool) -> bool:
        """Whether the next events, of which `more` wait, may be handled before the broker is told of these.

        Nor need those wait that come while a letter is stored, which takes long. But all have to, where they have to
        know what is noted of these first, or where one of these is held for its next attempt.
        """
        if holds is None:
            return more
        if self.holding is not None:
            return more and not self.holding.keys and kinds <= _KNOWN
        return (more or DeadLettered in kinds) and kinds <= _KNOWN_OR_DEAD

    async def let_go(self, wave: asyncio.Future[None], ended: Ended, kinds: Kinds, holds: Holds | None) -> None:
        """The next events need not wait until the broker is told of these, unless it is behind by several batches.

        In order, those that follow a dead letter wait in `holds` until it is stored: were it not, it would be handled
        again, and before them.
        """
        letters: list[Delivery] = []
        if holds is not None and DeadLettered in kinds:
            letters = [one for one, decision in ended if isinstance(decision, DeadLettered)]
        for delivery in letters:
            if holds is not None and delivery.key is not None:
                holds.hold_until_told(delivery.key, delivery)
        self._waves.add(wave)
        wave.add_done_callback(partial(self._has_ended, letters, holds))
        if len(self._waves) > MOST_WAVES:
            await asyncio.wait(self._waves, timeout=2 * COPY_TIMEOUT, return_when=asyncio.FIRST_COMPLETED)

    def _has_ended(self, letters: Sequence[Delivery], holds: Holds | None, wave: asyncio.Future[None]) -> None:
        """However it ended, what follows its letters waits for it no more."""
        self._waves.discard(wave)
        for delivery in letters:
            if holds is not None and delivery.key is not None:
                holds.told(delivery.key, delivery, asyncio.get_running_loop().time())
        if not wave.cancelled() and (error := wave.exception()) is not None:
            log.error("%s: a batch was not settled, and comes again", self._position, exc_info=error)

    async def settled(self) -> None:
        """Wait until the waves that were let go have ended."""
        if self._waves:
            await asyncio.wait(self._waves, timeout=2 * COPY_TIMEOUT)

    async def settle(self, ended: Ended, holds: Holds | None, began: float, kinds: Kinds | None = None) -> None:
        """Bring each delivery to the end that was decided for it; `began` is when its batch was taken up.

        `kinds` are those of the decisions, where somebody has looked already.
        """
        settling = time.monotonic()
        outcomes: list[Outcome] = [decision for _, decision in ended]
        if self.holding is None and (kinds or kinds_of(ended)) <= _KNOWN:
            await self._tell(ended, None, outcomes)
            failed: Sequence[Delivery] = ()
        else:
            failed = await self._bring_to_an_end(ended, holds, outcomes)
        self._notify(Outcomes(ended, outcomes), began)
        if self._watchers:
            self._watchers.stage(self._position, "settle", time.monotonic() - settling)
        if failed:
            await self.counts.failed(failed)

    async def _bring_to_an_end(self, ended: Ended, holds: Holds | None, outcomes: list[Outcome]) -> Sequence[Delivery]:
        """Those of which some may need a copy, or a note; returns what failed and is held here."""
        verdicts, copies, failed = _sorted(ended, holds)
        try:
            if self.holding is not None:
                kept, why = await self._note_places(self.holding, ended)
                verdicts = [one for one in verdicts if one[0] not in kept]
                verdicts += _keep_away(kept, ended, outcomes, holds, why)
                copies = [place for place in copies if place not in kept]
            if copies:
                if verdicts:  # what is done need not wait for the copies of what is not
                    done, verdicts = verdicts, []
                    await self._tell(ended, done, outcomes)
                verdicts += await self._store(ended, copies, outcomes, holds)
        except Exception as error:
            places = [*copies, *(place for place, _ in verdicts)]
            log.exception("%s: %d events could not be brought to an end; they come again", self._position, len(places))
            verdicts = _keep_away(
                places, ended, outcomes, holds, f"it could not be brought to an end: {describe(error)}"
            )
        if verdicts:
            await self._tell(ended, verdicts, outcomes)
        return failed

    async def _tell(self, ended: Ended, verdicts: Verdicts | None, outcomes: list[Outcome]) -> None:
        """Tell the broker, of all that they are done unless there are verdicts, and remember what it confirmed."""
        points.at(points.BEFORE_ACK)
        if verdicts is None:
            told: list[tuple[Delivery, Verdict]] = [(delivery, ACK) for delivery, _ in ended]
        else:
            told = [(ended[place][0], verdict) for place, verdict in verdicts]
        errors = await _answers(self._broker.settle(told), len(told))
        points.at(points.AFTER_ACK)
        if verdicts is None and errors.count(None) == len(told) and not self.counts.knows_any:
            return  # there is nothing to say of each
        gone = []
        places = range(len(ended)) if verdicts is None else [place for place, _ in verdicts]
        for place, (delivery, verdict), failure in zip(places, told, errors, strict=True):
            if failure is not None:
                outcomes[place] = Unsettled(ended[place][1], describe(failure))
            if failure is None and verdict is ACK:
                gone.append(delivery)
            else:
                self.counts.survived(delivery)  # it comes again, and nobody died of it
        await self.counts.ended(gone)
        if self.holding is not None and self.holding.keys:
            self.holding.acknowledged(gone)

    async def _note_places(self, holding: Holding, ended: Ended) -> tuple[list[int], str]:
        """Note what changes about held keys before anything else is done; return what cannot be noted, and why."""
        concerned = [place for place, one in enumerate(ended) if holding.concerns(*one)]
        if not concerned:
            return [], ""
        try:
            await holding.note([ended[place] for place in concerned])
        except WorldError as error:
            return concerned, f"its place in its key was not noted: {describe(error)}"
        points.at(points.HELD_NOTED)
        return [], ""

    async def _store(self, ended: Ended, places: list[int], outcomes: list[Outcome], holds: Holds | None) -> Verdicts:
        """Retry copies and dead letters: acknowledged once stored, kept away for a while where they could not be."""
        copies = {place: self._copies(*ended[place]) for place in places}
        flat = [message for messages in copies.values() for message in messages]
        errors = iter(await self._together.publish(flat))
        verdicts: Verdicts = []
        too_large: list[int] = []
        for place, messages in copies.items():
            delivery, decision = ended[place]
            failed = [error for error in [next(errors) for _ in messages] if error is not None]
            if not failed:
                verdicts.append((place, ACK))
            elif isinstance(failed[0], EventTooLarge) and isinstance(decision, Retried):
                reason = f"{decision.reason}; too large for the retry route: {describe(failed[0])}"
                outcomes[place] = dead = DeadLettered(reason=reason, code="copy-too-large", error=decision.error)
                ended[place] = (delivery, dead)
                too_large.append(place)
            else:
                verdicts += _keep_away(
                    [place], ended, outcomes, holds, f"its copy was not stored: {describe(failed[0])}"
                )
        return verdicts + (await self._store(ended, too_large, outcomes, holds) if too_large else [])

    async def _publish(self, copies: Sequence[Message]) -> Answers:
        return await _answers(self._broker.publish(copies, timeout=COPY_TIMEOUT), len(copies))

    def _copies(self, delivery: Delivery, decision: Decision) -> list[Message]:
        if isinstance(decision, Retried):
            return [retry_copy(delivery, self._position, decision)]
        assert isinstance(decision, DeadLettered)
        place = NO_HEADERS if self.holding is None else self.holding.headers(delivery)
        room = self._broker.features.max_bytes
        return dead_letter(delivery, self._position, decision, self._service_version, room, place)

    def _notify(self, batch: Outcomes, began: float) -> None:
        for observer in self._observers:
            try:
                observer.settled(self._position, batch, time.monotonic() - began)
            except Exception:
                log.exception("observer %r failed; it changes nothing", observer)


def went_wrong(decision: Decision) -> bool:
    """Whether something failed: neither the handler nor its rules chose this end."""
    if isinstance(decision, DeadLettered):
        return decision.code not in _CHOSEN
    return isinstance(decision, Retried) and decision.error is not None


def kinds_of(ended: Ended) -> Kinds:
    """Which kinds of decision there are among these."""
    return {type(decision) for _, decision in ended}


def _sorted(ended: Ended, holds: Holds | None) -> tuple[Verdicts, list[int], list[Delivery]]:
    """What the broker can be told at once, what needs a copy first, and what failed and is held here."""
    verdicts: Verdicts = []
    copies: list[int] = []
    failed: list[Delivery] = []
    for place, (delivery, decision) in enumerate(ended):
        if isinstance(decision, (Done, Duplicate)):
            verdicts.append((place, ACK))
        elif isinstance(decision, DeadLettered):
            copies.append(place)
        elif holds is not None and delivery.key is not None:
            _hold(holds, delivery.key, delivery, decision.after)
            if decision.counted:
                failed.append(delivery)
        elif decision.after == UNTIL_IT_ENDS:
            failed.append(delivery)
        elif decision.counted:
            copies.append(place)
        else:
            verdicts.append((place, Release(decision.after)))
    return verdicts, copies, failed


def _keep_away(places: Sequence[int], ended: Ended, outcomes: list[Outcome], holds: Holds | None, why: str) -> Verdicts:
    """They come again after a pause: from where they are held in order, or from the broker."""
    verdicts: Verdicts = []
    for place in places:
        delivery, decision = ended[place]
        outcomes[place] = Unsettled(decision, why)
        if holds is not None and delivery.key is not None:
            _hold(holds, delivery.key, delivery, COPY_PAUSE)
        else:
            verdicts.append((place, Release(COPY_PAUSE)))
    return verdicts


def _hold(holds: Holds, key: str, delivery: Delivery, after: float) -> None:
    holds.hold(key, delivery, asyncio.get_running_loop().time() + after)


async def _answers(call: Awaitable[Answers], count: int) -> Answers:
    """What a broker answered. One that breaks its word and raises has, for all that is known, done nothing."""
    try:
        return await call
    except (Exception, asyncio.CancelledError) as error:
        task = asyncio.current_task()
        if isinstance(error, asyncio.CancelledError) and (task is None or task.cancelling()):
            raise
        log.exception("the broker raised where it should have answered")
        return [error if isinstance(error, Exception) else RuntimeError("the broker cancelled its answer")] * count
