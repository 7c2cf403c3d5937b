"""Topics: made where they are missing, compared where they are there, and never changed in silence."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Iterable, Mapping, Sequence
from datetime import timedelta
from typing import Final

import msgspec
from confluent_kafka import KafkaError

from tidings.brokers.kafka.admin import ConfigEntry, ConfigResource, NewPartitions, NewTopic, ResourceType
from tidings.brokers.kafka.away import NO_ANSWER
from tidings.brokers.kafka.clients import code_of, reason
from tidings.brokers.kafka.link import DENIED, PAUSE, Link, failed
from tidings.brokers.kafka.names import DEAD_TOPIC, NOTE_TOPIC, POSITION_TOPIC, check_stream, retry_topic
from tidings.delivery import MAX_EVENT_BYTES
from tidings.errors import BrokerUnavailable, ConfigurationError
from tidings.ports import Drift, Plan, StreamPlan

log = logging.getLogger("tidings.kafka")

WEEK: Final = timedelta(days=7)
ROOM: Final = 256 * 1024
"""Bytes beside the body that copies and dead letters may need for their headers."""
MAX_MESSAGE: Final = MAX_EVENT_BYTES + ROOM
PARTITIONS: Final = 8
"""Of a new topic, where the URL does not say."""
KNOWN_WITHIN: Final = 10.0
HOUR: Final = 3_600_000
FOR_EVER: Final = 10**15
"""Milliseconds that nobody means as a time."""

_UNSEEN: Final = (
    "the user may not see the settings of the topic {}, so that what they do to events is not looked at, and no id of"
    " an event is ever forgotten. Grant it: kafka-acls.sh --bootstrap-server … --add --allow-principal User:…"
    " --operation DescribeConfigs --topic {}"
)
_EXISTS: Final = frozenset({KafkaError.TOPIC_ALREADY_EXISTS})


class Wanted(msgspec.Struct, frozen=True):
    """A topic as it is to be made."""

    name: str
    partitions: int
    settings: Mapping[str, str]


def wanted_topics(plan: Plan, partitions: Mapping[str, int], most: int) -> list[Wanted]:
    """All that a plan needs: streams, the retry route of each position, and what all services share."""
    common = {"max.message.bytes": str(MAX_MESSAGE), "message.timestamp.type": "LogAppendTime"}
    for_ever = {**common, "cleanup.policy": "delete", "retention.ms": "-1", "retention.bytes": "-1"}
    latest = {
        **common,
        "cleanup.policy": "compact",
        "delete.retention.ms": str(HOUR),
        "segment.ms": str(24 * HOUR),
    }
    topics = []
    for stream in plan.streams:
        keep = str(_milliseconds(stream.keep or WEEK))
        settings = {**common, "cleanup.policy": "delete", "retention.ms": keep, "retention.bytes": "-1"}
        topics.append(Wanted(stream.name, most, settings))
    for one in plan.subscriptions:
        topics.append(Wanted(retry_topic(one.position), partitions.get(one.stream, most), for_ever))
    return [
        *topics,
        Wanted(DEAD_TOPIC, 1, for_ever),
        Wanted(NOTE_TOPIC, 1, latest),
        Wanted(POSITION_TOPIC, 1, latest),
    ]


async def ensure_topics(link: Link, plan: Plan) -> list[Drift]:
    """Make what is missing, and say what differs.

    Raises:
        ConfigurationError: a name cannot be a topic, or one that is there cannot keep events.
        BrokerUnavailable: the cluster does not answer.
    """
    for stream in plan.streams:
        check_stream(stream.name)
    await link.refresh()
    wanted = wanted_topics(plan, link.partitions, link.options.partitions or PARTITIONS)
    missing = [one for one in wanted if one.name not in link.partitions]
    if missing:
        await _make(link, missing)
    await _match_retries(link, plan)
    return _counted(link, plan.streams) + await _compare(link, plan.streams, {one.name for one in missing})


async def _make(link: Link, missing: Iterable[Wanted]) -> None:
    new = [NewTopic(one.name, one.partitions, link.options.replication, config=dict(one.settings)) for one in missing]
    answers = await link.answers(lambda: link.admin.create_topics(new, operation_timeout=5.0), 15.0)
    if (error := failed(answers, _EXISTS)) is not None:
        names = ", ".join(one.topic for one in new)
        if code_of(error) in NO_ANSWER:
            error = link.meaning(error)
        if isinstance(error, BrokerUnavailable):
            raise error
        why = reason(error).rstrip(". ")
        if code_of(error) in DENIED:
            raise ConfigurationError(
                f"the user at {link.options.where} may neither see nor make all of the topics {names} ({why}). Where"
                " they are there, grant Describe on them; or let the user create topics, or make them by hand"
            )
        raise ConfigurationError(f"not all of the topics {names} can be made at {link.options.where}: {why}")
    names_wanted = {one.topic for one in new}
    ends = time.monotonic() + KNOWN_WITHIN
    while time.monotonic() < ends:  # each broker hears of a new topic in its own time
        await link.refresh()
        if names_wanted <= set(link.partitions):
            return
        await asyncio.sleep(PAUSE)
    raise BrokerUnavailable(f"{link.options.where} does not know of its new topics yet: try again")


async def _match_retries(link: Link, plan: Plan) -> None:
    """A retry route has as many partitions as its stream: so a copy comes to whoever has its key."""
    grown = [
        NewPartitions(retry_topic(one.position), link.partitions[one.stream])
        for one in plan.subscriptions
        if link.partitions.get(one.stream, 0) > link.partitions.get(retry_topic(one.position), 0)
    ]
    if grown:
        await link.answers(lambda: link.admin.create_partitions(grown, operation_timeout=5.0), 15.0)
        await link.refresh()


async def topic_settings(link: Link, topic: str) -> dict[str, str]:
    """The settings of a topic as the cluster has them.

    Raises:
        BrokerUnavailable: it cannot be asked, the user may not, or there is no such topic.
    """
    asked = [ConfigResource(ResourceType.TOPIC, topic)]
    try:
        (found,) = await link.answer(lambda: link.admin.describe_configs(asked, request_timeout=5.0))
    except ConfigurationError:  # a right may be granted while a service runs
        raise BrokerUnavailable(_UNSEEN.format(topic, topic)) from None
    return {name: str(entry.value) for name, entry in found.items() if isinstance(entry, ConfigEntry)}


async def _compare(link: Link, streams: Sequence[StreamPlan], new: set[str]) -> list[Drift]:
    old = [one for one in streams if one.name not in new]
    if not old:
        return []
    resources = [ConfigResource(ResourceType.TOPIC, one.name) for one in old]
    answers = await link.answers(lambda: link.admin.describe_configs(resources, request_timeout=5.0))
    drifts = []
    for stream, found in zip(old, answers, strict=True):
        if isinstance(found, Exception):
            if code_of(found) not in DENIED:
                raise link.meaning(found)
            log.warning("%s", _UNSEEN.format(stream.name, stream.name))
            continue
        settings = {name: str(entry.value) for name, entry in found.items()}
        if "compact" in settings.get("cleanup.policy", ""):
            raise ConfigurationError(
                f"the topic {stream.name} is compacted: it forgets events whose key comes again. Take"
                f" cleanup.policy=delete: kafka-configs.sh --alter --topic {stream.name} --add-config"
                " cleanup.policy=delete"
            )
        drifts += _drifts(stream, settings)
    return drifts


def _counted(link: Link, streams: Sequence[StreamPlan]) -> list[Drift]:
    drifts = []
    said = link.options.partitions
    for name in (one.name for one in streams):
        if said is None or (there := link.partitions.get(name, said)) == said:
            continue
        remedy = (
            f"Settle it: kafka-topics.sh --bootstrap-server … --alter --topic {name} --partitions {said}. Keys then"
            " change their partition, and the order of what is on its way at that moment is not kept"
            if there < said
            else f"A topic cannot have fewer than before: say ?partitions={there}, or nothing"
        )
        drifts.append(Drift(what=f"partitions of stream {name}", declared=str(said), found=str(there), remedy=remedy))
    return drifts


def _drifts(stream: StreamPlan, settings: Mapping[str, str]) -> list[Drift]:
    drifts = []
    alter = f"kafka-configs.sh --bootstrap-server … --alter --topic {stream.name} --add-config"
    if stream.keep is not None and (kept := keeps(settings)) != stream.keep:
        drifts.append(
            Drift(
                what=f"keep of stream {stream.name}",
                declared=str(stream.keep),
                found="for ever" if kept is None else str(kept),
                remedy=f"Settle it: {alter} retention.ms={_milliseconds(stream.keep)}",
            )
        )
    if (most := int(settings.get("max.message.bytes") or MAX_MESSAGE)) < MAX_MESSAGE:
        drifts.append(
            Drift(
                what=f"size of messages of stream {stream.name}",
                declared=f"{MAX_MESSAGE:,} bytes with headers",
                found=f"{most:,} bytes",
                remedy=f"Larger events are refused by the broker. Settle it: {alter} max.message.bytes={MAX_MESSAGE}",
            )
        )
    return drifts


def keeps(settings: Mapping[str, str]) -> timedelta | None:
    """For how long a topic is to keep its events; None is without end."""
    return _span(settings.get("retention.ms"))


def lasts(settings: Mapping[str, str]) -> timedelta | None:
    """For how long an event may stand in a topic; None is without end.

    A segment goes as a whole, once its newest event is too old, and its oldest is older by all the time it was open.
    """
    keep, opened = keeps(settings), _span(settings.get("segment.ms"))
    return None if keep is None or opened is None else keep + opened


def _span(milliseconds: str | None) -> timedelta | None:
    """None is without end, which some write as the largest number that there is."""
    count = int(milliseconds or -1)
    return timedelta(milliseconds=count) if 0 <= count < FOR_EVER else None


def _milliseconds(span: timedelta) -> int:
    return int(span / timedelta(milliseconds=1))
