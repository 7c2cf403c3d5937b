"""Steps that must not be left half done when their task is cancelled."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine
from typing import Any, TypeVar

T = TypeVar("T")


async def to_end(step: Coroutine[Any, Any, T]) -> T:
    """Run a step to its end, also when this task is cancelled meanwhile; the cancellation is raised afterwards.

    A commit that was cut off half way leaves nobody knowing what became of it, and a thread cannot be cut off at all.
    The step must have limits of its own: however often the task is cancelled, the step is waited for.
    """
    task = asyncio.ensure_future(step)
    cancelled: asyncio.CancelledError | None = None
    while not task.done():
        try:
            await asyncio.wait({task})
        except asyncio.CancelledError as error:
            cancelled = error
    if cancelled is not None:
        if not task.cancelled():
            task.exception()  # looked at, so that asyncio does not complain; the cancellation says more
        raise cancelled
    return task.result()
