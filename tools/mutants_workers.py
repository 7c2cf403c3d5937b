"""Bugs to seed into the stop of a service, and into the parent that replaces its workers."""

from __future__ import annotations

from tools.mutants_kit import Mutant

WORKERS_TESTS = ("tests/integration/cli/test_run.py",)
STOPS = ("tests/acceptance/test_stops.py",)


def bug(what: str, file: str, old: str, new: str, tests: tuple[str, ...] = WORKERS_TESTS) -> Mutant:
    return Mutant(f"workers: {what}", file, old, new, tests)


WORKERS: tuple[Mutant, ...] = (
    bug(
        "what the program says of the garbage collector is overruled",
        "cli/garbage.py",
        "    if not gc.isenabled() or gc.get_threshold() not in PYTHONS_OWN:\n",
        "    if not gc.get_threshold():\n",
        ("tests/unit/cli/test_garbage.py",),
    ),
    bug(
        "all are replaced at once",
        "cli/workers.py",
        "            return await slot.next_start(STOP_TIMEOUT + START_TIMEOUT)\n",
        "            return True\n",
    ),
    bug(
        "an end that was meant is a failure",
        "cli/workers.py",
        "                slot.replacing = False\n                continue\n",
        "                slot.replacing = False\n",
    ),
    bug(
        "a new version that does not start replaces them all",
        "cli/workers.py",
        "                if not await self._replace(slot):\n",
        "                if await self._replace(slot) is None:\n",
    ),
    bug(
        "they are killed to be replaced",
        "cli/workers.py",
        "        slot.replacing = True\n        slot.send(signal.SIGTERM)\n",
        "        slot.replacing = True\n        slot.send(signal.SIGKILL)\n",
    ),
    bug(
        "a worker that hears of the stop twice ends at once",
        "cli/signals.py",
        "        if self._asked and self._worker:\n            return",
        "        if self._asked and self._worker is None:\n            return",
    ),
    bug(
        "the end of the terminal replaces them",
        "cli/signals.py",
        "            if not had_terminal or _has_terminal():\n",
        "            if number:\n",
    ),
    bug(
        "what nohup says is overruled",
        "cli/signals.py",
        "signal.getsignal(signal.SIGHUP) is signal.SIG_IGN",
        "signal.getsignal(signal.SIGHUP) is None",
    ),
    bug(
        "a stop tries to acknowledge for as long as the broker is away",
        "brokers/nats/settling.py",
        "        end = time.monotonic() + self._longest\n",
        "        end = time.monotonic() + 10 * self._longest\n",
        STOPS,
    ),
    bug(
        "what runs is not finished when the broker is away",
        "worker.py",
        "        if not await self._tasks.wait(*names, timeout=grace):\n",
        "        if self._broker.trouble or not await self._tasks.wait(*names, timeout=grace):\n",
        STOPS,
    ),
)
