"""What the unit tests of the core build from: deliveries, handlers, a broker that records, a store that is told."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from concurrent.futures import Executor
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from datetime import datetime, timedelta
from typing import Any, Literal

import msgspec

from tidings.claims import Claimer
from tidings.delivery import Delivery, Envelope, Message, Outcome, Route, Verdict
from tidings.envelope import to_structured
from tidings.errors import Contention, StoreUnavailable, WorldError
from tidings.event import Event, encode_data
from tidings.handler import Handler, Rules, make_handler
from tidings.handling import Handling
from tidings.pipeline import Pipeline
from tidings.policy import Retry
from tidings.ports import NEW, Backlog, Claim, Claimed, Drift, Features, Key, Plan, Settled, Sink, State, Subscription
from tidings.publisher import Wrapper
from tidings.settling import Settler

SOON = Retry(attempts=3, first=0.01, most=0.02)


class Placed(Event, type="order.placed", version=1, key="order_id"):
    order_id: str
    number: int = 0


class Shipped(Event, type="order.shipped", version=1, key="order_id"):
    order_id: str
    number: int = 0


def envelope(order_id: str, number: int = 1, *, id: str = "", kind: str = "order.placed") -> Envelope:
    return Envelope(
        id=id or f"{order_id}{number}",
        source="shop",
        type=kind,
        version="v1",
        key=order_id,
        data=msgspec.Raw(encode_data(Placed(order_id=order_id, number=number))),
    )


def delivery(
    order_id: str = "a",
    number: int = 1,
    *,
    id: str = "",
    kind: str = "order.placed",
    body: bytes | None = None,
    headers: Mapping[str, str] | None = None,
    route: Route = Route.EVENT,
    read: bool = False,
) -> Delivery:
    """A delivery of an event; with `read` as it is after its bytes were read."""
    made = envelope(order_id, number, id=id, kind=kind)
    return Delivery(
        body=to_structured(made) if body is None else body,
        stream="order",
        origin=("order", number),
        token=object(),
        headers=headers or {},
        route=route,
        envelope=made if read else None,
    )


Answer = Callable[[Any], Exception | None]


class RecordingBroker:
    """Keeps what it was told. `refuse_publish` and `refuse_settle` say what is answered to each item."""

    trouble = ""

    def __init__(self, max_bytes: int = 1 << 20) -> None:
        self.features = Features(name="recording", max_bytes=max_bytes)
        self.published: list[Message] = []
        self.settled: list[tuple[Delivery, Verdict]] = []
        self.waves: list[int] = []
        """How many verdicts each settle brought."""
        self.refuse_publish: Answer = lambda message: None
        self.refuse_settle: Answer = lambda verdict: None
        self.raises: BaseException | None = None
        """What publish and settle raise, although they must not."""
        self.gate: asyncio.Event | None = None
        """What a settle waits for."""
        self.sinks: dict[str, Sink] = {}
        self.calls: list[str] = []
        self.tenure = 0

    async def open(self, plan: Plan) -> Sequence[Drift]:
        self.calls.append("open")
        return ()

    async def publish(self, messages: Sequence[Message], *, timeout: float) -> Sequence[Exception | None]:
        if self.raises is not None:
            raise self.raises
        await asyncio.sleep(0)
        answers = [self.refuse_publish(message) for message in messages]
        self.published += [message for message, answer in zip(messages, answers, strict=True) if answer is None]
        return answers

    async def settle(self, verdicts: Sequence[tuple[Delivery, Verdict]]) -> Sequence[Exception | None]:
        if self.raises is not None:
            raise self.raises
        if self.gate is not None:
            await self.gate.wait()
        answers = [self.refuse_settle(verdict) for verdict in verdicts]
        self.waves.append(len(verdicts))
        self.settled += [verdict for verdict, answer in zip(verdicts, answers, strict=True) if answer is None]
        return answers

    async def subscribe(self, subscription: Subscription, sink: Sink) -> RecordingBroker:
        self.sinks[subscription.position] = sink
        return self

    async def stop(self) -> None:
        self.calls.append("stop")

    async def close(self) -> None:
        self.calls.append("close")

    async def keeps(self) -> timedelta | None:
        return None

    async def backlog(self) -> Backlog:
        return Backlog(pending=0, in_flight=0)

    async def read(
        self, route: Route, stream: str = "", *, since: datetime | None = None, follow: bool = False
    ) -> AsyncIterator[Delivery]:
        for number, message in enumerate([one for one in self.published if one.route is route], 1):
            yield Delivery(
                body=message.body,
                stream=message.stream,
                origin=("log", number),
                token=None,
                headers=message.headers,
                route=route,
            )

    def verdicts(self) -> list[tuple[str, Verdict]]:
        """What was settled, by event id."""
        return [(delivery.event_id, verdict) for delivery, verdict in self.settled]


class Tx:
    """The connection that `ToldStore` gives."""


class ToldClaim:
    executor: Executor | None = None

    def __init__(self, states: Sequence[Claimed]) -> None:
        self.states = states
        self.failed: list[int] = []
        self.was_cut = False
        self.emitted: list[Message] | None = None
        self.closed: BaseException | Literal["cleanly", ""] = ""

    def resource(self, wanted: type) -> object:
        return Tx()

    def fail(self, index: int) -> None:
        self.failed.append(index)

    def cut(self) -> None:
        self.was_cut = True

    async def emit(self, messages: Sequence[Message]) -> bool:
        if self.emitted is None:
            return False
        self.emitted.extend(messages)
        return True


class UndoingClaim(ToldClaim):
    """It can take back what one handler did, unless that one has sent something."""

    def __init__(self, states: Sequence[Claimed]) -> None:
        super().__init__(states)
        self.sent = False

    def undo(self) -> bool:
        return not self.sent


class ToldStore:
    """A store that answers as it is told, and keeps how its claims ended."""

    def __init__(
        self, *, transactional: bool = False, outbox: bool | None = None, claims: type[ToldClaim] = ToldClaim
    ) -> None:
        self._claims = claims
        self.transactional = transactional
        self._outbox = transactional if outbox is None else outbox
        self.states: dict[str, Claimed] = {}
        """By event id; whatever is not in it is new."""
        self.claims: list[ToldClaim] = []
        self.asked: list[list[str]] = []
        self.enter: deque[BaseException | None] = deque()
        """What the next claims raise when they are opened."""
        self.exit: deque[BaseException | None] = deque()
        """What the next claims raise when they close cleanly."""

    def translate(self, error: Exception) -> WorldError | None:
        return error if isinstance(error, (Contention, StoreUnavailable)) else None

    def gives(self, wanted: type, *, sync: bool) -> bool:
        return wanted is Tx

    def claim(self, keys: Sequence[Key], *, resource: type | None, sync: bool) -> AbstractAsyncContextManager[Claim]:
        return self._claim(keys)

    @asynccontextmanager
    async def _claim(self, keys: Sequence[Key]) -> AsyncIterator[Claim]:
        await asyncio.sleep(0)
        self.asked.append([key.event_id for key in keys])
        if self.enter and (told := self.enter.popleft()) is not None:
            raise told
        first: dict[str, str] = {}
        states: list[Claimed] = []
        for key in keys:
            fresh = Claimed(State.DONE, first[key.key]) if key.key in first else NEW
            first.setdefault(key.key, key.event_id)
            states.append(self.states.get(key.event_id, fresh))
        claim = self._claims(states)
        if self._outbox:
            claim.emitted = []
        self.claims.append(claim)
        try:
            yield claim
        except BaseException as raised:
            claim.closed = raised
            raise
        if self.exit and (told := self.exit.popleft()) is not None:
            claim.closed = told
            raise told
        claim.closed = "cleanly"


class Watcher:
    """An observer that keeps what it was told, with the attempt as it was then."""

    def __init__(self, raises: Exception | None = None) -> None:
        self.raises = raises
        self.outcomes: list[tuple[str, Outcome]] = []
        self.attempts: list[int] = []
        self.counts: list[int] = []

    def received(self, position: str, count: int) -> None:
        self.counts.append(count)
        if self.raises is not None:
            raise self.raises

    def settled(self, position: str, batch: Sequence[Settled], seconds: float) -> None:
        self.outcomes += [(one.delivery.event_id, one.outcome) for one in batch]
        self.attempts += [one.delivery.attempt for one in batch]
        if self.raises is not None:
            raise self.raises


def handler_of(function: Callable[..., Any], *events: type[Event], **rules: Any) -> Handler:
    """A handler of Placed, unless other events are named, by the rules given."""
    given: dict[str, Any] = {
        "once": True,
        "ordered": False,
        "concurrency": 1,
        "timeout": 5.0,
        "batch": None,
        "retry": SOON,
        "conflict": "duplicate",
        "start": "all",
    }
    return make_handler("stock", function, events or (Placed,), "step", Rules(**{**given, **rules}))


class Bench:
    """A pipeline with everything around it in sight."""

    def __init__(
        self,
        call: Callable[..., Awaitable[Any]],
        *,
        store: ToldStore | None = None,
        together: int = 64,
        event: type[Event] = Placed,
        **rules: Any,
    ) -> None:
        async def handle(event: Event) -> Shipped | None: ...

        self.broker = RecordingBroker()
        self.store = store
        self.watcher = Watcher()
        self.handler = handler_of(handle, event, once=store is not None, **rules)
        resource = Tx if store is not None and store.transactional else None
        self.settler = Settler("stock.step", self.broker, observers=[self.watcher])
        self.pipeline = Pipeline(
            self.handler,
            broker=self.broker,
            claimer=Claimer(self.handler, store, resource),
            handling=Handling(
                self.handler,
                lambda event, claim, delivery: call(event),
                Wrapper("stock", [Shipped], "structured").caused,
            ),
            settler=self.settler,
            together=together,
        )

    @property
    def outcomes(self) -> dict[str, str]:
        """The last outcome of each event, in one word."""
        return {event: outcome.kind for event, outcome in self.watcher.outcomes}


class Doing:
    """A handler that keeps what it was given, and does what it is told for an event."""

    def __init__(self, **does: Any) -> None:
        self.does = does
        self.seen: list[str] = []

    async def __call__(self, event: Placed) -> Shipped | None:
        name = f"{event.order_id}{event.number}"
        self.seen.append(name)
        done = self.does.get(name)
        if isinstance(done, list):
            done = done.pop(0) if done else None
        if isinstance(done, BaseException):
            raise done
        if isinstance(done, float):
            await asyncio.sleep(done)
        return done if isinstance(done, Shipped) else None


def batch(*names: str) -> list[Delivery]:
    return [delivery(name[:-1], int(name[-1])) for name in names]


def ids(deliveries: Sequence[Delivery]) -> list[str]:
    return [one.event_id for one in deliveries]


async def until(condition: Callable[[], object], limit: float = 5.0) -> None:
    """Wait for a condition, at most `limit` seconds."""
    for _ in range(round(limit / 0.002)):
        if condition():
            return
        await asyncio.sleep(0.002)
    raise AssertionError(f"it did not come true in {limit:g} s")
