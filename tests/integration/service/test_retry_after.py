"""A handler says when an event is worth another attempt, also inside a transaction of its store."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Literal

import pytest
import sqlalchemy as sa
from sqlalchemy.ext.asyncio import AsyncConnection

from tests.integration.shop import Placed
from tests.unit.parts import until
from tidings import Retry, RetryAfter, Service
from tidings.dead_letters import list_letters
from tidings.testing import MemoryBroker

pytestmark = pytest.mark.proves(broker="memory", store="sqlite")

SECONDS = 0.3


@pytest.mark.parametrize("order", ["key", None])
async def test_P6_P7_a_handler_that_asks_for_a_pause_gets_it_and_each_time_is_a_failure(
    tmp_path: Path, order: Literal["key"] | None
) -> None:
    broker = MemoryBroker()
    stock = Service("stock", store=f"sqlite:///{tmp_path}/shop.db", publishes=[Placed])
    tried: dict[int, list[float]] = {1: [], 2: []}

    @stock.on(Placed, order=order, retry=Retry(attempts=3, first=0.0, most=0.0))
    async def reserve(event: Placed, db: AsyncConnection) -> None:
        await db.execute(sa.text("SELECT 1"))
        tried[event.number].append(time.monotonic())
        if event.number == 1:
            raise RetryAfter(SECONDS, "rate limited")

    async with stock.running(broker=broker):
        await stock.publish(Placed(order_id="a", number=1))
        await stock.publish(Placed(order_id="b", number=2))
        await until(lambda: len(tried[1]) == 3, 10.0)
        await broker.idle()
        (letter,) = await list_letters(broker)
    first, second, third = tried[1]
    assert second - first >= SECONDS
    assert third - second >= SECONDS
    assert tried[2], "it held up nobody else"
    assert (letter.code, letter.failures) == ("failed", 3)
    assert "rate limited" in letter.reason
