"""Stores on a real Redis."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.integration.redis.kit import Keys, look
from tidings.stores.redis import RedisStore
from tools.services.redis import Redis


@pytest.fixture
def key() -> Keys:
    return Keys()


@pytest.fixture
async def store(redis_url: str) -> AsyncIterator[RedisStore]:
    store = RedisStore(redis_url)
    await store.open()
    yield store
    await store.close()


@pytest.fixture
def client(redis_url: str) -> Iterator[Any]:
    with look(redis_url) as client:
        yield client


@pytest.fixture
def server(server_folder: Path) -> Iterator[Redis]:
    """A Redis that the test may kill, pause and start again; it keeps everything."""
    with Redis(server_folder) as server:
        yield server
