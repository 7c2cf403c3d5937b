"""What of the records that come is handed over, without a cluster: the client is made, and never connected."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Sequence
from typing import Any

import msgspec
import pytest
from confluent_kafka import Message as Record

from tidings.brokers.kafka.arrivals import Arrivals
from tidings.brokers.kafka.link import Link
from tidings.brokers.kafka.options import parse
from tidings.brokers.kafka.progress import Progress
from tidings.brokers.kafka.pump import GATHER, MOST, Pump
from tidings.brokers.kafka.tracks import Batch, Track, offset_of
from tidings.delivery import Route
from tidings.partition import slot_of
from tidings.ports import Subscription

SUBSCRIPTION = Subscription(position="stock.reserve", stream="order", types=("order.placed",), ordered=True)


class Owner:
    """A feed that only notes."""

    released = released_bytes = 0

    def __init__(self) -> None:
        self.gone: list[Track] = []

    def take(self, batch: Batch) -> None: ...
    def began(self) -> None: ...
    async def let_go(self, tracks: Sequence[Track]) -> None: ...

    def lost(self, tracks: Sequence[Track]) -> None:
        self.gone += tracks


def record(offset: int, type: str | None = "order.placed", topic: str = "order", partition: int = 0) -> Record:
    headers: list[tuple[str, str | bytes | None]] = [] if type is None else [("tidings.type", type.encode())]
    return Record(topic=topic, partition=partition, offset=offset, key=b"k", value=b"%d" % offset, headers=headers)


@pytest.fixture
async def owner() -> Owner:
    return Owner()


@pytest.fixture
async def pump(owner: Owner) -> AsyncIterator[Pump]:
    link = Link(parse("kafka://127.0.0.1:1"), "tidings test")
    pump = Pump(owner, link, SUBSCRIPTION, 1.0)
    pump.tracks["order", 0] = Track(owner, "order", 0, Route.EVENT, Progress(5, None, "us"))
    yield pump
    assert pump._made is not None
    pump._made.close()
    await link.close()


def offsets(batch: Batch) -> list[int]:
    return [offset_of(one) for one in batch.deliveries]


async def test_P13_types_that_nobody_asked_for_are_passed_over_and_hold_up_nothing(pump: Pump) -> None:
    batch = pump.arrivals.batch(
        [record(5), record(6, "order.closed"), record(7, None), record(8, "order.closed")], pump.tracks
    )
    assert offsets(batch) == [5, 7], "what does not say its type is for the handler to judge"
    progress = pump.tracks["order", 0].progress
    for offset in offsets(batch):
        progress.done(offset)
    assert progress.snapshot()[0] == 9


async def test_P3_P13_types_that_newer_code_may_ask_for_are_handed_over_and_the_others_are_not(owner: Owner) -> None:
    tracks = {("order", 0): Track(owner, "order", 0, Route.EVENT, Progress(0, None, "us"))}
    taker = msgspec.structs.replace(SUBSCRIPTION, strangers=True)
    arrivals = Arrivals(taker, note=lambda error: None, anew=lambda track, offset: track)

    def came(first: int) -> list[int]:
        types = ("order.placed", "order.closed", "order.closed", "order.paid")
        return offsets(arrivals.batch([record(first + place, kind) for place, kind in enumerate(types)], tracks))

    assert came(0) == [0, 1, 2, 3], "nobody has said yet what is for whom"
    arrivals.sift({"order.closed"}, time.monotonic() + 60)
    assert came(4) == [4, 5, 6]
    arrivals.sift((), time.monotonic() + 60)
    assert came(8) == [8], "what was found out about one is not kept for the next where it is for others"
    arrivals.sift((), time.monotonic() - 1)
    assert came(12) == [12, 13, 14, 15], "what was said is too old"


async def test_neighbours_of_other_partitions_and_with_other_headers_are_told_apart(pump: Pump, owner: Owner) -> None:
    pump.tracks["order", 1] = Track(owner, "order", 1, Route.EVENT, Progress(5, None, "us"))
    traced = Record(
        topic="order",
        partition=1,
        offset=6,
        value=b"6",
        headers=[("tidings.type", b"order.placed"), ("traceparent", b"00-1")],
    )
    came = [record(5), record(5, partition=1), record(6), traced, record(7), record(7, partition=2)]
    batch = pump.arrivals.batch(came, pump.tracks)
    assert [one.origin for one in batch.deliveries] == [
        ("order", 0, 5),
        ("order", 1, 5),
        ("order", 0, 6),
        ("order", 1, 6),
        ("order", 0, 7),
    ]
    assert [dict(one.headers) for one in batch.deliveries] == [{}, {}, {}, {"traceparent": "00-1"}, {}]
    assert {pump.tracks["order", number].progress.seen for number in (0, 1)} == {8, 7}


async def test_the_headers_that_neighbours_share_cannot_be_changed(pump: Pump) -> None:
    headers: list[tuple[str, str | bytes | None]] = [("tidings.type", b"order.placed"), ("x-own", "é".encode())]
    came = [Record(topic="order", partition=0, offset=at, value=b"1", headers=headers) for at in (5, 6, 7)]
    batch = pump.arrivals.batch(came, pump.tracks)
    assert [dict(one.headers) for one in batch.deliveries] == 3 * [{"x-own": "é"}]
    for one in batch.deliveries:
        assert not hasattr(one.headers, "__setitem__")


async def test_the_slot_of_a_key_is_worked_out_only_where_somebody_looks_at_it() -> None:
    def slots(subscription: Subscription) -> list[int | None]:
        arrivals = Arrivals(subscription, note=print, anew=lambda track, offset: track)
        tracks = {("order", 0): Track(None, "order", 0, Route.EVENT, Progress(5, None, "us"))}
        return [one.slot for one in arrivals.batch([record(5)], tracks).deliveries]

    assert slots(SUBSCRIPTION) == [slot_of("k")]
    assert slots(msgspec.structs.replace(SUBSCRIPTION, slots=False)) == [None]
    assert slots(msgspec.structs.replace(SUBSCRIPTION, ordered=False)) == [None]


async def test_what_a_process_before_has_done_is_passed_over_and_what_it_had_is_counted(
    pump: Pump, owner: Owner
) -> None:
    before = Progress(5, None, "us")
    for offset in range(5, 9):
        before.take(offset)
        before.handed = offset + 1
    before.done(6)
    pump.tracks["order", 0] = Track(owner, "order", 0, Route.EVENT, Progress(*before.snapshot(final=True), "us"))
    batch = pump.arrivals.batch([record(offset) for offset in range(5, 11)], pump.tracks)
    assert offsets(batch) == [5, 7, 8, 9, 10]
    assert [delivery.delivered for delivery in batch.deliveries] == [2, 2, 2, 1, 1]


async def test_P3_a_log_that_goes_back_is_taken_for_a_new_one_and_not_for_one_that_repeats_itself(
    pump: Pump, owner: Owner
) -> None:
    old = pump.tracks["order", 0]
    assert offsets(pump.arrivals.batch([record(5), record(6)], pump.tracks)) == [5, 6]
    assert offsets(pump.arrivals.batch([record(0), record(1)], pump.tracks)) == [0, 1]
    await asyncio.sleep(0)
    assert owner.gone == [old]
    assert old.gone
    assert pump.tracks["order", 0].progress.snapshot()[0] == 0


async def test_a_little_room_is_used_as_well(pump: Pump, owner: Owner) -> None:
    """Handlers that are slow make room for one at a time, and the library has to be polled all the same."""
    consumer: Any = object()
    pump._taken = pump._most
    assert pump._has_room() == 0
    owner.released = 1
    assert pump._room(consumer) == 1
    owner.released = pump._most
    assert pump._room(consumer) == min(MOST, pump._most)


async def test_room_for_many_is_used_at_once(pump: Pump, owner: Owner, monkeypatch: pytest.MonkeyPatch) -> None:
    waited: list[float] = []
    monkeypatch.setattr("tidings.brokers.kafka.pump.time.sleep", waited.append)
    consumer: Any = object()
    pump._taken = pump._most
    owner.released = MOST
    assert (pump._room(consumer), waited) == (MOST, []), "no batch is larger, whatever the room"
    owner.released = 10
    assert (pump._room(consumer), waited) == (10, [GATHER])


async def test_a_record_of_a_partition_that_went_is_nobodys_here(pump: Pump) -> None:
    assert offsets(pump.arrivals.batch([record(0, partition=3), record(0, topic="other")], pump.tracks)) == []
