"""Bugs to seed into what the adapter does at a cluster: copies, elections, and deliveries that wait for a majority."""

from __future__ import annotations

from functools import partial

from tools.mutants_kit import Mutant

STREAMS, PULL, TAKEOVER, PUBLISHING = (
    f"brokers/nats/{name}.py" for name in ("streams", "pull", "takeover", "publishing")
)

_bug = partial(Mutant, tests=("tests/unit/nats/test_takeover.py", "tests/integration/nats/test_cluster.py"))

CLUSTER: tuple[Mutant, ...] = (
    _bug(
        "cluster: events have one copy",
        STREAMS,
        "return _log(plan.name, replicas) | {",
        "return _log(plan.name, 1) | {",
    ),
    _bug(
        "cluster: retry copies have one copy",
        STREAMS,
        '        "allow_atomic": True,\n        "num_replicas": replicas or 1,\n',
        '        "allow_atomic": True,\n        "num_replicas": 1,\n',
    ),
    _bug("cluster: another number of copies is not told", STREAMS, "if replicas is None:", "if True:"),
    _bug(
        "cluster: the answer of a leader that hangs is waited for as long as there is time",
        PUBLISHING,
        "limit = min(end - time.monotonic(), patience)",
        "limit = end - time.monotonic()",
    ),
    _bug(
        "cluster: what is under way when a request has ended is asked for once more",
        PULL,
        "slot.left -= unserved",
        "slot.left = 0",
    ),
    _bug(
        "cluster: deliveries that change places count as lost",
        TAKEOVER,
        "return sorted(self._numbers) == list",
        "return self._numbers == list",
    ),
    _bug(
        "cluster: a word about an open event lets it overtake the others",
        TAKEOVER,
        'subject % (last + 1, counter) + b" %b 4',
        'subject % (last, counter) + b" %b 4',
    ),
    _bug(
        "cluster: the number after deliveries that changed places counts as a gap",
        TAKEOVER,
        "max(self._counter, token.counter) if counts else token.counter",
        "token.counter",
    ),
    _bug(
        "cluster: what did not come is left to come behind what is new",
        TAKEOVER,
        "or not await self._another():\n                return False",
        "or not await self._another():\n                return True",
    ),
    _bug(
        "cluster: what is acknowledged and not confirmed counts as open",
        TAKEOVER,
        "(mine if token.is_open else settled).add(token.seq)",
        "mine.add(token.seq)",
    ),
    _bug(
        "cluster: what is in hand and acknowledged is given back",
        TAKEOVER,
        "(info, mine | settled)",
        "(info, mine)",
    ),
    _bug(
        "cluster: what is new counts for what is missing",
        TAKEOVER,
        "sum(token.seq <= until for token, _ in self.gathered[before:])",
        "len(self.gathered[before:])",
    ),
    Mutant(
        "cluster: the want of a leader is taken for a refusal",
        "brokers/nats/api.py",
        "error = BrokerUnavailable(str(refusal))",
        "raise refusal",
        ("tests/unit/nats/test_api.py",),
    ),
    _bug(
        "cluster: a start does not wait for an election",
        "brokers/nats/api.py",
        "if time.monotonic() > end:\n                    raise\n\n    async def check",
        "if time.monotonic() > 0:\n                    raise\n\n    async def check",
    ),
)
