"""The oracle: what the ledger, the broker's streams and the notes of the workers say about a round."""

from __future__ import annotations

import asyncio
import json
import time
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

import nats
import nats.errors
import nats.js.errors
from nats.js.api import ConsumerConfig, DeliverPolicy

from tidings.context import derived_id
from tidings.delivery import Message
from tools.proof.ledger import Effect
from tools.proof.shop import CHARGE, RESERVE
from tools.proof.verdict import Verdict
from tools.proof.world import World

LIMIT = 60.0
QUIET = 3.0
"""What is missing while nothing waits anywhere for so many seconds is lost: longer than any pause in between."""
STILL = 15.0
"""What waits and does not move for so many seconds will not: longer than any pause in between, too."""
ASKS = 5.0

DEAD, PLACED, CAUSED = "tidings-dead", "order", "stock"


class Judge:
    """Judges one round: made before it begins, told what was accepted, asked at its end."""

    def __init__(self, world: World, prefix: str, notes: Path) -> None:
        self._world, self._prefix, self._notes = world, prefix, notes
        self.accepted: dict[str, Message] = {}
        """By event id: what was published, each written down after its publish had returned."""
        self._began: Mapping[str, int] = {}
        self._taken = 0

    async def begin(self) -> None:
        self._began = await _last_sequences(self._world.broker.url)
        self._taken = await asyncio.to_thread(self._world.ledger.taken)

    def accept(self, messages: Iterable[Message]) -> None:
        self.accepted.update({message.id: message for message in messages})

    @property
    def _expected(self) -> dict[str, set[str]]:
        return {RESERVE: set(self.accepted), CHARGE: {derived_id(one, RESERVE, 0) for one in self.accepted}}

    async def settled(self) -> bool:
        """Wait until all is applied and published and nothing waits; False: nothing moves, and something is missing."""
        ends = time.monotonic() + LIMIT
        seen, moved = (-1, -1, -1), time.monotonic()
        while (now := time.monotonic()) < ends:
            backlog = await _backlog(self._world.broker.url)
            unpublished = await asyncio.to_thread(self._unpublished)
            missing = sum(map(len, (await self._missing()).values()))
            if not (backlog or unpublished or missing):
                return True
            if seen != (backlog, unpublished, missing):
                seen, moved = (backlog, unpublished, missing), now
            elif now - moved > (STILL if backlog or unpublished else QUIET):
                return False
            await asyncio.sleep(0.05)
        return False

    def _unpublished(self) -> int:
        return 0 if self._world.kind.effects_elsewhere else self._world.ledger.unpublished()

    async def _effects(self) -> Sequence[Effect]:
        return await asyncio.to_thread(self._world.ledger.effects, self._prefix)

    async def handled(self, handler: str) -> int:
        """How many effects a handler has had by now in this round."""
        return sum(one.handler == handler for one in await self._effects())

    async def _missing(self) -> dict[str, set[str]]:
        applied: dict[str, set[str]] = defaultdict(set)
        for one in await self._effects():
            applied[one.handler].add(one.event_id)
        return {handler: ids - applied[handler] for handler, ids in self._expected.items()}

    async def verdict(self, killed: Iterable[int]) -> Verdict:
        """What the round came to; `killed` are the workers that were."""
        settled = await self.settled()
        found = Verdict()
        self._read_notes(found)
        effects = await self._effects()
        missing = await self._missing()
        found.lost = sum(map(len, missing.values()))
        for handler, ids in missing.items():
            if ids:
                found.wrong.append(f"{handler} never applied {len(ids)} events, such as {sorted(ids)[0]}")
        self._count_repeats(found, effects, set(killed))
        await self._look_at_streams(found, effects, missing[CHARGE])
        taken = await asyncio.to_thread(self._world.ledger.taken) - self._taken
        reserved = sum(one.handler == RESERVE for one in effects)
        if taken != reserved:
            found.wrong.append(f"{taken} pieces were taken from the shelves by {reserved} reservations")
            found.twice += max(0, taken - reserved)
            found.lost += max(0, reserved - taken)
        if not settled and found.passed:
            found.wrong.append(f"something still waits: {await _backlog(self._world.broker.url)} deliveries")
        return found

    # ── the ledger ──────────────────────────────────────────────────────────────────────────────────────────────────

    def _count_repeats(self, found: Verdict, effects: Sequence[Effect], killed: set[int]) -> None:
        by: dict[tuple[str, str], list[Effect]] = defaultdict(list)
        for one in effects:
            by[one.handler, one.event_id].append(one)
        marked = {(pid, *rest) for pid, *rest in self._lines("E")}
        for (handler, event_id), rows in by.items():
            if event_id not in self._expected[handler]:
                found.wrong.append(f"{handler} applied {event_id}, which nobody has published")
                found.twice += len(rows)
            for earlier in rows[:-1]:
                where = (str(earlier.worker), handler, event_id)
                kind = self._world.kind
                in_the_window = kind.effects_elsewhere and earlier.worker in killed and where not in marked
                if in_the_window or kind.forgets:
                    found.repeated += 1
                else:
                    found.twice += 1
                    found.wrong.append(f"{handler} applied {event_id} (order {earlier.order_id}) more than once")

    # ── the notes ───────────────────────────────────────────────────────────────────────────────────────────────────

    def _lines(self, kind: str) -> list[list[str]]:
        text = self._notes.read_text() if self._notes.exists() else ""
        return [words[1:] for line in text.splitlines() if (words := line.split())[0] == kind]

    def _read_notes(self, found: Verdict) -> None:
        deliveries = self._lines("D")
        found.deliveries = len(deliveries)
        found.redeliveries = sum(int(delivered) > 1 for *_, delivered in deliveries)
        published = Counter(id for _, route, id in self._lines("P") if route == "event")
        found.republished = sum(count - 1 for count in published.values())

    # ── the streams ─────────────────────────────────────────────────────────────────────────────────────────────────

    async def _look_at_streams(self, found: Verdict, effects: Sequence[Effect], uncharged: set[str]) -> None:
        """The set of caused events in the stream equals the expected one; `uncharged` are counted as lost already."""
        url, began = self._world.broker.url, self._began
        ids = set(await _ids(url, CAUSED, began.get(CAUSED, 0) + 1))
        expected = self._expected[CHARGE]
        if unpublished := expected - ids:
            found.wrong.append(f"{len(unpublished)} caused events were never published")
            found.lost += len(unpublished - uncharged)
        if strange := ids - expected:
            found.wrong.append(f"{len(strange)} events were published that nothing has caused")
            found.twice += len(strange)
        found.wrong += self._disorder(await _ids(url, PLACED, began.get(PLACED, 0) + 1), effects)
        if letters := (await _last_sequences(url)).get(DEAD, 0) - began.get(DEAD, 0):
            found.wrong.append(f"there are {letters} dead letters")

    def _disorder(self, stream: Sequence[str], effects: Sequence[Effect]) -> list[str]:
        """The orders of a cart are handled in the order of the stream; what comes again counts where it came first."""
        carts = {id: message.key or "" for id, message in self.accepted.items()}
        wanted, applied = defaultdict(list), defaultdict(list)
        for id in dict.fromkeys(stream):
            wanted[carts.get(id, "")].append(id)
        for id in dict.fromkeys(one.event_id for one in effects if one.handler == RESERVE):
            applied[carts.get(id, "")].append(id)
        return [
            f"{cart} was handled out of order"
            for cart, ids in applied.items()
            if cart and ids != [id for id in wanted[cart] if id in set(ids)]
        ]


# ── what the broker says, through a client that is not the package's ────────────────────────────────────────────────


async def _last_sequences(url: str) -> dict[str, int]:
    async with asyncio.timeout(LIMIT):
        client = await nats.connect(url, allow_reconnect=False)
        try:
            infos = await client.jetstream().streams_info()
            return {info.config.name or "": info.state.last_seq for info in infos}
        finally:
            await client.close()


async def _backlog(url: str) -> int:
    """How many messages wait at, or are open at, any position; 1 while the server cannot be asked."""
    try:
        async with asyncio.timeout(ASKS):
            client = await nats.connect(url, allow_reconnect=False)
            try:
                found = 0
                jetstream = client.jetstream()
                for stream in await jetstream.streams_info():
                    for one in await jetstream.consumers_info(stream.config.name or ""):
                        found += (one.num_pending or 0) + (one.num_ack_pending or 0)
                return found
            finally:
                await client.close()
    except (OSError, TimeoutError, nats.errors.Error):
        return 1


async def _ids(url: str, stream: str, first: int) -> list[str]:
    """The ids of the events in a stream, in their order, from a sequence on."""
    async with asyncio.timeout(LIMIT):
        client = await nats.connect(url, allow_reconnect=False)
        try:
            jetstream = client.jetstream()
            try:
                last = (await jetstream.stream_info(stream)).state.last_seq
            except nats.js.errors.NotFoundError:
                return []
            found: list[str] = []
            if last < first:
                return found
            config = ConsumerConfig(deliver_policy=DeliverPolicy.BY_START_SEQUENCE, opt_start_seq=first)
            reading = await jetstream.subscribe(f"{stream}.>", stream=stream, config=config, ordered_consumer=True)
            while True:
                message = await reading.next_msg(timeout=ASKS)
                found.append(json.loads(message.data)["id"])
                if message.metadata.sequence.stream >= last:
                    return found
        finally:
            await client.close()
