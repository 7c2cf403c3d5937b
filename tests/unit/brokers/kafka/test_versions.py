"""What is told from what a broker understands."""

from __future__ import annotations

import struct

import pytest

from tests.stranger import speaking
from tidings.brokers.kafka import versions
from tidings.brokers.kafka.doctor import _release
from tidings.brokers.kafka.options import parse
from tidings.brokers.kafka.versions import CREATE_TOPICS, FETCH, LIST_OFFSETS, CannotBeAsked, must_assign

HEARTBEAT = versions.CONSUMER_GROUP_HEARTBEAT


@pytest.mark.parametrize(
    ("understood", "release"),
    [
        ({FETCH: (0, 11), LIST_OFFSETS: (0, 5), CREATE_TOPICS: (0, 3)}, "older than 2.4"),
        ({FETCH: (0, 12), LIST_OFFSETS: (0, 6), CREATE_TOPICS: (0, 7)}, "2.4 to 2.8"),
        ({FETCH: (0, 13), LIST_OFFSETS: (0, 7), CREATE_TOPICS: (0, 7)}, "3.x"),
        ({FETCH: (4, 17), LIST_OFFSETS: (1, 10), CREATE_TOPICS: (2, 7), HEARTBEAT: (0, 1)}, "4.0 or newer"),
        ({}, "older than 2.4"),
    ],
)
def test_a_release_is_known_by_what_it_understands(understood: versions.Understood, release: str) -> None:
    assert versions.release(understood) == release


def test_what_counts_no_copies_is_to_be_told_how_many() -> None:
    ancient = {CREATE_TOPICS: (0, 3)}
    wrong = _release(parse("kafka://host"), ancient)
    assert wrong.level == "wrong"
    assert "?replication=" in wrong.remedy
    assert _release(parse("kafka://host?replication=1"), ancient).level == "fine"


def framed(words: bytes) -> bytes:
    return struct.pack(">i", len(words)) + words


@pytest.mark.parametrize(
    "words",
    [
        b"",
        b"HTTP/1.1 400 Bad Request\r\n\r\n",
        framed(b""),
        framed(struct.pack(">ihi", 1, 35, 0)),
        framed(struct.pack(">ihi", 2, 0, 1) + bytes(6)),
        framed(struct.pack(">ihi", 1, 0, 9) + bytes(6)),
        struct.pack(">i", 2**31 - 1) + bytes(64),
    ],
)
async def test_what_is_no_answer_is_not_taken_for_one(words: bytes) -> None:
    async with speaking(words) as port:
        with pytest.raises(CannotBeAsked, match=r"127\.0\.0\.1"):
            await versions.ask(parse("kafka://host"), "127.0.0.1", port)


async def test_a_broker_that_cannot_be_asked_is_not_refused(caplog: pytest.LogCaptureFixture) -> None:
    async with speaking(b"") as port:
        await must_assign(parse("kafka://host?group.protocol=consumer"), {1: ("127.0.0.1", port)})
    assert "is not known" in caplog.text
    with pytest.raises(CannotBeAsked, match=r"ssl\.keystore\.location"):
        await versions.ask(parse("kafka://host?tls=1&ssl.keystore.location=/k"), "127.0.0.1", 1)
    for path, why in (("/no/such/file", "tls_ca=/no/such/file"), ("/", "TLS files")):
        with pytest.raises(CannotBeAsked, match=why):
            await versions.ask(parse(f"kafka://host?tls_ca={path}"), "127.0.0.1", 1)
