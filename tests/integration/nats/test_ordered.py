"""Each key in one process at a time: order per key across kills, lost connections and a restart of the server."""

from __future__ import annotations

import asyncio
import os
import signal
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import pytest

from tests.integration.nats.conftest import Connect, Rig, another, divided, position, until
from tests.integration.nats.ordered_worker import OrderPlaced
from tests.integration.nats.pace import watched
from tests.integration.nats.server import NatsServer, Proxy
from tests.integration.nats.workers import Row, Workers
from tidings.brokers.nats.ordered import OrderedFeed
from tidings.brokers.nats.tokens import Token
from tidings.delivery import ACK, Delivery, Route
from tidings.envelope import envelope_of, to_structured
from tidings.partition import slot_of
from tools.services.freezing import freeze

pytestmark = pytest.mark.server

KEYS = 16


@pytest.fixture
def workers(server: NatsServer, tmp_path: Path) -> Iterator[Workers]:
    made = Workers(server.url, tmp_path)
    try:
        with watched(made.stood.append, server.port):
            yield made
    finally:
        made.end_all()


def first_effects(rows: list[Row]) -> dict[str, list[int]]:
    """The numbers of each key in the order in which they first took effect."""
    found: dict[str, list[int]] = {}
    for key, number, _, _ in rows:
        numbers = found.setdefault(key, [])
        if number not in numbers:
            numbers.append(number)
    return found


async def test_P8_all_processes_work_and_the_order_of_each_key_holds_when_two_are_killed(
    server: NatsServer, connect: Connect, workers: Workers
) -> None:
    rig = await connect(server.url, position(ordered=True), subscribe=False)
    for _ in range(4):
        workers.start()
    await workers.ready(4)
    before = await _until_all_work(rig, workers, 4)
    count = before + 800
    await _publish_in_turn(rig, 800, first=before)
    await until(partial(workers.applied, count), 60)
    at_first = {row[2] for row in workers.rows[before:]}
    assert len(at_first) == 4, "they work side by side, not one after the other"
    for _ in range(2):
        async with asyncio.timeout(60):
            active = 0
            while not active:  # one that has something to do when it is killed
                await _publish_in_turn(rig, 1500, first=count)
                count += 1500
                active = await _stopped_at_work(workers, count)
        workers.end(active, signal.SIGKILL)
    await until(partial(workers.applied, count), 60)
    rows = workers.rows
    _is_in_order(rows, count)
    # What its predecessor had open is counted as delivered before: the witness of an event that kills its process.
    assert any(row[3] >= 2 for row in rows)


async def test_P8_a_process_that_was_stopped_and_comes_back_repeats_nothing_behind_its_successors_back(
    server: NatsServer, connect: Connect, workers: Workers
) -> None:
    rig = await connect(server.url, position(ordered=True), subscribe=False)
    for _ in range(2):
        workers.start()
    await workers.ready(2)
    begun = await _until_all_work(rig, workers, 2)
    count = begun + 2500
    publishing = asyncio.create_task(_publish_in_turn(rig, 2500, first=begun, pause=0.05))
    await until(partial(_has_begun, workers, begun))
    stopped = workers.rows[-1][2]
    freeze(stopped)
    await asyncio.sleep(8.0)
    before = len(workers.rows)
    os.kill(stopped, signal.SIGCONT)
    await publishing
    async with asyncio.timeout(60):
        while stopped not in {row[2] for row in workers.rows[before:]}:  # it gets its part back
            await _publish_in_turn(rig, 50, first=count, pause=0.05)
            count += 50
    await until(partial(workers.applied, count), 60)
    rows = workers.rows
    _is_in_order(rows, count)
    # At most what was in the hand of the handler when it was stopped comes late: nothing that only waited.
    late = [row for at, row in enumerate(rows) if at >= before and _comes_late(rows, at)]
    assert len(late) <= 1, late


async def test_P8_P9_a_rolling_restart_of_four_leaves_no_gap_and_loses_nothing(
    server: NatsServer, connect: Connect, workers: Workers
) -> None:
    rig = await connect(server.url, position(ordered=True), subscribe=False)
    for _ in range(4):
        workers.start()
    await workers.ready(4)
    count, over = await _until_all_work(rig, workers, 4), asyncio.Event()
    publishing = asyncio.create_task(_publish_until(over, rig, count))
    old = list(workers.processes)
    for pid in old:
        workers.start()
        await workers.ready(5)
        await asyncio.to_thread(workers.end, pid, signal.SIGTERM)
    restarted = len(workers.rows)
    await until(lambda: len({row[2] for row in workers.rows[restarted:]}) == 4, 60)  # each of the new has a part
    over.set()
    count = await publishing
    await until(partial(workers.applied, count), 60)
    _is_in_order(workers.rows, count)
    assert len(workers.rows) == count, "applied twice"
    assert {row[2] for row in workers.rows[restarted:]}.isdisjoint(old)
    assert workers.longest_gap() < 2.0


async def test_a_newcomer_gets_its_part_and_the_others_go_on(
    server: NatsServer, connect: Connect, workers: Workers
) -> None:
    rig = await connect(server.url, position(ordered=True), subscribe=False)
    workers.start()
    await workers.ready(1)
    over = asyncio.Event()
    publishing = asyncio.create_task(_publish_until(over, rig, 0))
    await until(lambda: len(workers.rows) > 100)
    workers.start()
    await until(lambda: len({row[2] for row in workers.rows}) == 2, 60)
    over.set()
    count = await publishing
    await until(partial(workers.applied, count), 60)
    await _publish_in_turn(rig, 200, first=count)
    count += 200
    await until(partial(workers.applied, count), 60)
    _is_in_order(workers.rows, count)
    assert len(workers.rows) == count, "applied twice"
    assert len({row[2] for row in workers.rows[-200:]}) == 2, "it got no part"
    assert workers.longest_gap() < 2.0


async def test_a_standby_gets_nothing_while_the_active_one_is_slow_and_takes_over_when_it_leaves(
    server: NatsServer, connect: Connect
) -> None:
    one = position(ordered=True, max_in_flight=1)
    active = await connect(server.url, one)
    await active.publish(*[b"%d" % n for n in range(3)])
    await until(lambda: active.got)
    standby = await another(connect, server.url, active, preferred=False)
    # Longer than the server's patience with a pinned client, and no room to ask for more all the while.
    await asyncio.sleep(6.5)
    assert (active.bodies, standby.bodies) == ([b"0"], [])
    await active.broker.settle([(active.got[0], ACK)])
    await until(lambda: len(active.got) == 2)
    await active.broker.publish([active.copy(b"redriven")], timeout=30)
    await asyncio.sleep(0.3)
    assert standby.got == [], "a standby takes no copies either"
    await active.feed.close()
    await standby.settled(3)
    assert sorted(standby.bodies) == [b"1", b"2", b"redriven"]
    assert [body for body in standby.bodies if body != b"redriven"] == [b"1", b"2"]


async def test_P8_a_share_that_is_to_go_stays_for_as_long_as_an_event_of_it_runs(
    server: NatsServer, connect: Connect
) -> None:
    active = await connect(server.url, position(ordered=True, max_in_flight=1))
    await active.publish(*[b"%d" % n for n in range(3)])
    await until(lambda: active.got)
    heir = await another(connect, server.url, active, preferred=True)
    await asyncio.sleep(6.5)  # longer than the server's patience, and than it takes until it is asked to go again
    assert (active.bodies, heir.bodies) == ([b"0"], [])
    async with asyncio.timeout(60):
        while len(active.got) + len(heir.got) < 3 or active.open or heir.open:
            await _settle_what_can_be(active)
            await _settle_what_can_be(heir)
            await asyncio.sleep(0.02)
    await divided(active, heir)
    await active.publish(b"3")
    await until(lambda: b"3" in heir.bodies)
    assert active.bodies + heir.bodies == [b"0", b"1", b"2", b"3"]


async def test_P7_a_copy_reaches_an_ordered_position_that_no_event_has_reached_yet(
    server: NatsServer, connect: Connect
) -> None:
    # The server pins a client with an event only, so nobody is active here, and a redriven letter would wait.
    one, two = [await connect(server.url, position(ordered=True)) for _ in range(2)]
    await divided(one, two)
    assert await one.broker.publish([one.copy(b"redriven")], timeout=30) == [None]
    await until(lambda: one.got or two.got)
    taker, other = (one, two) if one.got else (two, one)
    await taker.settled(1)
    assert other.got == []
    await one.publish(*[b"%d" % n for n in range(30)])
    assert await one.broker.publish([one.copy(b"another")], timeout=30) == [None]
    await until(lambda: len(one.got) + len(two.got) == 32)
    active = one if b"29" in one.bodies else two
    numbers = [body for body in active.bodies if body.isdigit()]
    assert numbers == [b"%d" % n for n in range(30)]
    await asyncio.gather(one.settled(len(one.got)), two.settled(len(two.got)))


async def test_a_copy_does_not_look_like_a_gap_between_events(
    server: NatsServer, connect: Connect, caplog: pytest.LogCaptureFixture
) -> None:
    rig = await connect(server.url, position(ordered=True))
    for number in range(3):
        await rig.publish(b"%d" % number)
        await rig.broker.publish([rig.copy(b"copy")], timeout=5)
        await rig.settled(2 * number + 2)
    assert "did not arrive" not in caplog.text


async def test_a_lost_connection_brings_no_event_out_of_order(
    server: NatsServer, proxy: Proxy, connect: Connect
) -> None:
    rig = await connect(server.url, position(ordered=True), subscribe=False)
    cut = await connect(proxy.url, position(ordered=True, max_in_flight=64))
    total = 600
    publishing = asyncio.create_task(_publish_slowly(rig, total))
    for mark in (100, 250, 400):
        await cut.settled(mark)
        proxy.cut()
        await until(lambda: not cut.broker.trouble)
    await publishing
    seen: list[int] = []
    async with asyncio.timeout(60):
        while len(seen) < total:
            await _settle_what_can_be(cut)
            seen = list(dict.fromkeys(int(body) for body in cut.bodies))
            await asyncio.sleep(0.02)
    assert seen == sorted(seen)


async def test_order_holds_over_a_killed_server(server: NatsServer, connect: Connect) -> None:
    rig = await connect(server.url, position(ordered=True, max_in_flight=64))
    total = 400
    await rig.publish(*[b"%d" % n for n in range(total)])
    await rig.settled(100)
    await asyncio.to_thread(server.stop, signal.SIGKILL)
    await asyncio.sleep(0.5)
    await asyncio.to_thread(server.start)
    seen: list[int] = []
    async with asyncio.timeout(60):
        while len(seen) < total:
            await _settle_what_can_be(rig)
            seen = list(dict.fromkeys(int(body) for body in rig.bodies))
            await asyncio.sleep(0.02)
    assert seen == sorted(seen)


async def test_a_gap_in_what_arrives_is_noticed_and_filled_in_order(server: NatsServer, connect: Connect) -> None:
    rig = await connect(server.url, position(ordered=True, max_in_flight=16))
    await rig.publish(b"0")
    await rig.settled(1)
    feed, lost = rig.feed, 3
    assert isinstance(feed, OrderedFeed)
    pull = feed.shares[slot_of("k") // 8].events
    take = pull.take

    def lossy(token: Token, delivery: Delivery, subject: bytes, headers: bytes | None) -> None:
        nonlocal lost
        if lost:
            lost -= 1  # as if it had gone into a dead socket: open at the server, never seen here
            pull.held -= 1
            return
        take(token, delivery, subject, headers)

    pull.take = lossy
    await rig.publish(*[b"%d" % n for n in range(1, 40)])
    await rig.settled(40)
    assert [int(body) for body in rig.bodies] == list(range(40))
    assert {delivery.route for delivery in rig.got} == {Route.EVENT}


async def _publish_in_turn(rig: Rig, count: int, *, first: int = 0, pause: float = 0.0) -> None:
    """Events of all keys in turn, in small parts."""
    for start in range(first, first + count, 50):
        placed = [OrderPlaced(name=f"k{n % KEYS}", number=n) for n in range(start, min(first + count, start + 50))]
        part = [rig.message(to_structured(envelope_of(one, "orders")), key=one.name) for one in placed]
        assert set(await rig.broker.publish(part, timeout=30)) == {None}
        await asyncio.sleep(pause)


async def _publish_until(over: asyncio.Event, rig: Rig, first: int) -> int:
    """Go on until it is over; how many there are then."""
    while not over.is_set():
        await _publish_in_turn(rig, 50, first=first, pause=0.05)
        first += 50
    return first


async def _until_all_work(rig: Rig, workers: Workers, processes: int) -> int:
    """Publish in small parts until so many processes work on one of them; how many events that took."""
    count = 0
    async with asyncio.timeout(60):
        while len({row[2] for row in workers.rows[-50:]}) < processes:
            await _publish_in_turn(rig, 50, first=count)
            count += 50
            await until(partial(workers.applied, count))
    return count


async def _stopped_at_work(workers: Workers, count: int) -> int:
    """Stop a process that has events of these 1500 to do; 0 where all of its part was done before it stood."""
    await until(partial(_has_begun, workers, count - 1500))
    freeze(active := workers.rows[-1][2])
    rows = [row for row in workers.rows if row[1] >= count - 1500]
    keys = {row[0] for row in rows if row[2] == active}
    if sum(row[0] in keys for row in rows) < len([n for n in range(count - 1500, count) if f"k{n % KEYS}" in keys]):
        return active
    os.kill(active, signal.SIGCONT)
    return 0


def _has_begun(workers: Workers, first: int) -> bool:
    """Whether an event of this number or a later one was handled."""
    return any(row[1] >= first for row in workers.rows)


def _is_in_order(rows: list[Row], count: int) -> None:
    effects = first_effects(rows)
    for key, numbers in effects.items():
        assert numbers == sorted(numbers), f"{key} out of order"
    assert sum(map(len, effects.values())) == count, "lost"


def _comes_late(rows: list[Row], at: int) -> bool:
    """An effect that was there before is repeated behind a newer one of its key."""
    key, number, *_ = rows[at]
    return any(row[0] == key and row[1] > number for row in rows[:at])


async def _publish_slowly(rig: Rig, total: int) -> None:
    for start in range(0, total, 20):
        await rig.publish(*[b"%d" % n for n in range(start, start + 20)])
        await asyncio.sleep(0.03)


async def _settle_what_can_be(rig: Rig) -> None:
    await rig.broker.settle([(one, ACK) for one in rig.open])
