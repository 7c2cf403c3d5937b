"""The demo on a RabbitMQ that runs already: the same last line."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.acceptance.test_demo import ORDERS, demo
from tools.services.rabbitmq import RabbitMQ


@pytest.mark.server
@pytest.mark.proves("P4", broker="rabbitmq", store="sqlite")
def test_the_demo_on_rabbitmq_ends_with_nothing_lost_and_nothing_applied_twice(tmp_path: Path) -> None:
    with RabbitMQ(tmp_path / "server") as server:
        status, figures = demo(tmp_path / "demo", "--broker", server.url)
    assert status == 0
    assert figures["lost"] == figures["applied_twice"] == 0
    assert figures["published"] == figures["applied"] == ORDERS
    assert figures["dead"] > 0, "the garbage left no letter"
