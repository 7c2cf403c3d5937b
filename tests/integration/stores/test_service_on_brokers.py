"""Whole services on SQLAlchemy's databases over real brokers."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import product
from pathlib import Path

import pytest

from tests.integration.stores import test_service
from tidings.brokers import broker_from
from tidings.ports import Broker
from tools.services.kafka import Kafka
from tools.services.rabbitmq import RabbitMQ

SERVERS = {"kafka": Kafka, "rabbitmq": RabbitMQ}
CASES = [
    pytest.param(broker, place, marks=pytest.mark.proves(broker=broker, store=store), id=f"{broker}-{place}")
    for broker, (place, store) in product(SERVERS, [("postgresql", "postgres"), ("mariadb", "mariadb")])
]


@pytest.fixture
def broker(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Broker]:
    """On a server of its own: all letters of a server stand in one log."""
    with SERVERS[request.param](tmp_path / "broker") as server:
        yield broker_from(server.url)


@pytest.mark.server
@pytest.mark.parametrize(("broker", "where"), CASES, indirect=True)
async def test_P2_P3_P4_P7_on_a_bad_day_each_event_is_applied_once_or_a_letter(where: str, broker: Broker) -> None:
    await test_service.test_P2_P3_P4_P7_on_a_bad_day_each_event_is_applied_once_or_a_letter(where, broker)
