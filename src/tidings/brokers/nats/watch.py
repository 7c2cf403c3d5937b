"""What a feed looks at from time to time: is its consumer there, paused, ahead of its stream, and how far is it.

A consumer that was deleted is never created again in silence: its place in the stream is lost, and whoever deleted it
may have meant it (trap 56).
"""

from __future__ import annotations

import logging
import time
from datetime import timedelta
from typing import Any, Final

from tidings.brokers.nats.api import NO_STREAM, Api, ApiError
from tidings.brokers.nats.consumers import find_consumer
from tidings.brokers.nats.names import RETRY_STREAM, durable_of, waiting_subjects
from tidings.brokers.nats.pull import Pull
from tidings.brokers.nats.streams import find_stream
from tidings.errors import BrokerUnavailable
from tidings.ports import Backlog, Subscription

log = logging.getLogger("tidings.nats")

LOOK_AGAIN: Final = 5.0


class Watch:
    """Looks after the consumers of one position."""

    def __init__(self, api: Api, subscription: Subscription) -> None:
        self._api = api
        self._subscription = subscription
        self._pulls: tuple[Pull, ...] = ()
        self._looked: dict[Pull, float] = {}

    def of(self, *pulls: Pull) -> None:
        self._pulls = pulls

    async def tend(self) -> None:
        """Look for consumers that may be gone, not too often."""
        for pull in self._pulls:
            if pull.check_consumer and time.monotonic() - self._looked.get(pull, 0.0) > (
                LOOK_AGAIN if pull.trouble else 0
            ):
                self._looked[pull] = time.monotonic()
                await self._look(pull)

    async def _look(self, pull: Pull) -> None:
        # In a hurry: whoever asks keeps deliveries alive meanwhile.
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
        events, retries = self._pulls
        pending = in_flight = 0
        for pull in (events, retries):
            info = await find_consumer(self._api, pull.stream, pull.durable)
            if info is None:
                pull.check_consumer = True
                continue
            pending += info.get("num_pending", 0)
            in_flight += info.get("num_ack_pending", 0)
            await self._judge(pull, info)
        waiting = await scheduled(self._api, self._subscription.position)
        return Backlog(pending=pending, in_flight=in_flight, scheduled=waiting)

    async def keeps(self) -> timedelta | None:
        """How long the stream keeps its events now, whatever the code says; None is without end."""
        found = await find_stream(self._api, self._subscription.stream)
        if found is None:
            raise BrokerUnavailable(f"there is no stream {self._subscription.stream!r} any more")
        age = int(found.get("max_age") or 0)
        return timedelta(microseconds=-(-age // 1000)) if age else None

    async def _judge(self, pull: Pull, info: dict[str, Any]) -> None:
        trouble = ""
        if info.get("paused"):
            trouble = (
                f"the position {self._subscription.position} is paused at the server until"
                f" {info['config'].get('pause_until')}: nats consumer resume {pull.stream} {pull.durable}"
            )
        elif not info.get("num_pending") and await self._is_ahead(pull, info):
            trouble = (
                f"the position {self._subscription.position} is ahead of the stream {pull.stream}, which has lost its"
                " end, and would skip what is stored next. Restore the stream, or remove the consumer and restart:"
                f" nats consumer rm {pull.stream} {pull.durable}"
            )
        if trouble or pull.trouble.startswith(f"the position {self._subscription.position} is "):
            if trouble and trouble != pull.trouble:
                log.error("%s", trouble)
            pull.trouble = trouble if not pull.check_consumer else pull.trouble

    async def _is_ahead(self, pull: Pull, info: dict[str, Any]) -> bool:
        """The consumer stands behind the end of its stream: the stream lost what the consumer has seen (trap 7)."""
        at = max(info["delivered"].get("stream_seq", 0), info["ack_floor"].get("stream_seq", 0))
        state = (await self._api.call(f"STREAM.INFO.{pull.stream}"))["state"]
        return bool(at > state.get("last_seq", 0))


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
    info = await find_consumer(api, RETRY_STREAM, durable_of(position)) or {}
    due = int(info.get("num_pending", 0)) + int(info.get("num_ack_pending", 0))
    return due + await scheduled(api, position)
