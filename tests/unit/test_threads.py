"""Threads that are lent out: one each, kept for the next call, and no burden at the end of the process."""

from __future__ import annotations

import gc
import subprocess
import sys
import threading
import time

import pytest

from tidings.threads import OneThread, Threads

STUCK = """
import threading, time
from tidings.threads import OneThread
thread = OneThread("stuck")
thread.submit(time.sleep, 60)
time.sleep(0.2)
print("ended", flush=True)
"""


def test_it_runs_one_call_after_the_other_and_hands_on_what_they_return_or_raise() -> None:
    thread = OneThread("calls")
    names = [thread.submit(lambda: threading.current_thread().name).result(5) for _ in range(2)]
    assert names == ["calls", "calls"]
    for kind in (ValueError, KeyboardInterrupt):

        def fail(kind: type[BaseException] = kind) -> None:
            raise kind("of the call")

        assert isinstance(thread.submit(fail).exception(5), kind)
    assert thread.submit(sum, [1, 2]).result(5) == 3, "it lives on, whatever was raised"
    thread.shutdown()
    with pytest.raises(RuntimeError):
        thread.submit(sum, [1])


def test_a_thread_is_kept_for_the_next_call_and_ends_when_nobody_has_it() -> None:
    threads = Threads("kept")
    one, two = threads.take(), threads.take()
    for thread in (one, two):
        thread.submit(time.monotonic).result(5)
    threads.give_back(one)
    assert threads.take() is one
    del two, thread
    gc.collect()
    _until_there_are("kept", 1)
    threads.give_back(one)
    del one
    threads.close()
    _until_there_are("kept", 0)


def test_a_call_that_never_returns_does_not_keep_the_process_from_ending() -> None:
    began = time.monotonic()
    done = subprocess.run([sys.executable, "-c", STUCK], capture_output=True, text=True, timeout=50, check=True)
    assert done.stdout == "ended\n"
    assert time.monotonic() - began < 45


def _until_there_are(name: str, count: int) -> None:
    end = time.monotonic() + 5
    while sum(one.name == name for one in threading.enumerate()) != count:
        assert time.monotonic() < end
        time.sleep(0.01)
