"""A process that only a new one can help: a worker ends by itself, so that its parent starts another."""

from __future__ import annotations

import asyncio
import logging
import os
import sys
import threading
import time
from typing import Final

from tidings.cli.failures import Status
from tidings.observe.health import Health
from tidings.running import Running
from tidings.service import Service

log = logging.getLogger("tidings.service")

LOOK: Final = 1.0
"""Seconds between two looks."""


async def until_stuck(running: Running) -> str:
    """Wait until calls of a handler hold others up that nothing but the end of this process ends; say which."""
    while True:
        stuck = next((f"{worker.position}: {worker.stuck}" for worker in running.workers if worker.stuck), "")
        if stuck:
            return stuck
        await asyncio.sleep(LOOK)


def blocked_limit(service: Service) -> float | None:
    """After how many seconds a blocked loop is as stuck as a call that would be left behind; None is never.

    Whatever blocks it, no handler may run for longer.
    """
    rules = [handler.rules for handler in service.handlers if not handler.sync]
    limits = [one.timeout + one.abandon_after for one in rules if one.abandon_after is not None]
    return max(limits) if limits and len(limits) == len(rules) else None


def watch_loop(health: Health, limit: float) -> None:
    """End this process, from a thread, when its loop has been blocked for so long: it cannot end itself any more.

    A process that was stopped as a whole, with its container or its machine, did nothing for as long, and goes on by
    itself. So what counts is what was seen look by look, and the loop has one more of them to go on in.
    """

    def watch() -> None:
        blocked, last = 0.0, time.monotonic()
        while blocked < limit + LOOK:
            threading.Event().wait(LOOK)
            now = time.monotonic()
            passed, last = now - last, now
            blocked = blocked + min(passed, LOOK) if health.silent >= passed else 0.0
        log.error("the event loop has been blocked for %.0f s; this process ends, for another to go on", health.silent)
        end_now(Status.FAILED)

    threading.Thread(target=watch, name="tidings blocked loop", daemon=True).start()


def end_now(status: int) -> None:
    """End without waiting for anything that runs."""
    logging.shutdown()
    sys.stdout.flush()
    os._exit(status)
