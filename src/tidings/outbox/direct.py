"""Publishing from memory: what this process has just committed, without reading it back.

A row that goes this way is written with a hold: a time before which no relay takes it, nor any later row of its key.
While the hold lasts this process publishes it; when it runs out, because the process died or was stopped, the relay
does. A row gets a hold only if every unsent row of its key is one that this process knows: queued before it, or
published. All others are the relay's from the beginning.

Everybody who publishes goes along a key in the order of its rows, and goes on only when the broker has stored the one
before. So nothing is overtaken, whoever stalls, whatever the clocks say; what can happen is that a row leaves twice,
under the same id.
"""

from __future__ import annotations

import asyncio
import logging
import threading
import time
from collections import deque
from collections.abc import Awaitable, Callable, Mapping, Sequence
from enum import Enum
from typing import Final, TypeVar

from tidings import points
from tidings.delivery import Message
from tidings.errors import BrokerUnavailable
from tidings.outbox.waves import batches_of, store_together
from tidings.ports import Publish

log = logging.getLogger("tidings.outbox")

T = TypeVar("T")

HOLD: Final = 5.0
"""Seconds for which a row is its own process' to publish: as long as a relay waits for one that died, about."""
LEAST: Final = 0.4
"""The part of the hold that must be left when a row is sent. So long the broker may take for it."""
TIDY: Final = 0.1
"""Seconds after which published rows are taken out by a transaction of their own, if no other has done it."""
REST: Final = 1.0
"""Seconds for which all rows are the relay's after the broker did not answer."""
LAST_WORDS: Final = 2.0
"""Seconds for what is on its way when this stops."""

MOST_ROWS: Final = 10_000
MOST_BYTES: Final = 16 * 1024 * 1024
"""What is kept in memory; beyond it rows are the relay's."""
WAVE: Final = 1000
WAVE_BYTES: Final = 4 * 1024 * 1024
MOST_BEFORE: Final = 1000
"""Unsent rows of the keys of one transaction; where more wait, something is slow, and its rows are the relay's."""

Settle = Callable[[Sequence[int], Sequence[int]], Awaitable[None]]
"""Takes out the rows that are stored, and lets the relay have the others at once."""


class Stage(Enum):
    """How far a row has come."""

    OPEN = "written, and not known to be committed"
    QUEUED = "committed"
    PUBLISHED = "stored by the broker"
    LEFT = "the relay's"


class Entry:
    """A row that this process means to publish."""

    __slots__ = ("before", "id", "key", "message", "stage", "until", "wall")

    def __init__(
        self, id: int, message: Message, key: int | None, before: Sequence[Entry], until: float, wall: float
    ) -> None:
        self.id = id
        self.message = message
        self.key = key
        """The hash of its key."""
        self.before = before
        """The rows of its key that have to be published before it."""
        self.stage = Stage.OPEN
        self.until = until
        """When the hold ends, by the monotonic clock, which stops while the machine sleeps, and by the wall's."""
        self.wall = wall

    def held_for(self, seconds: float) -> bool:
        return time.monotonic() + seconds < self.until and time.time() + seconds < self.wall


class Due:
    """What is to be written down: which rows are stored, and which are the relay's after all."""

    __slots__ = ("left", "stored")

    def __init__(self) -> None:
        self.stored: list[int] = []
        self.left: list[int] = []

    def __bool__(self) -> bool:
        return bool(self.stored or self.left)


class Direct:
    """The direct way of one store in one process."""

    def __init__(self, wake_relay: Callable[[], None], *, hold: float = HOLD) -> None:
        self._wake_relay = wake_relay
        self.hold = hold
        self._entries: dict[int, Entry] = {}
        """By id: from its writing until it is taken out of the table."""
        self._by_key: dict[int, dict[int, Entry]] = {}
        """The same, by the hash of their key and by id."""
        self._queue: deque[Entry] = deque()
        self._bytes = 0
        self._due = Due()
        self._lock = threading.Lock()
        """Rows are written in the threads of sync handlers, too."""
        self._work = asyncio.Event()
        self._running = self._cancelled = False
        self._rests_until = self._no_batch_until = 0.0

    # ── in the transaction, in whatever thread ──────────────────────────────────────────────────────────────────────

    def takes(self) -> bool:
        """Whether rows may go this way just now."""
        return (
            self._running
            and len(self._entries) < MOST_ROWS
            and self._bytes < MOST_BYTES
            and time.monotonic() >= self._rests_until
        )

    def known(self, ids: Sequence[int]) -> list[Entry] | None:
        """The rows of these ids; None if one of them is not this process' to publish, or not for long enough."""
        found = [self._entries.get(id) for id in ids]
        known = [one for one in found if one is not None and one.stage is not Stage.LEFT and one.held_for(0)]
        return known if len(known) == len(ids) else None

    def of_key(self, key: int) -> list[Entry]:
        """What this process has of a key, by its hash, and may still publish or has just published."""
        with self._lock:
            return [one for one in self._by_key.get(key, {}).values() if one.held_for(0)]

    def written(self, entries: Sequence[Entry]) -> None:
        """Know rows from the moment at which others may see them."""
        with self._lock:
            for entry in entries:
                self._entries[entry.id] = entry
                if entry.key is not None:
                    self._by_key.setdefault(entry.key, {})[entry.id] = entry
                self._bytes += len(entry.message.body)

    def take_due(self) -> Due:
        """What this transaction is to write down on the way."""
        with self._lock:
            due, self._due = self._due, Due()
        return due

    # ── afterwards, in the loop ─────────────────────────────────────────────────────────────────────────────────────

    def committed(self, entries: Sequence[Entry]) -> None:
        """Publish these soon."""
        if not self._running:
            self._leave(entries)
            return
        for entry in entries:
            entry.stage = Stage.QUEUED
        self._queue.extend(entries)
        if entries:
            self._work.set()

    def not_committed(self, entries: Sequence[Entry]) -> None:
        """They were rolled back, or nobody knows: if they are there, the relay has them when their hold is over."""
        for entry in entries:
            entry.stage = Stage.LEFT
            self._forget(entry.id)
        self._work.set()  # for those that wait for one of them

    def written_down(self, due: Due) -> None:
        """The transaction that took this has committed."""
        for id in due.stored:
            self._forget(id)
        if due.left:
            self._wake_relay()

    def give_back(self, due: Due) -> None:
        """The transaction that took this has not committed."""
        with self._lock:
            self._due.stored += due.stored
            self._due.left += due.left
        if due:
            self._work.set()

    def _forget(self, id: int) -> None:
        with self._lock:
            entry = self._entries.pop(id, None)
            if entry is None:
                return
            self._bytes -= len(entry.message.body)
            if entry.key is not None:
                mine = self._by_key[entry.key]
                del mine[id]
                if not mine:
                    del self._by_key[entry.key]

    # ── the task ────────────────────────────────────────────────────────────────────────────────────────────────────

    async def run(self, publish: Publish, settle: Settle) -> None:
        """Publish until cancelled; then end what is on its way, and leave the rest to the relay."""
        self._running, self._cancelled = True, False
        tidying = asyncio.create_task(self._tidy(settle), name="tidings outbox tidy")
        try:
            while True:
                await self._work.wait()
                self._work.clear()
                while wave := self._next_wave(together=self._may_batch(publish)):
                    await self._publish_wave(wave, publish)
                    if self._cancelled:
                        raise asyncio.CancelledError
        finally:
            self._running = False
            tidying.cancel()
            await asyncio.wait({tidying}, timeout=LAST_WORDS)
            self._leave(list(self._queue))
            self._queue.clear()
            await self._end(settle)

    def _may_batch(self, publish: Publish) -> bool:
        return batches_of(publish) is not None and time.monotonic() >= self._no_batch_until

    def _next_wave(self, *, together: bool) -> list[Entry]:
        """The rows whose turn it is; with `together` also those behind them, as far as they are of the same stream.

        What has lost its hold, or waits for what was left to the relay, is left too.
        """
        wave: list[Entry] = []
        inside: set[Entry] = set()
        waiting: deque[Entry] = deque()
        lost: list[Entry] = []
        size = 0
        while self._queue and len(wave) < WAVE and size < WAVE_BYTES:
            entry = self._queue.popleft()
            if not entry.held_for(LEAST * self.hold) or any(one.stage is Stage.LEFT for one in entry.before):
                entry.stage = Stage.LEFT  # now, for those behind it in this round
                lost.append(entry)
            elif all(one.stage is Stage.PUBLISHED or (together and one in inside) for one in entry.before):
                wave.append(entry)
                inside.add(entry)
                size += len(entry.message.body)
            else:
                waiting.append(entry)
        self._queue.extendleft(reversed(waiting))
        self._leave(lost)
        return wave

    async def _publish_wave(self, wave: list[Entry], publish: Publish) -> None:
        """Publish rows that do not wait for each other in one call, or where some do, those of one stream as a batch.

        What else is in the wave has its turn next: a hold is looked at right before each call.
        """
        behind = [one for one in wave if any(prior.stage is Stage.QUEUED for prior in one.before)]
        if not behind:
            points.at(points.OUTBOX_PUBLISH)
            answers = await self._in_time(publish([entry.message for entry in wave]))
            if isinstance(answers, Exception):
                answers = [answers] * len(wave)
            if answers is None or len(answers) != len(wave):
                answers = [BrokerUnavailable("no answer in time")] * len(wave)
            return self._judge(wave, answers)
        stream = behind[0].message.stream
        group = [entry for entry in wave if entry.message.stream == stream]
        others = [entry for entry in wave if entry.message.stream != stream]
        if await self._in_time(store_together(publish, [entry.message for entry in group])) is True:
            self._judge(group, [None] * len(group))
        else:  # key by key, then
            self._no_batch_until = time.monotonic() + REST
            others = wave
        self._queue.extendleft(reversed(others))

    async def _in_time(self, publish: Awaitable[T]) -> T | Exception | None:
        """What came of it: an exception as a value, None when there was no answer within the hold.

        What is on its way when this is cancelled is waited for, so that it need not be published again.
        """
        publishing = asyncio.ensure_future(publish)
        try:
            await asyncio.wait({publishing}, timeout=LEAST * self.hold)
        except asyncio.CancelledError:
            self._cancelled = True
            await asyncio.wait({publishing}, timeout=LAST_WORDS)
        if not publishing.done():
            publishing.cancel()
            await asyncio.wait({publishing}, timeout=LAST_WORDS)
        if not publishing.done() or publishing.cancelled():
            return None
        error = publishing.exception()
        if error is None:
            return publishing.result()
        return error if isinstance(error, Exception) else None

    def _judge(self, wave: Sequence[Entry], answers: Sequence[Exception | None]) -> None:
        stored: list[Entry] = []
        left: list[Entry] = []
        for entry, error in zip(wave, answers, strict=True):
            (stored if error is None else left).append(entry)
        if stored:
            points.at(points.OUTBOX_MARK)
        for entry in stored:
            entry.stage = Stage.PUBLISHED
            entry.before = ()
        with self._lock:
            self._due.stored += [entry.id for entry in stored]
        self._leave(left)
        if any(isinstance(error, BrokerUnavailable) for error in answers):
            self._rests_until = time.monotonic() + REST
            self._leave(list(self._queue))
            self._queue.clear()
        self._work.set()

    def _leave(self, entries: Sequence[Entry]) -> None:
        """Let the relay have them; why one could not be stored is for the relay to find, and to tell."""
        for entry in entries:
            entry.stage = Stage.LEFT
            entry.before = ()
            self._forget(entry.id)
        with self._lock:
            self._due.left += [entry.id for entry in entries]

    # ── taking out ──────────────────────────────────────────────────────────────────────────────────────────────────

    async def _tidy(self, settle: Settle) -> None:
        """Write down now and then what no transaction has written down on its way."""
        pause = TIDY
        while True:
            await asyncio.sleep(pause)
            pause = TIDY
            if self._due and not await self._write_down(settle):
                pause = 10 * TIDY

    async def _write_down(self, settle: Settle) -> bool:
        due = self.take_due()
        try:
            await settle(due.stored, due.left)
        except Exception as error:
            self.give_back(due)
            log.debug("outbox: %d published rows are taken out later: %s", len(due.stored), error)
            return False
        except BaseException:
            self.give_back(due)
            raise
        self.written_down(due)
        return True

    async def _end(self, settle: Settle) -> None:
        if not self._due:
            return
        try:
            async with asyncio.timeout(LAST_WORDS):
                await self._write_down(settle)
        except TimeoutError:
            log.info("outbox: the rows that this process published are taken out by the next relay")


def entries_of(
    messages: Sequence[Message],
    ids: Sequence[int],
    hashes: Sequence[int | None],
    chosen: Sequence[bool],
    before: Mapping[int, Sequence[Entry]],
    until: float,
    wall: float,
) -> list[Entry]:
    """The rows that were written with a hold, each with those of its key before it."""
    entries: list[Entry] = []
    last: dict[int, Entry] = {}
    for message, id, key, mine in zip(messages, ids, hashes, chosen, strict=True):
        if not mine:
            continue
        earlier: Sequence[Entry] = ()
        if key is not None:
            earlier = (last[key],) if key in last else before.get(key, ())
        entry = Entry(id, message, key, earlier, until, wall)
        if key is not None:
            last[key] = entry
        entries.append(entry)
    return entries
