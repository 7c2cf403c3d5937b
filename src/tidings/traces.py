"""The traceback of an error, cut to what is the handler's, and as text.

The same place failing again and again is looked up once.

Python reads source files and works out columns for each line that it prints: for an event in ten that fails at the same
place, that took longer than all the rest of its dead letter.
"""

from __future__ import annotations

import os
import traceback
from types import CodeType, TracebackType
from typing import Final, TypeVar

from tidings.errors import UndecodableEvent

MOST_STACKS: Final = 256
"""How many places are remembered."""
DEEPEST: Final = 64
"""Frames of a stack that is remembered; a deeper one most likely recurs, and Python shortens it."""

_OURS: Final = os.path.dirname(__file__) + os.sep

E = TypeVar("E", bound=BaseException)


def without_ours(error: E) -> E:
    """An error of a handler, whose traceback begins where the handler does.

    How it came to be called says nothing about the error. And our frames hold the batch, which holds what was decided,
    which holds the error: a circle for each failure, that only the garbage collector would find. What failed in our own
    code keeps all of it.
    """
    if (first := _first_not_ours(error)) is not None:
        error.__traceback__ = first
    return error


def without_any_of_ours(error: UndecodableEvent) -> UndecodableEvent:
    """An error that we raise of bytes, and what it came of, without where we looked; where an upcaster was, stays."""
    link: BaseException | None = error
    while link is not None:
        link.__traceback__ = _first_not_ours(link)
        link = link.__cause__ or link.__context__
    return error


def _first_not_ours(error: BaseException) -> TracebackType | None:
    found = error.__traceback__
    while found is not None and found.tb_frame.f_code.co_filename.startswith(_OURS):
        found = found.tb_next
    return found


_Stack = tuple[tuple[CodeType, int], ...]
_known: dict[_Stack, str] = {}


def trace_of(error: BaseException) -> str:
    """What `traceback.format_exception` says of an error, without the last line break."""
    context = error.__cause__ or (None if error.__suppress_context__ else error.__context__)
    stack = _stack_of(error)
    if context is not None or isinstance(error, BaseExceptionGroup) or not 0 < len(stack) <= DEEPEST:
        return "".join(traceback.format_exception(error)).strip()
    if (text := _known.get(stack)) is None:
        if len(_known) >= MOST_STACKS:
            _known.clear()
        lines = ["Traceback (most recent call last):\n", *traceback.format_tb(error.__traceback__)]
        text = _known[stack] = "".join(lines)
    return (text + "".join(traceback.format_exception_only(error))).strip()


def _stack_of(error: BaseException) -> _Stack:
    found: list[tuple[CodeType, int]] = []
    frame = error.__traceback__
    while frame is not None:
        found.append((frame.tb_frame.f_code, frame.tb_lasti))
        frame = frame.tb_next
    return tuple(found)
