"""The positions: durable consumers, created as the code declares them, compared where they exist, never changed.

Always durable, without an inactivity threshold (trap 32), with explicit acks said aloud (trap 31), without `backoff`
(trap 26), and without `max_deliver` (trap 9): Tidings counts failures itself.
"""

from __future__ import annotations

from datetime import UTC
from typing import Any, Final

from tidings.brokers.nats.api import CONSUMER_EXISTS, NO_CONSUMER, NO_STREAM, PATIENCE, Api, ApiError
from tidings.brokers.nats.names import RETRY_STREAM, due_subject, durable_of, filters_of
from tidings.brokers.nats.streams import SECOND
from tidings.errors import ConfigurationError
from tidings.ports import Drift, Subscription

SERVICE_KEY: Final = "tidings-service"
POSITION_KEY: Final = "tidings-position"
TYPES_KEY: Final = "tidings-types"

MAX_ACK_PENDING: Final = 65_536
"""Deliveries that all processes together may have open: each of them bounds its own (trap 28)."""
ORDERED_ACK_PENDING: Final = 8_192
"""The same where one process at a time is active; a successor has to sort what its predecessor left."""
MAX_WAITING: Final = 4_096
"""Pull requests that all processes together may have waiting; each has up to four."""
GROUP: Final = "one"
PIN_TIMEOUT: Final = 5.0
"""Seconds without a pull by the active process until a standby takes over."""


def event_consumer(subscription: Subscription, ack_wait: float) -> dict[str, Any]:
    """The configuration of a position."""
    wanted = _durable(subscription, ack_wait) | {
        "deliver_policy": subscription.start,
        "filter_subjects": filters_of(subscription.types),
    }
    if subscription.since is not None:
        moment = subscription.since.astimezone(UTC).isoformat().replace("+00:00", "Z")
        wanted |= {"deliver_policy": "by_start_time", "opt_start_time": moment}
    if subscription.ordered:
        wanted |= {
            "max_ack_pending": ORDERED_ACK_PENDING,
            "priority_groups": [GROUP],
            "priority_policy": "pinned_client",
            "priority_timeout": int(PIN_TIMEOUT * SECOND),
        }
    return wanted


def retry_consumer(subscription: Subscription, ack_wait: float) -> dict[str, Any]:
    """The configuration of a position's retry route."""
    return _durable(subscription, ack_wait) | {
        "deliver_policy": "all",
        "filter_subjects": [due_subject(subscription.position)],
    }


def _durable(subscription: Subscription, ack_wait: float) -> dict[str, Any]:
    name = durable_of(subscription.position)
    return {
        "durable_name": name,
        "name": name,
        "ack_policy": "explicit",
        "ack_wait": int(ack_wait * SECOND),
        "max_deliver": -1,
        "max_ack_pending": MAX_ACK_PENDING,
        "max_waiting": MAX_WAITING,
        "replay_policy": "instant",
        "metadata": {
            SERVICE_KEY: subscription.position.split(".", 1)[0],
            POSITION_KEY: subscription.position,
            TYPES_KEY: ",".join(sorted(set(subscription.types))),
        },
    }


async def existing_positions(api: Api, service: str, streams: list[str]) -> dict[str, list[str]]:
    """The positions of a service that the server knows, with the types of each."""
    found: dict[str, list[str]] = {}
    for stream in streams:
        offset = 0
        while True:
            try:
                page = await api.call(f"CONSUMER.LIST.{stream}", {"offset": offset})
            except ApiError as error:
                if error.err_code == NO_STREAM:
                    break
                raise
            consumers = page.get("consumers") or []
            for one in consumers:
                said = one["config"].get("metadata") or {}
                if said.get(SERVICE_KEY) == service and said.get(POSITION_KEY):
                    found[said[POSITION_KEY]] = [t for t in said.get(TYPES_KEY, "").split(",") if t]
            offset += len(consumers)
            if not consumers or offset >= page.get("total", 0):
                break
    return found


async def ensure_consumer(api: Api, stream: str, wanted: dict[str, Any]) -> list[Drift]:
    """Create a consumer that is missing; of several processes the first creates it, and all agree.

    Raises:
        ConfigurationError: the name belongs to somebody else's consumer, or the server refuses.
    """
    name = wanted["durable_name"]
    found = await find_consumer(api, stream, name)
    if found is None:
        body = {"stream_name": stream, "config": wanted, "action": "create"}
        try:
            found = await api.call(f"CONSUMER.CREATE.{stream}.{name}", body)
        except ApiError as error:
            if error.err_code not in CONSUMER_EXISTS:
                raise ConfigurationError(
                    f"the position {wanted['metadata'][POSITION_KEY]} cannot be created on the stream {stream!r}:"
                    f" {error.description} ({error.err_code})"
                ) from None
            found = await find_consumer(api, stream, name) or {}
    config = found.get("config") or {}
    _check_ours(stream, wanted, config)
    return _compare(stream, wanted, config)


async def find_consumer(
    api: Api, stream: str, name: str, *, timeout: float = 5.0, patience: float = PATIENCE
) -> dict[str, Any] | None:
    """What the server says of a consumer, or None if there is no such consumer."""
    try:
        return await api.call(f"CONSUMER.INFO.{stream}.{name}", timeout=timeout, patience=patience)
    except ApiError as error:
        if error.err_code in (NO_CONSUMER, NO_STREAM):
            return None
        raise


def _check_ours(stream: str, wanted: dict[str, Any], found: dict[str, Any]) -> None:
    name, position = wanted["durable_name"], wanted["metadata"][POSITION_KEY]
    remedy = f"Remove it if nobody needs it (its place in the stream is lost): nats consumer rm {stream} {name}"
    if (found.get("metadata") or {}).get(POSITION_KEY) != position:
        raise ConfigurationError(
            f"the stream {stream!r} has a consumer {name!r} that Tidings did not make, and {position} needs that name."
            f" {remedy}"
        )
    if found.get("ack_policy") != "explicit" or found.get("deliver_subject") or found.get("inactive_threshold"):
        raise ConfigurationError(
            f"the consumer {name!r} of {stream!r} cannot be the position of {position}: it must be a pull consumer with"
            f" ack policy explicit and without inactive threshold, or events would be lost. {remedy}"
        )
    if found.get("priority_policy", "none") != wanted.get("priority_policy", "none"):
        ordered = "priority_policy" in wanted
        raise ConfigurationError(
            f"the position {position} exists and is {'not ' if ordered else ''}ordered, the code says it is"
            f" {'' if ordered else 'not '}ordered, and the server cannot change that. Keep the handler's order= as it"
            f" was, or give it another name=. {remedy}"
        )


def _compare(stream: str, wanted: dict[str, Any], found: dict[str, Any]) -> list[Drift]:
    edit = f"nats consumer edit {stream} {wanted['durable_name']}"
    options = {
        "ack_wait": f"--wait={wanted['ack_wait'] / SECOND:g}s",
        "max_deliver": "--max-deliver=-1",
        "max_ack_pending": f"--max-pending={wanted['max_ack_pending']}",
        "filter_subjects": " ".join(f"--filter={one}" for one in wanted["filter_subjects"]),
    }
    drifts = []
    for field, option in options.items():
        declared, has = wanted[field], found.get(field, 0)
        if field == "filter_subjects":
            has = sorted(has or ([found["filter_subject"]] if found.get("filter_subject") else []))
        if declared != has:
            drifts.append(
                Drift(
                    what=f"{field} of position {wanted['metadata'][POSITION_KEY]}"
                    + (" (retry)" if stream == RETRY_STREAM else ""),
                    declared=_text(declared),
                    found=_text(has),
                    remedy=f"To settle it: {edit} {option}",
                )
            )
    if found.get("backoff"):
        drifts.append(
            Drift(
                what=f"backoff of position {wanted['metadata'][POSITION_KEY]}",
                declared="none",
                found=str(found["backoff"]),
                remedy=f"It delays what must not wait. To settle it: {edit} --backoff=none",
            )
        )
    return drifts


def _text(value: Any) -> str:
    if isinstance(value, list):
        return ", ".join(value)
    return f"{value / SECOND:g} s" if isinstance(value, int) and value >= SECOND else str(value)
