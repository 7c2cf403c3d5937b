"""Ctrl-C and SIGTERM: the first asks to stop with grace, the second ends at once."""

from __future__ import annotations

import json as json_module
import os
import signal
import sys
import threading
from collections.abc import Callable
from types import FrameType
from typing import Final

from tidings.cli.failures import Status

DEADLINE: Final = 28.0
"""Seconds that a stop may take in all: less than the 30 s after which common orchestrators kill."""


class Stop:
    """Takes the signals of this process. Until `bind` they raise KeyboardInterrupt, afterwards they call back.

    Plain signal handlers, not those of the event loop: they run also while the loop is blocked.
    """

    def __init__(self, *, json: bool = False, worker: bool = False) -> None:
        self._json = json or not sys.stderr.isatty()
        self._worker = worker
        self._asked = False
        self._call: Callable[[], object] | None = None
        self._last: Callable[[], object] = bool
        signal.signal(signal.SIGTERM, self._on)
        # A terminal sends Ctrl-C, and its end, to every process in front of it; a worker hears from its parent.
        signal.signal(signal.SIGINT, signal.SIG_IGN if worker else self._on)
        if worker:
            signal.signal(signal.SIGHUP, signal.SIG_IGN)

    @property
    def asked(self) -> bool:
        return self._asked

    def bind(self, call: Callable[[], object], *, last: Callable[[], object] = bool) -> None:
        """From now on the first signal calls `call`, and the second `last` before the process ends.

        Both run on the main thread and at any moment, so they must only set something.
        """
        self._call, self._last = call, last
        if self._asked:
            call()

    def on_hangup(self, call: Callable[[], object]) -> None:
        """Call back at SIGHUP, unless it says that the terminal is gone, which is a reason to stop.

        Started by nohup, it is to go on without its terminal.
        """
        had_terminal = _has_terminal()
        outlives = signal.getsignal(signal.SIGHUP) is signal.SIG_IGN

        def hung_up(number: int, frame: FrameType | None) -> None:
            nonlocal had_terminal
            if not had_terminal or _has_terminal():
                call()
            elif outlives:
                had_terminal = False  # the next one is somebody's
            else:
                self.ask()

        signal.signal(signal.SIGHUP, hung_up)

    def ask(self) -> None:
        """As the first signal does; for other threads too."""
        if not self._asked:
            self._asked = True
            deadline = threading.Timer(DEADLINE, self._too_late)
            deadline.daemon = True
            deadline.start()
        if self._call is not None:
            self._call()

    def _on(self, number: int, frame: FrameType | None) -> None:
        if self._asked and self._worker:
            return  # whoever stops the whole group, as systemd does, says so twice: its parent kills it to end at once
        if self._asked:
            self._say("ended at once; what was not finished is delivered again")
            self._last()
            os._exit(Status.INTERRUPTED)
        if self._call is None:
            self._asked = True
            raise KeyboardInterrupt
        if not self._worker:
            self._say("stopping; what runs is finished first (once more to end at once)")
        self.ask()

    def _too_late(self) -> None:
        self._say(f"not stopped after {DEADLINE:.0f} s; ended. What was not finished is delivered again")
        self._last()
        os._exit(Status.FAILED)

    def _say(self, text: str) -> None:
        """Straight to the descriptor: a signal may come in the middle of another write."""
        line = json_module.dumps({"level": "warning", "message": text}) if self._json else f"tidings: {text}"
        try:
            os.write(2, f"{line}\n".encode())
        except OSError:
            pass  # nobody listens any more, which is no reason not to stop


def _has_terminal() -> bool:
    try:
        os.close(os.open("/dev/tty", os.O_RDWR | os.O_NOCTTY))
    except OSError:
        return False
    return True
