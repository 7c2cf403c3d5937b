"""Deployments that roll: processes of older and newer code run side by side and share a position."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Sequence
from contextlib import AsyncExitStack

import msgspec
import pytest

from tidings import dropping
from tidings.delivery import Message
from tidings.event import Event
from tidings.ports import Positions
from tidings.testing._effects import event_class
from tidings.testing.conformance.load import KEYS, Load
from tidings.testing.conformance.stage import Stage

NONE: Counter[str] = Counter()
STANDS = 3.0
"""Seconds for which the living are asked whether they ask for a type, at most; a minute, where it is no test."""
LONG = 2.5
FEW = 5
"""How many events a handler takes at once, so that what waits would soon use up the room of what can be handled."""


class Rolling:
    """Part of the suite."""

    @pytest.mark.parametrize("order", ["key", None])
    async def test_P3_P8_P13_what_newer_code_asks_for_waits_where_older_code_gets_it(
        self, stage: Stage, order: str | None
    ) -> None:
        """Both types are published all the time; what newer code asks for counts from when it has started."""
        stage.bench.needs("positions")
        count = stage.bench.size("events", 4000, 160)
        gained = event_class(stage.bench.stream, "gained")
        old, new = stage.service(also=[gained]), stage.service(also=[gained])
        for one in (old, new):
            stage.handle(one, name="other", events=[gained])  # where nobody takes it, some brokers do not store it
        position = stage.handle(old, worker="old", order=order, batch=FEW)
        stage.handle(new, worker="new", order=order, batch=FEW, events=[stage.Happened, gained])
        async with AsyncExitStack() as outlives:
            async with stage.running(old), await self._load(stage, gained) as load:
                await load.more(count)
                await outlives.enter_async_context(stage.running(new))
                await stage.bench.widen(new.plan)
                since = len(load.ids) + KEYS  # what is on its way just now may be stored already
                await load.more(count)
                await self._until_put_off(stage, position)
                if order is None:
                    await stage.until_applied(position, _asked(load.ids))  # what it can handle goes on
                await load.stop()
            gets = [*_asked(load.ids), *(id for id in load.ids[since:] if not _is_asked(id))]
            await stage.until_applied(position, gets)
            await stage.quiet(new)
        early = {row.id for row in stage.effects(position)} & set(load.ids[:since])
        stage.judge(position, {*gets, *early})
        assert {row.worker for row in stage.effects(position) if not _is_asked(row.id)} == {"new"}
        if order is not None:
            stage.check_order(position)

    @pytest.mark.parametrize("order", ["key", None])
    async def test_P13_what_newer_code_asked_for_waits_no_more_once_it_is_rolled_back(
        self, stage: Stage, order: str | None, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """Who asks for it still is asked for three seconds, and not for a minute."""
        stage.bench.needs("positions")
        _asks_soon(monkeypatch, stage)
        gained = event_class(stage.bench.stream, "gained")
        old, new, again = (stage.service(also=[gained]) for _ in range(3))
        for one in (old, new, again):
            stage.handle(one, name="other", events=[gained])
        position = stage.handle(old, order=order)
        stage.handle(new, order=order, events=[stage.Happened, gained])
        stage.handle(again, order=order)
        async with stage.running(old):
            async with stage.running(new):
                await stage.bench.widen(new.plan)
            async with await self._load(stage, gained) as load:
                await load.more(4 * KEYS)
                await self._until_put_off(stage, position)
                await load.stop()
            async with stage.running(again):
                await stage.until_applied(position, _asked(load.ids))
                await stage.quiet(again)
        stage.judge(position, _asked(load.ids))

    async def test_P3_P13_an_old_process_that_starts_again_takes_nothing_from_newer_code(
        self, stage: Stage, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """It starts in the middle of a deployment, and asks the living for three seconds, where it is a minute else."""
        stage.bench.needs("positions")
        _asks_soon(monkeypatch, stage)
        gained = event_class(stage.bench.stream, "gained")
        old, new = stage.service(also=[gained]), stage.service(also=[gained])
        for one in (old, new):
            stage.handle(one, name="other", events=[gained])
        position = stage.handle(old, worker="old", batch=FEW)
        stage.handle(new, worker="new", batch=FEW, events=[stage.Happened, gained])
        async with stage.running(new):
            await stage.bench.widen(new.plan)
            async with await self._load(stage, gained) as load:
                await _passes(stage, 5 * dropping.LOOK)  # by now newer code has looked that its types are its own
                async with stage.running(old):
                    await _passes(stage, LONG * dropping.STANDS)
                    await load.more(2 * KEYS)
                    await load.stop()
            await stage.until_applied(position, load.ids)
            await stage.quiet(new)
        stage.judge(position, load.ids)
        assert {row.worker for row in stage.effects(position) if not _is_asked(row.id)} == {"new"}

    async def test_P13_a_tool_that_names_a_position_and_does_not_run_it_gives_it_no_types(self, stage: Stage) -> None:
        """A replay by newer code, say, before that is deployed: nobody would be there for what its types bring."""
        stage.bench.needs("positions")
        gained = event_class(stage.bench.stream, "gained")
        old, new = stage.service(also=[gained]), stage.service(also=[gained])
        position = stage.handle(old)
        stage.handle(new, events=[stage.Happened, gained])
        async with stage.running(old):
            broker = await stage.bench.client()
            assert isinstance(broker, Positions)
            before = (await broker.positions(old.name))[position]
            others = [msgspec.structs.replace(one, hosted=False) for one in new.plan.subscriptions]
            await broker.open(msgspec.structs.replace(new.plan, subscriptions=tuple(others)))
            try:
                assert (await broker.positions(old.name))[position] == before
            finally:
                await broker.close()

    async def _load(self, stage: Stage, gained: type[Event]) -> Load:
        """Events of both types: a wave of one, with one for each key, and then a wave of the other."""

        def message(id: str, key: str) -> Message:
            return stage.message(stage.Happened if _is_asked(id) else gained, id=id, key=key)

        return Load(stage.bench, await stage.bench.client(), message, per_second=200.0)

    async def _until_put_off(self, stage: Stage, position: str) -> None:
        def put_off() -> bool:
            return stage.outcomes.of.get(position, NONE)["retry"] > 0

        await stage.bench.until(put_off, "older code got what newer code asks for, and put it off")


def _asks_soon(monkeypatch: pytest.MonkeyPatch, stage: Stage) -> None:
    monkeypatch.setattr(dropping, "STANDS", stands := min(STANDS, stage.bench.patience / 5))
    monkeypatch.setattr(dropping, "LOOK", stands / 15)


async def _passes(stage: Stage, seconds: float) -> None:
    began = time.monotonic()
    await stage.bench.until(lambda: time.monotonic() > began + seconds, f"{seconds:g} s have passed")


def _is_asked(id: str) -> bool:
    """Whether it is of the type that older code asks for, too."""
    return int(id) // KEYS % 2 == 0


def _asked(ids: Sequence[str]) -> list[str]:
    return [id for id in ids if _is_asked(id)]
