"""Sixteen keys in four processes, one of which is killed every two seconds: each key in order, none lost, none twice.

The judge is a table without a unique key. A row is written in the handler's transaction, so the rows of a key stand in
the order in which they took effect.
"""

from __future__ import annotations

import asyncio
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import psycopg
import pytest

from tests.acceptance.order_worker import Moved
from tests.integration.nats.conftest import until
from tests.integration.nats.server import NatsServer
from tidings import Service
from tidings.dead_letters import list_letters

pytestmark = [pytest.mark.server, pytest.mark.proves(broker="nats", store="postgres")]

KEYS, PROCESSES = 16, 4
KILL_EVERY = 2.0
PATIENCE = 60.0
"""Seconds for what a slow machine has not come to when all events are published."""


class Row(NamedTuple):
    piece: str
    number: int
    process: int


class Board:
    """The processes, and the ledger that they write."""

    def __init__(self, broker: str, store: str, folder: Path) -> None:
        self._arguments = [sys.executable, str(Path(__file__).with_name("order_worker.py")), broker, store, str(folder)]
        self._folder = folder
        self._log = (folder / "workers.log").open("ab")
        self._ledger = psycopg.connect(store, autocommit=True)
        self._ledger.execute("CREATE TABLE ledger (place bigserial, piece text, number int, process int)")
        self.processes: list[subprocess.Popen[bytes]] = []
        self.killed = 0

    def start(self) -> None:
        self.processes.append(subprocess.Popen(self._arguments, stderr=self._log))

    def kill(self) -> None:
        """Kill the one that has lived longest, without a word."""
        process = self.processes.pop(0)
        assert process.poll() is None, "it died by itself"
        process.kill()
        process.wait(10)
        self.killed += 1

    def is_complete(self) -> bool:
        """All processes have begun to listen."""
        return all((self._folder / f"ready-{process.pid}").exists() for process in self.processes)

    def applied(self) -> int:
        (count,) = self._ledger.execute("SELECT count(*) FROM ledger").fetchone() or (0,)
        return int(count)

    def took_part(self) -> int:
        """How many processes have had something to do."""
        (count,) = self._ledger.execute("SELECT count(DISTINCT process) FROM ledger").fetchone() or (0,)
        return int(count)

    def rows(self) -> list[Row]:
        return [Row(*row) for row in self._ledger.execute("SELECT piece, number, process FROM ledger ORDER BY place")]

    def close(self) -> None:
        for process in self.processes:
            process.send_signal(signal.SIGTERM)
        for process in self.processes:
            try:
                process.wait(30)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
        self._log.close()
        self._ledger.close()


@pytest.fixture
def server(tmp_path: Path) -> Iterator[NatsServer]:
    made = NatsServer(tmp_path / "server").start()
    yield made
    made.stop()


@pytest.fixture
def board(server: NatsServer, postgres_url: str, tmp_path: Path) -> Iterator[Board]:
    made = Board(server.url, postgres_url, tmp_path)
    yield made
    made.close()


async def test_P8_P4_keys_keep_their_order_while_processes_are_killed(server: NatsServer, board: Board) -> None:
    await prove(server, board, events=3_000, per_second=600, kills=2)


@pytest.mark.long
@pytest.mark.timeout(1200)
async def test_P8_P4_a_hundred_thousand_events_keep_their_order_while_processes_are_killed(
    server: NatsServer, board: Board
) -> None:
    await prove(server, board, events=100_000, per_second=3_000, kills=15)


async def prove(server: NatsServer, board: Board, *, events: int, per_second: int, kills: int) -> None:
    """So many events, and more until so many processes were killed and one that came later has had a part."""
    began = time.monotonic()
    moves: list[Moved] = []
    for _ in range(PROCESSES):
        board.start()
    await until(board.is_complete, 60)
    publisher = Service("players", broker=server.url, publishes=[Moved])
    async with publisher.running():
        publishing = asyncio.create_task(publish_until(publisher, board, moves, events, per_second, kills))
        killing = asyncio.create_task(kill_every_two_seconds(board))
        try:
            await publishing
            while await asyncio.to_thread(board.applied) < len(moves):
                assert not killing.done(), killing
                await asyncio.sleep(0.5)
        finally:
            killing.cancel()
            await asyncio.wait([killing])
        rows = await asyncio.to_thread(board.rows)
        letters = await list_letters(publisher.active.broker)
    seen = Counter((row.piece, row.number) for row in rows)
    lost = sum((move.piece, move.number) not in seen for move in moves)
    twice = sum(count > 1 for count in seen.values())
    print(
        f"\n{len(moves)} events, {KEYS} keys, {PROCESSES} processes, {board.killed} killed,"
        f" {len({row.process for row in rows})} took part, {time.monotonic() - began:.0f} s:"
        f" lost={lost} applied_twice={twice} letters={len(letters)}"
    )
    assert (lost, twice, letters) == (0, 0, [])
    for key in {row.piece for row in rows}:
        numbers = [row.number for row in rows if row.piece == key]
        assert numbers == sorted(numbers), f"{key} is out of order"
    assert len({row.process for row in rows}) > PROCESSES, "those that came later got no part"
    assert board.killed >= kills


async def publish_until(
    publisher: Service, board: Board, moves: list[Moved], events: int, per_second: int, kills: int
) -> None:
    """Publish the events; then, as long as a slow machine needs for the rest, some more."""
    part, end = max(KEYS, per_second // 10), 0.0
    while len(moves) < events or not (board.killed >= kills and await asyncio.to_thread(board.took_part) > PROCESSES):
        if len(moves) >= events:
            end = end or time.monotonic() + PATIENCE
            part = KEYS
            if time.monotonic() > end:
                return  # and those who judge say what is missing
        began = time.monotonic()
        more = [Moved(piece=f"piece-{n % KEYS:02}", number=n) for n in range(len(moves), len(moves) + part)]
        moves += more
        assert set(await publisher.publish_many(more, timeout=30)) == {None}
        await asyncio.sleep(max(0.0, 0.1 - (time.monotonic() - began)))


async def kill_every_two_seconds(board: Board) -> None:
    """Where a process takes longer to start, on a machine that has much to do, it is waited for."""
    while True:
        await asyncio.sleep(KILL_EVERY)
        await until(board.is_complete, 60)
        await asyncio.to_thread(board.kill)
        board.start()
