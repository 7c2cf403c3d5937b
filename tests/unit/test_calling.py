"""How a handler gets what it asks for, and in which thread it runs."""

from __future__ import annotations

import asyncio
import gc
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import asyncpg
import pytest
from sqlalchemy.ext.asyncio import AsyncConnection

from tests.unit.parts import Bench, Placed, ToldStore, Tx, batch, delivery, handler_of, until
from tidings.calling import check_connection, make_call, resource_of
from tidings.claims import NoClaim
from tidings.context import Scope, current
from tidings.delivery import Delivery
from tidings.errors import ConfigurationError
from tidings.ports import Claim

EVENT = Placed(order_id="a")


class Clients:
    """What a lifespan yields."""


async def _call(function: Callable[..., Any], *, store: ToldStore | None = None, shared: object = None) -> Any:
    claim: Claim = NoClaim(1)
    if store is not None:
        async with store.claim([], resource=Tx, sync=False) as claim:
            return await make_call(handler_of(function), store, shared)(EVENT, claim, delivery())
    return await make_call(handler_of(function, once=False), None, shared)(EVENT, claim, delivery())


async def test_a_handler_gets_its_event_and_whatever_it_asks_for_by_type() -> None:
    got: list[object] = []

    async def alone(event: Placed) -> None:
        got.append(event)

    async def with_one(event: Placed, about: Delivery) -> None:
        got.append(type(about))

    async def with_all(event: Placed, clients: Clients, tx: Tx, about: Delivery, more: int = 3) -> None:
        got.append((type(clients), type(tx), type(about), more))

    for function in (alone, with_one, with_all):
        await _call(function, store=ToldStore(), shared=Clients())
    assert got == [EVENT, Delivery, (Clients, Tx, Delivery, 3)]


def test_what_nothing_can_give_is_refused_at_the_start_with_what_can_be_asked_for() -> None:
    async def lost(event: Placed, clients: Clients) -> None: ...

    for store, shared, why in (
        (None, None, "the service has no store, and the service has no lifespan"),
        (ToldStore(), 7, "its store gives no Clients to an async handler, and the lifespan yields int"),
    ):
        with pytest.raises(ConfigurationError, match=why):
            make_call(handler_of(lost), store, shared)


def test_a_connection_that_another_store_gives_is_refused_with_the_store_to_write() -> None:
    async def through_sqlalchemy(event: Placed, db: AsyncConnection) -> None: ...

    async def own(event: Placed, db: asyncpg.Connection) -> None: ...

    for function, store in ((through_sqlalchemy, r"postgresql\+asyncpg://"), (own, "of the store postgresql://")):
        handler = handler_of(function)
        for refuse in (lambda: make_call(handler, ToldStore(), None), lambda: check_connection(handler, ToldStore())):  # noqa: B023
            with pytest.raises(ConfigurationError, match=store):
                refuse()


def test_one_transaction_has_one_connection() -> None:
    async def greedy(event: Placed, one: Tx, two: Tx) -> None: ...

    async def modest(event: Placed, one: Tx) -> None: ...

    with pytest.raises(ConfigurationError, match="one transaction has one"):
        resource_of(handler_of(greedy), ToldStore())
    assert resource_of(handler_of(modest), ToldStore()) is Tx
    assert resource_of(handler_of(modest), None) is None


# ── sync handlers ───────────────────────────────────────────────────────────────────────────────────────────────────


async def test_a_sync_handler_runs_in_a_thread_of_its_own_with_the_delivery_known_to_it() -> None:
    seen: list[tuple[str, Scope | None]] = []

    def step(event: Placed) -> Any:
        seen.append((threading.current_thread().name, current.get()))
        return "result"

    scope = Scope(delivery(), "stock.step")
    token = current.set(scope)
    try:
        assert await _call(step) == "result"
    finally:
        current.reset(token)
    ((thread, found),) = seen
    assert thread.startswith("tidings stock.step")
    assert found is scope


async def test_a_sync_handler_runs_in_the_thread_of_its_connection_where_there_is_one() -> None:
    with ThreadPoolExecutor(1, "connection") as threads:

        def step(event: Placed) -> Any:
            return threading.current_thread().name

        claim = NoClaim(1)
        claim.executor = threads
        name = await make_call(handler_of(step, once=False), None, None)(EVENT, claim, delivery())
    assert name.startswith("connection")


async def test_P12_hanging_sync_handlers_leave_the_threads_of_the_loop_alone() -> None:
    hold = threading.Event()

    def hang(event: Placed) -> None:
        hold.wait(60)

    call = make_call(handler_of(hang, once=False, concurrency=64), None, None)
    hanging = [asyncio.ensure_future(call(EVENT, NoClaim(1), delivery())) for _ in range(64)]
    try:
        async with asyncio.timeout(20):
            await asyncio.to_thread(time.sleep, 0)
    finally:
        hold.set()
        await asyncio.gather(*hanging)


async def test_a_stop_iteration_out_of_a_sync_handler_is_an_error_and_no_silence() -> None:
    def step(event: Placed) -> None:
        next(iter(()))

    with pytest.raises(RuntimeError, match="StopIteration"):
        async with asyncio.timeout(5):
            await _call(step)


async def test_an_error_of_a_sync_handler_is_its_own() -> None:
    def step(event: Placed) -> None:
        raise ValueError("no stock")

    with pytest.raises(ValueError, match="no stock"):
        await _call(step)


async def test_P3_a_sync_handler_is_not_given_up_while_its_thread_still_works() -> None:
    """Nothing stops a thread: were its event given back, another would make the effect beside it."""
    release = threading.Event()
    effects: list[str] = []

    def step(event: Placed) -> None:
        release.wait(60)
        effects.append(event.order_id)

    bench = Bench(lambda event: call(event, NoClaim(1), delivery()), timeout=0.02)
    call = make_call(handler_of(step, once=False), None, None)
    task = asyncio.create_task(bench.pipeline.process(batch("a1")))
    await asyncio.sleep(0.1)
    assert not task.done()
    release.set()
    await task
    assert effects == ["a"]
    assert bench.outcomes == {"a1": "done"}


async def test_P9_a_stop_that_cancels_waits_for_the_thread_and_keeps_its_effect() -> None:
    began, release = threading.Event(), threading.Event()

    def step(event: Placed) -> None:
        began.set()
        release.wait(60)

    bench = Bench(lambda event: call(event, NoClaim(1), delivery()))
    call = make_call(handler_of(step, once=False), None, None)
    task = asyncio.create_task(bench.pipeline.process(batch("a1", "b2")))
    await until(began.is_set)
    bench.pipeline.calls.stopping = True
    task.cancel()
    await asyncio.sleep(0.02)
    task.cancel()
    await asyncio.sleep(0.02)
    assert not task.done()
    release.set()
    rest, _ = await task
    assert [one.event_id for one in rest] == ["b2"]
    assert bench.outcomes == {"a1": "done"}


async def test_a_cancelled_error_out_of_a_sync_handler_is_an_error_of_the_handler() -> None:
    def step(event: Placed) -> None:
        raise asyncio.CancelledError

    bench = Bench(lambda event: call(event, NoClaim(1), delivery()))
    call = make_call(handler_of(step, once=False), None, None)
    await bench.pipeline.process(batch("a1"))
    assert bench.outcomes == {"a1": "retry"}


@pytest.mark.parametrize("error", [BaseException, SystemExit, GeneratorExit])
async def test_P2_a_base_exception_out_of_a_sync_handler_is_an_error_of_the_handler(error: type[BaseException]) -> None:
    def step(event: Placed) -> None:
        if event.number == 1:
            raise error("out of stock")

    bench = Bench(lambda event: call(event, NoClaim(1), delivery()))
    call = make_call(handler_of(step, once=False), None, None)
    assert await bench.pipeline.process(batch("a1", "b2")) == ([], "")
    assert bench.outcomes == {"a1": "retry", "b2": "done"}


async def test_the_threads_of_a_handler_end_with_it() -> None:
    def step(event: Placed) -> None: ...

    await _call(step)
    await until(lambda: gc.collect() >= 0 and not [one for one in threading.enumerate() if "stock.step" in one.name])
