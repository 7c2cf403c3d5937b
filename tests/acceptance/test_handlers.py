"""Handlers that wait, block, or are slow: whom they stop, how it is seen, and what they cost."""

from __future__ import annotations

import asyncio
import json
import urllib.error
import urllib.request

import nats
import pytest

from tests.acceptance.services import Blob, Placed
from tests.acceptance.stage import Stage, peak_memory
from tools.drill_kit import Process, until

pytestmark = [pytest.mark.server, pytest.mark.proves(broker="nats", store="sqlite")]

BLOBS, BLOB = 2000, 200_000
MOST_MEMORY = 150 * 1024 * 1024


def health(worker: Process, page: str) -> tuple[int, str]:
    """What a probe gets."""
    url = worker.ready()["url"]
    try:
        with urllib.request.urlopen(f"{url}/health/{page}", timeout=30) as answer:
            return answer.status, answer.read().decode()
    except urllib.error.HTTPError as error:
        with error:
            return error.code, error.read().decode()


async def probe(worker: Process, page: str) -> tuple[int, str]:
    return await asyncio.to_thread(health, worker, page)


async def deliveries(url: str, stream: str) -> int:
    """How many the server counts, at all positions of a stream."""
    client = await nats.connect(url, allow_reconnect=False)
    try:
        consumers = await client.jetstream().consumers_info(stream)
        return sum(one.delivered.consumer_seq for one in consumers if one.delivered)
    finally:
        await client.close()


async def test_P12_a_handler_that_waits_does_not_stop_another_of_its_service(stage: Stage) -> None:
    worker = await stage.run("stuck")
    orders = [Placed(order_id=f"order-{number}") for number in range(300)]
    await stage.publish(orders)
    await stage.applied("stuck.work", len(orders))
    await stage.wait((stage.kit.folder / "waiting").exists)
    assert len(stage.rows("stuck.work")) == len(orders)
    assert (await probe(worker, "live"))[0] == 200


async def test_P12_a_blocked_loop_turns_liveness_red_and_its_stack_is_logged(stage: Stage) -> None:
    worker = await stage.run("blocked")
    assert (await probe(worker, "live"))[0] == (await probe(worker, "ready"))[0] == 200
    await stage.publish([Placed(order_id="a")])
    assert await asyncio.to_thread(until, lambda: health(worker, "live")[0] == 503, 45)
    reasons = json.loads((await probe(worker, "live"))[1])["reasons"]
    assert "the event loop has been blocked for" in reasons[0]
    assert "time.sleep(60)" in worker.text, "the log does not show where it stands"


async def test_P2_a_handler_that_takes_longer_than_the_ack_wait_is_not_delivered_a_second_time(stage: Stage) -> None:
    await stage.run("long", broker=f"{stage.server.url}?ack_wait=4s")
    await stage.run("long", broker=f"{stage.server.url}?ack_wait=4s")
    await stage.publish([Placed(order_id="a")])
    await stage.wait(lambda: stage.noted("long.take-long"))
    await stage.drained()
    (begun,) = stage.noted("long.take-long")
    # Its share may just have changed hands when it came: then it had been delivered once before it was begun.
    assert await deliveries(stage.server.url, "order") == begun.attempt


@pytest.mark.long
async def test_P11_memory_is_bounded_with_a_slow_handler_and_a_backlog_of_large_events(stage: Stage) -> None:
    await stage.publish(Blob(filler="x" * BLOB) for _ in range(BLOBS))
    worker = await stage.run("blobs")
    await stage.wait(lambda: len(stage.noted("blobs.look")) >= 200)
    assert peak_memory(worker.pid) < MOST_MEMORY
