"""How the requests of a share end when this process is to have it no more.

A request cannot be taken back. The server may pin a share to one although nobody hears the answer any more, and then
its events come to nobody until that pin lapses (seen with 2.15.1: it looks whether anybody listens after it has pinned,
or the event is under way already). So who is not pinned hears out what was asked for, and gives back what comes.

That is not long while a share changes hands, as it does in a rolling restart. Later requests last longer, because in a
cluster each one that ends and is asked anew is told to all replicas. Where such a one is given up the server is made to
throw it away, as it does when it is asked about the consumer: an event has to come in the same instant to be late.
"""

from __future__ import annotations

import asyncio
import time
from typing import Final, Protocol

from tidings.brokers.nats.connection import Connection
from tidings.brokers.nats.link import Link
from tidings.brokers.nats.pull import Pull

STANDBY: Final = 1.0
"""Seconds that a request lasts which may pin a share, while that is fresh."""
FRESH: Final = 10.0
"""Seconds from when a share is asked for: by then it has changed hands, or nothing happens there."""
_LOOK: Final = 0.02


class Asking(Protocol):
    """What is needed of a share."""

    events: Pull
    retries: Pull
    connection: Connection
    pin: str

    def leftover(self, subject: bytes, reply: bytes, headers: bytes | None, data: bytes) -> None: ...


def hear_out(share: Asking) -> list[int]:
    """Take nothing more; what comes all the same goes back, until the returned ids are forgotten."""
    sids, events = share.retries.detach(share.leftover), share.events
    waits = bool(events.asked) and not share.pin
    if not waits or events.expires > STANDBY:
        sids += events.detach(share.leftover)
        if waits and (link := share.connection.link) is not None and link.up:
            about = f"{share.connection.options.api}.CONSUMER.INFO.{events.stream}.{events.durable}".encode()
            link.send(b"PUB %b %b 0\r\n\r\n" % (about, link.own_subject()))
        return sids

    def heard(subject: bytes, reply: bytes, headers: bytes | None, data: bytes) -> None:
        share.leftover(subject, reply, headers, data)
        events.ended()

    events.hear_out(heard)
    return sids


async def heard_out(share: Asking, sids: list[int], link: Link) -> None:
    """Return when nothing more can come, and nothing can be pinned to us any more.

    Raises:
        BrokerUnavailable: the connection was lost.
    """
    end = time.monotonic() + 2 * STANDBY
    while share.events.asked and link.up and time.monotonic() < end:  # noqa: ASYNC110  # limited
        await asyncio.sleep(_LOOK)
    sids = sids + share.events.detach(share.leftover)
    await link.round_trip(2.0)
    for sid in sids:
        link.drop_sink(sid)
