"""Where something stands: a coroutine that waits, or a thread, as lines of text."""

from __future__ import annotations

import asyncio
import gc
import logging
import sys
import traceback
from collections.abc import Iterator
from types import AsyncGeneratorType, CoroutineType, FrameType, GeneratorType
from typing import Any, Final

MOST: Final = 12
"""Frames that are told: the innermost, where it stands."""


def of_thread(ident: int | None) -> str:
    """Where a thread stands, by its identifier."""
    frame = sys._current_frames().get(ident) if ident is not None else None
    if frame is None:
        return "(its thread has ended)"
    return "".join(traceback.format_stack(frame)[-MOST:]).rstrip()


def of_task(task: asyncio.Task[Any]) -> str:
    """Where a task waits: through all coroutines that wait for one another, and the tasks they wait for."""
    frames = [(frame, frame.f_lineno) for frame in _waiting(task.get_coro())]
    summary = traceback.StackSummary.extract(iter(frames[-MOST:]))
    return "".join(summary.format()).rstrip() or "(it has ended)"


def _waiting(awaited: Any) -> Iterator[FrameType]:
    """The frames of what waits for one another, outermost first."""
    seen: set[int] = set()
    while awaited is not None and id(awaited) not in seen:
        seen.add(id(awaited))
        if isinstance(awaited, asyncio.Task):
            awaited = awaited.get_coro()
        elif not isinstance(awaited, _KINDS):  # what stands between says nothing, but it knows what it stands for
            awaited = next((one for one in gc.get_referents(awaited) if isinstance(one, (asyncio.Task, *_KINDS))), None)
        else:
            frame = next((found for name in _FRAMES if (found := getattr(awaited, name, None)) is not None), None)
            if frame is not None:
                yield frame
            awaited = next((found for name in _AWAITED if (found := getattr(awaited, name, None)) is not None), None)


_KINDS: Final = (CoroutineType, GeneratorType, AsyncGeneratorType)
_FRAMES: Final = ("cr_frame", "gi_frame", "ag_frame")
_AWAITED: Final = ("cr_await", "gi_yieldfrom", "ag_await")


def log_with(log: logging.Logger, level: int, stack: str, text: str, *args: object) -> None:
    """A line with a stack, which goes where `stack_info` goes: below it in plain logs, into a field in JSON."""
    if log.isEnabledFor(level):
        log.handle(log.makeRecord(log.name, level, __file__, 0, text, args, None, sinfo=stack))
