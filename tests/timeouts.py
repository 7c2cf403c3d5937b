"""A test that hangs fails alone, and shows where each of its tasks stands; the others still run.

pytest-timeout interrupts the main thread. In a test of asyncio that says no more than that the loop is waiting, so the
stacks of the loop's tasks are printed before.
"""

import asyncio
import signal
import sys
from collections.abc import Callable
from types import FrameType
from typing import Protocol, cast

import pytest
import pytest_timeout  # type: ignore[import-untyped]  # it has no types

__all__: list[str] = []


class _Settings(Protocol):
    timeout: float


def show_tasks() -> None:
    """Print the stack of every task of the running loop; nothing where no loop runs."""
    try:
        loop = asyncio.get_running_loop()
    except RuntimeError:
        return
    for task in asyncio.all_tasks(loop):
        task.print_stack(file=sys.stderr)


@pytest.hookimpl
def pytest_timeout_set_timer(item: pytest.Item, settings: _Settings) -> bool:
    """Stand in for the plugin's own timer; it is cancelled by the plugin's own hook."""

    def interrupt(_number: int, _frame: FrameType | None) -> None:
        show_tasks()
        pytest_timeout.timeout_sigalrm(item, settings)

    def cancel() -> None:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, signal.SIG_DFL)

    cast("_Cancellable", item).cancel_timeout = cancel
    signal.signal(signal.SIGALRM, interrupt)
    signal.setitimer(signal.ITIMER_REAL, settings.timeout)
    return True


class _Cancellable(Protocol):
    cancel_timeout: Callable[[], None]
