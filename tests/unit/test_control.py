"""Orders of an operator, where those who are to obey do not hear all of them."""

from __future__ import annotations

import asyncio

import pytest

from tests.unit.parts import RecordingBroker, until
from tests.unit.test_dropping import NEW, OLD, Remembering
from tidings import control
from tidings.control import Obedience
from tidings.dropping import DROP, Dropping
from tidings.notes import Notes


class Paused:
    position = "stock.reserve"

    def __init__(self) -> None:
        self.ended = asyncio.Event()
        """What runs has ended, so that a pause is over with."""
        self.ended.set()
        self.is_paused = False
        self.resumed = 0

    async def pause(self, why: str) -> None:
        self.is_paused = True
        await self.ended.wait()

    async def resume(self) -> None:
        self.is_paused = False
        self.resumed += 1


async def test_P12_a_pause_ends_also_where_the_note_that_took_it_back_is_forgotten_before_it_is_heard(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(control, "AGAIN", 0.01)
    broker, worker = RecordingBroker(), Paused()
    await control.pause(broker, worker.position)
    obedience = Obedience(broker, worker, Dropping(worker.position, (), broker))
    obeying = asyncio.gather(obedience.run(), obedience.obey())
    await until(lambda: worker.is_paused)
    await asyncio.sleep(0.1)
    assert worker.is_paused, "for as long as the order stands"
    assert not worker.resumed
    broker.published.clear()
    await until(lambda: not worker.is_paused)
    obeying.cancel()
    await asyncio.wait({obeying})


async def test_P3_P12_a_pause_that_waits_for_what_runs_does_not_keep_the_process_from_saying_what_it_asks_for(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(control, "AGAIN", 0.01)
    broker, worker = Remembering(OLD, NEW), Paused()
    worker.ended.clear()
    notes = Notes(broker, worker.position)
    obedience = Obedience(broker, worker, Dropping(worker.position, (OLD, NEW), broker))
    obeying = asyncio.gather(obedience.run(), obedience.obey())
    order = await control.pause(broker, worker.position)
    await until(lambda: worker.is_paused)
    await notes.write({DROP + NEW: "another"})
    await until(lambda: b"" in [one.body for one in broker.published if one.key == DROP + NEW])
    assert not await control.heard(broker, worker.position, order), "something still runs"
    worker.ended.set()
    await until(lambda: any((one.key or "").startswith(control.HEARD) for one in broker.published))
    obeying.cancel()
    await asyncio.wait({obeying})


async def test_P12_an_order_that_could_not_be_obeyed_stands_until_it_is(monkeypatch: pytest.MonkeyPatch) -> None:
    """Its task is supervised: it is begun again, and whoever ordered does not order twice."""
    broker, worker = RecordingBroker(), Paused()
    obedience = Obedience(broker, worker, Dropping(worker.position, (), broker))
    with monkeypatch.context() as broken:
        broken.setattr(worker, "pause", None)
        obedience._ordered(control.Order("1", "somebody", "now"))
        with pytest.raises(TypeError):
            await obedience.obey()
    obeying = asyncio.create_task(obedience.obey())
    await until(lambda: worker.is_paused)
    obeying.cancel()
    await asyncio.wait({obeying})
