"""Bugs to seed into what keeps a handler to itself: the kill switch, and orders to pause and to go on."""

from __future__ import annotations

from tools.mutants_kit import Mutant

TESTS = ("tests/unit/test_switch.py", "tests/unit/test_policy.py", "tests/integration/service/test_pausing.py")


def bug(what: str, file: str, old: str, new: str) -> Mutant:
    return Mutant(what, file, old, new, TESTS)


ISOLATION: tuple[Mutant, ...] = (
    bug(
        "the kill switch never goes off",
        "switch.py",
        '        self.reason = f"{self._failed',
        '        _ = f"{self._failed',
    ),
    bug(
        "the kill switch never goes on again",
        "switch.py",
        "        if self._successes < SUCCESSES:\n",
        "        if self._successes < 1000 * SUCCESSES:\n",
    ),
    bug(
        "the kill switch counts what was long ago",
        "switch.py",
        "while self._parts and self._parts[0][0] <= now - rule.within:",
        "while self._parts and self._parts[0][0] <= now - 100 * rule.within:",
    ),
    bug("the pauses between probes do not grow", "switch.py", "min(self._pause * 2, rule.most)", "self._pause"),
    bug(
        "several events are tried while the kill switch is off",
        "switch.py",
        "return 0 if self.probing or self._clock() < self._next else 1",
        "return 0 if self._clock() < self._next else wanted",
    ),
    bug("a probe that fails counts as a failure of its event", "policy.py", "    if lenient:\n", "    if False:\n"),
    bug(
        "the kill switch counts an event as often as it is tried",
        "worker.py",
        "every = self._switch.off or self._subscription.ordered",
        "every = True",
    ),
    bug(
        "what failed is not told to the kill switch",
        "pipeline.py",
        "        self.settler.judge(ended)\n",
        "        self.settler.judge([])\n",
    ),
    bug(
        "the other lanes are not told that the handler goes on",
        "worker.py",
        "        self._pipeline.calls.lenient = self._switch.off\n",
        "        self._pipeline.calls.lenient = True\n",
    ),
    bug(
        "a process that starts later does not know that the handler is paused",
        "running.py",
        "            worker.paused = str(order)\n",
        "",
    ),
    bug(
        "an order to pause changes nothing",
        "worker.py",
        "return 0 if self.paused else self._switch",
        "return self._switch",
    ),
    bug(
        "what was given to a handler stays with it while it is paused",
        "worker.py",
        "settler.settled()\n                await self._give_back(emptied(self._lanes))\n",
        "settler.settled()\n",
    ),
    bug(
        "a handler that goes on does not listen",
        "worker.py",
        "            await self._listen()\n            self.paused",
        "            self.paused",
    ),
    Mutant(
        "a process that was cut off while a pause was taken back stays paused for ever",
        "control.py",
        "if lost and PAUSED not in",
        "if False and PAUSED not in",
        ("tests/unit/test_control.py",),
    ),
    bug("a process obeys and does not say so", "control.py", "await self._notes.write({self._mine: saying})", "pass"),
)
