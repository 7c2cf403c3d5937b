"""Reading a log from its beginning, without a position and without leaving anything at the server.

By direct get, in batches: no consumer that must be kept alive, or breaks (trap 57), and a lost connection costs
no more than the batch under way. Any replica may answer, and one may lag (trap 41): where the log ends is asked
of the leader, and what a replica does not have yet is asked for again.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any, Final

import msgspec

from tidings.brokers.nats.api import NO_MESSAGE, NO_STREAM, Api, ApiError
from tidings.brokers.nats.connection import Connection
from tidings.brokers.nats.headers import RawHeaders, own, status_of
from tidings.brokers.nats.names import note_subjects, stream_of, type_and_slot
from tidings.delivery import Delivery, Header, Route
from tidings.errors import BrokerUnavailable, ConfigurationError

if TYPE_CHECKING:
    from tidings.brokers.nats.link import Link

FIRST_BATCH: Final = 64
LARGEST_BATCH: Final = 1000
BATCH_BYTES: Final = 4 * 1024 * 1024
ANSWER: Final = 10.0
POLL: Final = 0.2
"""Seconds between two looks for something new."""
POLL_NOTES: Final = 1.0
"""The same for notes, which every handler follows in every process."""

Found = tuple[int, Delivery]


async def read_log(
    connection: Connection, api: Api, route: Route, stream: str, since: datetime | None, follow: bool
) -> AsyncIterator[Delivery]:
    """The messages of a log in their order; see `ports.Broker.read`."""
    name = stream_of(route, stream)
    subjects = note_subjects(stream) if route is Route.NOTE else ">"
    end = (await _state(api, name))["last_seq"]
    at, size = 1, FIRST_BATCH
    start = since
    while follow or at <= end:
        batch = await _fetch(connection, api, name, route, _request(at, start, size, subjects))
        for seq, delivery in batch:
            if seq > end and not follow:
                return
            at, start = seq + 1, None
            yield delivery
        if batch:
            average = sum(len(delivery.body) for _, delivery in batch) // len(batch) + 1
            size = max(1, min(LARGEST_BATCH, BATCH_BYTES // average))
            continue
        if start is not None and not follow:
            return  # nothing is that young
        looked = False
        while not await _is_more(api, name, at, subjects):
            if not follow:
                return
            looked = True
            await asyncio.sleep(POLL_NOTES if route is Route.NOTE else POLL)
        if not looked:
            await asyncio.sleep(POLL)  # the replica that answered is behind


async def _state(api: Api, name: str) -> dict[str, Any]:
    try:
        return dict((await api.call(f"STREAM.INFO.{name}"))["state"])
    except ApiError as error:
        raise await _explained(api, name, error) from None


async def _is_more(api: Api, name: str, at: int, subjects: str) -> bool:
    """Whether the leader has something from `at` on: the replica that answered may only be behind."""
    try:
        await api.call(f"STREAM.MSG.GET.{name}", {"seq": at, "next_by_subj": subjects})
    except ApiError as error:
        if error.err_code == NO_MESSAGE:
            return False
        raise await _explained(api, name, error) from None
    return True


async def _explained(api: Api, name: str, error: ApiError) -> Exception:
    if error.err_code != NO_STREAM:
        return error
    names = (await api.call("STREAM.NAMES")).get("streams") or []
    return ConfigurationError(f"there is no stream {name!r}; the streams are: {', '.join(names) or 'none'}")


def _request(at: int, since: datetime | None, size: int, subjects: str) -> dict[str, Any]:
    request: dict[str, Any] = {"batch": size, "max_bytes": BATCH_BYTES, "next_by_subj": subjects}
    if since is None:
        return request | {"seq": at}
    moment = since if since.tzinfo is not None else since.astimezone()
    return request | {"start_time": moment.astimezone(UTC).isoformat().replace("+00:00", "Z")}


async def _fetch(connection: Connection, api: Api, name: str, route: Route, request: dict[str, Any]) -> list[Found]:
    """One batch. Less than asked for, or nothing, where the connection was lost meanwhile."""
    link = await connection.ready(ANSWER)
    found: list[Found] = []
    done = asyncio.Event()
    heard = time.monotonic()

    def take(subject: bytes, reply: bytes, headers: bytes | None, data: bytes) -> None:
        nonlocal heard
        heard = time.monotonic()
        if headers is None or headers.startswith(b"NATS/1.0 "):
            if headers is None or status_of(headers)[0] != 100:
                done.set()
            return
        last = int(own(headers, b"Nats-Last-Sequence") or 0)
        if done.is_set() or (found and last != found[-1][0]):
            done.set()  # a piece is missing: what follows is asked for again
            return
        found.append(_delivery(name, route, headers, data))

    inbox = link.own_subject()
    sid = link.subscribe_raw(inbox, take)
    try:
        payload = msgspec.json.encode(request)
        link.send(
            b"PUB %b.DIRECT.GET.%b %b %d\r\n%b\r\n" % (api.prefix.encode(), name.encode(), inbox, len(payload), payload)
        )
        while not done.is_set() and link.up:
            if time.monotonic() - heard > ANSWER:
                raise BrokerUnavailable(f"the stream {name!r} did not answer within {ANSWER:g} s")
            await _soon(done, link)
    finally:
        link.unsubscribe_raw(sid)
    return found


async def _soon(done: asyncio.Event, link: Link) -> None:
    try:
        async with asyncio.timeout(0.5):
            await done.wait()
    except TimeoutError:
        pass  # the caller looks whether the link still stands


def _delivery(name: str, route: Route, raw: bytes, data: bytes) -> Found:
    headers = RawHeaders(raw)
    seq = int(own(raw, b"Nats-Sequence") or 0)
    subject = (own(raw, b"Nats-Subject") or "").encode()
    return seq, Delivery(
        body=data,
        stream=name if route is Route.EVENT else headers.get(Header.STREAM) or name,
        origin=(name, seq),
        token=None,
        headers=headers,
        slot=type_and_slot(subject)[1] if route is Route.EVENT else None,
        route=route,
        stored=_moment(own(raw, b"Nats-Time-Stamp")),
    )


def _moment(stamp: str | None) -> float:
    """When the server stored a message, Unix seconds; it says so in nanoseconds."""
    try:
        return datetime.fromisoformat(stamp or "").timestamp()
    except ValueError:
        return 0.0
