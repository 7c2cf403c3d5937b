"""Lines of a file or a pipe, in waves: whatever is there, up to a limit, never waiting for more."""

from __future__ import annotations

import asyncio
import os
import queue
import threading
from collections.abc import AsyncIterator
from pathlib import Path
from typing import IO, Final

from tidings.cli.failures import CommandError, Status

TOGETHER: Final = 500
"""Lines of one wave, at most."""
LONGEST: Final = 8 * 1024 * 1024
"""Bytes of a line; of a longer one only the beginning is kept, which is no JSON."""

Lines = list[tuple[int, bytes]]


def opened(name: str) -> IO[bytes]:
    """The file, or stdin for ``-``.

    Raises:
        CommandError: it cannot be read.
    """
    try:
        # A descriptor of its own: the interpreter cannot end while a thread sits in its own object for stdin.
        return os.fdopen(os.dup(0), "rb") if name == "-" else Path(name).open("rb")
    except OSError as error:
        raise CommandError(f"{name} cannot be read: {error.strerror}", Status.USAGE) from None


async def waves(stream: IO[bytes]) -> AsyncIterator[Lines]:
    """Numbered lines that are not empty. The thread that reads may sit in a pipe: nobody waits for it at the end."""
    loop, woken = asyncio.get_running_loop(), asyncio.Event()
    lines: queue.Queue[tuple[int, bytes] | OSError | None] = queue.Queue(maxsize=2 * TOGETHER)

    def put(item: tuple[int, bytes] | OSError | None) -> None:
        lines.put(item)
        try:
            loop.call_soon_threadsafe(woken.set)
        except RuntimeError:
            pass  # the loop has ended, and with it whoever wanted the lines

    def read() -> None:
        try:
            for number, line in enumerate(iter(lambda: stream.readline(LONGEST + 1), b""), 1):
                if line.strip():
                    put((number, line))
            put(None)
        except OSError as error:
            put(error)

    threading.Thread(target=read, name="tidings lines", daemon=True).start()
    while True:
        await woken.wait()
        woken.clear()
        while not lines.empty():
            found, ended = _taken(lines)
            if found:
                yield found
            if ended:
                return


def _taken(lines: queue.Queue[tuple[int, bytes] | OSError | None]) -> tuple[Lines, bool]:
    """What waits, and whether that was all there will be."""
    found: Lines = []
    while len(found) < TOGETHER:
        try:
            item = lines.get_nowait()
        except queue.Empty:
            return found, False
        if item is None:
            return found, True
        if isinstance(item, OSError):
            raise CommandError(f"the input cannot be read any further: {item.strerror}")
        found.append(item)
    return found, False
