"""What is said of a share that nobody takes from."""

from __future__ import annotations

from typing import Any, cast

import pytest

from tidings.brokers.nats.api import Api
from tidings.brokers.nats.pull import Pull
from tidings.brokers.nats.watch import UNSERVED, Watch
from tidings.delivery import Route
from tidings.ports import Subscription

POSITION = Subscription(position="stock.reserve", stream="order", types=("order.placed",), ordered=True)


class Paper:
    """Answers as a server with one share, in which events wait."""

    def __init__(self) -> None:
        self.pending, self.pinned = 7, ""

    async def call(self, subject: str, body: object = None, **_: object) -> dict[str, Any]:
        if subject.startswith("STREAM.INFO"):
            return {"state": {"last_seq": 100, "subjects": {}}}
        return {
            "num_pending": self.pending,
            "num_ack_pending": 0,
            "delivered": {"stream_seq": 1},
            "ack_floor": {"stream_seq": 1},
            "priority_groups": [{"group": "one"} | ({"pinned_client_id": self.pinned} if self.pinned else {})],
        }


def _taken(*_: object) -> None:
    raise AssertionError("nothing comes here")


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    now = [50.0]
    monkeypatch.setattr("tidings.brokers.nats.watch.time.monotonic", lambda: now[0])
    return now


async def test_a_share_that_nobody_takes_from_is_told_by_name_and_only_after_a_while(clock: list[float]) -> None:
    server = Paper()
    pull = Pull("order", "stock_reserve_3", Route.EVENT, "$JS.API", most=8, most_bytes=1024, take=_taken)
    watch = Watch(cast(Api, server), POSITION)
    watch.of([pull])
    assert (await watch.backlog()).pending == 7
    assert pull.trouble == ""
    clock[0] += UNSERVED
    await watch.backlog()
    assert "nobody has taken from stock_reserve_3, where 7 events wait" in pull.trouble
    server.pinned = "somebody"
    await watch.backlog()
    assert pull.trouble == ""
    server.pinned = ""
    await watch.backlog()
    assert pull.trouble == "", "it is counted anew"
    server.pending = 0
    clock[0] += UNSERVED
    await watch.backlog()
    assert pull.trouble == "", "where nothing waits nobody is missed"
