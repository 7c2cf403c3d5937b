"""Brokers, stores and services that break one promise each, by a change to the memory broker or to the core."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from typing import Any

import msgspec
import pytest

from tidings import calls, copies, counting, dead_letters, newer, reading, settling
from tidings.brokers import _standing
from tidings.claims import Claimer
from tidings.dead_letters import Letter
from tidings.delivery import ACK, Delivery, Done, Message, Release, Retried, Route
from tidings.errors import Dead, UndecodableEvent
from tidings.event import Event
from tidings.order import Holds
from tidings.policy import Retry, decide
from tidings.ports import NEW, Backlog, Key, Plan, Subscription
from tidings.publisher import Wrapper
from tidings.stores._claims import SqlClaim
from tidings.testing import MemoryBroker, _position, _server
from tidings.testing._feed import MemoryFeed
from tidings.testing._position import Item, Log, Position, Stored
from tidings.testing._server import Server
from tidings.worker import Worker

Mutant = Callable[[pytest.MonkeyPatch], None]


def loses_one(patch: pytest.MonkeyPatch) -> None:
    append = Log.append

    def lossy(self: Log, message: Message) -> Stored | None:
        return None if len(self.entries) == 6 and not self.name.startswith("tidings") else append(self, message)

    patch.setattr(Log, "append", lossy)


def returns_before_it_is_stored(patch: pytest.MonkeyPatch) -> None:
    store, lose = Server.store, Server.lose_connections
    waiting: list[asyncio.TimerHandle] = []

    def late(self: Server, message: Message) -> Exception | None:
        waiting.append(asyncio.get_running_loop().call_later(0.02, store, self, message))
        return None

    def lossy(self: Server) -> None:
        for one in waiting:
            one.cancel()
        lose(self)

    patch.setattr(Server, "store", late)
    patch.setattr(Server, "lose_connections", lossy)


def stores_an_id_again(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(_position, "DEDUPLICATION_WINDOW", -1.0)


def takes_each_copy_of_an_id_for_another(patch: pytest.MonkeyPatch) -> None:
    """On a broker that stores an id again, as Kafka and RabbitMQ do."""
    stores_an_id_again(patch)
    key = Claimer.key

    def placed(self: Claimer, delivery: Delivery, event: Event) -> Key:
        return msgspec.structs.replace(key(self, delivery, event), key=repr(delivery.origin))

    patch.setattr(Claimer, "key", placed)


def takes_what_nothing_stores(patch: pytest.MonkeyPatch) -> None:
    store = Server.store
    patch.setattr(Server, "store", lambda self, one: store(self, one) if one.stream in self.streams else None)


def takes_what_is_too_large(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(_server, "MAX_EVENT_BYTES", 1 << 30)


def one_that_is_refused_takes_others_with_it(patch: pytest.MonkeyPatch) -> None:
    publish = MemoryBroker.publish

    async def all_or_nothing(self: MemoryBroker, messages: Sequence[Message], *, timeout: float) -> Sequence[Any]:
        if (bad := [one for one in messages if len(one.body) > self.features.max_bytes]) and len(messages) > 1:
            (error,) = await publish(self, bad, timeout=timeout)
            return [error] * len(messages)
        return await publish(self, messages, timeout=timeout)

    patch.setattr(MemoryBroker, "publish", all_or_nothing)


def says_stored_after_it_was_closed(patch: pytest.MonkeyPatch) -> None:
    with_fault = MemoryBroker._with_fault

    def lying(self: MemoryBroker, kind: str, act: Callable[[], Exception | None]) -> Exception | None:
        return with_fault(self, kind, act) if self._opened else None

    patch.setattr(MemoryBroker, "_refusal", lambda self, what: None)
    patch.setattr(MemoryBroker, "_with_fault", lying)


def _changes(patch: pytest.MonkeyPatch, change: Callable[[Delivery], None]) -> None:
    delivery = Log.delivery

    def changed(self: Log, entry: Stored, **more: Any) -> Delivery:
        one = delivery(self, entry, **more)
        change(one)
        return one

    patch.setattr(Log, "delivery", changed)


def changes_the_bytes(patch: pytest.MonkeyPatch) -> None:
    _changes(patch, lambda one: setattr(one, "body", one.body.strip()))


def changes_the_names_of_headers(patch: pytest.MonkeyPatch) -> None:
    _changes(patch, lambda one: setattr(one, "headers", {name.lower(): value for name, value in one.headers.items()}))


def passes_over_what_has_no_bytes(patch: pytest.MonkeyPatch) -> None:
    """As where a client library's message counts as false without a body."""
    store = Server.store
    patch.setattr(Server, "store", lambda self, one: store(self, one) if one.body else None)


def drops_empty_headers(patch: pytest.MonkeyPatch) -> None:
    _changes(patch, lambda one: setattr(one, "headers", {name: value for name, value in one.headers.items() if value}))


def puts_headers_of_its_own_among_them(patch: pytest.MonkeyPatch) -> None:
    _changes(patch, lambda one: setattr(one, "headers", {**one.headers, "broker-id": "7"}))


def gives_a_key_another_slot(patch: pytest.MonkeyPatch) -> None:
    _changes(patch, lambda one: setattr(one, "slot", None if one.slot is None else 63 - one.slot))


def gives_each_delivery_another_origin(patch: pytest.MonkeyPatch) -> None:
    _changes(patch, lambda one: setattr(one, "origin", (*one.origin, one.delivered)))


def does_not_count_deliveries(patch: pytest.MonkeyPatch) -> None:
    _changes(patch, lambda one: setattr(one, "delivered", 1))


def delivers_again_what_was_acknowledged(patch: pytest.MonkeyPatch) -> None:
    settle = Position.settle

    def forgetful(self: Position, flight: Any, after: float | None) -> bool:
        return settle(self, flight, 0.0 if after is None and flight.item.delivered == 1 else after)

    patch.setattr(Position, "settle", forgetful)


def takes_a_failure_for_success(patch: pytest.MonkeyPatch) -> None:
    settle = Position.settle

    def careless(self: Position, flight: Any, after: float | None) -> bool:
        return settle(self, flight, None if flight.item.delivered == 2 else after)

    patch.setattr(Position, "settle", careless)


def copies_to_competing_consumers(patch: pytest.MonkeyPatch) -> None:
    hand_over = Position._hand_over

    def generous(self: Position, item: Item, taker: Any) -> None:
        hand_over(self, item, taker)
        if item.delivered == 1 and len(self.takers) > 1:
            self._ready(item)

    patch.setattr(Position, "_hand_over", generous)


def ignores_the_delay_of_a_release(patch: pytest.MonkeyPatch) -> None:
    settle = Position.settle
    patch.setattr(Position, "settle", lambda self, flight, after: settle(self, flight, after and 0.0))


def delivers_a_copy_early(patch: pytest.MonkeyPatch) -> None:
    offer = Position.offer

    def hasty(self: Position, log: Log, entry: Stored) -> None:
        offer(self, log, msgspec.structs.replace(entry, message=msgspec.structs.replace(entry.message, due=None)))

    patch.setattr(Position, "offer", hasty)


def delivers_a_copy_to_every_handler(patch: pytest.MonkeyPatch) -> None:
    def everybody(self: Server, message: Message) -> Iterator[Position]:
        yield from (one for one in self.positions.values() if one.stream == message.stream)

    patch.setattr(Server, "_concerned", everybody)


def counts_waiting_copies_as_in_flight(patch: pytest.MonkeyPatch) -> None:
    has_room = MemoryFeed.has_room

    def crowded(self: MemoryFeed, size: int) -> bool:
        return len(self._position._later) < self._limits[0] and has_room(self, size)

    patch.setattr(MemoryFeed, "has_room", crowded)


def forgets_copies_and_letters_at_a_restart(patch: pytest.MonkeyPatch) -> None:
    lose = Server.lose_connections

    def forgetful(self: Server) -> None:
        lose(self)
        self.dead.entries.clear()
        for position in self.positions.values():
            position._later.clear()

    patch.setattr(Server, "lose_connections", forgetful)


def forgets_events_at_a_restart(patch: pytest.MonkeyPatch) -> None:
    lose = Server.lose_connections

    def forgetful(self: Server) -> None:
        lose(self)
        for position in self.positions.values():
            position._fresh.clear()
            position._again.clear()

    patch.setattr(Server, "lose_connections", forgetful)


def loses_dead_letters(patch: pytest.MonkeyPatch) -> None:
    store = Server.store
    patch.setattr(Server, "store", lambda self, one: None if one.route is Route.DEAD else store(self, one))


def shows_notes_of_other_handlers(patch: pytest.MonkeyPatch) -> None:
    async def everything(
        self: MemoryBroker, route: Route, stream: str, end: int, *more: Any
    ) -> AsyncIterator[Delivery]:
        log = self._server.log(route, stream)
        for entry in log.entries[:end]:
            yield log.delivery(entry)

    patch.setattr(MemoryBroker, "_read", everything)


def lets_followers_live_through_the_past(patch: pytest.MonkeyPatch) -> None:
    async def everything(notes: AsyncIterator[Delivery | None]) -> AsyncIterator[Delivery]:
        async for note in notes:
            if note is not None:
                yield note

    patch.setattr(_standing, "only_last", everything)


def keeps_no_more_than_three_hundred_notes(patch: pytest.MonkeyPatch) -> None:
    append = Log.append

    def full(self: Log, message: Message) -> Stored | None:
        return None if message.route is Route.NOTE and len(self.entries) >= 300 else append(self, message)

    patch.setattr(Log, "append", full)


def ends_a_followed_log(patch: pytest.MonkeyPatch) -> None:
    read = MemoryBroker.read
    patch.setattr(MemoryBroker, "read", lambda self, route, stream="", **more: read(self, route, stream))


def reads_a_log_to_an_end_that_moves(patch: pytest.MonkeyPatch) -> None:
    async def moving(self: MemoryBroker, route: Route, stream: str, *ignored: Any) -> AsyncIterator[Delivery]:
        log = self._server.log(route, stream)
        for entry in log.entries:
            yield log.delivery(entry)

    patch.setattr(MemoryBroker, "_read", moving)


def has_no_limits(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(MemoryFeed, "has_room", lambda self, size: True)


def has_no_limit_of_bytes(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(MemoryFeed, "has_room", lambda self, size: self._in_flight < self._limits[0])


def keeps_what_a_closed_feed_had(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(Position, "give_back", lambda self, taker=None: None)


def does_not_stop(patch: pytest.MonkeyPatch) -> None:
    async def stop(self: MemoryFeed) -> None: ...

    patch.setattr(MemoryFeed, "stop", stop)


def reorders_one_call(patch: pytest.MonkeyPatch) -> None:
    publish = MemoryBroker.publish

    async def shuffled(self: MemoryBroker, messages: Sequence[Message], *, timeout: float) -> Sequence[Any]:
        return (await publish(self, messages[::-1], timeout=timeout))[::-1]

    patch.setattr(MemoryBroker, "publish", shuffled)


def lets_everybody_take_from_an_ordered_position(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(Position, "ordered", property(lambda self: False, lambda self, value: None), raising=False)


def gives_back_in_another_order(patch: pytest.MonkeyPatch) -> None:
    rank = property(lambda self: (True, -self.entry.sequence))
    patch.setattr(Item, "rank", rank)


def _from(plan: Plan, start: str) -> Plan:
    subscriptions = tuple(msgspec.structs.replace(one, start=start) for one in plan.subscriptions)
    return msgspec.structs.replace(plan, subscriptions=subscriptions)


def begins_everything_with_the_history(patch: pytest.MonkeyPatch) -> None:
    declare = Server.declare
    patch.setattr(Server, "declare", lambda self, plan: declare(self, _from(plan, "all")))


def begins_everything_anew(patch: pytest.MonkeyPatch) -> None:
    declare = Server.declare
    patch.setattr(Server, "declare", lambda self, plan: declare(self, _from(plan, "new")))


def begins_a_new_position_with_its_first_feed(patch: pytest.MonkeyPatch) -> None:
    subscribe = MemoryBroker.subscribe

    async def late(self: MemoryBroker, subscription: Any, sink: Any) -> MemoryFeed:
        if subscription.start == "new":
            self._server.positions[subscription.position]._fresh.clear()
        return await subscribe(self, subscription, sink)

    patch.setattr(MemoryBroker, "subscribe", late)


def begins_again_with_each_feed(patch: pytest.MonkeyPatch) -> None:
    subscribe = MemoryBroker.subscribe

    async def again(self: MemoryBroker, subscription: Any, sink: Any) -> MemoryFeed:
        position = self._server.positions[subscription.position]
        position._fresh.clear()
        for entry in self._server.streams[position.stream].entries:
            position.offer(self._server.streams[position.stream], entry)
        return await subscribe(self, subscription, sink)

    patch.setattr(MemoryBroker, "subscribe", again)


def begins_with_everything_instead_of_at_a_moment(patch: pytest.MonkeyPatch) -> None:
    declare = Server._declare_position
    patch.setattr(
        Server,
        "_declare_position",
        lambda self, subscription: declare(self, msgspec.structs.replace(subscription, since=None)),
    )


def does_not_say_when_a_message_was_stored(patch: pytest.MonkeyPatch) -> None:
    delivery = Log.delivery
    patch.setattr(Log, "delivery", lambda self, entry, **more: delivery(self, entry, **{**more, "stored": 0.0}))


def does_not_count_copies_that_wait(patch: pytest.MonkeyPatch) -> None:
    def due(self: Position) -> int:
        return sum(item.entry.message.route is Route.RETRY for *_, item in self._again)

    patch.setattr(Position, "copies", property(due))


def redrives_a_letter_of_a_list_without_its_body(patch: pytest.MonkeyPatch) -> None:
    find = dead_letters.find

    async def short(broker: Any, wanted: Any, *, bodies: bool = True) -> list[Letter]:
        return await find(broker, wanted, bodies=False)

    patch.setattr(dead_letters, "find", short)


def gives_every_type(patch: pytest.MonkeyPatch) -> None:
    def everything(self: Position, log: Log, entry: Stored) -> None:
        self._fresh.append(Item(log, entry))

    patch.setattr(Position, "offer", everything)


def mixes_streams(patch: pytest.MonkeyPatch) -> None:
    def everybody(self: Server, message: Message) -> Iterator[Position]:
        for position in self.positions.values():
            position.types |= {message.type}
            yield position

    patch.setattr(Server, "_concerned", everybody)


def reports_differences_that_are_none(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(Server, "declare", lambda self, plan, real=Server.declare: [*real(self, plan), "a difference"])


def lets_a_renamed_handler_start_over(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(Plan, "check_positions", lambda self, *ignored: None)


def tells_a_backlog_that_is_none(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(Position, "backlog", lambda self: Backlog(pending=0, in_flight=0))


def never_tells_its_trouble(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(MemoryBroker, "trouble", "")


def always_tells_trouble(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(MemoryBroker, "trouble", "woe")


def never_comes_back(patch: pytest.MonkeyPatch) -> None:
    lose = Server.lose_connections

    def for_good(self: Server) -> None:
        lose(self)
        for position in self.positions.values():
            for feed in position.takers:
                feed._stopped = True  # type: ignore[attr-defined]  # all that take from the memory broker are its feeds

    patch.setattr(Server, "lose_connections", for_good)


def serves_one_feed_of_a_client_at_a_time(patch: pytest.MonkeyPatch) -> None:
    has_room = MemoryFeed.has_room

    def narrow(self: MemoryFeed, size: int) -> bool:
        others = [feed for feed in self.owner._feeds if feed is not self]  # type: ignore[attr-defined]  # the owner is a MemoryBroker, which the feed knows as less
        return all(feed._in_flight == 0 for feed in others) and has_room(self, size)

    patch.setattr(MemoryFeed, "has_room", narrow)


def acknowledges_what_it_hands_over(patch: pytest.MonkeyPatch) -> None:
    hand_over = Position._hand_over

    def hasty(self: Position, item: Item, taker: Any) -> None:
        hand_over(self, item, taker)
        for flight in [one for one in self._flights if one.item is item]:
            self.settle(flight, None)

    patch.setattr(Position, "_hand_over", hasty)


def hands_over_by_a_timer(patch: pytest.MonkeyPatch) -> None:
    take = MemoryFeed.take

    def late(self: MemoryFeed, delivery: Delivery, flight: Any) -> None:
        asyncio.get_running_loop().call_later(0.3, take, self, delivery, flight)

    patch.setattr(MemoryFeed, "take", late)


def acknowledges_what_it_gives_back(patch: pytest.MonkeyPatch) -> None:
    settle = MemoryBroker._settle

    def careless(self: MemoryBroker, delivery: Delivery, verdict: Any) -> Exception | None:
        return settle(self, delivery, ACK if isinstance(verdict, Release) else verdict)

    patch.setattr(MemoryBroker, "_settle", careless)


# ── the core, and the store ─────────────────────────────────────────────────────────────────────────────────────────


def applies_again_what_was_applied(patch: pytest.MonkeyPatch) -> None:
    enter = SqlClaim.__aenter__

    async def forgetful(self: SqlClaim) -> SqlClaim:
        claim = await enter(self)
        claim.states = [NEW] * len(claim.states)
        return claim

    patch.setattr(SqlClaim, "__aenter__", forgetful)


def forgets_who_caused_it(patch: pytest.MonkeyPatch) -> None:
    message = Wrapper.message
    patch.setattr(Wrapper, "message", lambda self, event, scope=None, **more: message(self, event, **more))


def gives_up_handlers_at_once(patch: pytest.MonkeyPatch) -> None:
    stop = Worker.stop

    async def hasty(self: Worker, grace: float) -> None:
        await stop(self, 0.0)

    patch.setattr(Worker, "stop", hasty)


def counts_no_failures(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(reading, "restore", lambda delivery: None)


def forgets_the_failures_of_what_waits_in_place(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(counting, "_noted", lambda notes, kind, delivery: counting.Count())


def passes_over_what_newer_code_asks_for(patch: pytest.MonkeyPatch) -> None:
    async def nobodys(self: newer.Newer, works: Any, **more: Any) -> None:
        """What was read as not asked for stays that."""

    patch.setattr(newer.Newer, "look_at", nobodys)


def remembers_what_was_rolled_back(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(newer, "BELIEVED", 0.1)  # so that it would be over within the patience of a test
    patch.setattr(newer, "PUT_OFF", 0.05)

    async def nothing(self: MemoryBroker, position: str, types: Any) -> None: ...

    patch.setattr(MemoryBroker, "remember", nothing)


def takes_away_what_others_ask_for(patch: pytest.MonkeyPatch) -> None:
    _declares(patch, lambda position, one: position.types & set(one.types))


def gives_types_to_what_is_only_named(patch: pytest.MonkeyPatch) -> None:
    _declares(patch, lambda position, one: position.types | set(one.types))


def _declares(patch: pytest.MonkeyPatch, types: Callable[[Position, Subscription], frozenset[str]]) -> None:
    declare = Server.declare

    def declaring(self: Server, plan: Plan) -> Any:
        drifts = declare(self, plan)
        for one in plan.subscriptions:
            position = self.positions[one.position]
            position.types = types(position, one)
        return drifts

    patch.setattr(Server, "declare", declaring)


def hides_that_it_takes_over(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(MemoryFeed, "tenure", property(lambda self: 1, lambda self, value: None), raising=False)


def tries_again_at_once(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(Retry, "pause", lambda self, failures, *more: 0.0)


def _decides(patch: pytest.MonkeyPatch, wrong: Callable[[Exception], Any]) -> None:
    def other(error: Exception, delivery: Delivery, retry: Retry, **more: Any) -> Any:
        return wrong(error) or decide(error, delivery, retry, **more)

    patch.setattr(calls, "decide", other)
    patch.setattr(reading, "decide", other)


def tries_again_what_never_can(patch: pytest.MonkeyPatch) -> None:
    _decides(patch, lambda error: Retried(after=0.05, reason="why not") if isinstance(error, Dead) else None)


def drops_what_it_cannot_read(patch: pytest.MonkeyPatch) -> None:
    _decides(patch, lambda error: Done() if isinstance(error, UndecodableEvent) else None)


def forgets_the_headers_of_the_dead(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(copies, "original_headers", lambda headers: {})


def cuts_off_large_letters(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(settling, "dead_letter", lambda delivery, *more: copies.dead_letter(_shorter(delivery), *more))


def _shorter(delivery: Delivery) -> Delivery:
    return msgspec.structs.replace(delivery, body=delivery.body[:1_000_000])


def lets_later_events_of_a_key_pass(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(Holds, "blocks", lambda self, key: False)
    patch.setattr(calls.Calls, "names", lambda self, work: [])


def forgets_to_acknowledge(patch: pytest.MonkeyPatch) -> None:
    """The second half of success: the effect is there, and the broker gives the event to the next process."""
    settle = MemoryBroker.settle

    async def silent(self: MemoryBroker, verdicts: Sequence[tuple[Delivery, Any]]) -> Sequence[Exception | None]:
        if any(delivery.route is Route.EVENT for delivery, _ in verdicts):
            return [None] * len(verdicts)
        return await settle(self, verdicts)

    patch.setattr(MemoryBroker, "settle", silent)
