"""Where something stands, as text: a coroutine through all that it waits for, and a thread."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import threading
from collections.abc import AsyncIterator

import pytest

from tidings import stacks


async def test_a_task_is_followed_through_coroutines_generators_and_other_tasks() -> None:
    async def innermost() -> None:
        await asyncio.Event().wait()  # here it stands

    async def numbers() -> AsyncIterator[int]:
        await asyncio.create_task(innermost())
        yield 1

    async def outer() -> None:
        async for _ in numbers():
            pass

    task = asyncio.create_task(outer())
    await asyncio.sleep(0.01)
    told = stacks.of_task(task)
    for part in ("in outer", "in numbers", "in innermost", "here it stands"):
        assert part in told
    task.cancel()
    with contextlib.suppress(asyncio.CancelledError):
        await task
    assert stacks.of_task(task) == "(it has ended)"


def test_a_thread_is_told_by_its_frames_and_one_that_has_ended_as_such(caplog: pytest.LogCaptureFixture) -> None:
    go = threading.Event()
    thread = threading.Thread(target=go.wait, args=(20,))
    thread.start()
    told = stacks.of_thread(thread.ident)
    go.set()
    thread.join()
    assert "self._cond.wait(timeout)" in told
    assert stacks.of_thread(thread.ident) == stacks.of_thread(None) == "(its thread has ended)"
    with caplog.at_level(logging.ERROR, logger="tidings.tests"):
        stacks.log_with(logging.getLogger("tidings.tests"), logging.ERROR, told, "it stands %s", "still")
    assert caplog.records[0].getMessage() == "it stands still"
    assert caplog.records[0].stack_info == told
