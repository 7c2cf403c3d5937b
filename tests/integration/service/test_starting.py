"""What a service needs before it starts, and what it says when that is missing."""

from __future__ import annotations

import pytest

from tidings import ConfigurationError, Event, Service
from tidings.testing import MemoryBroker


class OrderPlaced(Event, type="order.placed", version=1, key="order_id"):
    order_id: str


async def reserve(order: OrderPlaced) -> None: ...


@pytest.mark.parametrize("value", [None, ""])
async def test_once_without_a_store_does_not_start_and_says_how_to_name_one(
    value: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("TIDINGS_STORE", raising=False)
    if value is not None:
        monkeypatch.setenv("TIDINGS_STORE", value)
    stock = Service("stock")
    stock.on(OrderPlaced)(reserve)
    with pytest.raises(ConfigurationError, match=r"stock.reserve is to apply .*set TIDINGS_STORE.*idempotent=True"):
        async with stock.running(broker=MemoryBroker()):
            pass


async def test_a_variable_set_to_nothing_names_no_broker(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TIDINGS_BROKER", "")
    with pytest.raises(ConfigurationError, match=r"stock has no broker\. Set TIDINGS_BROKER="):
        async with Service("stock", store="memory:").running():
            pass
