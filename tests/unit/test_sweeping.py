"""When a service sweeps, and what it does when the store is away. What is removed: tests/integration/stores."""

from __future__ import annotations

import asyncio
import logging
from datetime import timedelta

import pytest

from tests.integration.stores.ledger import eventually
from tests.unit.parts import Placed
from tidings import Service
from tidings.errors import BrokerUnavailable, DeclarationError, StoreUnavailable, WorldError
from tidings.ports import Forgotten, KeyKind
from tidings.stores.memory import MemoryStore
from tidings.sweeping import Sweeper, Target
from tidings.testing import MemoryBroker


class Keys(MemoryStore):
    """Answers as it is told, step by step."""

    def __init__(self, *answers: Forgotten | WorldError) -> None:
        super().__init__()
        self.answers = list(answers)
        self.asked: list[tuple[str, str, str]] = []

    async def forget(self, position: str, kind: KeyKind, before: float, *, after: str = "", most: int) -> Forgotten:
        self.asked.append((position, kind, after))
        answer = self.answers.pop(0) if self.answers else Forgotten()
        if isinstance(answer, WorldError):
            raise answer
        return answer


async def _week() -> timedelta:
    return timedelta(days=7)


@pytest.fixture(autouse=True)
def at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """No pause between steps."""
    sleep = asyncio.sleep
    monkeypatch.setattr("tidings.sweeping.asyncio.sleep", lambda seconds: sleep(min(seconds, 0.01)))


async def test_a_sweep_goes_on_where_the_last_step_ended() -> None:
    store = Keys(Forgotten(2, "@b"), Forgotten(0, "@d"), Forgotten(1))
    assert await Sweeper("stock", store, [Target("stock.step", "event", _week)]).sweep() == 3
    assert [after for _, _, after in store.asked] == ["", "@b", "@d"]


async def test_a_store_that_stays_away_ends_the_sweep_of_one_handler_and_no_other(
    caplog: pytest.LogCaptureFixture,
) -> None:
    store = Keys(*[StoreUnavailable("gone")] * 5, Forgotten(4))
    targets = [Target("stock.one", "event", _week), Target("stock.two", "event", _week)]
    assert await Sweeper("stock", store, targets).sweep() == 4
    assert [position for position, _, _ in store.asked] == ["stock.one"] * 5 + ["stock.two"]
    (record,) = [record for record in caplog.records if record.levelno == logging.WARNING]
    assert "stock.one" in record.getMessage()
    assert "gone" in record.getMessage()


async def test_it_sweeps_again_and_again_until_it_is_cancelled() -> None:
    store = Keys()
    sweeper = Sweeper("stock", store, [Target("stock.step", "event", _week)], first=0.01, every=0.01)
    task = asyncio.create_task(sweeper.run())
    await eventually(lambda: len(store.asked) >= 3)
    task.cancel()
    await asyncio.wait({task}, timeout=10)
    assert task.cancelled()


async def test_a_running_service_sweeps_the_keys_of_its_handlers_by_what_the_broker_says(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("tidings.sweeping.FIRST", 0.0)
    found: list[Target] = []

    class Kept(Sweeper):
        async def run(self) -> None:
            found.extend(self._targets)

    monkeypatch.setattr("tidings.running.Sweeper", Kept)
    service = Service("stock", publishes=[Placed], keep=timedelta(days=3))

    async def step(event: Placed) -> None: ...

    service.on(Placed)(step)
    service.on(Placed, once="order_id", name="forever")(step)
    service.on(Placed, once="order_id", name="forgets", forget_after=timedelta(hours=1))(step)
    broker = MemoryBroker()
    async with service.running(broker=broker, store=Keys()):
        await eventually(lambda: found)
        assert [(one.position, one.kind) for one in found] == [("stock.step", "event"), ("stock.forgets", "business")]
        assert [await one.lives() for one in found] == [timedelta(days=4), timedelta(hours=1)]
        assert [one.seconds for one in found] == [4 * 86400, 3600], "they were asked for before the first event"
        async with broker.outage():
            with pytest.raises(BrokerUnavailable):
                await found[0].lives()


async def test_each_sweep_hears_anew_how_long_the_stream_keeps_its_events() -> None:
    keeps: list[timedelta | None] = [timedelta(days=2), None, timedelta(days=30)]

    async def lives() -> timedelta | None:
        return keeps.pop(0)

    target = Target("stock.step", "event", lives)
    sweeper = Sweeper("stock", Keys(), [target])
    heard = []
    while keeps:
        await sweeper.sweep()
        heard.append(target.seconds)
    assert heard == [2 * 86400, None, 30 * 86400]


@pytest.mark.parametrize("slow", [False, True])
async def test_a_broker_that_does_not_say_how_long_it_keeps_events_holds_nobody_up(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, slow: bool
) -> None:
    monkeypatch.setattr("tidings.sweeping.BEGIN_WITHIN", 0.1)

    async def lives() -> timedelta | None:
        if slow:
            await asyncio.Event().wait()
        raise BrokerUnavailable("no leader")

    target = Target("stock.step", "event", lives)
    await target.begin()
    assert target.seconds is None, "for ever, until it is known"
    assert "stock.step: how long its stream keeps events is asked again later" in caplog.text


@pytest.mark.parametrize(("once", "after"), [(True, 1), (False, 1), ("order_id", 0), ("order_id", -1)])
def test_forget_after_is_for_business_keys_alone(once: bool | str, after: int) -> None:
    with pytest.raises(DeclarationError, match="forget_after"):
        Service("stock").on(Placed, once=once, idempotent=once is False, forget_after=timedelta(hours=after))
