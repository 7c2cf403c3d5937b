"""A turn: the calls of a handler for the events of one claim, in a task of their own.

A call that does not end even when it is cancelled can so be left behind, and its lane goes on.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine, Sequence
from types import TracebackType
from typing import Any, Final, TypeVar

from tidings import stacks
from tidings.delivery import Decision, Delivery, Message
from tidings.errors import FailedEvents, MisuseError
from tidings.grouping import Work
from tidings.limit import Limit
from tidings.ports import Claim

T = TypeVar("T")

LAST_PATIENCE: Final = 2.0
"""Seconds that a call has to end when its lane is cancelled: whatever was to be waited for, was waited for before."""


class Failed(Exception):
    """A call that failed, and takes back what is not its own: the others of its transaction, or of its batch.

    `culprits` are the works whose fault it was, and what each failed with; empty where that is not known.
    """

    def __init__(self, works: list[Work], error: Exception) -> None:
        super().__init__()
        self.works, self.error = works, error
        self.culprits = [(works[0], error)] if len(works) == 1 else []
        self.named = False
        if isinstance(error, FailedEvents):
            failed = {id(event): one for event, one in error.pairs}
            self.culprits = [(work, failed[id(work.event)]) for work in works if id(work.event) in failed]
            self.named = bool(self.culprits)
            if not self.named:
                self.error = MisuseError(f"{_NAMES_NONE} ({error})")


_NAMES_NONE: Final = "FailedEvents names no event of the list that the handler was given. Name the very objects of it"


class Left(Exception):
    """A call does not end: it runs on, and nobody waits for it any more. Or it took its own task away, an `error`."""

    def __init__(self, cancelled: asyncio.CancelledError | None, error: Exception | None = None) -> None:
        super().__init__()
        self.cancelled, self.error = cancelled, error
        """`cancelled`: it is left because the lane is to end, and not for its time."""


class Turn:
    """Runs the calls for one claim, and keeps what comes of them.

    `may_leave` says whether one more may be left behind just now. `whole`: all events in one call, which returns
    something for each.
    """

    def __init__(
        self,
        group: Sequence[Work],
        claim: Claim,
        *,
        seconds: float,
        patience: float | None,
        may_leave: Callable[[Turn], bool],
        whole: bool,
        late: set[Limit] | None = None,
    ) -> None:
        self.group, self.claim = group, claim
        self.decided: dict[int, Decision] = {}
        """By the place in the group, what counts once the claim has closed."""
        self.caused: list[tuple[int, Message]] = []
        """With the place in the group of the event that caused it."""
        self._whole = whole
        self.limit = Limit(seconds, patience, self._overdue, late)
        self.works: list[Work] = []
        """For what the function is being called, or was last."""
        self.left_out: set[str] = set()
        """The names of keys whose later events have to wait."""
        self.left = False
        """Nobody waits for it any more. Whoever returns to it does nothing but to return."""
        self.abandoned = False
        """Nor does anybody want to know what came of it."""
        self._came: Any = None
        self._may_leave = may_leave
        self._stuck = False
        self._task: asyncio.Task[None] | None = None
        self._waiter: asyncio.Future[None] | None = None

    async def run(self, calls: Coroutine[Any, Any, None]) -> None:
        """Wait until all calls have ended.

        Raises:
            Left: one did not, or ended all of them.
            Exception: what the calls raise.
            asyncio.CancelledError: the lane was cancelled, and the calls with it.
        """
        loop = asyncio.get_running_loop()
        task = self._task = loop.create_task(calls)
        task.add_done_callback(self._wake)
        cancelled: asyncio.CancelledError | None = None
        last: asyncio.TimerHandle | None = None
        while not (task.done() or self._stuck):
            self._waiter = loop.create_future()
            try:
                await self._waiter
            except asyncio.CancelledError as error:
                cancelled = error
                last = last or loop.call_later(LAST_PATIENCE, self._give_up)
                task.cancel()
        if last is not None:
            last.cancel()
        if not task.done():
            self.left = True
            self.limit.leave()
            raise Left(cancelled)
        if task.cancelled():
            raise cancelled or Left(None, RuntimeError("the handler cancelled the task that it runs in"))
        task.result()

    def __enter__(self) -> None:
        """The calls begin."""
        self.limit.__enter__()

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        """They have ended, which is said within their last step: the task's callback comes a turn of the loop later."""
        self.limit.leave()
        self._wake()

    def still(self, came: T) -> T:
        """What a call returned, or the error that it raised, is passed on; unless it was left, and all ends here."""
        if not self.left:
            return came
        self._came = came
        raise asyncio.CancelledError

    def results(self, deliveries: Sequence[Delivery]) -> dict[Delivery, Any]:
        """By event what came of the call. Nothing where it failed for several: then each is called for anew."""
        if isinstance(self._came, Exception):
            return {self.works[0].delivery: self._came} if len(self.works) == 1 else {}
        if self._came is None:
            return {}
        each = self._came if self._whole else (self._came,)
        found = {work.delivery: came for work, came in zip(self.works, each, strict=True)}
        return {delivery: found[delivery] for delivery in deliveries}

    def abandon(self) -> None:
        """Wait for nothing that it does."""
        self.abandoned = True
        if self.limit.scope is not None:
            self.limit.scope.abandoned = True
        self.task.cancel()  # some give in at the second time

    @property
    def ended(self) -> asyncio.Future[Any]:
        """Done when the call has ended that was left: that of its thread, where it has one."""
        scope = self.limit.scope
        assert self._task is not None
        return self._task if scope is None or scope.running is None else scope.running

    @property
    def task(self) -> asyncio.Task[None]:
        assert self._task is not None
        return self._task

    @property
    def stack(self) -> str:
        """Where the call stands."""
        scope = self.limit.scope
        if scope is not None and scope.running is not None:
            return stacks.of_thread(scope.thread)
        return "" if self._task is None else stacks.of_task(self._task)

    def _overdue(self) -> None:
        if self._may_leave(self):
            self._give_up()

    def _give_up(self) -> None:
        self._stuck = True
        self._wake()

    def _wake(self, task: object = None) -> None:
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(None)
