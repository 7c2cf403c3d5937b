"""When a lost connection is the doing of a handler that took too long, and when the server's."""

from __future__ import annotations

import pytest

from tidings.errors import Contention, StoreUnavailable
from tidings.stores._patience import Patience, overstayed

LOST = StoreUnavailable("the connection was lost")
LIMIT = ("idle_in_transaction_session_timeout", 2.0)


async def judge(error: Exception, lasted: float | None, limit: Patience | Exception | None) -> TimeoutError | None:
    async def ask() -> Patience | None:
        if isinstance(limit, Exception):
            raise limit
        return limit

    return await overstayed(error, "the database", lasted, ask)


async def test_a_handler_that_had_its_transaction_for_longer_than_the_server_lets_it_has_failed() -> None:
    failure = await judge(LOST, 2.5, LIMIT)
    assert failure is not None
    assert "had for 2.5 s: its idle_in_transaction_session_timeout is 2 s" in str(failure)


@pytest.mark.parametrize(
    ("error", "lasted", "limit"),
    [
        pytest.param(LOST, 1.9, LIMIT, id="it was lost before"),
        pytest.param(LOST, 2.5, None, id="the server has no limit"),
        pytest.param(LOST, None, LIMIT, id="it was not lost"),
        pytest.param(LOST, 2.5, StoreUnavailable("away"), id="the server is away"),
        pytest.param(LOST, 2.5, TimeoutError(), id="the server does not answer"),
        pytest.param(Contention("a lock"), 2.5, LIMIT, id="something else went wrong"),
        pytest.param(ValueError("bad"), 2.5, LIMIT, id="the handler failed by itself"),
    ],
)
async def test_P3_a_server_that_is_away_is_no_failure_of_the_event(
    error: Exception, lasted: float | None, limit: Patience | Exception | None
) -> None:
    assert await judge(error, lasted, limit) is None
