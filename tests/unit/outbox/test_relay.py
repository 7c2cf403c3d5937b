"""The relay's own logic, on rows in memory: order, failures, the lease, and the broker's bad days."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager

import pytest

from tests.unit.outbox.clock import time
from tidings.delivery import Message
from tidings.errors import BrokerUnavailable, EventTooLarge, NotStored, StoreUnavailable
from tidings.outbox.relay import Relay, Wake
from tidings.outbox.row import Refused, Row
from tidings.ports import Publish

Answer = Callable[[Message], Exception | None]


class Rows:
    """An outbox in memory, with what a database would do on a bad day."""

    def __init__(self, *messages: Message) -> None:
        self.rows = {id: Row(id, 0, message) for id, message in enumerate(messages, 1)}
        self.retry_at: dict[int, float] = {}
        self.parked: list[int] = []
        self.owner = ""
        self.expires_at = 0.0
        self.leases = 0
        self.trouble: Exception | None = None

    def add(self, message: Message) -> None:
        id = max(self.rows, default=0) + 1
        self.rows[id] = Row(id, 0, message)

    async def waits(self) -> bool:
        if self.trouble:
            raise self.trouble
        return bool(await self.ready(1, 1))

    async def ready(self, most: int, most_bytes: int) -> list[Row]:
        held: set[str | None] = set()
        found = []
        for row in self.rows.values():
            if row.id in self.parked or self.retry_at.get(row.id, 0) > time.monotonic():
                held.add(row.message.key or f"row {row.id}")
            elif row.message.key not in held:
                found.append(row)
        return found[:most]

    async def lease(self, owner: str, seconds: float) -> bool:
        self.leases += 1
        if self.owner in ("", owner) or time.monotonic() > self.expires_at:
            self.owner, self.expires_at = owner, time.monotonic() + seconds
        return self.owner == owner

    async def give_back(self, owner: str) -> None:
        if self.owner == owner:
            self.owner = ""

    async def settle(self, stored: Sequence[int], refused: Sequence[Refused], owner: str, seconds: float) -> bool:
        for id in stored:
            del self.rows[id]
        for one in refused:
            self.rows[one.id] = self.rows[one.id]._replace(attempts=self.rows[one.id].attempts + 1)
            if one.retry_at is None:
                self.parked.append(one.id)
            else:
                self.retry_at[one.id] = time.monotonic() + one.retry_at - time.time()
        return await self.lease(owner, seconds)


class Recorder:
    """A broker that stores what `answer` does not refuse."""

    def __init__(self, answer: Answer = lambda message: None) -> None:
        self.answer = answer
        self.calls: list[list[str]] = []
        self.stored: list[str] = []

    async def __call__(self, messages: Sequence[Message]) -> list[Exception | None]:
        self.calls.append([message.id for message in messages])
        answers = [self.answer(message) for message in messages]
        self.stored += [message.id for message, error in zip(messages, answers, strict=True) if error is None]
        return answers


def message(id: str, key: str | None = None) -> Message:
    return Message(id=id, stream="stock", type="stock.reserved", key=key, body=b"{}")


@asynccontextmanager
async def running(
    rows: Rows, publish: Publish, *, wake: Wake | None = None, lease: float = 1.0, poll: float = 0.02
) -> AsyncIterator[None]:
    task = asyncio.create_task(Relay(rows, publish, wake or Wake(), poll=poll, lease=lease).run())
    try:
        async with asyncio.timeout(15):
            yield
            assert not task.done()
    finally:
        task.cancel()
        await asyncio.wait({task}, timeout=10)
        assert task.cancelled()


async def until(condition: Callable[[], object]) -> None:
    while not condition():  # noqa: ASYNC110  # what it waits for has no event; the caller limits it
        await asyncio.sleep(0.005)


async def test_rows_leave_in_order_and_are_taken_out() -> None:
    rows = Rows(*(message(str(number), "abc"[number % 3]) for number in range(30)))
    broker = Recorder()
    async with running(rows, broker):
        await until(lambda: not rows.rows)
    for key in range(3):
        mine = [id for id in broker.stored if int(id) % 3 == key]
        assert mine == sorted(mine, key=int)
    assert len(broker.stored) == 30


async def test_in_one_call_each_key_stands_once() -> None:
    rows = Rows(message("1", "a"), message("2", "a"), message("3", "b"), message("4"), message("5"), message("6", "a"))
    broker = Recorder()
    async with running(rows, broker):
        await until(lambda: not rows.rows)
    assert broker.calls == [["1", "3", "4", "5"], ["2"], ["6"]]


async def test_behind_a_row_that_fails_its_key_waits_and_others_go_on() -> None:
    refused = {"1": 3}

    def answer(message: Message) -> Exception | None:
        if refused.get(message.id):
            refused[message.id] -= 1
            return NotStored("the stream is full")
        return None

    rows = Rows(message("1", "a"), message("2", "a"), message("3", "b"), message("4", "a"), message("5"))
    broker = Recorder(answer)
    async with running(rows, broker):
        await until(lambda: not rows.rows)
    assert broker.stored == ["3", "5", "1", "2", "4"]
    assert sum("1" in call for call in broker.calls) == 4


async def test_a_row_that_can_never_leave_is_parked_and_stops_only_its_key(caplog: pytest.LogCaptureFixture) -> None:
    """Trap 143."""
    rows = Rows(message("1", "a"), message("2", "a"), message("3", "b"), message("4"))
    broker = Recorder(lambda message: EventTooLarge("2 MiB") if message.id == "1" else None)
    async with running(rows, broker):
        await until(lambda: rows.parked and len(rows.rows) == 2)
        await asyncio.sleep(0.1)
    assert broker.stored == ["3", "4"]
    assert sum("1" in call for call in broker.calls) == 1
    assert [row.message.id for row in rows.rows.values()] == ["1", "2"]
    (record,) = [record for record in caplog.records if record.levelno == logging.ERROR]
    assert "1" in record.getMessage()
    assert "2 MiB" in record.getMessage()
    assert "parked" in record.getMessage()


async def test_while_the_broker_is_away_it_tries_again_later_and_later(caplog: pytest.LogCaptureFixture) -> None:
    away = True
    rows = Rows(message("1", "a"), message("2", "a"), message("3"))
    broker = Recorder(lambda message: BrokerUnavailable("no connection") if away else None)
    async with running(rows, broker):
        await asyncio.sleep(0.6)
        assert 1 < len(broker.calls) < 8, "it pauses between its tries"
        assert all(row.attempts == 0 for row in rows.rows.values()), "it is no failure of the rows"
        assert len([record for record in caplog.records if record.levelno >= logging.WARNING]) <= 2
        away = False
        await until(lambda: not rows.rows)
    assert broker.stored == ["1", "3", "2"]


@pytest.mark.parametrize("error", [RuntimeError("bug"), BrokerUnavailable("no"), ValueError()])
async def test_a_publish_that_raises_is_survived(error: Exception) -> None:
    rows = Rows(message("1"))
    calls = 0

    async def publish(messages: Sequence[Message]) -> list[Exception | None]:
        nonlocal calls
        calls += 1
        if calls < 3:
            raise error
        return [None]

    async with running(rows, publish):
        await until(lambda: not rows.rows)
    assert calls == 3


async def test_an_answer_of_the_wrong_length_loses_nothing() -> None:
    rows = Rows(message("1"), message("2"))
    calls = 0

    async def publish(messages: Sequence[Message]) -> list[Exception | None]:
        nonlocal calls
        calls += 1
        return [None] * (1 if calls == 1 else len(messages))

    async with running(rows, publish):
        await until(lambda: not rows.rows)
    assert calls > 1


async def test_a_store_that_is_away_is_survived_without_a_storm() -> None:
    rows = Rows(message("1"))
    rows.trouble = StoreUnavailable("gone")
    broker = Recorder()
    async with running(rows, broker):
        await asyncio.sleep(0.3)
        rows.trouble = None
        await until(lambda: not rows.rows)
    assert broker.stored == ["1"]


async def test_a_call_wakes_it_at_once() -> None:
    rows, broker, wake = Rows(), Recorder(), Wake()
    async with running(rows, broker, wake=wake, poll=3600):
        await asyncio.sleep(0.05)
        for number in range(3):
            rows.add(message(str(number)))
            wake.now()
            await until(lambda: not rows.rows)
    assert broker.stored == ["0", "1", "2"]


async def test_without_a_call_it_looks_by_itself() -> None:
    rows, broker = Rows(), Recorder()
    async with running(rows, broker):
        await asyncio.sleep(0.05)
        rows.add(message("1"))
        await until(lambda: not rows.rows)


async def test_while_nothing_waits_nothing_is_written() -> None:
    rows = Rows()
    async with running(rows, Recorder()):
        await asyncio.sleep(0.3)
    assert rows.leases == 0


async def test_only_the_one_with_the_lease_publishes_and_gives_it_back() -> None:
    """Trap 139."""
    rows, first, second = Rows(message("1")), Recorder(), Recorder()
    async with running(rows, first, lease=60):
        await until(lambda: not rows.rows)
        async with running(rows, second, lease=60):
            rows.add(message("2"))
            await until(lambda: not rows.rows)
            assert second.stored == []
            assert first.stored == ["1", "2"]
    rows.add(message("3"))
    async with running(rows, second, lease=60):
        await until(lambda: not rows.rows)
    assert second.stored == ["3"]


async def test_the_lease_of_one_that_died_runs_out() -> None:
    rows, second = Rows(message("1")), Recorder()
    rows.owner, rows.expires_at = "somebody who died", time.monotonic() + 0.3
    async with running(rows, second):
        await asyncio.sleep(0.1)
        assert second.calls == []
        await until(lambda: not rows.rows)


async def test_a_slow_broker_does_not_cost_the_lease() -> None:
    """Trap 141: it is renewed while a publish takes long."""
    rows, other = Rows(message("1", "a"), message("2", "a")), Recorder()
    seen: list[str] = []

    async def slow(messages: Sequence[Message]) -> list[Exception | None]:
        seen.extend(message.id for message in messages)
        await asyncio.sleep(0.5)
        return [None] * len(messages)

    async with running(rows, slow, lease=0.2):
        await until(lambda: seen)
        async with running(rows, other, lease=0.2):
            await until(lambda: not rows.rows)
    assert seen == ["1", "2"]
    assert other.calls == []


async def test_one_that_lost_its_lease_publishes_no_more() -> None:
    rows = Rows(message("1", "a"), message("2", "a"), message("3", "a"))
    broker = Recorder()

    async def publish(messages: Sequence[Message]) -> Sequence[Exception | None]:
        rows.owner, rows.expires_at = "another", time.monotonic() + 60
        await asyncio.sleep(0.2)  # longer than it may rely on its lease
        return await broker(messages)

    async with running(rows, publish, lease=0.1):
        await asyncio.sleep(0.6)
    assert broker.stored == ["1"]
    assert [row.message.id for row in rows.rows.values()] == ["2", "3"]


async def test_cancelled_while_it_publishes_it_keeps_the_rows_and_gives_the_lease_back() -> None:
    rows = Rows(message("1"))
    publishing = asyncio.Event()

    async def publish(messages: Sequence[Message]) -> list[Exception | None]:
        publishing.set()
        await asyncio.sleep(60)
        return [None]

    async with running(rows, publish):
        await publishing.wait()
    assert list(rows.rows) == [1]
    assert rows.owner == ""


async def test_what_another_published_before_it_gave_the_lease_away_is_not_published_again() -> None:
    """Rows are read under the lease: what was read before may be gone, and later ones of its key may be out."""

    class JustPublished(Rows):
        async def lease(self, owner: str, seconds: float) -> bool:
            self.rows.pop(1, None)
            return await super().lease(owner, seconds)

    rows = JustPublished(message("1", "a"), message("2", "a"))
    broker = Recorder()
    async with running(rows, broker):
        await until(lambda: not rows.rows)
    assert broker.stored == ["2"]


class Batching(Recorder):
    """Stores several as one, unless it knows one of them already: then it stores none."""

    def __init__(self, known: Sequence[str] = (), answer: Answer = lambda message: None) -> None:
        super().__init__(answer)
        self.known = known
        self.batches: list[list[str]] = []

    async def batch(self, messages: Sequence[Message]) -> bool:
        self.batches.append([message.id for message in messages])
        if any(message.id in self.known or self.answer(message) for message in messages):
            return False
        self.stored += [message.id for message in messages]
        return True


async def test_P8_rows_of_few_keys_leave_as_one_batch_where_the_broker_stores_all_or_none() -> None:
    rows = Rows(*(message(str(number), "ab"[number % 2]) for number in range(900)))
    broker = Batching()
    async with running(rows, broker):
        await until(lambda: not rows.rows)
    assert broker.batches == [[str(number) for number in range(900)]]
    assert broker.calls == []


async def test_a_batch_with_an_id_that_is_known_already_leaves_key_by_key_and_loses_nothing() -> None:
    """Trap 39."""
    rows = Rows(*(message(str(number), "ab"[number % 2]) for number in range(6)))
    broker = Batching(known=["1"])
    async with running(rows, broker):
        await until(lambda: not rows.rows)
    assert broker.batches == [["0", "1", "2", "3", "4", "5"]]
    assert broker.calls == [["0", "1"], ["2", "3"], ["4", "5"]]


async def test_P8_behind_a_row_that_no_batch_can_hold_its_key_waits() -> None:
    rows = Rows(message("1", "a"), message("2", "a"), message("3", "b"), message("4", "b"))
    broker = Batching(answer=lambda message: EventTooLarge("2 MiB") if message.id == "1" else None)
    async with running(rows, broker):
        await until(lambda: len(rows.rows) == 2)
    assert broker.stored == ["3", "4"]


async def test_rows_of_different_keys_are_one_call_and_need_no_batch() -> None:
    rows = Rows(*(message(str(number), str(number)) for number in range(5)))
    broker = Batching()
    async with running(rows, broker):
        await until(lambda: not rows.rows)
    assert (broker.batches, len(broker.calls)) == ([], 1)
