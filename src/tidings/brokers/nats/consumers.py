"""The positions: durable consumers, created as the code declares them, compared where they exist, never changed.

Always durable, without an inactivity threshold (trap 32), with explicit acks said aloud (trap 31), without `backoff`
(trap 26), and without `max_deliver` (trap 9): Tidings counts failures itself.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Collection, Sequence
from datetime import UTC
from typing import Any, Final

import msgspec

from tidings.brokers.nats.api import CONSUMER_EXISTS, NO_CONSUMER, NO_STREAM, PATIENCE, Api, ApiError
from tidings.brokers.nats.names import (
    RETRY_STREAM,
    SHARES,
    due_subjects,
    durable_of,
    filters_of,
    filters_of_share,
    share_durable,
)
from tidings.brokers.nats.streams import SECOND
from tidings.errors import ConfigurationError
from tidings.ports import Drift, Subscription

SERVICE_KEY: Final = "tidings-service"
POSITION_KEY: Final = "tidings-position"
TYPES_KEY: Final = "tidings-types"

MAX_ACK_PENDING: Final = 65_536
"""Deliveries that all processes together may have open: each of them bounds its own (trap 28)."""
ORDERED_ACK_PENDING: Final = 1_024
"""The same for a share of an ordered position. A successor has to gather all of it before it begins: were it more, then
processes that are killed again and again would leave ever more to gather, and come to nothing else."""
MAX_WAITING: Final = 4_096
"""Pull requests that all processes together may have waiting; each has up to four."""
GROUP: Final = "one"
PIN_TIMEOUT: Final = 5.0
"""Seconds without a pull by the active process until a standby takes over."""


class Found(msgspec.Struct):
    """A position that the server knows: the types it takes, and its consumers."""

    types: list[str]
    durables: list[str]


def event_consumers(subscription: Subscription, ack_wait: float) -> list[dict[str, Any]]:
    """The configuration of a position: one consumer, or one for each share where the order is kept."""
    if not subscription.ordered:
        filters = filters_of(subscription.types)
        return [
            _durable(subscription, durable_of(subscription.position), ack_wait)
            | {**_beginning(subscription), "filter_subjects": filters}
        ]
    return [
        _durable(subscription, share_durable(subscription.position, share), ack_wait)
        | {
            **_beginning(subscription),
            "filter_subjects": filters_of_share(subscription.types, share),
            "max_ack_pending": ORDERED_ACK_PENDING,
            "priority_groups": [GROUP],
            "priority_policy": "pinned_client",
            "priority_timeout": int(PIN_TIMEOUT * SECOND),
        }
        for share in range(SHARES)
    ]


def _beginning(subscription: Subscription) -> dict[str, str]:
    if subscription.since is None:
        return {"deliver_policy": subscription.start}
    moment = subscription.since.astimezone(UTC).isoformat().replace("+00:00", "Z")
    return {"deliver_policy": "by_start_time", "opt_start_time": moment}


def retry_consumers(subscription: Subscription, ack_wait: float) -> list[dict[str, Any]]:
    """The configuration of a position's retry route, shared out as its events are."""
    position = subscription.position
    names: list[tuple[str, int | None]] = [(durable_of(position), None)]
    if subscription.ordered:
        names = [(share_durable(position, share), share) for share in range(SHARES)]
    return [
        _durable(subscription, name, ack_wait)
        | {"deliver_policy": "all", "filter_subjects": due_subjects(position, share)}
        for name, share in names
    ]


def _durable(subscription: Subscription, name: str, ack_wait: float) -> dict[str, Any]:
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


async def existing_positions(api: Api, service: str, streams: list[str]) -> dict[str, Found]:
    """The positions of a service that the server knows."""
    found: dict[str, Found] = {}
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
                    found.setdefault(said[POSITION_KEY], Found(types_in(one), [])).durables.append(one["name"])
            offset += len(consumers)
            if not consumers or offset >= page.get("total", 0):
                break
    return found


def check_kept_alike(subscription: Subscription, found: Found) -> None:
    """Refuse a position that exists and is ordered where the code says it is not, or the other way round.

    Raises:
        ConfigurationError: it is, with the command that removes the old one.
    """
    whole = durable_of(subscription.position) in found.durables
    if whole is not subscription.ordered:
        return
    position = subscription.position
    there, wanted = "in shares, as an ordered one", "not ordered"
    if whole:
        there = "as one consumer, which is not ordered, or was made before ordered positions were shared out"
        wanted = "ordered"
    raise ConfigurationError(
        f"the position {position} exists {there}; the code says it is {wanted}, and the server cannot change that. Keep"
        " the handler's order= as it was, or give it another name=. Or remove it if nobody needs it (its place in the"
        f" stream is lost): {how_to_remove(subscription.stream, position, found.durables)}"
    )


def how_to_remove(stream: str, position: str, durables: Sequence[str]) -> str:
    """The commands that remove a position for good."""
    name = durable_of(position)
    remove = f"nats consumer rm {stream} %s -f; nats consumer rm {RETRY_STREAM} %s -f"
    if list(durables) in ([], [name]):
        return remove % (name, name)
    numbers = " ".join(str(share) for share in range(SHARES))
    each = remove % (f"{name}_$i", f"{name}_$i")
    whole = f"{remove % (name, name)}; " if name in durables else ""
    return f"{whole}for i in {numbers}; do {each}; done"


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


async def remember_types(
    api: Api, subscription: Subscription, stream: str, now: Callable[[Sequence[str]], Collection[str]]
) -> list[str] | None:
    """Write down, at the consumers of a position's retry route, which types it takes `now`, by what it took.

    Returns those that stood there before; None where nothing had changed. Their filters, which are an operator's to
    change, have nothing to do with types.
    """

    async def remember(wanted: dict[str, Any]) -> list[str] | None:
        found = await find_consumer(api, stream, wanted["name"])
        if found is None or types_in(found) == (types := sorted(now(types_in(found)))):
            return None
        metadata = {**found["config"]["metadata"], TYPES_KEY: ",".join(types)}
        config = {**found["config"], "metadata": metadata}
        body = {"stream_name": stream, "config": config, "action": "update"}
        await api.call(f"CONSUMER.CREATE.{stream}.{wanted['name']}", body)
        return types_in(found)

    befores = await asyncio.gather(*(remember(one) for one in retry_consumers(subscription, 1.0)))
    return next((one for one in befores if one is not None), None)


async def types_taken(api: Api, subscription: Subscription, stream: str) -> list[str]:
    """Which types a position takes."""
    found = await find_consumer(api, stream, retry_consumers(subscription, 1.0)[0]["name"])
    return [] if found is None else types_in(found)


def types_in(info: dict[str, Any]) -> list[str]:
    """The types of its position, as they are written down at a consumer."""
    said = (info.get("config") or {}).get("metadata") or {}
    return [one for one in said.get(TYPES_KEY, "").split(",") if one]


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


def pinned_in(info: dict[str, Any]) -> str:
    """Whom the server has pinned, as it says of a consumer; empty for nobody."""
    return next((str(one["pinned_client_id"]) for one in _groups(info) if one.get("pinned_client_id")), "")


def _groups(info: dict[str, Any]) -> list[dict[str, Any]]:
    return info.get("priority_groups") or []


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
            f"the consumer {name!r} of {stream!r} is {'not ' if ordered else ''}pinned to one client, and {position}"
            f" {'needs' if ordered else 'must not have'} that. {remedy}"
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
