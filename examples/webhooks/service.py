"""The service: two handlers that count, and one for what was not recognized."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncConnection

from examples.webhooks.events import RECOGNIZED, Pushed, Recognized, Unrecognized
from examples.webhooks.payloads import recognize
from tidings import Dead, Service

TABLES = (
    "CREATE TABLE IF NOT EXISTS by_repository (repository TEXT, what TEXT, times INT, PRIMARY KEY (repository, what))",
    "CREATE TABLE IF NOT EXISTS by_author (author TEXT PRIMARY KEY, times INT)",
)
COUNT_REPOSITORY = text(
    "INSERT INTO by_repository VALUES (:repository, :what, 1)"
    " ON CONFLICT (repository, what) DO UPDATE SET times = times + 1"
)
COUNT_AUTHOR = text(
    "INSERT INTO by_author VALUES (:author, :times) ON CONFLICT (author) DO UPDATE SET times = times + :times"
)


@asynccontextmanager
async def tables(service: Service) -> AsyncIterator[None]:
    """What the handlers write to is there before they run."""
    async with service.transaction() as db:
        for statement in TABLES:
            await db.execute(text(statement))
    yield


webhooks = Service("webhooks", store="sqlite:///webhooks.db", publishes=[*RECOGNIZED, Unrecognized], lifespan=tables)


@webhooks.on(*RECOGNIZED, once="delivery")
async def count_by_repository(event: Recognized, db: AsyncConnection) -> None:
    what = type(event).__tidings__.type.removeprefix("github.")
    await db.execute(COUNT_REPOSITORY, {"repository": event.repository, "what": what})


@webhooks.on(*RECOGNIZED, once="delivery", order=None)
async def count_by_author(event: Recognized, db: AsyncConnection) -> None:
    """A commit counts for who wrote it, everything else for who did it."""
    authors = [commit.author for commit in event.commits] if isinstance(event, Pushed) else [event.author]
    for author in authors:
        await db.execute(COUNT_AUTHOR, {"author": author, "times": 1})


@webhooks.on(Unrecognized, once="delivery")
async def sort_out(event: Unrecognized) -> Recognized:
    """Keep what fits no type as a dead letter; once the code knows it, redriving makes the event of it."""
    found = recognize(event.name, event.delivery, event.body)
    if isinstance(found, Unrecognized):
        raise Dead(f"GitHub's {event.name!r} fits no event: {found.reason}")
    return found


async def counts() -> dict[str, dict[str, int]]:
    """What was counted so far."""
    async with webhooks.transaction() as db:
        repositories = await db.execute(text("SELECT repository || ' ' || what, times FROM by_repository ORDER BY 1"))
        authors = await db.execute(text("SELECT author, times FROM by_author ORDER BY 1"))
        return {"by_repository": dict(tuple(row) for row in repositories), "by_author": dict(map(tuple, authors))}
