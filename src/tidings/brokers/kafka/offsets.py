"""Where partitions begin and end, how far a group is, and how much that leaves."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TypeAlias

from confluent_kafka import ConsumerGroupTopicPartitions, KafkaError, TopicPartition

from tidings.brokers.kafka.admin import EARLIEST, LATEST, OffsetSpec
from tidings.brokers.kafka.link import Link, code_of
from tidings.brokers.kafka.names import retry_topic
from tidings.brokers.kafka.progress import open_in

Committed: TypeAlias = Mapping[tuple[str, int], tuple[int, str]]
"""By topic and partition: the offset and the text beside it."""


async def offsets(link: Link, topic: str, which: OffsetSpec) -> dict[int, int]:
    """An offset of each partition of a topic; -1 where there is none."""
    numbers = range(link.partitions.get(topic, 0))
    places = {TopicPartition(topic, number): which for number in numbers}
    return {
        number: one.offset
        for number, one in zip(
            numbers, await link.answer(lambda: link.admin.list_offsets(places, request_timeout=5.0)), strict=True
        )
    }


async def committed_of(link: Link, position: str) -> Committed:
    """What a group has committed; nothing where there is no group."""
    group = [ConsumerGroupTopicPartitions(position)]
    (answer,) = await link.answers(lambda: link.admin.list_consumer_group_offsets(group, request_timeout=5.0))
    if isinstance(answer, Exception):
        if code_of(answer) == KafkaError.GROUP_ID_NOT_FOUND:
            return {}
        raise link.meaning(answer)
    return {
        (one.topic, one.partition): (one.offset, one.metadata or "")
        for one in answer.topic_partitions or ()
        if one.offset >= 0
    }


async def left(link: Link, topic: str, committed: Committed, known: Mapping[int, tuple[int, str]] | None = None) -> int:
    """How many messages of a topic are not done; `known` is newer than what was committed."""
    ends = await offsets(link, topic, LATEST)
    total = 0
    for number, end in ends.items():
        mark, text = (known or {}).get(number) or committed.get((topic, number), (0, ""))
        total += open_in(mark, text, end)
    return total


async def copies(link: Link, position: str) -> int:
    """How many copies on the retry route of a position are not settled."""
    topic = retry_topic(position)
    if topic not in link.partitions:
        await link.refresh()
    if topic not in link.partitions:
        return 0
    committed = dict(await committed_of(link, position))
    first = await offsets(link, topic, EARLIEST)
    for number, offset in first.items():
        committed.setdefault((topic, number), (offset, ""))
    return await left(link, topic, committed)
