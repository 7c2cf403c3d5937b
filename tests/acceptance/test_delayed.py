"""A thousand events that fail and wait for ten minutes: they hold up nobody, and outlive the service and the server."""

from __future__ import annotations

import asyncio
import json
import signal
import time
from datetime import datetime
from typing import Any

import nats
import pytest

from tests.acceptance.services import Placed
from tests.acceptance.stage import Stage

pytestmark = [pytest.mark.server, pytest.mark.proves(broker="nats", store="none")]

FAILING = 1000
DELAY = 600.0


async def ask(stage: Stage, subject: str, request: bytes = b"") -> dict[str, Any]:

    connection = await nats.connect(stage.server.url)
    try:
        return dict(json.loads((await connection.request(f"$JS.API.{subject}", request, timeout=10)).data))
    finally:
        await connection.close()


async def waiting(stage: Stage) -> list[float]:
    """When each copy that waits is due, as the server has it: Unix seconds."""
    connection = await nats.connect(stage.server.url)
    try:
        context = connection.jetstream()
        state = (await context.stream_info("tidings-retry")).state
        due = []
        for seq in range(state.first_seq, state.last_seq + 1):
            message = await context.get_msg("tidings-retry", seq=seq)
            headers = message.headers or {}
            assert (message.subject or "").startswith("tidings-retry.wait."), message.subject
            assert headers["Nats-Schedule"].startswith("@at ")
            assert headers["tidings-failures"] == "1"
            due.append(datetime.fromisoformat(headers["Nats-Schedule"].removeprefix("@at ")).timestamp())
        return due
    finally:
        await connection.close()


async def open_deliveries(stage: Stage) -> int:
    """How many deliveries are with anybody: of events and of copies."""
    found = [await ask(stage, f"CONSUMER.LIST.{stream}") for stream in ("order", "tidings-retry")]
    return sum(one["num_ack_pending"] for answer in found for one in answer["consumers"])


async def test_P6_a_thousand_events_that_wait_for_ten_minutes_hold_up_nobody_and_outlive_service_and_server(
    stage: Stage,
) -> None:
    def healthy(of: int) -> list[Placed]:
        return [Placed(order_id="well", number=of + number) for number in range(100)]

    service = await stage.run("later")
    failing = [Placed(order_id="ill", number=number, wanted="fail") for number in range(FAILING)]
    began = time.time()
    await stage.publish([*healthy(0), *failing, *healthy(100)])
    await stage.wait(lambda: len(stage.noted("later.try-later")) == FAILING + 200)
    await stage.wait(lambda: asyncio.run(open_deliveries(stage)) == 0)
    due = await waiting(stage)
    assert len(due) == FAILING
    assert all(began + DELAY <= moment <= time.time() + DELAY * 1.2 for moment in due)

    await asyncio.to_thread(service.end, signal.SIGKILL)
    stage.server.stop(signal.SIGKILL)
    stage.server.start()
    await stage.run("later")
    await stage.publish(healthy(200))
    await stage.wait(lambda: len(stage.noted("later.try-later")) >= FAILING + 300)
    await stage.wait(lambda: asyncio.run(open_deliveries(stage)) == 0)
    assert sorted(await waiting(stage)) == sorted(due), "a restart moved or lost what waits"
    rows = stage.noted("later.try-later")
    assert len(rows) == FAILING + 300
    assert {row.attempt for row in rows} == {1}, "an event came before its time"
