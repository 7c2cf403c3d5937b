"""The streams: created as the code declares them, compared where they exist, never changed.

Event streams are logs: nothing in them can be deleted, rolled up or purged (trap 37), they keep what they took for a
time (trap 17: never by interest) and refuse new events rather than drop old ones (trap 18).
"""

from __future__ import annotations

from datetime import timedelta
from typing import Any, Final

from tidings.brokers.nats.api import NO_STREAM, OVERLAP, STREAM_EXISTS, Api, ApiError
from tidings.brokers.nats.names import DEAD_STREAM, NOTE_STREAM, RETRY_STREAM, check_stream
from tidings.delivery import PARTITIONS
from tidings.errors import BrokerUnavailable, ConfigurationError
from tidings.ports import Drift, StreamPlan
from tidings.sight import Fill

SECOND: Final = 10**9
KEEP: Final = timedelta(days=7)
DUPLICATE_WINDOW: Final = 120 * SECOND

PARTITIONS_KEY: Final = "tidings-partitions"

_CLI: Final = {
    "max_age": "--max-age={}s",
    "discard": "--discard={}",
    "duplicate_window": "--dupe-window={}s",
    "deny_delete": "--deny-delete",
    "deny_purge": "--deny-purge",
    "allow_rollup_hdrs": "--no-allow-rollup",
    "allow_msg_ttl": "--no-allow-msg-ttl",
    "allow_atomic": "--allow-batch",
    "allow_direct": "--allow-direct",
    "num_replicas": "--replicas={}",
}


def event_stream(plan: StreamPlan, replicas: int | None) -> dict[str, Any]:
    """The configuration of a stream of events."""
    check_stream(plan.name)
    keep = plan.keep if plan.keep is not None else KEEP
    age = int(keep.total_seconds() * SECOND)
    return _log(plan.name, replicas) | {
        "max_age": age,
        "duplicate_window": min(DUPLICATE_WINDOW, age) if age else DUPLICATE_WINDOW,
        "allow_atomic": True,
        "metadata": {PARTITIONS_KEY: str(PARTITIONS)},
    }


def dead_stream(replicas: int | None) -> dict[str, Any]:
    """Dead letters: kept without end."""
    return _log(DEAD_STREAM, replicas) | {
        "max_age": 0,
        "duplicate_window": DUPLICATE_WINDOW,
        "allow_atomic": True,
    }


def retry_stream(replicas: int | None) -> dict[str, Any]:
    """Copies that wait, and copies that are due.

    A work queue: an acknowledged copy is gone, and what waits never expires. With schedules the server wants `discard`
    old, which does nothing without a limit.
    """
    return {
        "name": RETRY_STREAM,
        "subjects": [f"{RETRY_STREAM}.>"],
        "retention": "workqueue",
        "storage": "file",
        "discard": "old",
        "max_age": 0,
        "duplicate_window": DUPLICATE_WINDOW,
        "allow_direct": True,
        "allow_msg_schedules": True,
        "allow_atomic": True,
        "num_replicas": replicas or 1,
        "description": "Tidings: copies on their way back to the handler that failed",
    }


def note_stream(replicas: int | None) -> dict[str, Any]:
    """Notes: of each name the last one. What was taken back stays for an hour, so that whoever follows hears of it."""
    return {
        "name": NOTE_STREAM,
        "subjects": [f"{NOTE_STREAM}.>"],
        "retention": "limits",
        "storage": "file",
        "discard": "old",
        "max_age": 0,
        "max_msgs_per_subject": 1,
        "duplicate_window": DUPLICATE_WINDOW,
        "allow_direct": True,
        "allow_msg_ttl": True,
        "num_replicas": replicas or 1,
        "description": "Tidings: what the processes of a handler have to remember",
    }


def _log(name: str, replicas: int | None) -> dict[str, Any]:
    return {
        "name": name,
        "subjects": [f"{name}.>"],
        "retention": "limits",
        "storage": "file",
        "discard": "new",
        "deny_delete": True,
        "deny_purge": True,
        "allow_rollup_hdrs": False,
        "allow_msg_ttl": False,
        "allow_direct": True,
        "num_replicas": replicas or 1,
    }


async def ensure_stream(api: Api, wanted: dict[str, Any], plan: StreamPlan | None, replicas: int | None) -> list[Drift]:
    """Create a stream that is missing; of several processes the first creates it, and all agree.

    Raises:
        ConfigurationError: the name or the subjects belong to somebody else's stream.
    """
    name = wanted["name"]
    found = await find_stream(api, name)
    if found is None:
        try:
            found = (await api.call(f"STREAM.CREATE.{name}", wanted))["config"]
        except ApiError as error:
            if error.err_code not in STREAM_EXISTS:
                raise await _refused(api, wanted, error) from None
            found = await find_stream(api, name) or {}
    _check_ours(wanted, found)
    return _compare(wanted, found, plan, replicas)


async def find_stream(api: Api, name: str) -> dict[str, Any] | None:
    """The configuration of a stream, or None if there is no such stream."""
    try:
        return dict((await api.call(f"STREAM.INFO.{name}"))["config"])
    except ApiError as error:
        if error.err_code == NO_STREAM:
            return None
        raise


async def fill_of(api: Api, name: str) -> Fill:
    """How full a stream is. Where it drops the oldest instead of refusing the newest, it is never full."""
    try:
        found = await api.call(f"STREAM.INFO.{name}")
    except ApiError as error:
        raise BrokerUnavailable(str(error)) from None
    config, state = found["config"], found["state"]
    limits = ((state.get("bytes", 0), config.get("max_bytes")), (state.get("messages", 0), config.get("max_msgs")))
    shares = [held / most for held, most in limits if most and most > 0]
    age = config.get("max_age") or 0
    return Fill(max(shares, default=None), age / SECOND if age else None)


async def _refused(api: Api, wanted: dict[str, Any], error: ApiError) -> ConfigurationError:
    name = wanted["name"]
    if error.err_code == OVERLAP:
        names = (await api.call("STREAM.NAMES", {"subject": f"{name}.>"})).get("streams") or []
        return ConfigurationError(
            f"the stream {name!r} cannot be created: its subjects {name}.> belong to the stream"
            f" {', '.join(map(repr, names)) or 'of another account'} already. Rename the events (their first word is"
            f" the stream), or take those subjects from that stream: nats stream edit {(names or ['OTHER'])[0]}"
        )
    return ConfigurationError(f"the stream {name!r} cannot be created: {error.description} ({error.err_code})")


def _check_ours(wanted: dict[str, Any], found: dict[str, Any]) -> None:
    name = wanted["name"]
    if set(found.get("subjects") or ()) != set(wanted["subjects"]) or found.get("mirror") or found.get("sources"):
        raise ConfigurationError(
            f"the stream {name!r} exists, but takes {', '.join(found.get('subjects') or ['no subjects'])} instead of"
            f" {wanted['subjects'][0]}: it was not made by Tidings. Rename the events, or remove that stream:"
            f" nats stream rm {name}"
        )
    if found.get("retention") != wanted["retention"]:
        raise ConfigurationError(
            f"the stream {name!r} has retention {found.get('retention')!r} where Tidings needs"
            f" {wanted['retention']!r}, and the server cannot change that: copy what you need, then"
            f" nats stream rm {name}"
        )
    if "metadata" in wanted:
        has = (found.get("metadata") or {}).get(PARTITIONS_KEY)
        if has != str(PARTITIONS):
            raise ConfigurationError(
                f"the stream {name!r} says of its partitions {has or 'nothing'} where Tidings has {PARTITIONS}: it was"
                " made by something else, and keys would lose their order. If nothing has published to it with keys,"
                f" say: nats stream edit {name} --metadata={PARTITIONS_KEY}={PARTITIONS}"
            )


def _compare(
    wanted: dict[str, Any], found: dict[str, Any], plan: StreamPlan | None, replicas: int | None
) -> list[Drift]:
    """The differences that matter; what the code leaves open is not compared."""
    open_ended = {"name", "subjects", "retention", "metadata", "description", "storage"}
    if plan is not None and plan.keep is None:
        open_ended |= {"max_age", "duplicate_window"}
    if replicas is None:
        open_ended.add("num_replicas")
    drifts = []
    for field in sorted(set(wanted) - open_ended):
        declared, has = wanted[field], found.get(field) or (0 if isinstance(wanted[field], int) else "")
        if field == "duplicate_window" and has >= declared:
            continue
        if declared == has:
            continue
        option = _CLI.get(field, "")
        if declared is True:
            option = option.replace("--no-", "--")
        shown = declared // SECOND if field in ("max_age", "duplicate_window") else declared
        how = f"nats stream edit {wanted['name']} {option.format(shown)}" if option else "it can only be made anew"
        drifts.append(
            Drift(
                what=f"{field} of stream {wanted['name']}",
                declared=_text(field, declared),
                found=_text(field, has),
                remedy=f"To settle it: {how}",
            )
        )
    return drifts


def _text(field: str, value: Any) -> str:
    return str(timedelta(seconds=value / SECOND)) if field in ("max_age", "duplicate_window") and value else str(value)
