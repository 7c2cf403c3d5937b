"""``tidings db``: the tables of a store, made here, or printed for people who have their own migrations."""

from __future__ import annotations

import asyncio
from typing import Annotated

from cyclopts import Parameter

from tidings.cli.failures import CommandError, Status
from tidings.cli.options import Json, StoreUrl, public, store_url
from tidings.cli.output import Out
from tidings.stores import has_tables, schema_sql, store_from


def init(
    store: Annotated[StoreUrl, Parameter(help="The store, such as sqlite:///shop.db. Otherwise TIDINGS_STORE.")] = None,
    /,
    *,
    json: Json = False,
) -> int:
    """Create the tables of a store, or bring those of an older Tidings to the present version."""
    url = store_url(store)
    opened = store_from(url)
    if not has_tables(url):
        raise CommandError(f"{public(url)} has no tables to make", Status.CONFIGURATION)

    async def work() -> None:
        await opened.open()
        await opened.close()

    asyncio.run(work())
    from tidings.outbox.tables import SCHEMA_VERSION

    text = f"{public(url)} has the tables of version {SCHEMA_VERSION}"
    Out(json).tell(text, store=public(url), version=SCHEMA_VERSION)
    return Status.OK


def sql(
    target: Annotated[str, Parameter(help="sqlite, postgresql or mariadb, or the URL of a store.")],
    /,
    *,
    since: Annotated[
        int | None, Parameter(name="--from", help="Only the steps from this version of the tables to the present one.")
    ] = None,
    json: Json = False,
) -> int:
    """Print the statements that make the tables. Nothing is connected to, and nothing changed."""
    out = Out(json)
    for statement in schema_sql(target, since):
        out.tell(statement, sql=statement) if json else out.text(statement)
    return Status.OK
