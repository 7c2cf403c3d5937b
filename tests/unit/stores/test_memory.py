"""The memory store: claims with leases, in one process."""

from __future__ import annotations

import asyncio
from types import SimpleNamespace

import pytest

from tidings.delivery import Message
from tidings.errors import Contention, MisuseError
from tidings.ports import Claimed, Key, State
from tidings.stores import memory
from tidings.stores.memory import MemoryStore

NEW, BUSY = Claimed(State.NEW), Claimed(State.BUSY)


def key(name: str, event_id: str = "e", position: str = "stock.reserve") -> Key:
    return Key(position, name, event_id, event_id.encode())


def done(event_id: str = "e") -> Claimed:
    return Claimed(State.DONE, event_id, event_id.encode())


async def states(store: MemoryStore, *keys: Key) -> list[Claimed]:
    """Claim and keep nothing: what the store says of the keys."""
    found: list[Claimed] = []
    with pytest.raises(LookupError):
        async with store.claim(keys, resource=None, sync=False) as claim:
            found.extend(claim.states)
            raise LookupError
    return found


async def apply(store: MemoryStore, *keys: Key) -> None:
    async with store.claim(keys, resource=None, sync=False):
        pass


async def test_a_clean_exit_marks_keys_done_and_tells_which_event_did() -> None:
    store = MemoryStore()
    await apply(store, key("a", "1"), key("b", "2"))
    assert await states(store, key("a", "9"), key("b", "9"), key("c")) == [done("1"), done("2"), NEW]


async def test_an_exception_gives_keys_back() -> None:
    store = MemoryStore()
    assert await states(store, key("a")) == [NEW]
    assert await states(store, key("a")) == [NEW]


async def test_cancellation_gives_keys_back() -> None:
    store = MemoryStore()

    async def hold() -> None:
        async with store.claim([key("a")], resource=None, sync=False):
            await asyncio.sleep(30)

    task = asyncio.create_task(hold())
    await asyncio.sleep(0)
    assert await states(store, key("a")) == [BUSY]
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert await states(store, key("a")) == [NEW]


async def test_of_equal_keys_in_a_batch_the_first_is_new_and_the_others_are_done_by_it() -> None:
    store = MemoryStore()
    assert await states(store, key("a", "1"), key("b", "2"), key("a", "3")) == [NEW, NEW, done("1")]


async def test_a_key_in_another_open_claim_is_busy() -> None:
    store = MemoryStore()
    async with store.claim([key("a")], resource=None, sync=False):
        assert await states(store, key("a"), key("b")) == [BUSY, NEW]
    assert await states(store, key("a")) == [done()]


async def test_two_handlers_have_the_same_key_each_for_itself() -> None:
    """Trap 128."""
    store = MemoryStore()
    await apply(store, key("a", position="stock.reserve"))
    assert await states(store, key("a", position="stock.count")) == [NEW]


async def test_a_failed_key_is_given_back_and_the_others_are_kept() -> None:
    store = MemoryStore()
    async with store.claim([key("a"), key("b")], resource=None, sync=False) as claim:
        claim.fail(0)
    assert await states(store, key("a"), key("b")) == [NEW, done()]


class Clock:
    """The store's: leases run out when a test says so."""

    now = 0.0

    def wait(self, seconds: float) -> None:
        self.now += seconds


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr(memory, "time", SimpleNamespace(monotonic=lambda: clock.now))
    return clock


async def test_a_lease_that_ran_out_is_fenced(clock: Clock) -> None:
    """Trap 124: the late one neither completes nor removes what is another's by now."""
    store = MemoryStore(lease=0.01)
    with pytest.raises(Contention, match="lease"):
        async with store.claim([key("a", "late")], resource=None, sync=False):
            clock.wait(0.02)
            async with store.claim([key("a", "second")], resource=None, sync=False) as claim:
                assert list(claim.states) == [NEW]
    assert await states(store, key("a")) == [done("second")]


async def test_a_late_failure_leaves_the_other_claim_alone(clock: Clock) -> None:
    store = MemoryStore(lease=0.01)
    with pytest.raises(LookupError):
        async with store.claim([key("a")], resource=None, sync=False):
            clock.wait(0.02)
            other = store.claim([key("a")], resource=None, sync=False)
            await other.__aenter__()
            raise LookupError
    assert await states(store, key("a")) == [BUSY]
    await other.__aexit__(None, None, None)
    assert await states(store, key("a")) == [done()]


async def test_it_has_no_transactions_and_says_what_has() -> None:
    store = MemoryStore()
    message = Message(id="1", stream="s", type="s.t", body=b"")
    assert not store.transactional
    assert not store.gives(object, sync=False)
    async with store.claim([key("a")], resource=None, sync=False) as claim:
        assert await claim.emit([message]) is False
        with pytest.raises(MisuseError, match="int"):
            claim.resource(int)
    with pytest.raises(MisuseError, match="sqlite"):
        store.transaction()
    with pytest.raises(MisuseError, match="sqlite"):
        await store.emit(object(), [message])
