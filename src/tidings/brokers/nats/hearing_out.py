"""How the requests of a share end when this process is to have it no more.

A request cannot be taken back. The server may pin a share to one although nobody hears the answer any more, and then
its events come to nobody until that pin lapses (seen with 2.15.1: it looks whether anybody listens after it has pinned,
or the event is under way already). So who is not pinned hears out what was asked for, which is not long, and gives back
what comes.
"""

from __future__ import annotations

import asyncio
import time
from typing import Final, Protocol

from tidings.brokers.nats.link import Link
from tidings.brokers.nats.pull import Pull

STANDBY: Final = 1.0
"""Seconds that a request lasts which may pin a share."""
_LOOK: Final = 0.02


class Asking(Protocol):
    """What is needed of a share."""

    events: Pull
    retries: Pull
    pin: str

    def leftover(self, subject: bytes, reply: bytes, headers: bytes | None, data: bytes) -> None: ...


def hear_out(share: Asking) -> list[int]:
    """Take nothing more; what comes all the same goes back, until the returned ids are forgotten."""
    sids = share.retries.detach(share.leftover)
    if share.pin or not share.events.asked:
        return sids + share.events.detach(share.leftover)

    def heard(subject: bytes, reply: bytes, headers: bytes | None, data: bytes) -> None:
        share.leftover(subject, reply, headers, data)
        share.events.ended()

    share.events.hear_out(heard)
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
