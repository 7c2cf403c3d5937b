"""The log of one handler's dead letters, as its own service may read it: headers alone, and no other handler's.

A service may not read the log as a whole (`reading` does), and needs no permission for this that it does not have: it
may make consumers that are named like its positions, on any stream. Such a consumer passes away by itself. While one
process reads, another one cannot make it, and tries again later; each one reads for itself.
"""

from __future__ import annotations

import asyncio
import logging
import secrets
import time
from typing import Any, Final

import msgspec

from tidings.brokers.nats.api import CONSUMER_EXISTS, NO_STREAM, Api, ApiError
from tidings.brokers.nats.connection import Connection
from tidings.brokers.nats.headers import RawHeaders
from tidings.brokers.nats.link import Link, Refused, refusal_of
from tidings.brokers.nats.names import DEAD_STREAM, dead_subject, durable_of, share_durable
from tidings.brokers.nats.pull import ACK_PREFIX
from tidings.brokers.nats.streams import SECOND
from tidings.errors import BrokerUnavailable
from tidings.sight import Lines

log = logging.getLogger("tidings.nats")

BATCH: Final = 200
"""Lines that are asked for at once. With the largest headers that there may be, they are 13 MB."""
PASSES_AWAY: Final = 1.0
"""Seconds after the last request until the server removes the consumer."""
ANSWER: Final = 5.0
ENOUGH: Final = 1.0
"""Seconds after which no more is asked for at one look, so that a slow link comes to the end too, in more of them."""

Line = tuple[int, RawHeaders]
"""With its place in the stream."""


class NatsLetterLog:
    """See `sight.LetterLog`."""

    def __init__(self, connection: Connection, api: Api, position: str, *, ordered: bool) -> None:
        self._connection, self._api, self._position = connection, api, position
        self._name = share_durable(position, 0) if ordered else durable_of(position)
        self._subject = dead_subject(position)
        self._made = ""
        """When the stream was made that is read from: another one has other lines."""
        self._read, self._at = 0, 0
        """How many lines were returned, and the place of the last."""
        self._anew = False
        self._refused = False
        self._replicas = 1
        """As many as the stream has: one at a single server would be away with it, and its name taken until then."""

    async def more(self, most: int) -> Lines | None:
        if self._refused:
            return None
        made, count = await self._count()
        if made != self._made or count < self._read:
            self._made, self._read, self._at, self._anew = made, 0, 0, True
        try:
            found = await self._lines(min(most, count - self._read))
        except Refused as error:
            self._refused = True
            log.warning("%s: how many dead letters are held is not told: %s", self._position, error)
            return None
        if found:
            self._read, self._at = self._read + len(found), found[-1][0]
        anew, self._anew = self._anew, False
        return Lines([headers for _, headers in found], whole=self._read >= count, anew=anew)

    async def _count(self) -> tuple[str, int]:
        """When the stream was made, and how many lines of this handler it holds."""
        try:
            found = await self._api.call(f"STREAM.INFO.{DEAD_STREAM}", {"subjects_filter": self._subject}, patience=0.0)
        except ApiError as error:
            if error.err_code == NO_STREAM:
                return "", 0
            raise BrokerUnavailable(str(error)) from None
        self._replicas = int(found["config"].get("num_replicas") or 1)
        return str(found.get("created")), sum((found["state"].get("subjects") or {}).values())

    async def _lines(self, wanted: int) -> list[Line]:
        if wanted <= 0:
            return []
        link = await self._connection.ready(ANSWER)
        if not await self._make_consumer(link):
            return []  # another process reads just now
        found: list[Line] = []
        end = time.monotonic() + ENOUGH
        while len(found) < wanted and (piece := await self._pull(link, min(BATCH, wanted - len(found)))):
            found += piece
            if time.monotonic() > end:
                break
        return found

    async def _make_consumer(self, link: Link) -> bool:
        config: dict[str, Any] = {
            "name": self._name,
            "deliver_policy": "by_start_sequence",
            "opt_start_seq": self._at + 1,
            "ack_policy": "none",
            "filter_subjects": [self._subject],
            "headers_only": True,
            "inactive_threshold": int(PASSES_AWAY * SECOND),
            "mem_storage": True,
            "num_replicas": self._replicas,
            "replay_policy": "instant",
            # Two that ask for the same consumer would share its lines.
            "metadata": {"tidings-reader": secrets.token_hex(8)},
        }
        body = {"stream_name": DEAD_STREAM, "config": config, "action": "create"}
        subject = f"{self._api.prefix}.CONSUMER.CREATE.{DEAD_STREAM}.{self._name}"
        answer = msgspec.json.decode(await link.ask(subject, msgspec.json.encode(body), ANSWER, needed=False))
        if "error" not in answer:
            return True
        refusal = ApiError(subject, answer["error"])
        if refusal.err_code in CONSUMER_EXISTS:
            return False
        raise BrokerUnavailable(str(refusal))

    async def _pull(self, link: Link, count: int) -> list[Line]:
        """The next lines with their places in the stream; none where there are none."""
        subject = f"{self._api.prefix}.CONSUMER.MSG.NEXT.{DEAD_STREAM}.{self._name}"
        found: list[Line] = []
        done: asyncio.Future[None] = asyncio.get_running_loop().create_future()

        def take(_: bytes, reply: bytes, headers: bytes | None, data: bytes) -> None:
            if reply.startswith(ACK_PREFIX):
                parts = reply.split(b".")
                found.append((int(parts[5 if len(parts) == 9 else 7]), RawHeaders(headers or b"")))
                if len(found) < count:
                    return
            if not done.done():
                done.set_result(None)

        def refused() -> None:
            if not done.done():
                done.set_exception(refusal_of(subject))

        inbox = link.own_subject()
        sid = link.subscribe_raw(inbox, take)
        try:
            with link.may_be_refused(subject, refused):
                payload = msgspec.json.encode({"batch": count, "no_wait": True})
                link.send(b"PUB %b %b %d\r\n%b\r\n" % (subject.encode(), inbox, len(payload), payload))
                async with asyncio.timeout(ANSWER):
                    await done
        except TimeoutError:
            raise BrokerUnavailable(f"the stream {DEAD_STREAM!r} did not answer within {ANSWER:g} s") from None
        finally:
            link.unsubscribe_raw(sid)
        return found
