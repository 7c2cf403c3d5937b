"""Bugs to seed into counts that outlive their process, and into what is done about messages that kill it."""

from __future__ import annotations

from tools.mutants_kit import Mutant

COUNTING = "counting.py"
ALONE = "alone.py"
HERE = ("tests/unit/test_counting.py", "tests/unit/test_alone.py", "tests/unit/test_worker.py")

COUNTS: tuple[Mutant, ...] = (
    Mutant(
        "attempts are reset by a restart: what others noted is not looked up",
        COUNTING,
        "                one.failures = max(one.failures, failed.times) + deaths.times\n",
        "                pass\n",
        HERE,
    ),
    Mutant(
        "attempts are reset by a restart: a failure in its place is not noted",
        COUNTING,
        '            self._set("failed", one, Count(own, one.first_failed))\n',
        "",
        HERE,
    ),
    Mutant(
        "attempts are multiplied by a restart: deaths are noted among the failures",
        COUNTING,
        "            own = one.failures - self._deaths.get(one.origin_text, Count()).times\n",
        "            own = one.failures\n",
        HERE,
    ),
    Mutant(
        "an attempt is made although the failure before it is not noted",
        COUNTING,
        "        if self._unwritten:\n            await self._write()\n        least",
        "        least",
        HERE,
    ),
    Mutant(
        "a note of what has ended stays",
        COUNTING,
        "                self._clear(kind, one)\n",
        "                pass\n",
        HERE,
    ),
    Mutant(
        "a place of a stream that was made anew inherits failures",
        COUNTING,
        "    if of != _bytes_of(delivery):\n",
        "    if not of:\n",
        HERE,
    ),
    Mutant(
        "a death is noted after the event, so that nobody can note it",
        ALONE,
        "        await counts.begin_alone(delivery)\n",
        "",
        HERE,
    ),
    Mutant(
        "whoever lives is counted as dead: a stop buries what it gives back",
        ALONE,
        "        await counts.end_alone(delivery)\n",
        "        pass\n",
        HERE,
    ),
    Mutant(
        "other lanes run beside a suspect",
        ALONE,
        "        while self._busy():\n",
        "        while False:\n",
        HERE,
    ),
    Mutant(
        "a suspect waits without end for one of another handler",
        ALONE,
        "if not await _in_time(lock.acquire()):",
        "if not await lock.acquire():",
        HERE,
    ),
    Mutant(
        "a lane begins while a suspect is alone",
        "worker.py",
        "            if self._gate.closed:\n",
        "            if False:\n",
        HERE,
    ),
    Mutant(
        "two suspects run at once in a process",
        ALONE,
        "    return _one_at_a_time.setdefault(asyncio.get_running_loop(), asyncio.Lock())\n",
        "    return asyncio.Lock()\n",
        HERE,
    ),
    Mutant(
        "the healthy are buried with the one that kills: deaths in company count",
        COUNTING,
        'failed, deaths = _noted(found, "failed", one), _noted(found, "alone", one)',
        'failed, deaths = _noted(found, "failed", one), Count(one.delivered - 1, 1.0)',
        HERE,
    ),
    Mutant(
        "what goes back unbegun is suspected after three deployments",
        "worker.py",
        "            await self._pipeline.settler.counts.note_survivors(deliveries)\n",
        "",
        HERE,
    ),
    Mutant(
        "nobody asks whether a suspect was given back alive",
        "worker.py",
        "elif not batch[suspect].counted:",
        "elif batch[suspect] is None:",
        HERE,
    ),
    Mutant(
        "what was given back alive is never suspected again",
        COUNTING,
        "one.delivered - self._alive_at(one) > SUSPICIOUS",
        "not self._alive_at(one)",
        HERE,
    ),
    Mutant(
        "at each stop all is noted again that goes back",
        COUNTING,
        "if known.delivered - known.noted >= SUSPICIOUS:",
        "if known.delivered >= SUSPICIOUS:",
        HERE,
    ),
    Mutant(
        "that an event was given back alive is noted for ever",
        COUNTING,
        "            if known is not None and known.noted:\n",
        "            if known is None:\n",
        HERE,
    ),
    Mutant(
        "what was recalled from a process is in its memory for ever",
        COUNTING,
        'self._unwritten[f"alive/{origin}"] = _text',
        'self._standing.add(origin)\n                self._unwritten[f"alive/{origin}"] = _text',
        HERE,
    ),
    Mutant(
        "what a lost connection took away is suspected",
        "lane.py",
        "        self._recalled(gone)\n",
        "",
        ("tests/unit/test_lane.py",),
    ),
    Mutant(
        "what the broker was not told in time is suspected when it comes again",
        "settling.py",
        "self.counts.survived(delivery)  # it comes again, and nobody died of it",
        "failure or self.counts.survived(delivery)",
        ("tests/unit/test_settling.py",),
    ),
    Mutant(
        "a suspect overtakes the events of its lane",
        "worker.py",
        "                rest, lane.trouble = await self._process(lane, batch[:suspect])\n",
        "                rest, lane.trouble = await self._process_alone(lane, batch[suspect])\n",
        HERE,
    ),
    Mutant(
        "the time limit of retries begins anew with each copy",
        "copies.py",
        "    if delivery.failures:\n        try:\n",
        "    if False:\n        try:\n",
    ),
    Mutant(
        "a kind of error in dead_on is retried",
        "policy.py",
        "            if kind in self.dead_on:\n                return True\n",
        "",
    ),
    Mutant(
        "what a handler asks for goes on for ever",
        "policy.py",
        "    if failures >= retry.attempts:\n",
        "    if failures >= retry.attempts and not isinstance(error, RetryAfter):\n",
    ),
)
