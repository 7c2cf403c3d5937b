"""`to_end`: a step that is not cut off half way."""

from __future__ import annotations

import asyncio

import pytest

from tidings.outbox.waiting import to_end


async def test_it_returns_and_raises_as_the_step_does() -> None:
    async def step(error: Exception | None) -> int:
        if error is not None:
            raise error
        return 7

    assert await to_end(step(None)) == 7
    with pytest.raises(LookupError):
        await to_end(step(LookupError()))


@pytest.mark.parametrize("fails", [False, True])
async def test_however_often_it_is_cancelled_the_step_ends_first(fails: bool) -> None:
    ended = False
    go_on = asyncio.Event()

    async def step() -> None:
        nonlocal ended
        await go_on.wait()
        ended = True
        if fails:
            raise LookupError

    task = asyncio.create_task(to_end(step()))
    for _ in range(3):
        await asyncio.sleep(0)
        task.cancel()
    await asyncio.sleep(0)
    go_on.set()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert ended
