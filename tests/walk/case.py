"""One case of the walk: which events arrive, in which setting, and a process of the real service that takes them."""

import asyncio
from collections import defaultdict
from collections.abc import Sequence
from typing import Literal, NamedTuple

import msgspec

from tests.walk.broker import Session
from tests.walk.stores import LeaseStore, TransactionalStore, Tx, WalkStore
from tests.walk.world import Boom, DriverError, Faults, Mute, Stored, World
from tidings.delivery import Delivery, Envelope, Route
from tidings.envelope import to_structured
from tidings.errors import Dead
from tidings.event import Event, encode_data
from tidings.policy import Retry
from tidings.ports import Settled
from tidings.running import Running
from tidings.service import Service
from tidings.worker import Worker

StoreKind = Literal["none", "lease", "tx"]

RETRY = Retry(attempts=5, first=0.5, most=2.0)
TIMEOUT = 1.0
ABANDON_AFTER = 2.0
HELD = 6.0
"""How long a handler that listens to nobody does not end, in seconds."""
POSITION = "walk.step"
FOREVER = 1000.0


class Stepped(Event, type="walk.stepped", version=1, key="key"):
    key: str
    number: int
    bad: bool = False


class Followed(Event, type="walk.followed", version=1, key="key"):
    key: str
    number: int


class Setting(NamedTuple):
    """What arrives, and how it is handled."""

    store: StoreKind = "tx"
    ordered: bool = True
    keys: str = "a"
    """One event for each letter, which is its key."""
    twice: bool = False
    """Each event is stored twice, as by a publisher that never heard the answer."""
    bad: bool = False
    """The first event fails at every attempt."""
    lanes: int = 1
    batch: int | None = None
    whole: bool = False
    """The handler takes a list of events."""
    skip: int = 0
    """How many chances a fault lets pass, so that it strikes inside a batch."""

    def __str__(self) -> str:
        order = "ordered" if self.ordered else "unordered"
        flags = "".join(f" {flag}" for flag in ("twice", "bad", "whole") if getattr(self, flag))
        return f"{self.store} {order} {self.keys}{flags} lanes={self.lanes} batch={self.batch} skip={self.skip}"

    @property
    def ids(self) -> list[str]:
        """The ids of its events, in their order."""
        return [f"{key}{number}" for number, key in enumerate(self.keys, 1)]


def new_world(setting: Setting, faults: Faults) -> World:
    """The broker holds the setting's events, and nothing has been handled yet."""
    world = World(faults, remembers=setting.store != "none")
    events = [_event(number, key, setting.bad and number == 1) for number, key in enumerate(setting.keys, 1)]
    if setting.twice:
        events = [event for event in events for _ in range(2)] if len(events) < 3 else events + events
    if "garbage" in faults.names:
        events.insert(1, (b"{'no': json", "garbage", ""))
    for number, (body, event, key) in enumerate(events, 1):
        world.put(Stored(number=number, body=body, headers={}, route=Route.EVENT, event=event, key=key))
    return world


def _event(number: int, key: str, bad: bool) -> tuple[bytes, str, str]:
    data = msgspec.Raw(encode_data(Stepped(key=key, number=number, bad=bad)))
    envelope = Envelope(id=f"{key}{number}", source="walk", type="walk.stepped", version="v1", key=key, data=data)
    return to_structured(envelope), envelope.id, key


class Moment(NamedTuple):
    """Something that a handler did with an event, and when."""

    what: Literal["start", "fail"]
    at: float
    attempt: int


class Watch:
    """An observer that keeps what it was told, and fails when asked to."""

    def __init__(self, world: World) -> None:
        self._world = world
        self.told: list[Settled] = []

    def received(self, position: str, count: int) -> None:
        if self._world.faults.take("observer"):
            raise Boom("observer")

    def settled(self, position: str, batch: Sequence[Settled], seconds: float) -> None:
        self.told.extend(batch)
        if self._world.faults.take("observer"):
            raise Boom("observer")


class Process:
    """A process that runs the service on a world, with the parts that a running service has."""

    def __init__(self, setting: Setting, world: World) -> None:
        self.setting, self.world = setting, world
        self.session = Session(world)
        self.store: WalkStore | None = None
        if setting.store != "none":
            self.store = TransactionalStore(world) if setting.store == "tx" else LeaseStore(world)
        self.watch = Watch(world)
        self.moments: dict[str, list[Moment]] = defaultdict(list)
        self.over = False
        """The process has ended: whatever still hangs in it has no effect any more."""
        self.worker = self._worker()

    def _worker(self) -> Worker:
        service = Service("walk", publishes=[Followed])
        service.observers.append(self.watch)
        on = (service.on_batch if self.setting.whole else service.on)(
            Stepped,
            name="step",
            idempotent=self.store is None,
            order="key" if self.setting.ordered else None,
            concurrency=self.setting.lanes,
            batch=self.setting.batch,
            timeout=TIMEOUT,
            abandon_after=ABANDON_AFTER,
            retry=RETRY,
            kill_switch=None,  # its clock is not the loop's
        )
        if self.setting.whole:
            on(self._steps_in_tx if self.setting.store == "tx" else self._steps)
        elif self.setting.store == "tx":
            on(self._step_in_tx)
        else:
            on(self._step)
        return Running(service, self.session, self.store)._worker(service.handlers[0], None)

    async def _step_in_tx(self, event: Stepped, tx: Tx, delivery: Delivery, alone: bool = True) -> Followed:
        if self.world.faults.take("driver"):
            raise DriverError("locked")
        await self._suffer(event, delivery, alone)
        tx.effects.append(delivery.event_id)
        return Followed(key=event.key, number=event.number)

    async def _step(self, event: Stepped, delivery: Delivery, alone: bool = True) -> Followed:
        await self._suffer(event, delivery, alone)
        self.world.ledger.append(delivery.event_id)
        return Followed(key=event.key, number=event.number)

    async def _steps_in_tx(self, events: list[Stepped], tx: Tx, deliveries: list[Delivery]) -> list[Followed]:
        alone, pairs = len(events) == 1, zip(events, deliveries, strict=True)
        return [await self._step_in_tx(event, tx, delivery, alone) for event, delivery in pairs]

    async def _steps(self, events: list[Stepped], deliveries: list[Delivery]) -> list[Followed]:
        alone, pairs = len(events) == 1, zip(events, deliveries, strict=True)
        return [await self._step(event, delivery, alone) for event, delivery in pairs]

    async def _suffer(self, event: Stepped, delivery: Delivery, alone: bool) -> None:
        """Whatever can go wrong in a handler. In a list with others no failure is laid to an event."""
        take = self.world.faults.take
        self._note("start", delivery)
        await asyncio.sleep(0)
        if event.bad or take("raise"):
            self._fail(delivery, alone)
            raise Boom("raise")
        if take("mute"):
            self._fail(delivery, alone)
            raise Mute
        if take("dead"):
            raise Dead("meant")
        if take("cancel"):
            self._fail(delivery, alone)
            raise asyncio.CancelledError
        if take("hang"):
            self._fail(delivery, alone, TIMEOUT)
            await asyncio.sleep(FOREVER)
        if take("swallow"):
            self._fail(delivery, alone, TIMEOUT)
            await self._swallow()
        if take("stuck"):
            await self._hold()
        if take("slow"):
            await asyncio.sleep(0.06)

    async def _hold(self) -> None:
        """Go on, whoever says what; and then do what was to be done all the same, unless nobody is there any more."""
        loop = asyncio.get_running_loop()
        ends = loop.time() + HELD
        while (left := ends - loop.time()) > 0:
            try:
                await asyncio.sleep(left)
            except asyncio.CancelledError:
                pass
        if self.over:
            raise asyncio.CancelledError

    async def _swallow(self) -> None:
        try:
            await asyncio.sleep(FOREVER)
        except asyncio.CancelledError:
            raise Boom("something else") from None

    def _fail(self, delivery: Delivery, alone: bool, later: float = 0.0) -> None:
        if alone:
            self._note("fail", delivery, later)

    def _note(self, what: Literal["start", "fail"], delivery: Delivery, later: float = 0.0) -> None:
        at = asyncio.get_running_loop().time() + later
        self.moments[delivery.event_id].append(Moment(what, at, delivery.attempt))

    def die(self) -> None:
        """Nothing that is still done in its name reaches the broker or the store."""
        self.over = True
        self.session.disconnect()
        if self.store is not None:
            self.store.dead = True
