"""Asking whoever sits in front of it, before something is done to many."""

from __future__ import annotations

import asyncio
import sys
import threading

from tidings.cli.failures import CommandError, Status
from tidings.cli.lines import opened


async def ask(question: str, otherwise: str, *, refused: str) -> None:
    """Go on only after a yes.

    Raises:
        CommandError: `refused`, after any other answer; `otherwise`, where nobody can be asked.
    """
    if not (sys.stdin.isatty() and sys.stderr.isatty()):
        raise CommandError(otherwise, Status.USAGE)
    sys.stderr.write(f"{question} [y/N] ")
    sys.stderr.flush()
    if (await _line()).strip().lower() not in ("y", "yes"):
        raise CommandError(refused)


async def _line() -> str:
    """A line from the terminal. Nobody waits at the end for the thread that reads, so that Ctrl-C ends the question."""
    loop = asyncio.get_running_loop()
    answer: asyncio.Future[bytes] = loop.create_future()

    def tell(line: bytes) -> None:
        if not answer.done():
            answer.set_result(line)

    def read() -> None:
        with opened("-") as terminal:
            line = terminal.readline()
        try:
            loop.call_soon_threadsafe(tell, line)
        except RuntimeError:
            pass  # the loop has ended, and with it whoever asked

    threading.Thread(target=read, name="tidings question", daemon=True).start()
    return (await answer).decode(errors="replace")
