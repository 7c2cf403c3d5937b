"""What is wrong with a RabbitMQ, as far as it can be seen from here: step by step, and each with its remedy."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import Any, Final, cast

import msgspec
from pamqp import commands

from tidings.brokers.rabbitmq import frames, names
from tidings.brokers.rabbitmq.broker import check_version
from tidings.brokers.rabbitmq.channel import REFUSED, NotAllowed, Refused
from tidings.brokers.rabbitmq.connection import Connection
from tidings.brokers.rabbitmq.link import Link
from tidings.brokers.rabbitmq.options import Options, parse
from tidings.brokers.rabbitmq.publishing import Confirming, Frame
from tidings.brokers.rabbitmq.topology import Position, Topology
from tidings.delivery import Message
from tidings.errors import BrokerUnavailable, ConfigurationError, TidingsError
from tidings.findings import Finding

PATIENCE: Final = 3.0
GRANTS: Final = "rabbitmqctl set_permissions -p VHOST USER CONFIGURE WRITE READ says what a user may; see the guide"


async def examine(url: str) -> Sequence[Finding]:
    """Look at each server of the URL, and at the positions that there are; nothing is changed.

    Raises:
        ConfigurationError: the URL cannot be read.
    """
    options = parse(url)
    found: list[Finding] = []
    looked = False
    for server in options.servers:
        one = msgspec.structs.replace(options, servers=(server,), connect_timeout=PATIENCE)
        connection = Connection(one, "tidings doctor")
        try:
            link = await connection.start()
            check_version(link.version, one.where)
            if not looked:
                looked = True
                found += await _making(link, one)
                found += await _positions(Topology(connection))
            found.append(await _server(link, one))  # at last: a server that is full does not read on
        except TidingsError as error:
            found.append(Finding("wrong" if isinstance(error, ConfigurationError) else "down", str(error)))
        finally:
            await connection.close()
    return found


async def _making(link: Link, options: Options) -> list[Finding]:
    """Whether the user may make what a service needs: asked for with an argument that no server takes."""
    arguments = cast(Any, {"x-queue-type": "stream", "x-max-length-bytes": "none"})
    channel = await link.channel(PATIENCE)
    try:
        await channel.call(
            commands.Queue.Declare(0, names.POSITIONS, False, True, False, False, False, arguments), PATIENCE
        )
    except Refused as error:
        if error.code == REFUSED:
            what = f"the user may not make what a service needs at {options.where}: {error.text}"
            return [Finding("wrong", what, GRANTS)]
    return []


async def _server(link: Link, options: Options) -> Finding:
    why = await _publish_to_nobody(link)
    if isinstance(why, Refused) and why.code == REFUSED:
        return Finding("wrong", f"the user may not publish at {options.where}: {why.text}", GRANTS)
    if link.blocked:
        return Finding(
            "wrong",
            f"{options.where} takes no messages: {link.blocked}",
            "Give it disk or memory, or lower disk_free_limit; rabbitmqctl status says what it has.",
        )
    return Finding("fine", f"{options.where} runs RabbitMQ {link.version}, and takes messages")


async def _publish_to_nobody(link: Link) -> BrokerUnavailable | None:
    """A server that is full says so to those alone who publish. What no queue takes leaves nothing behind.

    Returns:
        Why the server closed the channel, if it did.
    """
    message = Message(id="doctor", stream="", type="", body=b"")
    nowhere = Frame(message, "", "tidings-doctor-asks-nobody", frames.properties({}, message.id, 0))
    confirming = await Confirming.on(link)
    await confirming.send([nowhere], PATIENCE)
    return None if confirming.channel.open else confirming.channel.why


async def _positions(topology: Topology) -> list[Finding]:
    """Whether the queues of the positions that are written down are there, and are what they should be."""
    if await topology.count(names.POSITIONS) is None:
        return [Finding("fine", "no service of Tidings has used this virtual host yet")]
    try:
        known = await topology.positions()
    except NotAllowed as error:
        return [Finding("wrong", str(error), GRANTS)]
    parts = await asyncio.gather(*(_position(topology, one) for one in known.values()))
    return [finding for part in parts for finding in part] or [
        Finding("fine", f"{len(known)} positions have all their queues")
    ]


async def _position(topology: Topology, position: Position) -> list[Finding]:
    found = []
    hidden = 0
    for queue in names.all_queues(position.position, position.ordered):
        if await topology.count(queue) is None:
            found.append(
                Finding(
                    "wrong",
                    f"the queue {queue} of {position.position} is gone, and with it what stood in it",
                    "If that was meant, restart the service, which makes it anew.",
                )
            )
            continue
        try:
            drifts = await topology.compare(queue, position.ordered)
        except NotAllowed:
            hidden += 1  # it may be another service's, whose user has the right
        except (ConfigurationError, BrokerUnavailable) as error:
            found.append(Finding("wrong", str(error)))
        else:
            found += [Finding("warning", f"{one.what}: {one.found}", one.remedy) for one in drifts]
    if hidden:
        what = f"the user may not make {hidden} queues of {position.position}, so what they are cannot be looked at"
        found.append(Finding("warning", what, f"If the service of {position.position} is this user's: {GRANTS}"))
    return found
