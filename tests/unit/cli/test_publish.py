"""From lines to messages: what is taken, what is refused, and that the rest goes on."""

from __future__ import annotations

import asyncio
import json
import os
from collections.abc import AsyncIterator
from typing import IO, Any

import pytest

from tidings import Event, InvalidEvent, UndecodableEvent
from tidings.cli.failures import CommandError, Status
from tidings.cli.lines import TOGETHER, Lines, waves
from tidings.cli.output import Out
from tidings.cli.publish import Maker, publish_lines
from tidings.delivery import Message
from tidings.envelope import read_envelope
from tidings.testing import MemoryBroker


class PlacedV1(Event, type="order.placed", version=1, key="order_id"):
    order_id: str


def from_v1(old: PlacedV1) -> Placed:
    return Placed(order_id=old.order_id, quantity=1)


class Placed(Event, type="order.placed", version=2, key="order_id", upcast=from_v1):
    order_id: str
    quantity: int


class Paid(Event, type="order.paid", version=1):
    cents: int


class Noted(Event, type="order.noted", version=1):
    text: str


def line(**fields: Any) -> bytes:
    return json.dumps(fields).encode()


def envelope(**fields: Any) -> bytes:
    return line(
        **{
            "specversion": "1.0",
            "id": "e-1",
            "source": "elsewhere",
            "type": "order.placed",
            "version": "v2",
            "correlationid": "c-1",
            "data": {"order_id": "7", "quantity": 2},
            **fields,
        }
    )


def test_a_short_line_becomes_an_event_of_the_newest_version() -> None:
    message = Maker([PlacedV1, Placed], "me").line(line(type="order.placed", data={"order_id": "1", "quantity": 3}))
    found = read_envelope(message.body, message.headers)
    assert (found.source, found.version, message.key, message.stream) == ("me", "v2", "1", "order")
    assert found.id == message.id


@pytest.mark.parametrize("version", [1, "v1"])
def test_a_line_may_name_an_older_version(version: object) -> None:
    message = Maker([PlacedV1, Placed], "me").line(line(type="order.placed", version=version, data={"order_id": "1"}))
    assert read_envelope(message.body, {}).version == "v1"


def test_a_whole_envelope_keeps_what_it_says() -> None:
    message = Maker([Placed], "me").line(envelope())
    found = read_envelope(message.body, {})
    assert (message.id, found.source, found.correlation_id) == ("e-1", "elsewhere", "c-1")
    assert message.key == found.key == "7"


def test_an_older_envelope_is_checked_by_the_upcast_and_sent_as_it_is() -> None:
    message = Maker([Placed], "me").line(envelope(version="v1", data={"order_id": "7"}))
    assert read_envelope(message.body, {}).version == "v1"


@pytest.mark.parametrize(
    ("text", "why"),
    [
        (b"garbage", "no JSON object"),
        (b"[1]", "no JSON object"),
        (b"[" * 100_000, "no JSON object"),
        (line(data={}), "type of its event"),
        (line(type="order.placed", dat={}), "'dat' is none of them"),
        (line(type="order.plced", data={}), "there are order.noted, order.paid, order.placed"),
        (line(type="order.placed", data={"order_id": 7, "quantity": 1}), "does not fit Placed"),
        (line(type="order.placed", data={"order_id": "7", "quantity": 1, "notes": 2}), "Placed has no 'notes'"),
        (line(type="order.placed", version=9, data={}), "no version 'v9'"),
        (envelope(data={"order_id": "7"}), "does not fit"),
        (envelope(id=""), "id"),
        (envelope(subject="8"), "its subject is '8'"),
        (line(type="order.placed", data={"order_id": "x" * 300, "quantity": 1}), "1 to 256 characters"),
        (line(type="order.noted", data={"text": "a\0b"}), "U+0000"),
    ],
)
def test_a_bad_line_is_told_with_its_reason(text: bytes, why: str) -> None:
    answer = Maker([Placed, Paid, Noted], "me").line_or_error(text)
    assert isinstance(answer, UndecodableEvent | InvalidEvent)
    assert why in str(answer)


def test_one_event_needs_a_type_where_there_are_several() -> None:
    assert Maker([Paid], "me").single(None, '{"cents": 3}').type == "order.paid"
    assert Maker([Paid, Placed], "me").single("order.paid", '{"cents": 3}').type == "order.paid"
    with pytest.raises(CommandError, match=r"--type order\.paid"):
        Maker([Paid, Placed], "me").single(None, '{"cents": 3}')


async def given(*lines: bytes) -> AsyncIterator[Lines]:
    yield list(enumerate(lines, 1))


async def test_bad_lines_are_told_and_the_others_published(capsys: pytest.CaptureFixture[str]) -> None:
    broker, maker = MemoryBroker(), Maker([Paid], "me")
    await broker.open(maker.plan)
    good = line(type="order.paid", data={"cents": 1})
    status = await publish_lines(broker, maker, given(good, b"bad", good), Out())
    assert status is Status.EVENT
    assert len(broker.published(Paid)) == 2
    told = capsys.readouterr().out.splitlines()
    assert told[0].startswith("line 2: ")
    assert told[-1] == "published 2, bad 1, not stored 0"


async def test_what_the_world_refuses_ends_it(capsys: pytest.CaptureFixture[str]) -> None:
    broker, maker = MemoryBroker(), Maker([Paid], "me")
    await broker.open(maker.plan)
    broker.fail_publish(ConnectionError("gone"))

    async def two_waves() -> AsyncIterator[Lines]:
        yield [(1, line(type="order.paid", data={"cents": 1}))]
        raise AssertionError("it went on")

    assert await publish_lines(broker, maker, two_waves(), Out(json=True)) is Status.WORLD
    records = [json.loads(one) for one in capsys.readouterr().out.splitlines()]
    assert records == [
        {"line": 1, "stored": False, "error": "gone"},
        {"published": 0, "bad": 0, "not_stored": 1, "lines": 1},
    ]


def pipe() -> tuple[IO[bytes], IO[bytes]]:
    read, write = os.pipe()
    return os.fdopen(read, "rb"), os.fdopen(write, "wb", buffering=0)


async def test_a_slow_pipe_has_each_line_taken_at_once() -> None:
    ours, theirs = pipe()
    found = waves(ours)
    for number in (1, 2, 3):
        theirs.write(b"x\n")
        async with asyncio.timeout(20):
            assert await anext(found) == [(number, b"x\n")]
    theirs.write(b"\n\ny")
    theirs.close()
    async with asyncio.timeout(20):
        assert [wave async for wave in found] == [[(6, b"y")]]
    ours.close()


async def test_waves_are_bounded_however_long_the_file() -> None:
    """P11."""
    ours, theirs = pipe()
    count = 5 * TOGETHER

    def write() -> None:
        with theirs:
            theirs.write(b"".join(b"%d\n" % number for number in range(count)))

    writing = asyncio.create_task(asyncio.to_thread(write))
    sizes, total = [], 0
    async with asyncio.timeout(10):
        async for wave in waves(ours):
            sizes.append(len(wave))
            assert [int(text) for _, text in wave] == list(range(total, total + len(wave)))
            total += len(wave)
    await writing
    ours.close()
    assert total == count
    assert max(sizes) <= TOGETHER


def test_a_message_is_what_is_published() -> None:
    assert isinstance(Maker([Paid], "me").line_or_error(line(type="order.paid", data={"cents": 1})), Message)
