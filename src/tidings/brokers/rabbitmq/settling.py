"""Telling the server what became of deliveries: one write for each channel, and one round trip behind it.

The server does not answer to an acknowledgement. What is said after it on the same channel is answered after it, so the
answer shows that the acknowledgement was heard.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import Final

from tidings.brokers.rabbitmq.channel import Channel
from tidings.brokers.rabbitmq.source import Source, Token
from tidings.delivery import Ack, Delivery, Verdict
from tidings.errors import BrokerUnavailable, MisuseError

ANSWER: Final = 10.0


class _Part:
    """What there is to say on one channel."""

    def __init__(self, channel: Channel) -> None:
        self.channel = channel
        self.acks: list[Token] = []
        self.releases: list[tuple[Token, float]] = []
        self.places: list[int] = []


async def settle(verdicts: Sequence[tuple[Delivery, Verdict]]) -> list[Exception | None]:
    """See `ports.Broker.settle`."""
    answers: list[Exception | None] = [None] * len(verdicts)
    parts: dict[Source, _Part] = {}
    for place, (delivery, verdict) in enumerate(verdicts):
        token = delivery.token
        if not isinstance(token, Token):
            answers[place] = MisuseError(f"{delivery!r} did not come from this broker, so it cannot settle it")
        elif not token.lives:
            answers[place] = BrokerUnavailable(
                f"{delivery!r} was settled or given back before, or its channel has ended; it is no longer ours"
            )
        else:
            part = parts.setdefault(token.source, _Part(token.channel))
            part.places.append(place)
            if isinstance(verdict, Ack):
                part.acks.append(token)
            else:
                part.releases.append((token, verdict.after))
    errors = await asyncio.gather(*(_say(source, part) for source, part in parts.items()))
    for part, error in zip(parts.values(), errors, strict=True):
        for place in part.places:
            answers[place] = error
    return answers


async def _say(source: Source, part: _Part) -> Exception | None:
    channel, feed = part.channel, source.owner
    try:
        said = source.acknowledge(part.acks) if part.acks else b""
        if part.releases:
            said += feed.release(source, part.releases)
        if said:
            channel.link.send(said)
            feed.let_go(part.acks)
            await channel.round_trip(ANSWER)
    except BrokerUnavailable as error:
        return BrokerUnavailable(f"nobody knows whether the server has heard it: {error}")
    return None
