"""Whole services with TIDINGS_STORE=redis://… over real brokers."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.integration.redis import test_services
from tests.integration.redis.test_services import Shop
from tidings.brokers import broker_from
from tidings.ports import Broker
from tools.services.kafka import Kafka
from tools.services.rabbitmq import RabbitMQ

SERVERS = {"kafka": Kafka, "rabbitmq": RabbitMQ}
CASES = [
    pytest.param(broker, marks=pytest.mark.proves(broker=broker, store="redis"), id=f"{broker}-redis")
    for broker in SERVERS
]
pytestmark = pytest.mark.server

shop = test_services.shop


@pytest.fixture
def broker(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Broker]:
    with SERVERS[request.param](tmp_path / "broker") as server:
        yield broker_from(server.url)


@pytest.mark.parametrize("broker", CASES, indirect=True)
async def test_P3_P5_P7_what_fails_comes_again_or_is_a_letter_and_each_effect_is_made_once(
    shop: Shop, broker: Broker
) -> None:
    await test_services.test_P5_on_a_day_of_failures_and_repeats_each_effect_is_made_once(shop, broker)
    shop.effects.clear()
    await test_services.test_P3_P7_what_fails_for_good_becomes_a_letter_and_is_applied_once_when_redriven(shop, broker)
