"""One timer for a batch: what it cancels it takes back, and nothing else."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest

from tests.walk.virtual import in_virtual_time
from tidings.limit import Limit

FOREVER = 60.0


def _cancelling() -> int:
    task = asyncio.current_task()
    assert task is not None
    return task.cancelling()


@asynccontextmanager
async def _event(limit: Limit) -> AsyncIterator[None]:
    """As the pipeline goes about one event."""
    limit.begin()
    try:
        yield
    except asyncio.CancelledError as error:
        if limit.took_back():
            raise TimeoutError from error
        raise
    finally:
        limit.end()


@in_virtual_time()
async def test_P12_an_event_that_runs_too_long_is_cancelled_and_the_task_goes_on() -> None:
    with Limit(0.01) as limit:
        for _ in range(3):
            with pytest.raises(TimeoutError):
                async with _event(limit):
                    await asyncio.sleep(FOREVER)
            assert _cancelling() == 0


@in_virtual_time()
async def test_P12_the_next_event_does_not_wait_for_the_patience_with_one_that_ran_too_long() -> None:
    with Limit(0.01, patience=FOREVER) as limit:
        for _ in range(3):
            async with asyncio.timeout(5.0):
                with pytest.raises(TimeoutError):
                    async with _event(limit):
                        await asyncio.sleep(FOREVER)
            assert _cancelling() == 0


@in_virtual_time()
async def test_the_time_of_an_event_starts_with_it_and_not_with_the_batch() -> None:
    with Limit(0.2) as limit:
        for _ in range(6):
            async with _event(limit):
                await asyncio.sleep(0.05)
    assert _cancelling() == 0


@in_virtual_time()
async def test_nothing_is_cancelled_between_events() -> None:
    with Limit(0.01) as limit:
        async with _event(limit):
            pass
        await asyncio.sleep(0.05)
    await asyncio.sleep(0.03)
    assert _cancelling() == 0


@in_virtual_time()
async def test_nothing_is_cancelled_after_the_batch() -> None:
    with Limit(0.01) as limit:
        limit.begin()
    await asyncio.sleep(0.05)
    assert _cancelling() == 0


@in_virtual_time()
async def test_a_handler_that_swallows_its_timeout_leaves_no_cancellation_behind() -> None:
    with Limit(0.01) as limit:
        async with _event(limit):
            try:
                await asyncio.sleep(FOREVER)
            except asyncio.CancelledError:
                pass
        assert _cancelling() == 0


@in_virtual_time()
async def test_a_handler_that_answers_its_timeout_with_another_error_leaves_no_cancellation_behind() -> None:
    with Limit(0.01) as limit:
        with pytest.raises(ValueError, match="instead"):
            async with _event(limit):
                try:
                    await asyncio.sleep(FOREVER)
                except asyncio.CancelledError:
                    raise ValueError("instead") from None
        assert _cancelling() == 0
        with pytest.raises(asyncio.CancelledError):  # and the next one's own is not taken for it
            async with _event(limit):
                raise asyncio.CancelledError


@in_virtual_time()
async def test_a_cancellation_from_outside_wins_over_a_timeout_at_the_same_time() -> None:
    async def both() -> None:
        with Limit(0.01) as limit:
            async with _event(limit):
                try:
                    await asyncio.sleep(FOREVER)
                except asyncio.CancelledError:
                    me = asyncio.current_task()
                    assert me is not None
                    me.cancel()
                    raise

    task = asyncio.create_task(both())
    with pytest.raises(asyncio.CancelledError):
        await task
    assert task.cancelled()


@in_virtual_time()
async def test_P12_what_does_not_end_when_it_is_cancelled_is_told_after_its_patience_and_again(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    told, enough = list[float](), asyncio.Event()
    loop = asyncio.get_running_loop()
    began = loop.time()
    monkeypatch.setattr("tidings.limit.ASK_AGAIN", 0.05)

    def stuck() -> None:
        told.append(loop.time() - began)
        if len(told) == 2:
            enough.set()
            limit.leave()

    with Limit(0.05, 0.1, stuck) as limit:
        async with _event(limit):
            try:
                await asyncio.sleep(FOREVER)
            except asyncio.CancelledError:
                await enough.wait()
        await asyncio.sleep(0.1)
    assert told[0] >= 0.15
    assert told[1] >= told[0] + 0.05
    assert len(told) == 2


@in_virtual_time()
async def test_what_ends_after_it_was_cancelled_is_not_told() -> None:
    told: list[str] = []
    with Limit(0.02, 0.05, lambda: told.append("stuck")) as limit:
        for _ in range(2):
            async with _event(limit):
                try:
                    await asyncio.sleep(FOREVER)
                except asyncio.CancelledError:
                    await asyncio.sleep(0.02)
        await asyncio.sleep(0.1)
    assert not told
    assert _cancelling() == 0
