"""How long a server lets a transaction take, for a handler that is slower than that.

When the server ends a session for it, that looks like a lost connection: the drivers keep the server's last words to
themselves, or never hear them. To be tried again without end, as while a server is away, would help nobody: it is this
event that takes too long, each time. So where a connection was lost, the server is asked what its limit is.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Final

from tidings.errors import StoreUnavailable, TidingsError

ASK_WITHIN: Final = 5.0
"""Seconds for the question; a server that does not answer is away."""

Patience = tuple[str, float]
"""A setting, and the seconds that it is set to."""

POSTGRES: Final = (
    "SELECT name, setting::float8 / 1000 FROM pg_settings WHERE setting <> '0'"
    " AND name IN ('idle_in_transaction_session_timeout', 'transaction_timeout') ORDER BY 2 LIMIT 1"
)


async def overstayed(
    error: BaseException, where: str, lasted: float | None, ask: Callable[[], Awaitable[Patience | None]]
) -> TimeoutError | None:
    """The handler's own failure, where its transaction was ended for the time that it took.

    Args:
        error: what the claim came to.
        where: the database, in words.
        lasted: the seconds for which the transaction had been open when its connection was found to be lost; None if it
            was not.
        ask: gets the limit that the server reaches first, if it has one.
    """
    if lasted is None or not isinstance(error, StoreUnavailable):
        return None
    try:
        async with asyncio.timeout(ASK_WITHIN):
            found = await ask()
    except (TimeoutError, TidingsError):
        return None
    if found is None or lasted < found[1]:
        return None
    name, limit = found
    return TimeoutError(
        f"{where} ended the transaction, which the handler had for {lasted:.1f} s: its {name} is {limit:g} s. Do what"
        f" takes long in another handler that needs no connection, or raise {name}"
    )
