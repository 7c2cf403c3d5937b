"""When a process, or the server beside it, was given nothing to run on: what takes longer for that is nobody's fault.

A thread looks at the clock, so that an event loop that is blocked does not count: that would be somebody's fault.
"""

from __future__ import annotations

import contextlib
import socket
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from itertools import pairwise
from typing import Final

Span = tuple[float, float]
"""From when until when, in Unix seconds."""

EVERY: Final = 0.05
LATE: Final = 0.2
"""Seconds by which a look may be late on any machine."""


@contextlib.contextmanager
def watched(stood: Callable[[Span], object], server: int = 0) -> Iterator[None]:
    """Tell of each time for which this process, or the server at a port, stood still."""
    over = threading.Event()
    thread = threading.Thread(target=_watch, args=(stood, server, over), daemon=True)
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join(10)


def _watch(stood: Callable[[Span], object], server: int, over: threading.Event) -> None:
    before = time.time()
    while not over.wait(EVERY):
        if server:
            with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", server), 10) as greeting:
                greeting.settimeout(10)
                greeting.recv(1)
        now = time.time()
        if now - before > EVERY + LATE:
            stood((before, now))
        before = now


def longest(times: Iterable[float], stood: Iterable[Span]) -> float:
    """The longest time between two of these times, without those in which somebody stood still."""
    most, spans = 0.0, sorted(stood)
    at = sorted(times)
    for since, to in pairwise(at):
        lost, end = 0.0, since
        for first, last in spans:  # they may overlap
            first, last = max(first, end), min(last, to)
            if first < last:
                lost, end = lost + last - first, last
        most = max(most, to - since - lost)
    return most
