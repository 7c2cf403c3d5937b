"""Stores on real PostgreSQL databases."""

from __future__ import annotations

import uuid
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack
from typing import Any
from urllib.parse import urlsplit, urlunsplit

import asyncpg
import pytest

from tests.integration.postgres.ledger import CREATE, run
from tidings.stores.postgres import PostgresStore

Opens = Callable[..., Any]


@pytest.fixture(scope="session")
def database(postgres_server: str) -> str:
    """One for all tests here: to create and drop one takes longer than most of them."""
    name = f"t-{uuid.uuid4().hex[:12]}"
    run(postgres_server, f'CREATE DATABASE "{name}"')
    return urlunsplit(urlsplit(postgres_server)._replace(path=f"/{name}"))


@pytest.fixture
def url(database: str) -> str:
    """An empty database with a ledger in it."""
    run(database, f"DROP SCHEMA public CASCADE; CREATE SCHEMA public; {CREATE}")
    return database


@pytest.fixture
async def opens(url: str) -> AsyncIterator[Opens]:
    """Open stores, which are closed after the test: `await opens()`, `await opens(pool=1)`."""
    async with AsyncExitStack() as stack:

        async def open(target: str = url, *, pool: int = 0, **options: Any) -> PostgresStore:
            options = {"lock_timeout": 0.3, "poll": 0.05, "lease": 1.0, **options}
            if pool:
                live = await stack.enter_async_context(asyncpg.create_pool(target, min_size=1, max_size=pool))
                store = PostgresStore(live, **options)
            else:
                store = PostgresStore(target, **options)
            await store.open()
            stack.push_async_callback(store.close)
            return store

        yield open


@pytest.fixture(params=["url", "pool"])
async def store(opens: Opens, request: pytest.FixtureRequest) -> PostgresStore:
    """An open store, once with connections of its own and once with a pool's."""
    store: PostgresStore = await opens(pool=5 if request.param == "pool" else 0)
    return store
