"""What handlers do with what they asked for."""

from __future__ import annotations

import asyncio
from typing import Any

import sqlalchemy as sa
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncSession
from sqlalchemy.orm import Session

from tests.integration.stores.ledger import INSERT, Entry, in_thread, key, message
from tidings.ports import Claim, Claimed, State
from tidings.stores.sqlalchemy import SqlAlchemyStore

NEW = Claimed(State.NEW)
KINDS = [AsyncConnection, AsyncSession, sa.Connection, Session]


def done(event_id: str = "e") -> Claimed:
    return Claimed(State.DONE, event_id, event_id.encode())


def is_sync(kind: type) -> bool:
    return kind in (sa.Connection, Session)


async def write(claim: Claim, kind: type, note: str) -> None:
    """What a handler does: one statement, or one object, through what it asked for."""
    if is_sync(kind):
        await in_thread(claim, lambda: write_sync(claim.resource(kind), note))
        return
    db = claim.resource(kind)
    if isinstance(db, AsyncSession):
        db.add(Entry(note=note))
    else:
        assert isinstance(db, AsyncConnection)
        await db.execute(INSERT, {"note": note})


def write_sync(db: object, note: str) -> None:
    if isinstance(db, Session):
        db.add(Entry(note=note))
    else:
        assert isinstance(db, sa.Connection)
        db.execute(INSERT, {"note": note})


async def apply(store: SqlAlchemyStore, name: str, note: str, kind: type = AsyncConnection) -> Claimed:
    async with store.claim([key(name)], resource=kind, sync=is_sync(kind)) as claim:
        if claim.states[0] == NEW:
            await write(claim, kind, note)
    return claim.states[0]


async def handle(store: SqlAlchemyStore, name: str, *, sync: bool = False) -> State:
    """What an ordinary handler does; the proof that the store works."""
    kind = sa.Connection if sync else AsyncConnection
    async with asyncio.timeout(10), store.claim([key(name)], resource=kind, sync=sync) as claim:
        if claim.states[0].state is State.NEW:
            db: Any = claim.resource(kind)
            if sync:
                await in_thread(claim, lambda: db.execute(INSERT, {"note": name}))
            else:
                await db.execute(INSERT, {"note": name})
            await claim.emit([message(name)])
    return claim.states[0].state
