"""Giving a handler its history again: copies of the stream's events on the handler's own retry route, in their order.

A copy keeps the event's id. So where the handler applies each event once, a replay repairs what is missing and repeats
nothing. With a scope of its own it applies everything once more, and within that scope nothing twice. How far it has
come stands in a note of the handler's: a replay that was stopped, or killed, is taken up where it was.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Callable
from datetime import UTC, datetime, timedelta
from typing import Final, Literal

import msgspec
import uuid_utils

from tidings.copies import replay_copy
from tidings.delivery import Delivery, Message, Route
from tidings.envelope import read_envelope
from tidings.errors import ConfigurationError, EventError, UndecodableEvent
from tidings.notes import Notes
from tidings.pace import Pace
from tidings.ports import Broker, Positions

TOGETHER: Final = 500
"""Copies that are stored in one go."""
TOGETHER_BYTES: Final = 4 * 1024 * 1024
MOST_LOOKED: Final = 5000
"""Events of any type that are looked at before it is written down how far the replay has come."""
MOST_WAITING: Final = 5000
"""Copies that may be on the retry route of the handler before a replay holds back."""
LOOK: Final = 0.5
"""Seconds between two looks at a handler that is to catch up."""
PATIENCE: Final = 30.0
"""Seconds for which storing a portion is tried before the replay ends; it can be taken up again."""
NAMED: Final = "replay/"
SKEW: Final = timedelta(seconds=5)
"""By how much the broker's clock may be ahead without costing more than a look."""

State = Literal["running", "done"]


class Replay(msgspec.Struct, kw_only=True):
    """A replay and how far it has come: what a note keeps of it."""

    id: str
    position: str
    """The handler that asked for it, ``service.name``; no other sees anything of it."""
    stream: str
    since: float
    """It begins with what was stored at this moment (Unix seconds) …"""
    until: float
    """… and ends with what was stored at this one."""
    again: bool = False
    """Everything is applied once more, in a scope of its own."""
    asked: str = ""
    """How it was asked for, to know it again."""
    by: str = ""
    reason: str = ""
    began: str = ""
    ended: str = ""
    copied: int = 0
    place: tuple[str | int, ...] = ()
    """Where the last event stood that was looked at."""
    stored: float = 0.0
    """When that event was stored."""
    unreadable: int = 0
    """Events that could not be read, and so are no handler's to be given again."""
    refused: int = 0
    """Events that the retry route cannot hold, most likely for their size."""
    state: State = "running"


class Found(msgspec.Struct, kw_only=True):
    """What a look at the history counted."""

    events: int = 0
    unreadable: int = 0
    first: float = 0.0
    last: float = 0.0


def check(broker: Broker) -> Positions:
    """The part of a broker that a replay needs.

    Raises:
        ConfigurationError: it keeps no history, or cannot be asked for positions.
    """
    name = broker.features.name
    if not broker.features.history:
        raise ConfigurationError(f"the broker ({name}) keeps no history, so nothing of it can be given again")
    if not (broker.features.positions and isinstance(broker, Positions)):
        raise ConfigurationError(f"the broker ({name}) cannot say which positions there are, so none can be replayed")
    return broker


async def types_of(broker: Broker, position: str) -> frozenset[str]:
    """The types of a position that exists.

    Raises:
        ConfigurationError: there is none, or the broker has no history.
        BrokerUnavailable: it cannot be asked.
    """
    return await found_at(check(broker), position)


async def found_at(broker: Positions, position: str) -> frozenset[str]:
    """See that there is a position, and which types it takes; raises as `types_of`."""
    service = position.partition(".")[0]
    known = await broker.positions(service)
    if position not in known:
        there = f"the handlers of {service} are: {', '.join(sorted(known))}" if known else f"{service} has none"
        raise ConfigurationError(
            f"there is no handler {position} at this broker; {there}. A handler is there once its service has run"
        )
    return frozenset(known[position])


async def begin(
    broker: Broker,
    position: str,
    *,
    since: datetime,
    until: datetime | None,
    again: bool = False,
    asked: str = "",
    by: str = "",
    reason: str = "",
) -> Replay:
    """A new replay, written down. Without `until` it ends with what is stored now."""
    stream = next(iter(await types_of(broker, position))).partition(".")[0]
    replay = Replay(
        id=uuid_utils.uuid4().hex,
        position=position,
        stream=stream,
        since=since.timestamp(),
        until=until.timestamp() if until is not None else await _now(broker, stream),
        again=again,
        asked=asked,
        by=by,
        reason=reason,
        began=_stamp(),
    )
    await write(broker, replay)
    return replay


async def known(broker: Broker, position: str) -> list[Replay]:
    """The replays of a handler, whether done or not, in the order in which they last came further."""
    found = []
    for name, text in (await Notes(broker, position).read()).items():
        if name.startswith(NAMED):
            try:
                found.append(msgspec.json.decode(text, type=Replay))
            except msgspec.MsgspecError:
                pass  # another version wrote it, or a stranger: it is no replay that could be taken up here
    return found


async def write(broker: Broker, replay: Replay) -> None:
    """Keep how far it has come."""
    note = msgspec.json.encode(replay).decode()
    await Notes(broker, replay.position).write({NAMED + replay.id: note})


async def look(
    broker: Broker, replay: Replay, types: frozenset[str], tell: Callable[[Found], object] = lambda found: None
) -> Found:
    """Count what a replay would copy, and change nothing. `tell` hears from time to time how many there are by now."""
    found = Found()
    async for delivery in _history(broker, replay):
        if delivery.envelope is None:
            found.unreadable += 1
        elif delivery.envelope.type in types:
            found.events += 1
            found.first = found.first or delivery.stored
            found.last = delivery.stored
            if not found.events % TOGETHER:
                tell(found)
    return found


class Wave:
    """What is copied in one go; what the handler does not take is looked at too, and counts."""

    def __init__(self, most: int) -> None:
        self.most = most
        self.wanted: list[Delivery] = []
        self.unreadable = 0
        self.last: tuple[tuple[str | int, ...], float] | None = None
        self._looked = self._size = 0

    def add(self, delivery: Delivery, types: frozenset[str]) -> None:
        self._looked += 1
        self.last = (delivery.origin, delivery.stored)
        if delivery.envelope is None:
            self.unreadable += 1
        elif delivery.envelope.type in types:
            self.wanted.append(delivery)
            self._size += len(delivery.body)

    @property
    def full(self) -> bool:
        return len(self.wanted) >= self.most or self._size > TOGETHER_BYTES or self._looked >= MOST_LOOKED


class Replayer:
    """Carries a replay out, from where it stands.

    It holds back while the handler has many copies to work off. A portion that cannot be stored is tried again under
    the same ids; copies of one key are stored in the order of the stream.

    Parameters:
        types: the types that the handler takes.
        stopped: asked between two portions.
        waits: told when the handler has so many copies to work off that the replay waits.
    """

    def __init__(
        self,
        broker: Broker,
        replay: Replay,
        types: frozenset[str],
        *,
        pace: Pace | None = None,
        stopped: Callable[[], bool] = lambda: False,
        waits: Callable[[int], object] = lambda count: None,
    ) -> None:
        self._broker = broker
        self._positions = check(broker)
        self._replay = replay
        self._types = types
        self._pace = pace or Pace(None)
        self._stopped = stopped
        self._waits = waits

    async def run(self) -> AsyncIterator[int]:
        """Give all that is left; yields how many copies are stored by now. Ends early when it is stopped.

        Raises:
            WorldError: the broker is away for too long. What was stored is written down.
        """
        wave = Wave(self._pace.portion(TOGETHER))
        async for delivery in _history(self._broker, self._replay):
            wave.add(delivery, self._types)
            if wave.full:
                if not await self._give(wave):
                    return
                yield self._replay.copied
                wave = Wave(wave.most)
        if not await self._give(wave):
            return
        self._replay.state, self._replay.ended = "done", _stamp()
        await write(self._broker, self._replay)
        yield self._replay.copied

    async def _give(self, wave: Wave) -> bool:
        """Store the copies of a portion and write down that they are; False when it was stopped before."""
        if not await self._room() or self._stopped():
            return False
        replay = self._replay
        await self._pace.take(len(wave.wanted))
        copies = [replay_copy(one, replay.position, replay.id, again=replay.again) for one in wave.wanted]
        refused = await self._store(copies)
        replay.copied += len(copies) - refused
        replay.refused += refused
        replay.unreadable += wave.unreadable
        if wave.last is not None:
            replay.place, replay.stored = wave.last
            await write(self._broker, replay)
        return True

    async def _room(self) -> bool:
        """Wait until the handler has worked off enough; False when the replay is stopped meanwhile."""
        while (waiting := await self._positions.copies(self._replay.position)) >= MOST_WAITING:
            if self._stopped():
                return False
            self._waits(waiting)
            await asyncio.sleep(LOOK)
        return True

    async def _store(self, messages: list[Message]) -> int:
        """Store all of them, in order; returns how many the broker refuses for good.

        From the first on that is not stored, all are sent again: the ids tell the broker what it has.
        """
        end = time.monotonic() + PATIENCE
        refused = 0
        while messages:
            answers = await self._broker.publish(messages, timeout=PATIENCE / 3)
            failed = next((index for index, answer in enumerate(answers) if answer is not None), len(messages))
            messages, answer = messages[failed:], answers[failed] if failed < len(answers) else None
            if answer is None:
                break
            if isinstance(answer, EventError):
                refused += 1
                messages = messages[1:]
            elif time.monotonic() > end:
                raise answer
            else:
                await asyncio.sleep(LOOK)
        return refused


async def _history(broker: Broker, replay: Replay) -> AsyncIterator[Delivery]:
    """What of the stream is left for a replay, in order; what cannot be read has no envelope."""
    since = datetime.fromtimestamp(replay.stored or replay.since, UTC)
    async for delivery in broker.read(Route.EVENT, replay.stream, since=since):
        if delivery.stored > replay.until:
            return
        if replay.place and delivery.stored <= replay.stored and not _is_behind(delivery.origin, replay.place):
            continue
        try:
            delivery.envelope = read_envelope(delivery.body, delivery.headers)
        except UndecodableEvent:
            pass  # it is a dead letter of whoever met it; the replay counts it
        yield delivery


def _is_behind(origin: tuple[str | int, ...], place: tuple[str | int, ...]) -> bool:
    """Whether one place in a stream comes after another; what cannot be compared does, so that nothing is left out."""
    if len(origin) != len(place) or any(type(one) is not type(other) for one, other in zip(origin, place, strict=True)):
        return True
    return tuple(origin) > tuple(place)


async def _now(broker: Broker, stream: str) -> float:
    """The end of the history as it is now, in the broker's time: not before anything that is stored."""
    now = time.time()
    async for delivery in broker.read(Route.EVENT, stream, since=datetime.now(UTC) - SKEW):
        now = max(now, delivery.stored)
    return now


def _stamp() -> str:
    return datetime.now(UTC).isoformat(timespec="milliseconds")
