"""Keys that are missing, null, huge or odd, on every store: applied once or a letter, and nobody waits behind them."""

from __future__ import annotations

import os
from collections import Counter
from pathlib import Path
from typing import Any

import asyncpg
import msgspec
import pytest
import sqlalchemy as sa
from sqlalchemy.ext.asyncio import create_async_engine

from tests.unit.parts import until
from tidings import Event, Retry, Service
from tidings.delivery import Message
from tidings.envelope import envelope_of, to_structured
from tidings.testing import MemoryBroker

STORES = [
    pytest.param("sqlite", marks=pytest.mark.proves(broker="memory", store="sqlite")),
    pytest.param("postgresql", marks=pytest.mark.proves(broker="memory", store="postgres")),
    pytest.param("postgresql+asyncpg", marks=pytest.mark.proves(broker="memory", store="postgres")),
    pytest.param("mariadb", marks=pytest.mark.proves(broker="memory", store="mariadb")),
    pytest.param("redis", marks=pytest.mark.proves(broker="memory", store="redis")),
]
ODD = ["plain", "k" * 10_000, "k" * 9_999 + "x", "a\\b", "a\\0b", " ", "Ä", "'; DROP TABLE tidings_inbox --"]


class Placed(Event, type="order.placed", version=1, key=None):
    order_id: str
    note: str = ""


class Reserved(Event, type="stock.reserved", version=1, key=None):
    order_id: str


@pytest.fixture(params=STORES)
def store(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """The URL of an empty store."""
    if request.param == "sqlite":
        return f"sqlite:///{tmp_path}/shop.db"
    url = str(request.getfixturevalue(f"{request.param.partition('+')[0].replace('postgresql', 'postgres')}_url"))
    return url.replace("postgresql:", f"{request.param}:", 1)


def foreign(id: str, data: dict[str, object]) -> Message:
    """What a stranger published: JSON that no class of ours has seen."""
    envelope = envelope_of(Placed(order_id="?"), "elsewhere")
    known = msgspec.json.decode(to_structured(envelope))
    body = msgspec.json.encode({**known, "id": id, "data": data})
    return Message(id=id, stream="order", type="order.placed", body=body)


async def test_P3_P7_P13_of_odd_keys_each_is_applied_once_or_a_letter_and_nothing_is_stuck(store: str) -> None:
    broker = MemoryBroker()
    stock = Service(f"stock-{os.urandom(4).hex()}", store=store, publishes=[Placed, Reserved])
    applied: Counter[str] = Counter()
    heard: Counter[str] = Counter()

    @stock.on(Placed, once="order_id", name="reserve", retry=Retry(attempts=2, first=0.01))
    async def reserve(order: Placed) -> Reserved:
        applied[order.order_id] += 1
        return Reserved(order_id=order.order_id)

    @stock.on(Reserved, idempotent=True)
    async def hear(reserved: Reserved) -> None:
        heard[reserved.order_id] += 1

    bad: dict[str, dict[str, object]] = {
        "missing": {"note": "no key"},
        "null": {"order_id": None},
        "number": {"order_id": 7},
        "nul": {"order_id": "a\0b"},
        "nul elsewhere": {"order_id": "fine", "note": "\0"},
    }
    async with stock.running(broker=broker):
        for turn in range(2):  # each comes twice, the second time under another id
            messages = [foreign(f"{turn} {id}", data) for id, data in bad.items()]
            messages += [foreign(f"{turn} {number}", {"order_id": name}) for number, name in enumerate(ODD)]
            assert not any(await broker.publish(messages, timeout=5))
        await until(lambda: len(applied) == len(ODD) and len(heard) == len(ODD), 30)
        await until(lambda: len(broker.dead_letters) >= 2 * len(bad), 30)
        await broker.idle(30)
    assert applied == Counter(ODD), "lost or applied twice"
    assert set(heard) == set(ODD)
    assert len(broker.dead_letters) == 2 * len(bad)


@pytest.mark.parametrize("kind", ["postgresql", "postgresql+asyncpg", "mariadb"])
async def test_P3_P4_with_a_pool_of_one_connection_everything_is_applied_once_and_leaves(
    request: pytest.FixtureRequest, kind: str
) -> None:
    """Handlers of two positions, the relay and a web endpoint share it."""
    url = request.getfixturevalue("mariadb_url" if kind == "mariadb" else "postgres_url")
    pool: Any
    if kind == "postgresql":
        pool = await asyncpg.create_pool(url, min_size=1, max_size=1)
    else:
        there = sa.make_url(url) if kind == "mariadb" else sa.make_url(url).set(drivername=kind)
        pool = create_async_engine(there, pool_size=1, max_overflow=0)
    stock = Service("stock", store=pool, publishes=[Placed, Reserved])
    applied: Counter[str] = Counter()

    @stock.on(Placed, name="reserve", retry=Retry(attempts=1))
    async def reserve(order: Placed) -> Reserved:
        applied[f"reserve {order.order_id}"] += 1
        return Reserved(order_id=order.order_id)

    @stock.on(Reserved, name="ship", retry=Retry(attempts=1))
    async def ship(reserved: Reserved) -> None:
        applied[f"ship {reserved.order_id}"] += 1

    broker = MemoryBroker()
    names = [str(number) for number in range(20)]
    async with stock.running(broker=broker):
        for name in names:
            async with stock.transaction() as tx:
                await stock.publish(Placed(order_id=name), tx=tx)
        await until(lambda: len(applied) == 2 * len(names), 60)
        await broker.idle(30)
    assert applied == Counter(f"{what} {name}" for what in ("reserve", "ship") for name in names)
    assert not broker.dead_letters
    await (pool.close() if kind == "postgresql" else pool.dispose())
