"""The points of a crash that a claim on Redis passes: around the marking of its keys."""

from __future__ import annotations

from typing import Any

import pytest

from tests.integration.redis.kit import Keys
from tidings import points
from tidings.stores.redis import RedisStore

DAY, FOREVER = 86_400_000, -1
"""As Redis counts them."""


async def test_a_claim_passes_the_points_around_the_mark_only_where_something_is_marked(
    store: RedisStore, key: Keys, client: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    passed: list[tuple[str, bool]] = []

    def reached(point: str) -> None:
        ends = client.pttl(key.stored("a"))
        passed.append((point, ends == FOREVER or ends > DAY))  # a lease ends sooner than what is remembered

    monkeypatch.setattr(points, "reached", reached)
    async with store.claim([key("a")], resource=None, sync=False):
        assert passed == []
    assert passed == [(points.BEFORE_COMMIT, False), (points.AFTER_COMMIT, True)]
    passed.clear()
    async with store.claim([key("a")], resource=None, sync=False):
        pass
    with pytest.raises(LookupError):
        async with store.claim([key("b")], resource=None, sync=False):
            raise LookupError
    assert passed == []
