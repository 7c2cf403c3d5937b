"""Where partitions begin and end, how far a group is, and how much that leaves."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Iterable, Mapping
from typing import Final, TypeAlias

from confluent_kafka import TopicPartition

from tidings.brokers.kafka.link import ASKED, PAUSE, Link
from tidings.brokers.kafka.names import retry_topic
from tidings.brokers.kafka.progress import open_in
from tidings.errors import BrokerUnavailable, TidingsError

Committed: TypeAlias = Mapping[tuple[str, int], tuple[int, str]]
"""By topic and partition: the offset and the text beside it."""


EARLIEST: Final = -2
LATEST: Final = -1
EACH: Final = 2.0
"""Seconds that one question may take; then it is asked anew, of whoever leads by then."""


def at_time(seconds: float) -> int:
    """The first record that was stored then or later."""
    return int(seconds * 1000)


async def offsets(link: Link, topic: str, which: int) -> dict[int, int]:
    """An offset of each partition of a topic; -1 where there is none.

    Raises:
        BrokerUnavailable: the cluster does not answer in time.
    """
    places = [TopicPartition(topic, number, which) for number in range(link.partitions.get(topic, 0))]
    if not places:
        return {}
    asker = link.asker()

    def ask() -> list[TopicPartition]:
        # Who leads is remembered for half a minute, also after it died, by a consumer that takes nothing.
        asker.list_topics(topic, timeout=EACH)
        return asker.offsets_for_times(places, EACH)

    found = await _asked(link, ask)
    return {one.partition: one.offset for one in found}


async def committed_of(link: Link, position: str, topics: Iterable[str]) -> Committed:
    """What a group has committed in these topics; nothing where there is no group.

    Raises:
        BrokerUnavailable: the cluster does not answer in time.
        ConfigurationError: the user may not read the group.
    """
    places = [TopicPartition(topic, number) for topic in topics for number in range(link.partitions.get(topic, 0))]
    if not places:
        return {}
    found = await _asked(link, lambda: link.committed(position, places, EACH))
    return {(one.topic, one.partition): (one.offset, one.metadata or "") for one in found if one.offset >= 0}


async def _asked(link: Link, ask: Callable[[], list[TopicPartition]]) -> list[TopicPartition]:
    """The answer for each partition; asked again for a while, because leaders and coordinators come and go."""
    ends = time.monotonic() + ASKED
    while True:
        try:
            found = await link.ask(ask, 2 * EACH + 1.0)
            problem = next((link.meaning(one.error) for one in found if one.error), None)
            if problem is None:
                return found
        except TidingsError as error:
            problem = error
        if time.monotonic() > ends or not isinstance(problem, BrokerUnavailable):
            raise problem
        await asyncio.sleep(PAUSE)


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
    committed = dict(await committed_of(link, position, [topic]))
    first = await offsets(link, topic, EARLIEST)
    for number, offset in first.items():
        committed.setdefault((topic, number), (offset, ""))
    return await left(link, topic, committed)
