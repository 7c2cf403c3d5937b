"""Reading logs: whatever was stored before is found, also while others write."""

from __future__ import annotations

import asyncio
import contextlib

import pytest

from tests.integration.rabbitmq.conftest import Connect
from tidings.brokers.rabbitmq import names
from tidings.brokers.rabbitmq.reading import end_of
from tidings.notes import Notes

pytestmark = [pytest.mark.server, pytest.mark.proves(broker="rabbitmq")]


async def test_P8_a_log_is_never_taken_for_empty_while_others_write_to_it(rabbitmq_url: str, connect: Connect) -> None:
    """A process that takes over and reads no note would know of no key that is held, and of no pause."""
    rig = await connect(rabbitmq_url, subscribe=False)
    notes, others = (Notes(rig.broker, f"{rig.stream}.{name}") for name in ("one", "other"))
    await notes.write({"held/key": "1"})

    async def write() -> None:
        while True:
            await others.write({"n": "x"})

    connection = rig.broker._inward
    assert connection is not None
    writing = [asyncio.create_task(write()) for _ in range(4)]
    try:
        for _ in range(200):
            assert await end_of(connection, names.NOTES) >= 0
    finally:
        for one in writing:
            one.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await asyncio.gather(*writing)
    assert await notes.read() == {"held/key": "1"}
