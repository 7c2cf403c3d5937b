"""The relay: publishes what committed transactions left in the outbox, in order, by one process at a time.

A round is: hold the lease, read rows, publish them, take out what was stored. No transaction is open while the broker
is spoken to. A crash between publishing and taking out publishes again, with the same ids, which the broker and
``once`` recognize; nothing is ever skipped.
"""

from __future__ import annotations

import asyncio
import logging
import random
import time
import uuid
from collections.abc import Awaitable, Sequence
from typing import Final, Protocol, TypeVar

from tidings import points
from tidings.errors import BrokerUnavailable, Contention, EventError, WorldError
from tidings.outbox.row import Refused, Row
from tidings.outbox.waiting import to_end
from tidings.outbox.waves import Line, by_stream, first_of_each, line_of, store_together
from tidings.ports import Publish

log = logging.getLogger("tidings.outbox")

T = TypeVar("T")

BATCH: Final = 1000
BATCH_BYTES: Final = 8 * 1024 * 1024
FIRST_PAUSE: Final = 0.1
LONGEST_PAUSE: Final = 30.0
SOON: Final = 2.0
"""For so long after rows were written into a transaction that others commit, the relay looks often."""


class Wake:
    """Tells the relay of this process that there may be something to do."""

    def __init__(self) -> None:
        self._event = asyncio.Event()
        self._soon = 0.0

    def now(self) -> None:
        """Rows were committed."""
        self._event.set()

    def soon(self) -> None:
        """Rows were written into somebody else's transaction, which will be committed at a time nobody tells us."""
        self._soon = time.monotonic() + SOON
        self._event.set()

    def forget(self) -> None:
        self._event.clear()

    async def wait(self, seconds: float) -> None:
        """Until called, or for some time."""
        if time.monotonic() < self._soon:
            seconds = min(seconds, 0.05)
        try:
            async with asyncio.timeout(seconds):
                await self._event.wait()
        except TimeoutError:
            pass


class Outbox(Protocol):
    """The rows of one database, each method one short transaction."""

    async def waits(self) -> bool: ...

    async def ready(self, most: int, most_bytes: int) -> list[Row]: ...

    async def lease(self, owner: str, seconds: float) -> bool: ...

    async def give_back(self, owner: str) -> None: ...

    async def settle(self, stored: Sequence[int], refused: Sequence[Refused], owner: str, seconds: float) -> bool:
        """Take out what was stored, keep what was refused, renew the lease; False if it is somebody else's now."""


class Relay:
    """One relay. `lease` is how long others wait for it after it died; `poll` how often it looks uncalled."""

    def __init__(
        self, outbox: Outbox, publish: Publish, wake: Wake, *, poll: float = 1.0, lease: float = 4.0, batch: int = BATCH
    ) -> None:
        self._outbox = outbox
        self._publish = publish
        self._wake = wake
        self._poll = poll
        self._lease = lease
        self._batch = batch
        self._owner = str(uuid.uuid4())
        self._held_until = 0.0
        self._troubles = 0
        """Rounds in a row in which nothing could be published."""

    async def run(self) -> None:
        """Publish until cancelled. Troubles of the database or the broker are waited out and logged."""
        try:
            while True:
                try:
                    pause = await self._round()
                except Exception as error:
                    pause = self._trouble(error)
                if pause:
                    await self._wait(pause)
        finally:
            await self._stop()

    async def _round(self) -> float:
        """Publish one batch, and say how long to wait before the next."""
        self._wake.forget()
        if not self._holds() and not (await self._outbox.waits() and await self._renew()):
            return self._poll * random.uniform(0.9, 1.1)
        rows = await self._outbox.ready(self._batch, BATCH_BYTES)
        if not rows:
            return self._poll * random.uniform(0.9, 1.1)
        errors = await self._publish_rows(rows)
        await to_end(self._settle(rows, errors))
        stored = sum(error is None for error in errors.values())
        if not stored and any(isinstance(error, BrokerUnavailable) for error in errors.values()):
            return self._trouble(next(error for error in errors.values() if isinstance(error, BrokerUnavailable)))
        if stored and self._troubles:
            log.info("the outbox is published again, after %d rounds that failed", self._troubles)
            self._troubles = 0
        return 0.0

    async def _publish_rows(self, rows: Sequence[Row]) -> dict[int, Exception | None]:
        """What became of each row that was tried. Rows behind a failed one of their key are not tried.

        Rows without a key have no order to keep.
        """
        errors: dict[int, Exception | None] = {row.id: row.trouble for row in rows if row.trouble is not None}
        rows = [row for row in rows if row.trouble is None]
        errors |= await self._publish_batches(rows)
        failed: set[Line] = set()
        rest: Sequence[Row] = [row for row in rows if row.id not in errors]
        while rest:
            waiting = [row for row in rest if row.message.key is None or line_of(row.message) not in failed]
            first, others = first_of_each(row.message for row in waiting)
            wave, rest = [waiting[place] for place in first], [waiting[place] for place in others]
            if not wave or not (self._holds() or await self._renew()):
                break
            for row, error in zip(wave, await self._publish_wave(wave), strict=True):
                errors[row.id] = error
                if error is not None and row.message.key is not None:
                    failed.add(line_of(row.message))
            if any(isinstance(errors[row.id], BrokerUnavailable) for row in wave):
                break
        return errors

    async def _publish_batches(self, rows: Sequence[Row]) -> dict[int, Exception | None]:
        """The rows of those streams whose rows were stored all at once; what was not is to go key by key."""
        errors: dict[int, Exception | None] = {}
        messages = [row.message for row in rows]
        for places in by_stream(messages).values():
            if not (self._holds() or await self._renew()):
                break
            try:
                stored = await self._with_lease(store_together(self._publish, [messages[place] for place in places]))
            except Exception as error:
                log.debug("outbox: a batch could not be tried: %s", error)
                continue
            if stored:
                errors.update({rows[place].id: None for place in places})
        return errors

    async def _publish_wave(self, wave: Sequence[Row]) -> Sequence[Exception | None]:
        points.at(points.OUTBOX_PUBLISH)
        try:
            errors = await self._with_lease(self._publish([row.message for row in wave]))
        except Exception as error:  # a publish that raises says the same of all
            return [error] * len(wave)
        if len(errors) != len(wave):
            return [RuntimeError(f"publish answered for {len(errors)} of {len(wave)} messages")] * len(wave)
        return errors

    async def _with_lease(self, publish: Awaitable[T]) -> T:
        """Publish, and keep the lease meanwhile, however slow the broker is."""
        publishing = asyncio.ensure_future(publish)
        try:
            while not (await asyncio.wait({publishing}, timeout=self._lease / 3))[0]:
                await self._renew()
        finally:
            if not publishing.done():
                publishing.cancel()
                await asyncio.wait({publishing}, timeout=5)
        return publishing.result()

    async def _settle(self, rows: Sequence[Row], errors: dict[int, Exception | None]) -> None:
        stored = [row.id for row in rows if row.id in errors and errors[row.id] is None]
        refused = []
        for row in rows:
            error = errors.get(row.id)
            # A broker that is away says nothing about the rows; writing that down for each would be all there is to do.
            if error is not None and not isinstance(error, BrokerUnavailable):
                refused.append(self._refuse(row, error))
        if stored or refused:
            points.at(points.OUTBOX_MARK)
            began = time.monotonic()
            held = await self._outbox.settle(stored, refused, self._owner, self._lease)
            self._held_until = began + self._lease if held else 0.0

    def _refuse(self, row: Row, error: Exception) -> Refused:
        message = row.message
        reason = f"{type(error).__name__}: {error}"
        what = f"event {message.id} ({message.type}, key {message.key})"
        if isinstance(error, EventError):
            log.error(
                "outbox: %s cannot be published and is parked; later events of its key wait until it is released or"
                " discarded. %s",
                what,
                reason,
            )
            return Refused(row.id, reason, None)
        pause = _pause(row.attempts)
        log.warning("outbox: %s was not stored, tried again in %.1f s. %s", what, pause, reason)
        return Refused(row.id, reason, time.time() + pause)

    def _trouble(self, error: Exception) -> float:
        """How long to wait after a round that came to nothing; told when it begins, and now and then."""
        pause = _pause(self._troubles) if not isinstance(error, Contention) else FIRST_PAUSE
        if not isinstance(error, WorldError):
            log.exception("outbox: the relay failed, and goes on in %.1f s", pause, exc_info=error)
        elif self._troubles in (0, 5) or self._troubles % 20 == 0:
            log.warning("outbox: nothing can be published, tried again in %.1f s: %s", pause, error)
        self._troubles += 1
        return pause

    async def _wait(self, pause: float) -> None:
        # After trouble a call does not help: new rows meet the same trouble.
        if self._troubles:
            await asyncio.sleep(pause)
        else:
            await self._wake.wait(pause)

    def _holds(self) -> bool:
        """Whether the lease is ours for long enough to publish a wave."""
        return time.monotonic() < self._held_until - self._lease / 3

    async def _renew(self) -> bool:
        began = time.monotonic()
        try:
            held = await self._outbox.lease(self._owner, self._lease)
        except WorldError as error:
            log.debug("outbox: the lease could not be renewed: %s", error)
            return self._holds()
        self._held_until = began + self._lease if held else 0.0
        return held

    async def _stop(self) -> None:
        """Let another process take over at once, rather than when the lease has run out."""
        if time.monotonic() >= self._held_until:
            return
        try:
            async with asyncio.timeout(2):
                await self._outbox.give_back(self._owner)
        except (TimeoutError, WorldError) as error:
            log.info("outbox: the lease could not be given back, it ends by itself: %s", error)


def _pause(failures: int) -> float:
    """Longer with each failure, and never the same for two."""
    return min(LONGEST_PAUSE, FIRST_PAUSE * 2.0 ** min(failures, 16)) * random.uniform(0.5, 1.0)
