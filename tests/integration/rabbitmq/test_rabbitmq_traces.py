"""An event is followed over this broker as over any other: its context travels in its own bytes."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.chain import one_trace_through_three_services
from tests.one_trace import one_trace_through_the_demo
from tests.spans import Spans, spans

__all__ = ["spans"]


@pytest.mark.proves("P14", broker="rabbitmq", store="none")
async def test_P14_one_trace_goes_through_three_services_with_a_retry(rabbitmq_url: str, spans: Spans) -> None:
    await one_trace_through_three_services(rabbitmq_url, "rabbitmq", spans)


@pytest.mark.proves("P14", broker="rabbitmq", store="sqlite")
async def test_P14_an_order_is_one_trace_through_three_services_with_its_retries_and_its_duplicate(
    rabbitmq_url: str, spans: Spans, tmp_path: Path
) -> None:
    await one_trace_through_the_demo(rabbitmq_url, "rabbitmq", tmp_path, spans)
