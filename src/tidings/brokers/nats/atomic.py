"""Many messages of one stream as one atomic batch: one write to the server's disk instead of one for each.

Measured with ``sync_interval: always``: ten times the rate of single messages; for sixteen it is the same. A batch is
all or nothing, and the server refuses it for one id that it has already. Then, and whenever else it says no, the
messages go one by one: a known id counts as success, and every message gets an answer of its own (trap 39).
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Sequence
from typing import TYPE_CHECKING, Final

import msgspec

from tidings.brokers.nats.frames import Frame
from tidings.errors import BrokerUnavailable

if TYPE_CHECKING:
    from tidings.brokers.nats.link import Link

log = logging.getLogger("tidings.nats")

FEWEST: Final = 32
"""From so many on a batch pays."""
MOST: Final = 1000
"""What the server takes in one batch."""

_QUIET: Final = frozenset({10201, 10174})
"""A known id, or a stream without batches: nothing worth a word."""


class _Error(msgspec.Struct):
    err_code: int = 0
    description: str = ""


class _Committed(msgspec.Struct):
    stream: str = ""
    batch: str = ""
    count: int = 0
    error: _Error | None = None


_decode = msgspec.json.Decoder(_Committed).decode


def suits(frames: Sequence[Frame], fewest: int = FEWEST) -> bool:
    """Whether these can be one batch: enough of them, in one stream that takes batches, no id twice."""
    if not fewest <= len(frames) <= MOST or not all(frame.batches for frame in frames):
        return False
    return len({frame.stream for frame in frames}) == 1 and len({frame.id for frame in frames}) == len(frames)


async def store_batch(link: Link, frames: Sequence[Frame], timeout: float) -> bool:
    """Store all or nothing. True once it is stored; False when it was refused, or nothing is known.

    In the second case the messages may go out again, one by one and under the same ids: what the server committed
    after all are then known ids, and what it did not commit it forgets.
    """
    answered: asyncio.Future[bytes | None] = asyncio.get_running_loop().create_future()

    def take(tag: int, headers: bytes | None, data: bytes | None) -> None:
        if not answered.done():
            answered.set_result(data)

    batch = link.own_subject().rpartition(b".")[2]
    last = len(frames)
    reply = link.expect(take)
    try:
        async with asyncio.timeout(timeout):
            parts = [
                frame.publish(extra=b"Nats-Batch-Id: %b\r\nNats-Batch-Sequence: %d\r\n" % (batch, number))
                for number, frame in enumerate(frames[:-1], 1)
            ]
            end = b"Nats-Batch-Id: %b\r\nNats-Batch-Sequence: %d\r\nNats-Batch-Commit: 1\r\n" % (batch, last)
            link.send(b"".join([*parts, frames[-1].publish(reply, end)]))
            await link.drained()
            data = await answered
    except (TimeoutError, BrokerUnavailable):
        return False
    finally:
        link.forget(reply)
    return _committed(data, frames[-1].stream, last)


def _committed(data: bytes | None, stream: str, count: int) -> bool:
    if not data:
        return False
    try:
        said = _decode(data)
    except msgspec.DecodeError:
        return False
    if said.error is not None:
        if said.error.err_code not in _QUIET:
            log.info("the stream %s refused a batch of %d: %s", stream, count, said.error.description)
        return False
    return said.stream == stream and said.count == count
