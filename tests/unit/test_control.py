"""Orders of an operator, where those who are to obey do not hear all of them."""

from __future__ import annotations

import asyncio

import pytest

from tests.unit.parts import RecordingBroker, until
from tidings import control
from tidings.control import Obedience


class Paused:
    position = "stock.reserve"

    def __init__(self) -> None:
        self.is_paused = False
        self.resumed = 0

    async def pause(self, why: str) -> None:
        self.is_paused = True

    async def resume(self) -> None:
        self.is_paused = False
        self.resumed += 1


async def test_P12_a_pause_ends_also_where_the_note_that_took_it_back_is_forgotten_before_it_is_heard(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(control, "AGAIN", 0.01)
    broker, worker = RecordingBroker(), Paused()
    await control.pause(broker, worker.position)
    obeying = asyncio.create_task(Obedience(broker, worker).run())
    await until(lambda: worker.is_paused)
    await asyncio.sleep(0.1)
    assert worker.is_paused, "for as long as the order stands"
    assert not worker.resumed
    broker.published.clear()
    await until(lambda: not worker.is_paused)
    obeying.cancel()
    await asyncio.wait({obeying})
