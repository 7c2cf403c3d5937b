"""Threads for calls that block: one each, lent out and given back, and none that keeps the process from ending.

The standard executors wait at the end of the process for what they run. A call that never returns would keep it alive.
"""

from __future__ import annotations

import threading
import weakref
from collections.abc import Callable
from concurrent.futures import Executor, Future
from queue import SimpleQueue
from typing import Any, TypeVar

T = TypeVar("T")

Item = tuple["Future[Any]", Callable[[], Any]]


class OneThread(Executor):
    """Runs what it is given one after the other, in a thread that ends when nobody has this any more."""

    def __init__(self, name: str) -> None:
        self._queue: SimpleQueue[Item | None] = SimpleQueue()
        self._thread = threading.Thread(target=_work, args=(self._queue,), name=name, daemon=True)
        self._end = weakref.finalize(self, self._queue.put, None)
        self._end.atexit = False
        self._started = False

    def submit(self, fn: Callable[..., T], /, *args: Any, **kwargs: Any) -> Future[T]:
        if not self._end.alive:
            raise RuntimeError("this thread has been told to end")
        future: Future[T] = Future()
        self._queue.put((future, lambda: fn(*args, **kwargs)))
        if not self._started:
            self._started = True
            self._thread.start()
        return future

    def shutdown(self, wait: bool = True, *, cancel_futures: bool = False) -> None:
        self._end()
        if wait and self._started:
            self._thread.join()


def _work(queue: SimpleQueue[Item | None]) -> None:
    while (item := queue.get()) is not None:
        future, call = item
        if future.set_running_or_notify_cancel():
            try:
                result = call()
            except BaseException as error:
                future.set_exception(error)
            else:
                future.set_result(result)
                del result
        del item, future, call  # or the last call is kept until the next one comes


class Threads:
    """Threads that are kept for the next call. One that is not given back is left to what runs in it."""

    def __init__(self, name: str) -> None:
        self._name = name
        self._idle: list[OneThread] = []

    def take(self) -> OneThread:
        return self._idle.pop() if self._idle else OneThread(self._name)

    def give_back(self, thread: OneThread) -> None:
        self._idle.append(thread)

    def close(self) -> None:
        """End those that are idle; the others end when what they run has ended."""
        while self._idle:
            self._idle.pop().shutdown(wait=False)
