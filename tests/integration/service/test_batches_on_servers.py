"""Batch handlers through SQLAlchemy on PostgreSQL and MariaDB: by connection, by session, and in a thread."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import pytest
import sqlalchemy as sa
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncSession
from sqlalchemy.orm import DeclarativeBase, Mapped, Session, mapped_column

from tests.integration.service.test_batches import (
    BAD,
    EXPECTED,
    SIZES,
    declare,
    judge,
    nothing_waits,
    publish,
    row,
)
from tests.integration.shop import Placed, Reserved
from tests.unit.parts import until
from tidings.dead_letters import list_letters
from tidings.errors import BrokerUnavailable
from tidings.testing import MemoryBroker


class Base(DeclarativeBase):
    pass


class Taken(Base):
    """A row of the ledger, as a user's own model; without a unique key that would hide a double."""

    __tablename__ = "ledger"
    __table_args__ = (sa.CheckConstraint("number < 1000"),)

    id: Mapped[int] = mapped_column(primary_key=True)
    key: Mapped[str] = mapped_column(sa.String(20))
    number: Mapped[int]


class Database(NamedTuple):
    """A ledger, seen by an engine that has nothing to do with the store, and the URL of the store."""

    engine: sa.Engine
    store: str


@pytest.fixture(
    params=[
        pytest.param("postgresql+asyncpg", marks=pytest.mark.proves(broker="memory", store="postgres")),
        pytest.param("mariadb+aiomysql", marks=pytest.mark.proves(broker="memory", store="mariadb")),
    ]
)
def database(request: pytest.FixtureRequest) -> Iterator[Database]:
    """With an empty ledger."""
    fixture = "mariadb_url" if request.param.startswith("mariadb") else "postgres_url"
    url = sa.make_url(request.getfixturevalue(fixture))
    engine = sa.create_engine(url.set(drivername={"m": "mariadb+pymysql", "p": "postgresql+psycopg"}[request.param[0]]))
    Base.metadata.create_all(engine)
    yield Database(engine, url.set(drivername=request.param).render_as_string(hide_password=False))
    engine.dispose()


def ledger(database: Database) -> list[tuple[str, int]]:
    with database.engine.connect() as connection:
        found = connection.execute(sa.select(Taken.key, Taken.number).order_by(Taken.id)).all()
    return [(key, number) for key, number in found]


async def by_connection(orders: list[Placed], db: AsyncConnection) -> list[Reserved]:
    SIZES.append(len(orders))
    await db.execute(sa.insert(Taken), [row(order) for order in orders])
    return [Reserved(order_id=order.order_id, number=order.number) for order in orders]


def by_connection_in_a_thread(orders: list[Placed], db: sa.Connection) -> list[Reserved]:
    SIZES.append(len(orders))
    db.execute(sa.insert(Taken), [row(order) for order in orders])
    return [Reserved(order_id=order.order_id, number=order.number) for order in orders]


async def by_session(orders: list[Placed], session: AsyncSession) -> list[Reserved]:
    SIZES.append(len(orders))
    session.add_all(Taken(**row(order)) for order in orders)
    return [Reserved(order_id=order.order_id, number=order.number) for order in orders]


def by_session_in_a_thread(orders: list[Placed], session: Session) -> list[Reserved]:
    SIZES.append(len(orders))
    session.add_all(Taken(**row(order)) for order in orders)
    return [Reserved(order_id=order.order_id, number=order.number) for order in orders]


@pytest.mark.parametrize(
    "handler",
    [by_connection, by_session, by_connection_in_a_thread, by_session_in_a_thread],
    ids=lambda handler: handler.__name__,
)
async def test_P3_P4_P7_P8_a_poisonous_event_is_halved_out_of_its_batch_and_each_other_is_applied_once(
    database: Database, handler: Callable[..., Any]
) -> None:
    broker = MemoryBroker()
    broker.fail_settle(BrokerUnavailable("lost"), times=10)  # so that what is applied comes again
    stock, heard = declare(database.store, broker, handler)
    await publish(broker)
    async with stock.running():
        await until(lambda: len(ledger(database)) >= len(EXPECTED) and len(set(heard)) >= len(EXPECTED), 60)
        await nothing_waits(stock)
        async with asyncio.timeout(30):
            while len(letters := await list_letters(broker)) < len(BAD):  # noqa: ASYNC110  # it takes no listener
                await asyncio.sleep(0.1)
    judge(ledger(database), heard)
    assert sorted((letter.position, letter.key, letter.code) for letter in letters) == [
        ("stock.reserve", key, "failed") for key, _ in sorted(BAD)
    ]
    with database.engine.connect() as connection:
        keys = connection.execute(sa.text("SELECT count(*) FROM tidings_inbox")).scalar()
        waiting = connection.execute(sa.text("SELECT count(*) FROM tidings_outbox")).scalar()
    assert (keys, waiting) == (len(EXPECTED), 0)
