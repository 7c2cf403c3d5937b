"""What a feed looks at from time to time: is its consumer there, paused, ahead of its stream, and how far is it.

A consumer that was deleted is never created again in silence: its place in the stream is lost, and whoever deleted it
may have meant it (trap 56).
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Sequence
from datetime import timedelta
from typing import Any, Final

from tidings.brokers.nats.api import NO_STREAM, Api, ApiError
from tidings.brokers.nats.consumers import find_consumer, pinned_in
from tidings.brokers.nats.names import RETRY_STREAM, SHARES, durable_of, share_durable, waiting_subjects
from tidings.brokers.nats.pull import Pull
from tidings.brokers.nats.streams import find_stream
from tidings.errors import BrokerUnavailable
from tidings.ports import Backlog, Subscription

log = logging.getLogger("tidings.nats")

LOOK_AGAIN: Final = 5.0
UNSERVED: Final = 15.0
"""Seconds that events may wait in a share that no process has; a take-over is done in half of that."""


class Watch:
    """Looks after the consumers of one position."""

    def __init__(self, api: Api, subscription: Subscription) -> None:
        self._api = api
        self._subscription = subscription
        self._pulls: tuple[Pull, ...] = ()
        self._looked: dict[Pull, float] = {}
        self._unserved: dict[Pull, float] = {}

    def of(self, pulls: Sequence[Pull]) -> None:
        self._pulls = tuple(pulls)

    async def tend(self) -> None:
        """Look for consumers that may be gone, not too often."""
        now = time.monotonic()
        due = [
            pull
            for pull in self._pulls
            if pull.check_consumer and now - self._looked.get(pull, 0.0) > (LOOK_AGAIN if pull.trouble else 0)
        ]
        if due:
            self._looked |= dict.fromkeys(due, now)
            await asyncio.gather(*(self._look(pull) for pull in due))

    async def _look(self, pull: Pull) -> None:
        # Side by side and in a hurry: whoever asks keeps deliveries alive meanwhile.
        found = await find_consumer(self._api, pull.stream, pull.durable, timeout=1.0, patience=0.0)
        if found is not None:
            pull.check_consumer = False
            if pull.trouble:
                log.warning("the consumer %s of %s is there again", pull.durable, pull.stream)
            pull.trouble = ""
        elif not pull.trouble:
            pull.trouble = (
                f"the position {self._subscription.position} is gone: somebody deleted the consumer {pull.durable} of"
                f" the stream {pull.stream}, and its place with it. To start over from the beginning (handlers with"
                " once= stay safe), restart the service"
            )
            log.error("%s", pull.trouble)

    async def backlog(self) -> Backlog:
        """How far behind the position is; raises BrokerUnavailable when the server cannot be asked."""
        found = await asyncio.gather(*(find_consumer(self._api, pull.stream, pull.durable) for pull in self._pulls))
        pending = in_flight = 0
        ends: dict[str, int] = {}
        for pull, info in zip(self._pulls, found, strict=True):
            if info is None:
                pull.check_consumer = True
                continue
            pending += info.get("num_pending", 0)
            in_flight += info.get("num_ack_pending", 0)
            await self._judge(pull, info, ends)
        waiting = await scheduled(self._api, self._subscription.position)
        return Backlog(pending=pending, in_flight=in_flight, scheduled=waiting)

    async def keeps(self) -> timedelta | None:
        """How long the stream keeps its events now, whatever the code says; None is without end."""
        found = await find_stream(self._api, self._subscription.stream)
        if found is None:
            raise BrokerUnavailable(f"there is no stream {self._subscription.stream!r} any more")
        age = int(found.get("max_age") or 0)
        return timedelta(microseconds=-(-age // 1000)) if age else None

    async def _judge(self, pull: Pull, info: dict[str, Any], ends: dict[str, int]) -> None:
        trouble = ""
        if info.get("paused"):
            trouble = (
                f"the position {self._subscription.position} is paused at the server until"
                f" {info['config'].get('pause_until')}: nats consumer resume {pull.stream} {pull.durable}"
            )
        elif not info.get("num_pending") and await self._is_ahead(pull, info, ends):
            trouble = (
                f"the position {self._subscription.position} is ahead of the stream {pull.stream}, which has lost its"
                " end, and would skip what is stored next. Restore the stream, or remove the consumer and restart:"
                f" nats consumer rm {pull.stream} {pull.durable}"
            )
        elif self._nobody_takes(pull, info):
            trouble = (
                f"the position {self._subscription.position} is not served in full: for {UNSERVED:.0f} s and more"
                f" nobody has taken from {pull.durable}, where {info['num_pending']} events wait. Look whether all"
                " processes of the service are well, and restart those that are not"
            )
        if trouble or pull.trouble.startswith(f"the position {self._subscription.position} is "):
            if trouble and trouble != pull.trouble:
                log.error("%s", trouble)
            pull.trouble = trouble if not pull.check_consumer else pull.trouble

    async def _is_ahead(self, pull: Pull, info: dict[str, Any], ends: dict[str, int]) -> bool:
        """The consumer stands behind the end of its stream: the stream lost what the consumer has seen (trap 7)."""
        at = max(info["delivered"].get("stream_seq", 0), info["ack_floor"].get("stream_seq", 0))
        if pull.stream not in ends:
            ends[pull.stream] = (await self._api.call(f"STREAM.INFO.{pull.stream}"))["state"].get("last_seq", 0)
        return bool(at > ends[pull.stream])

    def _nobody_takes(self, pull: Pull, info: dict[str, Any]) -> bool:
        """Events wait in a share of an ordered position, and no process was pinned for a while."""
        if not info.get("priority_groups") or not info.get("num_pending") or pinned_in(info):
            self._unserved.pop(pull, None)
            return False
        return time.monotonic() - self._unserved.setdefault(pull, time.monotonic()) >= UNSERVED


async def scheduled(api: Api, position: str) -> int:
    """Copies of a position that wait for their time: each has a subject of its own."""
    try:
        asked = {"subjects_filter": waiting_subjects(position)}
        state = (await api.call(f"STREAM.INFO.{RETRY_STREAM}", asked))["state"]
    except ApiError as error:
        if error.err_code == NO_STREAM:
            return 0
        raise
    return sum((state.get("subjects") or {}).values())


async def copies(api: Api, position: str) -> int:
    """Copies on the retry route of a position that are not settled."""
    names = [durable_of(position), *(share_durable(position, share) for share in range(SHARES))]
    found = await asyncio.gather(*(find_consumer(api, RETRY_STREAM, name) for name in names))
    due = sum(int(one.get("num_pending", 0)) + int(one.get("num_ack_pending", 0)) for one in found if one)
    return due + await scheduled(api, position)
