"""MariaDB in a mode of its user's: what the driver would spoil there is refused, and nothing else is changed."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest
from sqlalchemy import event
from sqlalchemy.ext.asyncio import AsyncEngine, create_async_engine

from tests.integration.stores.ledger import applied, key, message, waiting
from tidings.errors import ConfigurationError, StoreUnavailable
from tidings.ports import Key, State
from tidings.stores.sqlalchemy import SqlAlchemyStore

MODE = "?init_command=SET%20sql_mode%3D%27{}%27"


@pytest.mark.parametrize("where", ["mariadb"], indirect=True)
@pytest.mark.proves("P3", "P4", store="mariadb")
async def test_P3_P4_a_mode_in_which_the_driver_spoils_bytes_is_refused_with_the_remedy(where: str) -> None:
    """A digest that comes back as another one is taken for an earlier claim's: new events counted as applied."""
    spoiling = SqlAlchemyStore(where + MODE.format("ANSI_QUOTES,NO_BACKSLASH_ESCAPES"))
    with pytest.raises(ConfigurationError, match=r"NO_BACKSLASH_ESCAPES.*init_command"):
        await spoiling.open()
    async with opened_with(where, MODE.format("ANSI_QUOTES")) as store:
        odd = b"'\"\\\0\n\x1a%s\\'"
        for sync in (False, True):
            for state in (State.NEW, State.DONE):
                async with store.claim([Key(f"p{sync}", "it's \\", "e", odd)], resource=None, sync=sync) as claim:
                    assert (claim.states[0].state, claim.states[0].digest or odd) == (state, odd)


@pytest.mark.parametrize("where", ["mariadb"], indirect=True)
async def test_P3_P4_a_mode_that_comes_later_stops_claims_and_loses_nothing(where: str) -> None:
    engine = create_async_engine(where)

    async with opened_with(where, "", engine) as store:
        event.listen(
            engine.sync_engine,
            "checkout",
            lambda driver, *_: driver.cursor().execute("SET SESSION sql_mode = 'NO_BACKSLASH_ESCAPES'"),
        )
        with pytest.raises(StoreUnavailable, match="NO_BACKSLASH_ESCAPES"):
            async with store.claim([key("a")], resource=None, sync=False):
                pass
        async with engine.begin() as own:
            with pytest.raises(StoreUnavailable, match="NO_BACKSLASH_ESCAPES"):
                await store.emit(own, [message("1", body=b'{"text": "\\n"}')])
    await engine.dispose()
    assert applied(where) == waiting(where) == []


@asynccontextmanager
async def opened_with(where: str, query: str, engine: AsyncEngine | None = None) -> AsyncIterator[SqlAlchemyStore]:
    store = SqlAlchemyStore(engine or where + query)
    await store.open()
    try:
        yield store
    finally:
        await store.close()
