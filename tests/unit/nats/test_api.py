"""What the server's answers to a request mean: a refusal is one, and the want of a leader is none."""

from __future__ import annotations

from typing import Any, cast

import msgspec
import pytest

from tidings.brokers.nats.api import NO_STREAM, Api, ApiError
from tidings.brokers.nats.connection import Connection
from tidings.brokers.nats.options import parse
from tidings.errors import BrokerUnavailable


class Server:
    """Answers with the same each time."""

    options = parse("nats://localhost")

    def __init__(self, answer: dict[str, Any]) -> None:
        self._answer = answer
        self.asked = 0

    async def ready(self, timeout: float) -> Server:
        return self

    async def ask(self, subject: str, payload: bytes, timeout: float) -> bytes:
        self.asked += 1
        return msgspec.json.encode(self._answer)


def _refusing(err_code: int, description: str) -> Server:
    return Server({"error": {"code": 503, "err_code": err_code, "description": description}})


async def test_a_consumer_without_leader_is_away_and_not_refused() -> None:
    server = _refusing(10008, "JetStream system temporarily unavailable")
    with pytest.raises(BrokerUnavailable, match="temporarily unavailable"):
        await Api(cast(Connection, server)).call("CONSUMER.INFO.order.stock_reserve", patience=0.4)
    assert server.asked == 2


async def test_what_is_refused_is_not_asked_again() -> None:
    server = _refusing(NO_STREAM, "stream not found")
    with pytest.raises(ApiError, match="stream not found"):
        await Api(cast(Connection, server)).call("STREAM.INFO.order")
    assert server.asked == 1
