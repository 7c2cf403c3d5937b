"""What a failure means for whoever typed the command: one line, and an exit status of its own."""

from __future__ import annotations

import os
from enum import IntEnum
from typing import Final

from tidings.errors import EventError, ProgramError, WorldError


class Status(IntEnum):
    """The exit statuses. They are part of the interface: scripts branch on them."""

    OK = 0
    FAILED = 1
    USAGE = 2
    CONFIGURATION = 3
    WORLD = 4
    EVENT = 5
    INTERRUPTED = 130
    OUTPUT_CLOSED = 141


MADE_ROOM: Final = 75
"""How a worker ends that stopped with grace for another to take its place: its parent alone sees it."""

MEANINGS = {
    Status.OK: "all went well, or the service was stopped with grace",
    Status.FAILED: "something unexpected, or a part of what was asked for failed",
    Status.USAGE: "the command line is wrong",
    Status.CONFIGURATION: "the program or a setting is wrong: an import, a declaration, a URL, a port in use",
    Status.WORLD: "the world is down: broker or store does not answer; trying again may help",
    Status.EVENT: "some event is bad; the good ones were published",
    Status.INTERRUPTED: "interrupted before the end (Ctrl-C)",
    Status.OUTPUT_CLOSED: "whoever read the output went away before the end",
}


class CommandError(Exception):
    """A failure that a command found by itself: its message is for the person who typed it."""

    def __init__(self, message: str, status: Status = Status.FAILED) -> None:
        super().__init__(message)
        self.status = status


def debugging() -> bool:
    """Whether tracebacks are wanted: TIDINGS_DEBUG=1."""
    return os.environ.get("TIDINGS_DEBUG", "") not in ("", "0")


def explain(error: BaseException) -> tuple[Status, str]:
    """The exit status of an error, and what to say in one line."""
    text = one_line(str(error))
    if isinstance(error, CommandError):
        return error.status, text
    if isinstance(error, EventError):
        return Status.EVENT, text
    if isinstance(error, WorldError):
        return Status.WORLD, text
    if isinstance(error, ProgramError):
        return Status.CONFIGURATION, text
    if isinstance(error, KeyboardInterrupt):
        return Status.INTERRUPTED, "interrupted"
    if isinstance(error, ExceptionGroup):
        return explain(error.exceptions[0])
    return Status.FAILED, f"unexpected {type(error).__name__}: {text}. TIDINGS_DEBUG=1 shows where"


def one_line(text: str) -> str:
    """A message in one line, also where it shows the line to write below."""
    return " ".join(text.split())
