"""Whether brokers are reached where they tell their clients to come: the mistake that local set-ups make most often.

The client library leaves the address of the URL for the ones it was told. Where those lead nowhere, every question that
follows ends in silence, or in a complaint about something else.
"""

from __future__ import annotations

import asyncio
import logging
import socket
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

from tidings.brokers._address import address
from tidings.errors import BrokerUnavailable

log = logging.getLogger("tidings.kafka")

PATIENCE: Final = 3.0
"""Seconds for one step of one address."""


@dataclass(frozen=True, slots=True)
class Door:
    """An address that a broker tells its clients, and what happens there."""

    number: int
    address: str
    why: str
    """Why it is not reached; empty where it is."""

    @property
    def told(self) -> str:
        if self.why:
            return f"broker {self.number} tells its clients to come to {self.address}, and from here {self.why}"
        return f"broker {self.number} is reached where it says: {self.address}"

    @property
    def remedy(self) -> str:
        return (
            f"Set advertised.listeners of broker {self.number} to an address that is reached from here, such as"
            " PLAINTEXT://localhost:9092 for a container whose port is published on this machine."
        )


async def doors(brokers: Mapping[int, tuple[str, int]]) -> list[Door]:
    """Knock at each; `brokers` is where they say they are, by number."""
    sorted_ = sorted(brokers.items())
    knocks = await asyncio.gather(*(knock(host, port) for _, (host, port) in sorted_))
    return [Door(number, address(host, port), why) for (number, (host, port)), why in zip(sorted_, knocks, strict=True)]


async def must_reach(where: str, brokers: Mapping[int, tuple[str, int]]) -> None:
    """Tell at once what would show itself as silence later; one broker of several may just be away.

    Raises:
        BrokerUnavailable: none of them is reached where it says.
    """
    found = await doors(brokers)
    closed = [one for one in found if one.why]
    if closed and len(closed) == len(found):
        raise BrokerUnavailable(f"{where} is there, but {closed[0].told}. {closed[0].remedy}")
    for one in closed:
        log.warning("of %s, %s. Is it running? If so: %s", where, one.told, one.remedy)


async def knock(host: str, port: int) -> str:
    """Resolve a name and connect to a port; why that cannot be done, or nothing."""
    where = address(host, port)
    loop = asyncio.get_running_loop()
    try:
        async with asyncio.timeout(PATIENCE):
            await loop.getaddrinfo(host, port, type=socket.SOCK_STREAM)
    except (OSError, TimeoutError):
        return f"the name {host!r} is not known ({where})"
    try:
        async with asyncio.timeout(PATIENCE):
            _, writer = await asyncio.open_connection(host, port)
    except TimeoutError:
        return f"{where} does not answer within {PATIENCE:.0f} s"
    except OSError as error:
        return f"nobody answers at {where} ({error.strerror or error})"
    writer.close()
    try:
        await writer.wait_closed()
    except OSError:
        pass  # it was there
    return ""
