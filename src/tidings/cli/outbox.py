"""``tidings outbox``: the events that cannot be published as they stand, and what becomes of them."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from datetime import UTC, datetime
from typing import Annotated, Final, Protocol, runtime_checkable

from cyclopts import Parameter

from tidings.cli.failures import CommandError, Status
from tidings.cli.options import Json, StoreUrl, public, store_url
from tidings.cli.output import Out
from tidings.outbox.row import OutboxBacklog, Parked
from tidings.stores import store_from

MOST: Final = 1000
"""Parked events that are listed."""

Ids = Annotated[tuple[int, ...], Parameter(help="Numbers of parked events, as the list shows them.")]


@runtime_checkable
class Outbox(Protocol):
    """What a store with an outbox lets people do."""

    async def outbox_backlog(self) -> OutboxBacklog: ...

    async def outbox_parked(self, most: int = 100) -> list[Parked]: ...

    async def outbox_release(self, id: int) -> bool: ...

    async def outbox_discard(self, id: int) -> bool: ...


def list_(*, store: StoreUrl = None, json: Json = False) -> int:
    """List the events that are parked: each holds up the later ones of its key."""
    out = Out(json)

    async def work(outbox: Outbox) -> int:
        backlog = await outbox.outbox_backlog()
        parked = await outbox.outbox_parked(MOST)
        for one in parked:
            out.record(id=one.id, event_id=one.message.id, type=one.message.type, key=one.message.key, error=one.error)
        if parked:
            out.table(("id", "since", "type", "key", "event", "why"), [_row(one) for one in parked])
        out.text(f"{backlog.waiting} events wait to be published, {backlog.parked} of them parked")
        return Status.OK

    return _run(store, work)


def release(ids: Ids, /, *, store: StoreUrl = None, json: Json = False) -> int:
    """Let the relay try parked events once more: when the broker takes them now."""
    return _change(ids, "released", lambda outbox, id: outbox.outbox_release(id), store, Out(json))


def discard(ids: Ids, /, *, store: StoreUrl = None, json: Json = False) -> int:
    """Give parked events up for good: they are never published, and later ones of their keys leave."""
    return _change(ids, "discarded", lambda outbox, id: outbox.outbox_discard(id), store, Out(json))


def _change(
    ids: Sequence[int], past: str, change: Callable[[Outbox, int], Awaitable[bool]], store: str | None, out: Out
) -> int:
    if not ids:
        raise CommandError("which events? tidings outbox list shows their numbers", Status.USAGE)

    async def work(outbox: Outbox) -> int:
        missing = 0
        for id in ids:
            changed = await change(outbox, id)
            missing += not changed
            out.tell(f"{id} {past}" if changed else f"{id}: no event of this number is parked", id=id, changed=changed)
        return Status.FAILED if missing else Status.OK

    return _run(store, work)


def _run(store: str | None, work: Callable[[Outbox], Awaitable[int]]) -> int:
    url = store_url(store)
    opened = store_from(url, missing="refuse")
    if not isinstance(opened, Outbox):
        raise CommandError(f"{public(url)} has no outbox", Status.CONFIGURATION)

    async def main() -> int:
        try:
            await opened.open()
            return await work(opened)
        finally:
            await opened.close()

    return asyncio.run(main())


def _row(parked: Parked) -> Sequence[str]:
    message = parked.message
    since = datetime.fromtimestamp(parked.created_at, UTC).isoformat(timespec="seconds")
    return (str(parked.id), since, message.type, message.key or "-", message.id, parked.error)
