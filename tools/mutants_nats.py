"""Bugs to seed into the NATS adapter, which its tests with a real server must notice."""

from __future__ import annotations

from functools import partial

from tools.mutants_kit import Mutant

PUBLISHING = "brokers/nats/publishing.py"
HEALING = "brokers/_healing.py"
CONNECTION = "brokers/nats/connection.py"
API = "brokers/nats/api.py"
READING = "brokers/nats/reading.py"

_publishing = partial(Mutant, tests=("tests/integration/nats/test_publishing.py",))
_connecting = partial(Mutant, tests=("tests/integration/nats/test_connecting.py",))
_told = partial(Mutant, tests=("tests/integration/nats/test_told_servers.py",))
_doctor = partial(Mutant, tests=("tests/integration/nats/test_nats_doctor.py",))

NATS: tuple[Mutant, ...] = (
    Mutant(
        "nats: an embedded server that cannot be told from others yet is left running",
        "brokers/nats/embedded_process.py",
        "        while not await self._signal(state, signal.SIGTERM):\n            if ",
        "        while not await self._signal(state, signal.SIGTERM):\n            if True or ",
        ("tests/integration/nats/test_embedded.py",),
    ),
    _publishing(
        "nats: events of one key are sent side by side",
        PUBLISHING,
        "turn = 0 if key is None else seen[key]",
        "turn = 0",
    ),
    _publishing(
        "nats: a few events of one key do not leave as a batch",
        PUBLISHING,
        "fewest=FEWEST if len(turns) == 1 else 2",
        "fewest=FEWEST",
    ),
    _connecting(
        "nats: a server of a list that hangs takes the time of the others",
        HEALING,
        "(end - time.monotonic()) / untried",
        "end - time.monotonic()",
    ),
    _told(
        "nats: the certificate of a server that the cluster tells of must name its number",
        CONNECTION,
        "dict.fromkeys(told, link.tls_name)",
        "dict.fromkeys(told)",
    ),
    _told(
        "nats: servers that are gone are tried for ever",
        CONNECTION,
        "for one in self._servers if one in ours or one in link.told]",
        "for one in self._servers]",
    ),
    _connecting(
        "nats: a server that has no JetStream itself is refused unasked",
        API,
        "        try:\n            await self._answers()\n        except NoResponders:\n",
        "        try:\n"
        '            if not link.info.get("jetstream"):\n'
        '                raise NoResponders("unasked")\n'
        "            await self._answers()\n"
        "        except NoResponders:\n",
    ),
    _doctor(
        "nats: a port that says nothing counts as a server that is down",
        CONNECTION,
        "if isinstance(error, TimeoutError) and silent:",
        "if isinstance(error, ImportError):",
    ),
    _doctor(
        "nats: a user who may not ask JetStream is an outage",
        API,
        "if link is not None and link.denied:",
        "if link is None:",
    ),
    _doctor(
        "nats: what a server said before it reset a connection is not looked at",
        CONNECTION,
        "if isinstance(error, OSError) and (said := link.last_words()):",
        'if said := "" and link.last_words():',
    ),
    Mutant(
        "nats: a piece of a log is as large as the server likes",
        READING,
        '"max_bytes": BATCH_BYTES, ',
        "",
        ("tests/integration/nats/test_retries.py",),
    ),
    _publishing(
        "nats: what a server takes is asked at the start alone",
        "brokers/nats/broker.py",
        "main.on_up.append(self._measure)\n        link = await main.start()\n",
        "link = await main.start()\n        self._measure(link)\n",
    ),
    Mutant(
        "nats: a share that has left is asked for on a link that came meanwhile",
        "brokers/nats/share.py",
        "        self.events.detach()  # a link",
        "        pass  # a link",
        ("tests/integration/nats/test_leaving.py",),
    ),
)
