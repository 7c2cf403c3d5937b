"""The calls of a handler for one turn: for each new event in its order, or for all of them and then for parts.

An event that fails takes back no others where the claim can keep them. Elsewhere `Failed` is raised, which takes back
whatever the claim holds.
"""

from __future__ import annotations

import logging
from typing import Final

from tidings.claims import Claimer
from tidings.context import Scope, current
from tidings.delivery import DONE, Decision
from tidings.errors import FailedEvents
from tidings.grouping import UNLIMITED, Work
from tidings.handler import Handler
from tidings.handling import Handling
from tidings.limit import Limit
from tidings.policy import decide, describe
from tidings.ports import Claimed, State
from tidings.traces import without_ours
from tidings.turn import Failed, Turn

log = logging.getLogger("tidings.pipeline")

BATCH_SECONDS: Final = 0.05
"""A batch closes after this much time in handlers, so that what is done is settled soon."""


class Calls:
    """Of one handler."""

    def __init__(self, handler: Handler, claimer: Claimer, handling: Handling) -> None:
        self._handler = handler
        self._claimer = claimer
        self._handling = handling
        self.stopping = False  # set to end after the call that runs now: what is not begun stays undecided
        self.lenient = False  # the kill switch is off: what fails counts for nothing

    async def run(self, turn: Turn) -> None:
        """Handle what is new; what is left out stays undecided.

        Raises:
            Failed: a call failed, and what others did cannot stay.
            WorldError, TransactionEnded: what a handler's error meant was the store's.
        """
        together: list[int] = []
        handling, claim, limit, left_out, decided = self._handling, turn.claim, turn.limit, turn.left_out, turn.decided
        call, position, late, results = handling.call, handling.position, handling.late, handling.late.results
        states, new = claim.states, State.NEW  # to find a member of an enum is dear, up to Python 3.11
        clock, at_once = limit.clock, handling.at_once
        closes = clock() + BATCH_SECONDS
        with turn:
            for index, work in enumerate(turn.group):
                now = clock()
                if (
                    states[index].state is not new
                    or (index and (self.stopping or now > closes))
                    or (left_out and not left_out.isdisjoint(self.names(work)))
                    or (late.names and late.holds(self.names(work), work.delivery))
                ):
                    self.pass_over(turn, index)
                    continue
                if at_once:
                    together.append(index)
                    continue
                turn.works = [work]
                delivery = work.delivery
                try:  # for each event, so it is written out rather than called
                    if results and delivery in results:
                        messages = handling.came(delivery)
                    else:
                        scope = Scope(delivery, position)
                        current.set(scope)
                        limit.started, limit.scope = now, scope
                        try:
                            result = await call(work.event, claim, delivery)
                        except BaseException as error:
                            if (meant := handling.meant(error, limit)) is None:
                                raise
                            raise meant from error
                        finally:
                            limit.started = None
                            if limit.over is not None:
                                limit.end()
                        messages = () if result is None else handling.wrap(result, scope)
                    if turn.left:
                        turn.still(messages)
                except Exception as error:
                    turn.still(without_ours(error))
                    if self._claimer.shared and not self._stands_alone(turn, error):
                        raise self._blamed([work], error) from error
                    self.failed(turn, index, error)
                else:
                    decided[index] = DONE
                    if messages:
                        turn.caused.extend((index, message) for message in messages)
            current.set(None)
            if together:
                await self._in_parts(turn, together, limit, closes)

    async def _in_parts(self, turn: Turn, together: list[int], limit: Limit, closes: float) -> None:
        """Call a batch handler for all of them. A failure that left nothing behind is looked for here, by halves."""
        parts = [together]
        turn.left_out.clear()  # none of these waits for one that was passed over; what fails from here on adds itself
        while parts:
            part = parts.pop(0)
            if turn.left_out:
                part = [index for index in part if self._is_next(turn, index)]
            if not part:
                continue
            turn.works = works = [turn.group[index] for index in part]
            try:
                caused_by_each = turn.still(await self._handling.handle_all(works, turn.claim, limit))
            except Exception as error:
                blamed = self._blamed(works, turn.still(without_ours(error)))
                if not isinstance(blamed, Failed) or blamed.named or not self._stands_alone(turn, error):
                    raise blamed from error
                if len(part) == 1:
                    self.failed(turn, part[0], error)
                    self._leave_out_repeats(turn, part[0])
                    continue
                say_halved(self._handler.position, works, error)
                for work in works:
                    work.most = len(part) // 2  # of those that there is no time for now
                parts[:0] = [part[: len(part) // 2], part[len(part) // 2 :]]
            else:
                turn.decided.update(dict.fromkeys(part, DONE))
                for index, messages in zip(part, caused_by_each, strict=True):
                    if messages:
                        turn.caused.extend((index, message) for message in messages)
            if self.stopping or limit.clock() > closes:
                for index in (index for part in parts for index in part):
                    self.pass_over(turn, index)
                    self._leave_out_repeats(turn, index)
                return

    def _is_next(self, turn: Turn, index: int) -> bool:
        if turn.left_out.isdisjoint(self.names(turn.group[index])):
            return True
        self.pass_over(turn, index)
        return False

    def _leave_out_repeats(self, turn: Turn, undone: int) -> None:
        """What counted as known because of an event of this claim that was not applied is not known."""
        for index in [index for index in turn.decided if index > undone]:
            if turn.claim.states[index].state is not State.NEW and not self._is_next(turn, index):
                turn.decided.pop(index, None)

    def _stands_alone(self, turn: Turn, error: Exception) -> bool:
        """Whether what failed left nothing behind, so that the others may stay."""
        return len(turn.group) > 1 and self._claimer.undone(turn.claim, error)

    def failed(self, turn: Turn, index: int, error: Exception) -> None:
        """An event that takes back no others. Where it waits for its call, the claim has no part in it."""
        work = turn.group[index]
        turn.claim.fail(index)
        turn.left_out.update(self.names(work))
        if work.decision is None:
            turn.decided[index] = decision = self.decide(error, work)
            work.failure = decision if self._claimer.shared else None

    def pass_over(self, turn: Turn, index: int) -> None:
        """An event that the function is not called for: known, held by others, or left for the next round."""
        work, claimed = turn.group[index], turn.claim.states[index]
        names = self.names(work)
        if claimed.state is State.NEW:
            turn.claim.fail(index)
            if self._handling.late.holds(names, work.delivery):
                turn.decided[index] = self._claimer.known(work.delivery, Claimed(State.BUSY))
        elif turn.left_out.isdisjoint(names):
            turn.decided[index] = self._claimer.known(work.delivery, claimed)
            if claimed.state is not State.BUSY:
                return
        turn.left_out.update(names)

    def _blamed(self, works: list[Work], error: Exception) -> Exception:
        """What is raised for a call that failed: what the store's errors mean, or that these works failed."""
        if self._claimer.shared:
            for one in [one for _, one in error.pairs] if isinstance(error, FailedEvents) else [error]:
                if (meant := self._claimer.of_the_store(one)) is not None:
                    return meant
        return Failed(works, error)

    def names(self, work: Work) -> list[str]:
        """What makes an event wait for an earlier one that was not applied: same key once, same key in order."""
        names = [f"once {self._claimer.key(work.delivery, work.event).key}"]
        if self._handler.rules.ordered and work.delivery.key is not None:
            names.append(f"key {work.delivery.key}")
        return names

    def decide(self, error: Exception, work: Work) -> Decision:
        """What becomes of an event that failed."""
        return decide(error, work.delivery, self._handler.rules.retry, lenient=self.lenient)


def say_halved(position: str, group: list[Work], error: Exception) -> None:
    """Said of the first split only: without a word, a handler that fails for lists would only be slow."""
    if group[0].most == UNLIMITED:
        text = "%s: %d events failed together and are handled in halves, to find the one that fails: %s"
        log.warning(text, position, len(group), describe(error))
