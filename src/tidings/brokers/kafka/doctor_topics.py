"""What is wrong with the topics of a cluster: whether they are there, and how many disks an event stands on."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from functools import partial
from typing import Final

from tidings.brokers.kafka.admin import ClusterMetadata, ConfigResource, ResourceType
from tidings.brokers.kafka.link import Link
from tidings.brokers.kafka.names import DEAD_TOPIC, NOTE_TOPIC, POSITION_TOPIC, retry_topic
from tidings.brokers.kafka.offsets import committed_of
from tidings.brokers.kafka.positions import Entry, written_positions
from tidings.errors import TidingsError
from tidings.findings import Finding, Level

INSYNC: Final = "min.insync.replicas"
MANY: Final = 200
"""Topics whose settings are asked for at once."""

Settings = Mapping[str, str]


async def examine_topics(link: Link, cluster: ClusterMetadata, broker: Settings) -> list[Finding]:
    """All that concerns topics; `broker` are the settings of one, by which new topics are made."""
    found = await _missing(link) + _new_ones(broker, len(cluster.brokers))
    try:
        settings = await _settings(link, cluster)
    except TidingsError as error:
        return [*found, Finding("warning", f"the settings of the topics cannot be read: {error}")]
    return found + _copies(cluster, settings)


# ── are they there? ─────────────────────────────────────────────────────────────────────────────────────────────────


async def _missing(link: Link) -> list[Finding]:
    """Topics that positions stand on, and that are gone."""
    if POSITION_TOPIC not in link.partitions:
        return [Finding("fine", "no service of Tidings has used this cluster yet")]
    try:
        written = await written_positions(link)
        there = await asyncio.gather(*(_is_there(link, name, entry) for name, entry in written.items()))
    except TidingsError as error:
        return [Finding("warning", f"the positions cannot be read: {error}")]
    positions = {name: entry for (name, entry), alive in zip(written.items(), there, strict=True) if alive}
    found = [_gone(topic, "all services") for topic in (DEAD_TOPIC, NOTE_TOPIC) if topic not in link.partitions]
    for name, entry in sorted(positions.items()):
        topics = (entry.stream, retry_topic(name))
        found += [_gone(topic, name) for topic in topics if topic not in link.partitions]
    return found or [Finding("fine", f"{len(positions)} positions have all their topics")]


async def _is_there(link: Link, position: str, entry: Entry) -> bool:
    """Whether a position that is written down still exists; where its stream is gone its group says nothing of that."""
    return entry.stream not in link.partitions or bool(await committed_of(link, position, [entry.stream]))


def _gone(topic: str, whose: str) -> Finding:
    return Finding(
        "wrong",
        f"the topic {topic} of {whose} is gone, and with it what stood in it",
        "If that was meant, restart the service, which makes it anew.",
    )


# ── how many copies? ────────────────────────────────────────────────────────────────────────────────────────────────


def _new_ones(broker: Settings, brokers: int) -> list[Finding]:
    """What a new topic would be like."""
    copies, least = int(broker.get("default.replication.factor") or 1), int(broker.get(INSYNC) or 1)
    if least > copies:
        what = f"new topics get {copies} copies, and {least} must have an event: nothing can be published to them"
        return [Finding("wrong", what, f"Set default.replication.factor above {INSYNC}, or say ?replication=3.")]
    if brokers > 1 and copies == 1:
        what = "new topics get one copy, so that a lost disk loses their events"
        return [Finding("warning", what, "Set default.replication.factor=3, or say ?replication=3.")]
    return []


async def _settings(link: Link, cluster: ClusterMetadata) -> dict[str, Settings]:
    names = [name for name, topic in sorted(cluster.topics.items()) if not name.startswith("__") and not topic.error]
    found: dict[str, Settings] = {}
    for at in range(0, len(names), MANY):
        some = names[at : at + MANY]
        asked = [ConfigResource(ResourceType.TOPIC, name) for name in some]
        answers = await link.answer(partial(link.admin.describe_configs, asked, request_timeout=5.0))
        for name, answer in zip(some, answers, strict=True):
            found[name] = {key: str(entry.value) for key, entry in answer.items()}
    return found


def _copies(cluster: ClusterMetadata, settings: Mapping[str, Settings]) -> list[Finding]:
    kinds: dict[str, list[str]] = {}
    for name, found in settings.items():
        partitions = cluster.topics[name].partitions.values()
        copies = min((len(one.replicas) for one in partitions), default=0)
        alive = min((len(one.isrs) for one in partitions), default=0)
        if kind := _kind(copies, alive, int(found.get(INSYNC) or 1), len(cluster.brokers)):
            kinds.setdefault(kind, []).append(name)
    result = []
    for kind, (what, remedy) in _WORDS.items():
        if names := kinds.get(kind):
            level: Level = "wrong" if kind in _STOPPED else "warning"
            result.append(Finding(level, f"{what.format(len(names))}: {_some(names)}", remedy))
    return result


def _kind(copies: int, alive: int, least: int, brokers: int) -> str:
    """What is to be said of a topic with so many copies, of which so many are up to date and so many have to be."""
    if least > copies:
        return "never"
    if least > alive:
        return "not now"
    if copies < 2:
        return "single" if brokers > 1 else ""
    if alive < copies:
        return "behind"
    if least == copies:
        return "all"
    return "one" if least < 2 else ""


_STOPPED: Final = ("never", "not now")
_ALTER: Final = f"kafka-configs.sh --alter --topic … --add-config {INSYNC}="
_WORDS: Final[Mapping[str, tuple[str, str]]] = {
    "never": (
        f"{{}} topics have fewer copies than {INSYNC} demands, so that nothing can be published to them",
        f"Give them more copies (kafka-reassign-partitions.sh), or demand less: {_ALTER}2 for three copies.",
    ),
    "not now": (
        f"{{}} topics take no events: fewer of their copies are up to date than {INSYNC} demands",
        "Look for the broker that is away or slow.",
    ),
    "single": (
        "{} topics have one copy, so that a lost disk loses their events",
        "Make new ones with ?replication=3; move those by kafka-reassign-partitions.sh.",
    ),
    "behind": ("not all copies of {} topics are up to date", "Look for the broker that is away or slow."),
    "all": (
        "{} topics demand that all of their copies have an event, so that one broker that is away stops publishing",
        f"Demand one less than there are copies: {_ALTER}2 for three copies.",
    ),
    "one": (
        "{} topics are content with one copy, so that an event that was confirmed may stand on one disk alone",
        f"Demand two: {_ALTER}2.",
    ),
}


def _some(names: Sequence[str], most: int = 5) -> str:
    return ", ".join(names[:most]) + (f" and {len(names) - most} more" if len(names) > most else "")
