"""What is wrong with a cluster, as far as it can be seen from here: step by step, and each with its remedy."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import Mapping, Sequence
from typing import Any

from confluent_kafka import KafkaError

from tidings.brokers.kafka import versions
from tidings.brokers.kafka.admin import AdminClient, ClusterMetadata, ConfigResource, ResourceType
from tidings.brokers.kafka.away import IS_IT_KAFKA, IS_IT_UP
from tidings.brokers.kafka.clients import made
from tidings.brokers.kafka.doctor_topics import examine_topics
from tidings.brokers.kafka.doors import PATIENCE, doors, knock
from tidings.brokers.kafka.link import Link
from tidings.brokers.kafka.options import Options, parse
from tidings.errors import BrokerUnavailable, TidingsError
from tidings.findings import Finding


async def examine(url: str) -> Sequence[Finding]:
    """Look at a cluster; nothing of it is changed.

    Raises:
        ConfigurationError: the URL cannot be read.
    """
    options = parse(url)
    knocks = await asyncio.gather(*(knock(host, port) for host, port in options.servers))
    if all(knocks):
        remedy = "Is it running? Do name and port stand in its listeners=?"
        return [Finding("down", why, remedy) for why in knocks]
    found = [Finding("warning", why, "The others of the URL are there.") for why in knocks if why]
    link = Link(options, "tidings doctor")
    try:
        return found + await _ask(link, options)
    finally:
        await link.close()


async def _ask(link: Link, options: Options) -> list[Finding]:
    try:
        await link.ask(lambda: listen(options, link.brokers), 2 * PATIENCE)
    except BrokerUnavailable:
        pass  # a client that is to end may still wait for a name server: what it heard it has told
    found = await _advertised(link)
    if any(one.level == "wrong" for one in found):
        return found  # whatever is asked now may go to an address that nobody reaches
    try:
        cluster = await link.refresh(max(options.connect_timeout, PATIENCE))
    except BrokerUnavailable:
        what, remedy = link.away
        if remedy == IS_IT_UP:  # it is: somebody answered the door
            remedy = IS_IT_KAFKA
        return [Finding("down", f"{options.where} is there, and cannot be used: {what}", remedy)]
    except TidingsError as error:
        remedy = "Grant this user the right to describe the cluster, with kafka-acls."
        return [Finding("down", f"{options.where} is there, and cannot be used: {error}", remedy)]
    found = found or await _advertised(link)
    return found + await _releases(link) + await _settings(link, cluster)


async def _releases(link: Link) -> list[Finding]:
    """How old each broker is, and what it lacks of what would be asked of it."""
    found: dict[Finding, list[int]] = {}
    for number, (host, port) in sorted(link.brokers.items()):
        try:
            understood = await versions.ask(link.options, host, port)
        except versions.CannotBeAsked as why:
            one = Finding("warning", f"which release {{}} is of cannot be told: {why}")
        else:
            one = _release(link.options, understood)
        found.setdefault(one, []).append(number)
    return [
        Finding(one.level, one.what.replace("{}", _numbered(numbers), 1), one.remedy) for one, numbers in found.items()
    ]


def _release(options: Options, understood: versions.Understood) -> Finding:
    what = f"{{}} understands what Kafka {versions.release(understood)} does"
    if options.protocol == "consumer" and not versions.assigns(understood):
        remedy = "Leave out group.protocol=consumer, or use brokers of Kafka 4.0 or newer."
        return Finding("wrong", f"{what}, and cannot say who of a group has what: nothing would be handed over", remedy)
    if options.replication < 0 and not versions.counts_copies(understood):
        remedy = "Say ?replication=3 (1 on a single broker), or use brokers of Kafka 2.4 or newer."
        return Finding("wrong", f"{what}, and makes no topic unless it is told how many copies it gets", remedy)
    return Finding("fine", what)


def _numbered(numbers: Sequence[int]) -> str:
    return ("broker " if len(numbers) == 1 else "each of the brokers ") + ", ".join(map(str, numbers))


def listen(options: Options, told: dict[int, tuple[str, int]]) -> None:
    """Hear where the brokers tell their clients to come, by number; nothing if none says so in time. Blocks.

    A client of the library that has heard it leaves the address of the URL for those it was told, be they wrong or not,
    and a question asked a moment later goes there and gets no answer. What it was told stands in its statistics.
    """
    refused = looked_since = False

    def count(statistics: str) -> None:
        nonlocal looked_since
        looked_since = refused
        for broker in json.loads(statistics)["brokers"].values():
            if broker["source"] == "learned":
                host, _, port = broker["nodename"].rpartition(":")
                told[broker["nodeid"]] = host.strip("[]"), int(port)

    def hear(error: KafkaError) -> None:
        nonlocal refused
        refused = True

    heard: dict[str, Any] = {"stats_cb": count, "error_cb": hear, "statistics.interval.ms": 50}
    client = made(AdminClient, {**options.administrator(), **heard}, options.where)
    ends = time.monotonic() + PATIENCE
    while not told and not looked_since and time.monotonic() < ends:
        client.poll(0.05)


async def _advertised(link: Link) -> list[Finding]:
    return [
        Finding("wrong", one.told, one.remedy) if one.why else Finding("fine", one.told)
        for one in await doors(link.brokers)
    ]


async def _settings(link: Link, cluster: ClusterMetadata) -> list[Finding]:
    number = min(link.brokers)
    asked = [ConfigResource(ResourceType.BROKER, str(number))]
    try:
        (found,) = await link.answer(lambda: link.admin.describe_configs(asked, request_timeout=5.0))
    except TidingsError as error:
        unread = Finding("warning", f"the settings of broker {number} cannot be read: {error}")
        return [unread, *await examine_topics(link, cluster, {})]
    settings = {name: str(entry.value) for name, entry in found.items() if entry.value is not None}
    return _creation(settings) + await examine_topics(link, cluster, settings)


def _creation(broker: Mapping[str, str]) -> list[Finding]:
    if broker.get("auto.create.topics.enable", "").lower() != "true":
        return []
    return [
        Finding(
            "warning",
            "the brokers make a topic whenever somebody mentions one: a wrong name gets events that nobody reads",
            "Set auto.create.topics.enable=false. Tidings makes its topics itself, and none by accident.",
        )
    ]
