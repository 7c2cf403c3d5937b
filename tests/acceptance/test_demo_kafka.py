"""The demo on a Kafka that runs already: the same last line."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.acceptance.test_demo import ORDERS, demo
from tools.services.kafka import Kafka


@pytest.mark.server
@pytest.mark.proves("P4", broker="kafka", store="sqlite")
def test_the_demo_on_kafka_ends_with_nothing_lost_and_nothing_applied_twice(tmp_path: Path) -> None:
    with Kafka(tmp_path / "server") as server:
        status, figures = demo(tmp_path / "demo", "--broker", f"{server.url}?session_timeout=3s")
    assert status == 0
    assert figures["lost"] == figures["applied_twice"] == 0
    assert figures["published"] == figures["applied"] == ORDERS
    assert figures["dead"] > 0, "the garbage left no letter"
