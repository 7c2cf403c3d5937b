"""A handler that runs under another name, beside the one that it is."""

from __future__ import annotations

from datetime import UTC, datetime

from tests.unit.parts import Placed, Shipped
from tidings import Service
from tidings.beside import Beside


def test_P13_what_runs_beside_a_service_hosts_its_own_position_and_only_names_the_others() -> None:
    service = Service("stock", broker="memory:")

    @service.on(Placed, idempotent=True)
    async def reserve(placed: Placed) -> None: ...

    @service.on(Shipped, idempotent=True)
    async def release(shipped: Shipped) -> None: ...

    plan = Beside(service, service.handlers[0], "reserve-again", datetime.now(UTC)).plan
    hosted = {one.position: one.hosted for one in plan.subscriptions}
    assert hosted == {"stock.reserve": False, "stock.release": False, "stock.reserve-again": True}
