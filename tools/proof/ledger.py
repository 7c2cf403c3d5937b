"""The ledger that judges: a row for each effect, without a unique key, read by a driver that is not the store's."""

from __future__ import annotations

import time
from collections.abc import Sequence
from contextlib import suppress
from typing import Any, NamedTuple

import sqlalchemy as sa

from tools.proof.shop import SKUS

metadata = sa.MetaData()

effects = sa.Table(
    "proof_ledger",
    metadata,
    sa.Column("id", sa.BigInteger().with_variant(sa.Integer, "sqlite"), primary_key=True, autoincrement=True),
    sa.Column("handler", sa.String(64), nullable=False),
    sa.Column("event_id", sa.String(64), nullable=False),
    sa.Column("order_id", sa.String(64), nullable=False, index=True),
    sa.Column("attempt", sa.Integer, nullable=False),
    sa.Column("worker", sa.Integer, nullable=False),
    sa.Column("at", sa.Double, nullable=False),
)

stock = sa.Table(
    "proof_stock",
    metadata,
    sa.Column("sku", sa.String(16), primary_key=True),
    sa.Column("taken", sa.Integer, nullable=False),
)

outbox = sa.table("tidings_outbox")

LIMIT = 20.0


class Effect(NamedTuple):
    handler: str
    event_id: str
    order_id: str
    worker: int


class Ledger:
    """Opened anew for each look: the server may have been killed since the last one."""

    def __init__(self, url: str) -> None:
        self._engine = sa.create_engine(url, poolclass=sa.NullPool)

    def prepare(self) -> None:
        with self._engine.begin() as connection:
            if connection.dialect.name == "sqlite":
                connection.exec_driver_sql("PRAGMA journal_mode=WAL")
            metadata.create_all(connection)
            connection.execute(stock.insert(), [{"sku": f"sku-{number}", "taken": 0} for number in range(SKUS)])

    def effects(self, prefix: str) -> Sequence[Effect]:
        """The effects on orders whose id begins so, in the order in which they were written."""
        wanted = (effects.c.handler, effects.c.event_id, effects.c.order_id, effects.c.worker)
        query = sa.select(*wanted).where(effects.c.order_id.like(f"{prefix}%")).order_by(effects.c.id)
        return [Effect(*row) for row in self._ask(query)]

    def taken(self) -> int:
        return int(self._ask(sa.select(sa.func.sum(stock.c.taken)))[0][0])

    def unpublished(self) -> int:
        """Rows in the outbox."""
        return int(self._ask(sa.select(sa.func.count()).select_from(outbox))[0][0])

    def _ask(self, query: sa.Select[Any]) -> Sequence[Any]:
        """Ask, and wait for a server that starts."""
        ends = time.monotonic() + LIMIT
        while True:
            try:
                with self._engine.connect() as connection:
                    return connection.execute(query).all()
            except sa.exc.DBAPIError:
                if time.monotonic() > ends:
                    raise
                with suppress(Exception):
                    self._engine.dispose()
                time.sleep(0.1)
