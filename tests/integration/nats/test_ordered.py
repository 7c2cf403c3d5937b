"""One process at a time: order per key across kills, lost connections and a restart of the server."""

from __future__ import annotations

import asyncio
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.integration.nats.conftest import Connect, Rig, position, until
from tests.integration.nats.server import NatsServer, Proxy
from tidings.brokers.nats.pull import Token
from tidings.delivery import ACK, Delivery, Route

pytestmark = pytest.mark.server

KEYS = 8


class Workers:
    """Processes of one ordered position, and the ledger that they write."""

    def __init__(self, url: str, folder: Path) -> None:
        self._url = url
        self.ledger = folder / "ledger"
        self.processes: dict[int, subprocess.Popen[bytes]] = {}

    def start(self, pause: float = 0.002) -> None:
        script = Path(__file__).with_name("ordered_worker.py")
        process = subprocess.Popen(
            [sys.executable, str(script), self._url, str(self.ledger), str(pause)], stdout=subprocess.PIPE
        )
        self.processes[process.pid] = process

    @property
    def rows(self) -> list[tuple[str, int, int, int]]:
        """Key, number, process and delivery count of each event that was handled."""
        if not self.ledger.exists():
            return []
        found = [line.split() for line in self.ledger.read_text().splitlines()]
        return [(key, int(number), int(pid), int(count)) for key, number, pid, count in found]

    def end(self, pid: int, how: signal.Signals) -> None:
        process = self.processes.pop(pid)
        process.send_signal(how)
        process.wait(10)
        assert process.stdout is not None
        process.stdout.close()

    def end_all(self) -> None:
        for pid in list(self.processes):
            self.end(pid, signal.SIGKILL)


@pytest.fixture
def workers(server: NatsServer, tmp_path: Path) -> Iterator[Workers]:
    made = Workers(server.url, tmp_path)
    yield made
    made.end_all()


def first_effects(rows: list[tuple[str, int, int, int]]) -> dict[str, list[int]]:
    """The numbers of each key in the order in which they first took effect."""
    found: dict[str, list[int]] = {}
    for key, number, _, _ in rows:
        numbers = found.setdefault(key, [])
        if number not in numbers:
            numbers.append(number)
    return found


async def test_P8_order_per_key_holds_when_the_active_process_is_killed(
    server: NatsServer, connect: Connect, workers: Workers
) -> None:
    rig = await connect(server.url, position(ordered=True), subscribe=False)
    for _ in range(3):
        workers.start()
    count = 1500
    bodies = [(f"k{n % KEYS}", n) for n in range(count)]
    for start in range(0, count, 500):
        part = [rig.message(f"{key} {n}".encode(), key=key) for key, n in bodies[start : start + 500]]
        assert set(await rig.broker.publish(part, timeout=5)) == {None}
    killed = []
    for mark in (200, 700):
        await until(lambda mark=mark: len({row[:2] for row in workers.rows}) >= mark, 30)  # type: ignore[misc]
        active = workers.rows[-1][2]
        workers.end(active, signal.SIGKILL)
        killed.append(active)
    await until(lambda: len({row[:2] for row in workers.rows}) >= count, 40)
    rows = workers.rows
    effects = first_effects(rows)
    for key, numbers in effects.items():
        assert numbers == sorted(numbers), f"{key} out of order"
    assert sum(map(len, effects.values())) == count, "lost"
    pids = list(dict.fromkeys(row[2] for row in rows))
    assert pids[:2] == killed, "one after the other, never two at once"
    assert len(pids) == 3
    # What its predecessor had open is counted as delivered before: the witness of an event that kills its process.
    assert any(row[3] >= 2 for row in rows)


async def test_a_standby_gets_nothing_while_the_active_one_is_slow_and_takes_over_when_it_leaves(
    server: NatsServer, connect: Connect
) -> None:
    one = position(ordered=True, max_in_flight=1)
    active = await connect(server.url, one)
    await active.publish(*[b"%d" % n for n in range(3)])
    await until(lambda: active.got)
    standby = await connect(server.url, one)
    # Longer than the server's patience with a pinned client, and no room to ask for more all the while.
    await asyncio.sleep(6.5)
    assert (active.bodies, standby.bodies) == ([b"0"], [])
    await active.broker.settle([(active.got[0], ACK)])
    await until(lambda: len(active.got) == 2)
    await active.broker.publish([active.copy(b"redriven")], timeout=5)
    await asyncio.sleep(0.3)
    assert standby.got == [], "a standby takes no copies either"
    await active.feed.close()
    await standby.settled(3)
    assert sorted(standby.bodies) == [b"1", b"2", b"redriven"]
    assert [body for body in standby.bodies if body != b"redriven"] == [b"1", b"2"]


async def test_P7_a_copy_reaches_an_ordered_position_that_no_event_has_reached_yet(
    server: NatsServer, connect: Connect
) -> None:
    # The server pins a client with an event only, so nobody is active here, and a redriven letter would wait.
    one, two = [await connect(server.url, position(ordered=True)) for _ in range(2)]
    assert await one.broker.publish([one.copy(b"redriven")], timeout=5) == [None]
    await until(lambda: one.got or two.got)
    taker, other = (one, two) if one.got else (two, one)
    await taker.settled(1)
    assert other.got == []
    await one.publish(*[b"%d" % n for n in range(30)])
    assert await one.broker.publish([one.copy(b"another")], timeout=5) == [None]
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
    async with asyncio.timeout(40):
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
    async with asyncio.timeout(40):
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
    take = feed.events.take

    def lossy(token: Token, delivery: Delivery, subject: bytes, headers: bytes | None) -> None:
        nonlocal lost
        if lost:
            lost -= 1  # as if it had gone into a dead socket: open at the server, never seen here
            feed.events.held -= 1
            return
        take(token, delivery, subject, headers)

    feed.events.take = lossy
    await rig.publish(*[b"%d" % n for n in range(1, 40)])
    await rig.settled(40)
    assert [int(body) for body in rig.bodies] == list(range(40))
    assert {delivery.route for delivery in rig.got} == {Route.EVENT}


async def _publish_slowly(rig: Rig, total: int) -> None:
    for start in range(0, total, 20):
        await rig.publish(*[b"%d" % n for n in range(start, start + 20)])
        await asyncio.sleep(0.03)


async def _settle_what_can_be(rig: Rig) -> None:
    await rig.broker.settle([(one, ACK) for one in rig.open])
