"""What a refusal of the server means: tried again, full, too large, or not stored for another reason (trap 19)."""

from __future__ import annotations

import pytest

from tidings.brokers.nats.api import Api
from tidings.brokers.nats.connection import Connection
from tidings.brokers.nats.frames import frame_of
from tidings.brokers.nats.options import parse
from tidings.brokers.nats.publishing import AckError, Again, Publisher
from tidings.delivery import Message
from tidings.errors import EventTooLarge, NotStored

FRAME = frame_of(Message(id="i", stream="order", type="order.placed", body=b""), 1000, 10_000)


@pytest.mark.parametrize(
    ("code", "err_code", "meaning", "said"),
    [
        (503, 10008, Again, "the server said"),
        (503, 10009, Again, "the server said"),
        (409, 10158, Again, "the server said"),  # trap 13: it is being stored just now, under the same id
        (429, 10167, Again, "the server said"),
        (503, 10077, NotStored, "is full"),
        (503, 10023, NotStored, "is full"),
        (500, 10047, NotStored, "is full"),
        (400, 10054, EventTooLarge, "refused"),
        (400, 10097, EventTooLarge, "refused"),
        (400, 10060, NotStored, "did not store"),
        (400, 1, NotStored, "did not store"),
    ],
)
def test_trap_19_a_refusal_is_told_apart(code: int, err_code: int, meaning: type[Exception], said: str) -> None:
    connection = Connection(parse("nats://localhost"), "test")
    publisher = Publisher(connection, Api(connection))
    try:
        found = publisher._refusal(AckError(code, err_code, "why"), FRAME)
    except Again as again:
        found = again
    assert type(found) is meaning
    assert said in str(found)
    assert "why" in str(found)
