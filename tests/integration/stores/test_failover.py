"""Failovers: an address leads to another server, and what connected before, or in between, must not stay there."""

from __future__ import annotations

import pytest
import sqlalchemy as sa
from sqlalchemy.ext.asyncio import AsyncConnection

from tests.integration.stores.handling import is_sync
from tests.integration.stores.ledger import key, query
from tests.integration.stores.test_servers import opened, server, url_to
from tests.proxy import Proxy
from tests.servers import folder_for
from tidings.errors import StoreUnavailable
from tidings.ports import State
from tidings.stores.sqlalchemy import SqlAlchemyStore
from tools.services.mariadb import MariaDB
from tools.services.postgres import Postgres

__all__ = ["server"]


async def prepare(one: Postgres | MariaDB, *, only_read: bool) -> str:
    """Tables, and a user to whom a server's being read-only applies; where it is."""
    await (await opened(url_to(one))).close()
    if isinstance(one, Postgres):
        if only_read:
            query(url_to(one), "ALTER DATABASE postgres SET default_transaction_read_only = on")
        return url_to(one)
    root = sa.make_url(one.url).set(username="root", password="").render_as_string(hide_password=False)
    query(root, "CREATE USER app IDENTIFIED BY 'app'")
    query(root, "GRANT SELECT, INSERT, UPDATE, DELETE, CREATE ON test.* TO app")
    if only_read:
        query(root, "SET GLOBAL read_only = 1")
    return sa.make_url(one.url).set(username="app", password="app").render_as_string(hide_password=False)


@pytest.mark.parametrize("kind", [AsyncConnection, sa.Connection])
async def test_P10_a_server_that_may_only_be_read_since_a_failover_is_left_for_the_one_at_its_address(
    server: Postgres | MariaDB, kind: type
) -> None:
    """Its connections stand, it answers and refuses: whoever kept one would never hear of the other."""

    async def claimed(name: str) -> State:
        async with store.claim([key(name)], resource=kind, sync=is_sync(kind)) as claim:
            return claim.states[0].state

    with folder_for("old") as folder, type(server)(folder) as old:
        await prepare(server, only_read=False)
        url = await prepare(old, only_read=True)
        proxy = await Proxy(old.port).start()
        store = SqlAlchemyStore(sa.make_url(url).set(port=proxy.port))
        try:
            await store.open()
            await store.outbox_backlog()
            with pytest.raises(StoreUnavailable, match="only be read"):
                await claimed("a")
            proxy.lead_to(server.port)
            assert await claimed("a") is State.NEW
            assert await claimed("a") is State.DONE
        finally:
            await store.close()
            await proxy.stop()
