"""The trace of an order of the demo, read back from an exporter, over the default broker."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.integration.nats.server import NatsServer
from tests.one_trace import one_trace_through_the_demo
from tests.spans import Spans, spans

__all__ = ["spans"]
pytestmark = pytest.mark.server


@pytest.mark.proves("P14", broker="nats", store="sqlite")
async def test_P14_an_order_is_one_trace_through_three_services_with_its_retries_and_its_duplicate(
    spans: Spans, tmp_path: Path
) -> None:
    nats = NatsServer(tmp_path / "nats").start()
    try:
        await one_trace_through_the_demo(nats.url, "nats", tmp_path, spans)
    finally:
        nats.stop()
