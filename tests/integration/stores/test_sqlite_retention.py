"""Keys are forgotten when nothing can ask for them any more, on a real SQLite file, while claims go on."""

from __future__ import annotations

import asyncio
import logging
import sqlite3
import time
from collections.abc import Iterator
from contextlib import closing, contextmanager
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest

from tests.integration.stores.ledger import Where, applied, key, query
from tests.unit.parts import Placed, handler_of
from tidings.errors import BrokerUnavailable
from tidings.ports import State
from tidings.stores.sqlalchemy import SqlAlchemyStore
from tidings.sweeping import Sweeper, Target, margin_of, target_of

DAY = timedelta(days=1)
KEEP = timedelta(days=7)
STEP = "stock.step"


@pytest.fixture
def where(path: Path) -> Where:
    return path


def put(path: Path, rows: list[tuple[str, timedelta]], position: str = STEP) -> None:
    """Keys that were applied so long ago."""
    now = time.time()
    with closing(sqlite3.connect(path, timeout=5)) as connection, connection:
        connection.executemany(
            "INSERT INTO tidings_inbox VALUES (?, ?, 'e', x'00', ?)",
            [(position, key, now - age.total_seconds()) for key, age in rows],
        )


def target(**rules: Any) -> Target:
    async def step(event: Placed) -> None: ...

    async def keeps() -> timedelta:
        return KEEP

    found = target_of(handler_of(step, **rules), keeps)
    assert found is not None
    return found


@contextmanager
def another_writer(path: Path) -> Iterator[None]:
    with closing(sqlite3.connect(path, isolation_level=None)) as other:
        other.execute("BEGIN IMMEDIATE")
        yield
        other.execute("ROLLBACK")


@pytest.mark.proves("P4", store="sqlite")
async def test_P4_an_event_id_is_known_for_as_long_as_its_event_may_come_again(
    store: SqlAlchemyStore, path: Path
) -> None:
    life = KEEP + DAY
    second = timedelta(seconds=30)
    put(path, [("@new", timedelta()), ("@kept", KEEP), ("@young", life - second), ("@old", life + second)])
    put(path, [("@other", 10 * life)], position="stock.other")
    assert await Sweeper("stock", store, [target()]).sweep() == 1
    assert applied(path) == ["@kept", "@new", "@other", "@young"]
    async with store.claim([key("@young", "e", STEP), key("@old", "e", STEP)], resource=None, sync=False) as claim:
        assert [one.state for one in claim.states] == [State.DONE, State.NEW]


def test_the_margin_is_a_tenth_of_the_time_and_at_least_a_day() -> None:
    assert margin_of(timedelta(hours=1)) == margin_of(10 * DAY) == DAY
    assert margin_of(100 * DAY) == 10 * DAY


async def test_business_keys_stay_unless_their_handler_says_for_how_long(store: SqlAlchemyStore, path: Path) -> None:
    put(path, [("order_id:1", 1000 * DAY), ("order_id:2", timedelta(hours=1)), ("@id", 1000 * DAY)])
    assert target_of(handler_of(_step, once="order_id"), _forever) is None
    assert target_of(handler_of(_step, once=False), _forever) is None
    forgetful = target(once="order_id", forget_after=timedelta(hours=2))
    assert await Sweeper("stock", store, [forgetful]).sweep() == 1
    assert applied(path) == ["@id", "order_id:2"]
    assert await Sweeper("stock", store, [target()]).sweep() == 1
    assert applied(path) == ["order_id:2"]


async def test_nothing_is_forgotten_while_the_stream_cannot_be_asked_or_keeps_its_events_for_ever(
    store: SqlAlchemyStore, path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    async def away() -> timedelta:
        raise BrokerUnavailable("no connection")

    put(path, [("@old", 1000 * DAY)])
    assert await Sweeper("stock", store, [Target(STEP, "event", away), Target(STEP, "event", _forever)]).sweep() == 0
    assert applied(path) == ["@old"]
    assert [record.getMessage() for record in caplog.records if record.levelno == logging.WARNING] == [
        "stock.step: no key was forgotten, because its stream cannot be asked: no connection"
    ]


async def test_a_key_that_is_applied_anew_while_it_is_looked_at_stays(store: SqlAlchemyStore, path: Path) -> None:
    from tidings.outbox import retention

    put(path, [("@a", 1000 * DAY)])
    before = time.time() - 100
    old, after = await store._read(lambda connection: retention.old_keys(connection, STEP, "event", before, "", 10))
    assert (old, after) == (["@a"], None)
    with closing(sqlite3.connect(path)) as other, other:
        other.execute("UPDATE tidings_inbox SET applied_at = ?", (time.time(),))
    await store._write(lambda connection: retention.remove(connection, STEP, old, before))
    assert applied(path) == ["@a"]


async def test_P12_a_hundred_thousand_keys_are_forgotten_while_claims_go_on(
    path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each step is short: a claim waits for one at most, and none is refused."""
    store = SqlAlchemyStore(f"sqlite:///{path}", lock_timeout=30)  # the machine may have no time for a step
    await store.open()
    caplog.set_level(logging.INFO, "tidings.retention")
    monkeypatch.setattr("tidings.sweeping.PAUSE", 0.01)
    monkeypatch.setattr("tidings.sweeping.SHARE", 1)
    put(path, [(f"@{number:06}", 100 * DAY if number % 10 else timedelta()) for number in range(100_000)])
    sweeping = asyncio.create_task(Sweeper("stock", store, [target()]).sweep())
    claims = 0
    while not sweeping.done():
        async with store.claim([key(f"@new-{claims}", f"n{claims}", STEP)], resource=None, sync=False) as claim:
            assert [one.state for one in claim.states] == [State.NEW]
        claims += 1
        await asyncio.sleep(0)
    assert sweeping.result() == 90_000
    assert claims > 50, "one claim in two steps, at least"
    assert query(path, "SELECT count(*) FROM tidings_inbox") == [(10_000 + claims,)]
    await store.close()
    (line,) = [record.getMessage() for record in caplog.records if record.name == "tidings.retention"]
    assert line == "stock: keys were forgotten, which nothing can ask for any more: stock.step 90,000"


async def test_a_store_that_is_busy_is_tried_again(store: SqlAlchemyStore, path: Path) -> None:
    put(path, [("@old", 1000 * DAY)])
    with another_writer(path):
        sweeping = asyncio.create_task(Sweeper("stock", store, [target()]).sweep())
        await asyncio.sleep(0.5)  # longer than the store waits for a lock
        assert applied(path) == ["@old"]
    assert await sweeping == 1
    assert applied(path) == []


async def _step(event: Placed) -> None: ...


async def _forever() -> None:
    return None
