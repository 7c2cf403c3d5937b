"""Positions as the cluster knows them: a consumer group each, and beside it which types it takes.

A group has offsets from the moment it is declared, so that it misses nothing after that, whoever takes from it first.
What the group cannot say, its types, stands in a compacted topic.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Collection, Mapping, Sequence
from typing import Final

import msgspec
from confluent_kafka import TopicPartition

from tidings.brokers._gained import all_of, dropped, gained, until_all_know
from tidings.brokers.kafka.link import Link
from tidings.brokers.kafka.names import POSITION_TOPIC, check_position
from tidings.brokers.kafka.offsets import EARLIEST, LATEST, at_time, committed_of, offsets
from tidings.brokers.kafka.publishing import Publisher
from tidings.brokers.kafka.reading import read_records
from tidings.errors import BrokerUnavailable
from tidings.ports import Drift, Plan, Subscription

log = logging.getLogger("tidings.kafka")

REMOVE: Final = "kafka-consumer-groups.sh --bootstrap-server … --delete --group {position}"


class Entry(msgspec.Struct, frozen=True):
    """What is written down of a position."""

    stream: str
    types: tuple[str, ...]
    begins: dict[int, int] = {}
    """Where it began, by partition: a group without members is forgotten after some time, and its place with it."""


_decode = msgspec.json.Decoder(Entry).decode


async def existing_positions(link: Link, service: str) -> dict[str, Entry]:
    """The positions of a service whose groups exist."""
    return await _existing(link, await written_positions(link, f"{service}."))


async def _existing(link: Link, written: Mapping[str, Entry]) -> dict[str, Entry]:
    if not written:
        return {}
    there = await asyncio.gather(*(committed_of(link, one, [entry.stream]) for one, entry in written.items()))
    return {position: entry for (position, entry), found in zip(written.items(), there, strict=True) if found}


async def written_positions(link: Link, prefix: str = "") -> dict[str, Entry]:
    """What is written down of positions whose names begin so, whether they still exist or not."""
    if POSITION_TOPIC not in link.partitions:
        return {}
    wanted = prefix.encode()
    written: dict[str, Entry] = {}
    async for record in read_records(link, POSITION_TOPIC):
        key, value = record.key() or b"", record.value()
        if key.startswith(wanted) and value:
            try:
                written[key.decode()] = _decode(value)
            except (msgspec.DecodeError, UnicodeDecodeError):
                continue  # nobody's
    return written


async def ensure_positions(link: Link, publisher: Publisher, plan: Plan) -> list[Drift]:
    """Give each position of a plan its place, if it has none, and write down which types it takes.

    Returns:
        The types that a position did not take so far, or takes no more.

    Raises:
        ConfigurationError: a position was orphaned, or cannot be one.
    """
    for one in plan.subscriptions:
        check_position(one.position)
    if not plan.subscriptions:
        return []
    written = await written_positions(link, f"{plan.service}.")
    existing = await _existing(link, written)
    types = {name: entry.types for name, entry in existing.items()}
    plan.check_positions(types, REMOVE)
    new = [one for one in plan.subscriptions if one.position not in existing]
    made = await asyncio.gather(*(_ensure(link, one, written.get(one.position)) for one in new))
    begins = {one.position: found for one, found in zip(new, made, strict=True)}
    begins |= {name: entry.begins for name, entry in existing.items()}
    changed = {
        one.position: entry
        for one in plan.subscriptions
        if written.get(one.position)
        != (entry := Entry(one.stream, all_of(one, types.get(one.position, ())), dict(begins[one.position])))
    }
    await _write(publisher, changed)
    if drifts := gained(plan, types):
        await until_all_know()
    return drifts + dropped(plan, types)


async def _write(publisher: Publisher, entries: Mapping[str, Entry]) -> None:
    if entries:
        await publisher.write(POSITION_TOPIC, {name: msgspec.json.encode(entry) for name, entry in entries.items()})


async def remember(link: Link, publisher: Publisher, position: str, types: Collection[str]) -> None:
    """Write down which types a position takes; see `rolling.Remembers`."""
    entry = (await written_positions(link, position)).get(position)
    if entry is not None:
        await _write(publisher, {position: msgspec.structs.replace(entry, types=tuple(sorted(types)))})


async def _ensure(link: Link, subscription: Subscription, known: Entry | None) -> Mapping[int, int]:
    """Commit where a new position begins, and return it. Where that is, is asked first: so nothing is missed.

    One that is `known`, and has no place any more, begins once more where it began.
    """
    began = known.begins if known is not None and known.stream == subscription.stream else {}
    begins = await (_again(link, subscription.stream, began) if began else beginnings(link, subscription))
    if await committed_of(link, subscription.position, [subscription.stream]):
        return begins
    if began:
        log.warning(
            "%s has no place at the cluster any more, and begins where it began: what it had applied comes again. Its"
            " group was removed, or was without members for longer than offsets.retention.minutes",
            subscription.position,
        )
    places = [TopicPartition(subscription.stream, number, offset) for number, offset in begins.items()]
    asker = link.asker(subscription.position)
    try:
        await link.ask(lambda: asker.commit(offsets=places, asynchronous=False), 10.0)
    except BrokerUnavailable:
        # Whoever was quicker, and takes from it already, has committed where it begins.
        if not await committed_of(link, subscription.position, [subscription.stream]):
            raise
    return begins


async def _again(link: Link, topic: str, begins: Mapping[int, int]) -> dict[int, int]:
    """The same places, as far as they are there: partitions may be new, and the topic another one by this name."""
    first, ends = await asyncio.gather(offsets(link, topic, EARLIEST), offsets(link, topic, LATEST))
    return {
        number: begin if offset <= (begin := begins.get(number, offset)) <= ends[number] else offset
        for number, offset in first.items()
    }


async def beginnings(link: Link, subscription: Subscription) -> dict[int, int]:
    """Where a position that does not exist yet begins, by partition."""
    topic = subscription.stream
    numbers = range(link.partitions.get(topic, 0))
    if subscription.since is not None:
        found = await offsets(link, topic, at_time(subscription.since.timestamp()))
        ends = await offsets(link, topic, LATEST)
        return {number: found[number] if found[number] >= 0 else ends[number] for number in numbers}
    return await offsets(link, topic, EARLIEST if subscription.start == "all" else LATEST)


class Taken:
    """Which types the positions of a cluster take, as it is written down; read anew only where that has changed."""

    def __init__(self, link: Link) -> None:
        self._link = link
        self._ends: Mapping[int, int] = {}
        self._types: dict[str, tuple[str, ...]] = {}
        self._turn = asyncio.Lock()

    async def by(self, position: str) -> tuple[str, ...]:
        """Those of one position. Raises BrokerUnavailable."""
        async with self._turn:
            ends = await offsets(self._link, POSITION_TOPIC, LATEST)
            if ends != self._ends:
                self._types = {name: one.types for name, one in (await written_positions(self._link)).items()}
                self._ends = ends
        return self._types.get(position, ())


def types_of(entries: Mapping[str, Entry]) -> dict[str, Sequence[str]]:
    return {name: list(entry.types) for name, entry in entries.items()}
