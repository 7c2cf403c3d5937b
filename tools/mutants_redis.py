"""Bugs to seed into the Redis store, tried with its own tests on a real server."""

from __future__ import annotations

from functools import partial

from tools.mutants_kit import Mutant

STORE = "stores/redis.py"
SCRIPTS = "stores/_redis_scripts.py"
CHECKS = "stores/_redis_checks.py"

_FOLDER = "tests/integration/redis"
_bug = partial(Mutant, tests=tuple(f"{_FOLDER}/test_{name}.py" for name in ("claims", "leases", "outages", "opening")))

REDIS: tuple[Mutant, ...] = (
    _bug(
        "redis: a lease is released or completed without looking whose it is",
        SCRIPTS,
        "  if value and value:sub(2, 9) == ARGV[1] then\n    if value",
        "  if value then\n    if value",
    ),
    _bug(
        "redis: a key is marked done before its handler",
        SCRIPTS,
        "  local head = 'L' .. ARGV[1] .. string.format('%013.0f', now + ARGV[2])\n",
        "  local head = 'D' .. ARGV[1]\n",
    ),
    _bug("redis: a busy key is told to be a duplicate", STORE, "Claimed(State.BUSY)", 'Claimed(State.DONE, "")'),
    _bug("redis: no lease is ever renewed", STORE, "if turn > last]", "if turn > last + 1_000_000]"),
    _bug(
        "redis: a lease is renewed that is somebody else's",
        SCRIPTS,
        "value:sub(1, 9) == 'L' .. ARGV[1] then",
        "true then",
    ),
    _bug(
        "redis: a lease that did not run out is taken",
        SCRIPTS,
        "and tonumber(value:sub(10, 22)) > now then",
        "and tonumber(value:sub(10, 22)) > now + 60000 then",
    ),
    _bug("redis: a lost lease is passed over", STORE, "if error is None and lost:", "if error is None and not lost:"),
    _bug(
        "redis: a connection to what has become a replica is kept",
        "stores/_redis_link.py",
        "                    await self.client.connection_pool.disconnect(inuse_connections=False)\n",
        "",
    ),
    _bug(
        "redis: what an outage left to be told is forgotten",
        STORE,
        "            self._owe(token, names, actions, self._lease + LEFTOVER)\n",
        "",
    ),
    _bug(
        "redis: a claim whose answer was lost keeps its keys",
        STORE,
        "            self._owe(token, names, [GIVE_BACK] * len(names), self._lease)\n",
        "",
    ),
    _bug(
        "redis: a new claim comes before what is owed",
        STORE,
        "        if self._debts:\n            await",
        "        if False:\n            await",
    ),
    _bug("redis: the number of a fence starts over with an empty Redis", SCRIPTS, "time[1] * 1000000 + time[2]", "1"),
    _bug(
        "redis: the number of a fence follows a clock that was set back",
        SCRIPTS,
        "  if last >= fence then fence = last + 1 end\n",
        "",
    ),
    _bug("redis: business keys are forgotten like ids", STORE, " and key.key.startswith(EVENT_MARK):", ":"),
    _bug(
        "redis: what a handler says of its keys is not heard",
        STORE,
        "        seconds = key.lives\n",
        "        seconds = None\n",
    ),
    _bug("redis: a failure marks its event done", STORE, "if error is not None or index in", "if index in"),
    _bug(
        "redis: a full Redis cannot be told that an event is done",
        SCRIPTS,
        "redis.call('PERSIST', key)",
        "redis.call('GET', key)",
    ),
    _bug("redis: eviction is not looked at", CHECKS, "    if not allowed:\n", "    if False:\n"),
    _bug("redis: a cluster is not looked at", CHECKS, 'told.get("cluster_enabled") == "1"', "False"),
)
