"""Services whose database has no room left or may only be read: they wait, say why, lose nothing and go on."""

from __future__ import annotations

import os
import shutil
import subprocess
from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import Any

import asyncpg
import psycopg
import pymysql
import pytest
import sqlalchemy as sa
from sqlalchemy.ext.asyncio import AsyncConnection

from tests.integration.shop import Placed, Reserved
from tests.servers import folder_for
from tests.unit.parts import until
from tidings import Retry, Service
from tidings.testing import MemoryBroker
from tools.services.mariadb import MariaDB
from tools.services.postgres import Postgres

EVENTS = 40
CREATE = "CREATE TABLE ledger (number INTEGER, note TEXT)"  # no unique key
ONCE = Retry(attempts=1)
"""A failure would be a dead letter at once: no room is no failure."""


class Place(ABC):
    """A database whose files lie on a small disk of their own."""

    def __init__(self, url: str, disk: Path, run: Callable[[str], list[tuple[Any, ...]]]) -> None:
        self.url, self.disk, self.run = url, disk, run

    @property
    def numbers(self) -> list[int]:
        return [number for (number,) in self.run("SELECT number FROM ledger")]

    @contextmanager
    def full(self) -> Iterator[None]:
        """Somebody else fills the disk, and clears it up."""
        filler = self.disk / "filler"
        free = shutil.disk_usage(self.disk).free
        filler.write_bytes(b"x" * (free - 400_000))
        try:
            yield
        finally:
            filler.unlink()

    @abstractmethod
    def read_only(self) -> AbstractContextManager[None]:
        """Nobody may write to it for a while."""


class OnPostgres(Place):
    @contextmanager
    def read_only(self) -> Iterator[None]:
        self._set("on")
        yield
        self._set("off")

    def _set(self, value: str) -> None:
        self.run(f"ALTER DATABASE shop SET default_transaction_read_only = {value}")
        self.run(
            "SELECT pg_terminate_backend(pid, 5000) FROM pg_stat_activity"
            " WHERE datname = 'shop' AND pid <> pg_backend_pid()"
        )


class OnMariadb(Place):
    @contextmanager
    def read_only(self) -> Iterator[None]:
        self.run("SET GLOBAL read_only = 1")
        yield
        self.run("SET GLOBAL read_only = 0")


@contextmanager
def mounted(folder: Path, megabytes: int) -> Iterator[None]:
    command = ["mount", "-t", "tmpfs", "-o", f"size={megabytes}m", "tmpfs", str(folder)]
    if os.geteuid() != 0 or subprocess.run(command, check=False, capture_output=True).returncode:
        pytest.skip("mounting a small file system needs root; what the server says of a full disk is tested in words")
    try:
        yield
    finally:
        subprocess.run(["umount", "-l", str(folder)], check=True)


@contextmanager
def postgres(folder: Path, driver: str) -> Iterator[Place]:
    """Its tables lie in a tablespace on a small disk; the server's own log, as it should be, elsewhere."""
    small = folder / "small"
    small.mkdir()
    with mounted(small, 24), Postgres(folder / "server") as server:
        space = small / "space"
        space.mkdir()
        shutil.chown(space, "postgres", "postgres")

        def run(statement: str, url: str = server.database("shop")) -> list[tuple[Any, ...]]:
            with psycopg.connect(url, autocommit=True, connect_timeout=10) as connection:
                connection.execute(b"SET default_transaction_read_only = off")
                cursor = connection.execute(statement.encode())
                return cursor.fetchall() if cursor.description else []

        for path in (small, *small.parents[:2]):
            path.chmod(path.stat().st_mode | 0o011)
        run(f"CREATE TABLESPACE small LOCATION '{space}'", server.url)
        run("CREATE DATABASE shop TABLESPACE small", server.url)
        url = server.database("shop")
        yield OnPostgres(url.replace("postgresql:", f"postgresql{driver}:", 1), small, run)


class WithAUser(MariaDB):
    """With a user who may not write where the server may only be read."""

    def prepare(self) -> None:
        super().prepare()
        with (self.folder / "init.sql").open("a") as script:
            script.write(
                "CREATE USER IF NOT EXISTS 'shop'@'%' IDENTIFIED BY 'shop';\nGRANT ALL ON shop.* TO 'shop'@'%';\n"
            )


@contextmanager
def mariadb(folder: Path) -> Iterator[Place]:
    """The folder of its database is a small disk."""
    with WithAUser(folder / "server") as server:

        def run(statement: str, database: str | None = "shop") -> list[tuple[Any, ...]]:
            connection = pymysql.connect(
                host="127.0.0.1", port=server.port, user="tidings", password="tidings", database=database
            )
            with connection, connection.cursor() as cursor:
                cursor.execute(statement)
                connection.commit()
                return list(cursor.fetchall())

        run("CREATE DATABASE shop", None)
        small = server.folder / "data" / "shop"
        with mounted(small, 6):
            yield OnMariadb(f"mariadb+aiomysql://shop:shop@127.0.0.1:{server.port}/shop", small, run)


@pytest.fixture(
    params=[
        pytest.param("postgresql", marks=pytest.mark.proves(broker="memory", store="postgres")),
        pytest.param("postgresql+asyncpg", marks=pytest.mark.proves(broker="memory", store="postgres")),
        pytest.param("mariadb", marks=pytest.mark.proves(broker="memory", store="mariadb")),
    ]
)
def place(request: pytest.FixtureRequest) -> Iterator[Place]:
    with folder_for("full") as folder:
        opened = mariadb(folder) if request.param == "mariadb" else postgres(folder, request.param[len("postgresql") :])
        with opened as place:
            place.run(CREATE)
            yield place


def declare(place: Place) -> tuple[Service, Counter[int]]:
    """A handler whose effect takes 40 kB of the disk, and one that hears what it caused."""
    stock = Service("stock", store=place.url, publishes=[Placed, Reserved])
    heard: Counter[int] = Counter()
    on = stock.on(Placed, name="reserve", retry=ONCE, batch=8)
    insert = "INSERT INTO ledger (number, note) VALUES ({}, {})"

    def note() -> str:
        return os.urandom(20_000).hex()  # which no database makes smaller than a half

    if place.url.startswith("postgresql:"):

        @on
        async def through_asyncpg(order: Placed, db: asyncpg.Connection) -> Reserved:
            await db.execute(insert.format("$1", "$2"), order.number, note())
            return Reserved(order_id=order.order_id, number=order.number)

    else:

        @on
        async def through_sqlalchemy(order: Placed, db: AsyncConnection) -> Reserved:
            await db.execute(sa.text(insert.format(":number", ":note")), {"number": order.number, "note": note()})
            return Reserved(order_id=order.order_id, number=order.number)

    @stock.on(Reserved, idempotent=True)
    async def hear(reserved: Reserved) -> None:
        heard[reserved.number] += 1

    return stock, heard


async def have(day: Callable[[], AbstractContextManager[None]], place: Place, words: str) -> None:
    """A service works, has a bad day in the middle, says why, and has applied everything once in the end."""
    broker = MemoryBroker()
    stock, heard = declare(place)
    async with stock.running(broker=broker):

        async def publish(numbers: range) -> None:
            events = [Placed(order_id=f"k{number % 4}", number=number) for number in numbers]
            assert not any(await stock.publish_many(events))

        await publish(range(4))
        await until(lambda: len(heard) == 4, 20)
        with day():
            await publish(range(4, EVENTS))
            await until(lambda: words in stock.active.workers[0].trouble, 30)
            assert not broker.dead_letters
            assert len(place.numbers) < EVENTS
        await until(lambda: len(set(place.numbers)) == EVENTS and len(heard) == EVENTS, 60)
        await until(lambda: place.run("SELECT count(*) FROM tidings_outbox") == [(0,)], 30)
        await until(lambda: not stock.active.workers[0].trouble, 30)
    assert Counter(place.numbers) == Counter(range(EVENTS)), "lost or applied twice"
    assert place.run("SELECT count(*) FROM tidings_inbox") == [(EVENTS,)]
    assert not broker.dead_letters


async def test_P3_P4_a_full_disk_holds_a_service_up_and_costs_it_nothing(place: Place) -> None:
    await have(place.full, place, "full")


async def test_P3_P4_a_database_that_may_only_be_read_holds_a_service_up_and_costs_it_nothing(place: Place) -> None:
    await have(place.read_only, place, "only be read")
