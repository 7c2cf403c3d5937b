"""The direct way's own logic: what may leave from memory, in which order, and what is left to the relay."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager

import pytest

from tests.integration.stores.ledger import eventually
from tests.unit.outbox.clock import time
from tidings.delivery import Message
from tidings.errors import BrokerUnavailable, EventTooLarge, NotStored, StoreUnavailable
from tidings.outbox import direct as module
from tidings.outbox.direct import Direct, Entry
from tidings.ports import Publish


class Table:
    """What is written down, and how often the relay is called."""

    def __init__(self) -> None:
        self.stored: list[int] = []
        self.left: list[int] = []
        self.woken = 0
        self.trouble: Exception | None = None

    async def settle(self, stored: Sequence[int], left: Sequence[int]) -> None:
        await asyncio.sleep(0)
        if self.trouble is not None:
            raise self.trouble
        self.stored += stored
        self.left += left

    def wake(self) -> None:
        self.woken += 1


class Broker:
    def __init__(self, answer: Callable[[Message], Exception | None] = lambda message: None) -> None:
        self.answer = answer
        self.calls: list[list[str]] = []
        self.gate = asyncio.Event()
        self.gate.set()

    async def __call__(self, messages: Sequence[Message]) -> list[Exception | None]:
        self.calls.append([message.id for message in messages])
        await self.gate.wait()
        return [self.answer(message) for message in messages]

    @property
    def sent(self) -> list[str]:
        return [id for call in self.calls for id in call]


class Batching(Broker):
    """Stores several as one, unless it is told not to."""

    def __init__(self, *, refuses: bool = False) -> None:
        super().__init__()
        self.refuses = refuses
        self.batches: list[list[str]] = []

    async def batch(self, messages: Sequence[Message]) -> bool:
        self.batches.append([message.id for message in messages])
        await self.gate.wait()
        return not self.refuses


@asynccontextmanager
async def running(direct: Direct, publish: Publish, table: Table) -> AsyncIterator[None]:
    task = asyncio.create_task(direct.run(publish, table.settle))
    await asyncio.sleep(0)
    try:
        yield
        assert not task.done()
    finally:
        task.cancel()
        await asyncio.wait({task}, timeout=10)
        assert task.cancelled()


def row(direct: Direct, id: int, *before: Entry, hold: float | None = None) -> Entry:
    """A row that was written with a hold."""
    seconds = direct.hold if hold is None else hold
    message = Message(id=str(id), stream="stock", type="stock.reserved", key="k", body=b"{}")
    entry = Entry(id, message, 7, before, time.monotonic() + seconds, time.time() + seconds)
    direct.written([entry])
    return entry


@pytest.fixture
def table() -> Table:
    return Table()


@pytest.fixture
def direct(table: Table) -> Direct:
    return Direct(table.wake)


async def test_what_is_committed_leaves_and_is_written_down(direct: Direct, table: Table) -> None:
    broker = Broker()
    async with running(direct, broker, table):
        direct.committed([row(direct, 1), row(direct, 2)])
        await eventually(lambda: table.stored == [1, 2])
        assert direct.known([1]) is None, "it is gone from the table"
    assert broker.calls == [["1", "2"]]
    assert (table.left, table.woken) == ([], 0)


async def test_the_next_transaction_may_write_it_down(direct: Direct, table: Table) -> None:
    async with running(direct, Broker(), table):
        direct.committed([row(direct, 1)])
        await eventually(lambda: direct._due)
        due = direct.take_due()
        assert due.stored == [1]
        direct.give_back(due)  # it was rolled back
        due = direct.take_due()
        direct.written_down(due)
        await asyncio.sleep(2 * module.TIDY)
    assert table.stored == []


async def test_P8_a_row_waits_for_the_one_before_it_whatever_the_order_in_which_lanes_hand_them_over(
    direct: Direct, table: Table
) -> None:
    """Two lanes: the second saw the row of the first, whose commit is not known here yet."""
    broker = Broker()
    async with running(direct, broker, table):
        first = row(direct, 1)
        second = row(direct, 2, first)
        direct.committed([second])
        await asyncio.sleep(0.05)
        assert broker.sent == []
        direct.committed([first])
        await eventually(lambda: len(table.stored) == 2)
    assert broker.calls == [["1"], ["2"]]


async def test_P8_behind_a_row_whose_commit_failed_or_is_not_known_the_relay_goes_on(
    direct: Direct, table: Table
) -> None:
    broker = Broker()
    async with running(direct, broker, table):
        first = row(direct, 1)
        second = row(direct, 2, first)
        direct.committed([second, row(direct, 3, second), row(direct, 4)])
        direct.not_committed([first])
        await eventually(lambda: sorted(table.left) == [2, 3])
        assert table.woken > 0
    assert broker.sent == ["4"]


@pytest.mark.parametrize("error", [EventTooLarge("no"), NotStored("full"), RuntimeError("bug")])
async def test_P8_behind_a_row_that_was_refused_the_relay_goes_on(
    direct: Direct, table: Table, error: Exception
) -> None:
    broker = Broker(lambda message: error if message.id == "1" else None)
    async with running(direct, broker, table):
        first = row(direct, 1)
        direct.committed([first, row(direct, 2, first), row(direct, 3)])
        await eventually(lambda: sorted(table.left) == [1, 2] and table.stored == [3])
        assert direct.known([1]) is None
        assert direct.takes(), "one bad row is no reason for the others"
    assert broker.sent == ["1", "3"]


async def test_while_the_broker_is_away_all_is_the_relays(direct: Direct, table: Table) -> None:
    broker = Broker(lambda message: BrokerUnavailable("gone"))
    async with running(direct, broker, table):
        first = row(direct, 1)
        direct.committed([first, row(direct, 2, first)])
        await eventually(lambda: sorted(table.left) == [1, 2])
        assert not direct.takes()
    assert broker.sent == ["1"]


async def test_a_broker_that_does_not_answer_holds_nobody_up_for_longer_than_the_hold(table: Table) -> None:
    direct, broker = Direct(table.wake, hold=0.2), Broker()
    broker.gate.clear()
    async with running(direct, broker, table):
        direct.committed([row(direct, 1)])
        await eventually(lambda: table.left == [1], 5)


async def test_P8_a_process_that_stood_still_for_longer_than_the_hold_sends_nothing_afterwards(table: Table) -> None:
    direct, broker = Direct(table.wake, hold=0.2), Broker()
    async with running(direct, broker, table):
        first = row(direct, 1)
        direct.committed([first, row(direct, 2, first)])
        time.sleep(0.25)  # the whole process, as by SIGSTOP
        await eventually(lambda: sorted(table.left) == [1, 2])
        assert direct.known([1]) is None
    assert broker.sent == []


async def test_the_clock_of_the_wall_ends_a_hold_as_well(direct: Direct, table: Table) -> None:
    """A machine that sleeps stops the monotonic clock."""
    entry = row(direct, 1)
    entry.wall = time.time() - 1
    broker = Broker()
    async with running(direct, broker, table):
        direct.committed([entry])
        await eventually(lambda: table.left == [1])
    assert broker.sent == []


async def test_a_row_whose_hold_is_over_is_not_known(direct: Direct, table: Table) -> None:
    row(direct, 1)
    row(direct, 2, hold=-1)
    assert direct.known([1]) is not None
    assert direct.known([1, 2]) is None
    assert direct.known([3]) is None
    assert [one.id for one in direct.of_key(7)] == [1]
    assert direct.of_key(8) == []


async def test_a_stop_ends_what_is_on_its_way_and_leaves_the_rest(direct: Direct, table: Table) -> None:
    """Nothing waits for its hold to run out, and what was stored is not published again."""
    broker = Broker()
    broker.gate.clear()
    async with running(direct, broker, table):
        first = row(direct, 1)
        direct.committed([first, row(direct, 2, first)])
        await eventually(lambda: broker.calls)
        asyncio.get_running_loop().call_later(0.1, broker.gate.set)
    assert (table.stored, table.left) == ([1], [2])
    assert not direct.takes()
    direct.committed([row(direct, 3)])
    assert direct.take_due().left == [3]


async def test_a_store_that_is_away_is_told_later(
    direct: Direct, table: Table, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "TIDY", 0.01)
    table.trouble = StoreUnavailable("gone")
    async with running(direct, Broker(), table):
        direct.committed([row(direct, 1)])
        await asyncio.sleep(0.1)
        table.trouble = None
        await eventually(lambda: table.stored == [1])


async def test_P11_memory_is_bounded(direct: Direct, table: Table, monkeypatch: pytest.MonkeyPatch) -> None:
    broker = Broker()
    broker.gate.clear()
    async with running(direct, broker, table):
        monkeypatch.setattr(module, "MOST_ROWS", 2)
        direct.committed([row(direct, 1), row(direct, 2)])
        assert not direct.takes()
        monkeypatch.setattr(module, "MOST_ROWS", 100)
        assert direct.takes()
        monkeypatch.setattr(module, "MOST_BYTES", 4)
        assert not direct.takes()
        broker.gate.set()
        await eventually(lambda: len(table.stored) == 2)
        assert direct.takes()
        assert (direct._bytes, direct._entries, direct._by_key) == (0, {}, {})


def chain(direct: Direct, count: int) -> list[Entry]:
    """Rows of one key."""
    entries: list[Entry] = []
    for number in range(count):
        entries.append(row(direct, number, *entries[-1:]))
    return entries


async def test_P8_rows_of_one_key_leave_as_one_batch_where_the_broker_stores_all_or_none(
    direct: Direct, table: Table
) -> None:
    broker = Batching()
    async with running(direct, broker, table):
        entries = chain(direct, 50)
        direct.committed([*entries, row(direct, 99)])
        await eventually(lambda: len(table.stored) == 51)
    assert broker.batches == [[*map(str, range(50)), "99"]]
    assert broker.calls == []


async def test_P8_a_batch_that_is_refused_leaves_key_by_key(direct: Direct, table: Table) -> None:
    broker = Batching(refuses=True)
    async with running(direct, broker, table):
        direct.committed([*chain(direct, 4), row(direct, 99)])
        await eventually(lambda: len(table.stored) == 5)
    assert broker.batches == [["0", "1", "2", "3", "99"]], "it is not tried again at once"
    assert broker.calls == [["0", "99"], ["1"], ["2"], ["3"]]
