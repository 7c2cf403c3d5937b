"""An event is followed over this broker as over any other: its context travels in its own bytes."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.chain import one_trace_through_three_services
from tests.integration.kafka.conftest import QUICK
from tests.one_trace import one_trace_through_the_demo
from tests.spans import Spans, spans
from tools.services.kafka import Kafka

__all__ = ["spans"]


@pytest.mark.proves("P14", broker="kafka", store="none")
async def test_P14_one_trace_goes_through_three_services_with_a_retry(kafka: Kafka, spans: Spans) -> None:
    await one_trace_through_three_services(f"{kafka.url}?{QUICK}", "kafka", spans)


@pytest.mark.proves("P14", broker="kafka", store="sqlite")
async def test_P14_an_order_is_one_trace_through_three_services_with_its_retries_and_its_duplicate(
    kafka: Kafka, spans: Spans, tmp_path: Path
) -> None:
    await one_trace_through_the_demo(f"{kafka.url}?{QUICK}", "kafka", tmp_path, spans)
