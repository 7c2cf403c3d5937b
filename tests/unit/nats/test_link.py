"""What a link writes, and when: one write for all that is said in one turn of the loop."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from tidings.brokers.nats.link import Link
from tidings.brokers.nats.options import parse
from tidings.errors import BrokerUnavailable


class Writer:
    """A socket that takes all, and keeps each write."""

    def __init__(self) -> None:
        self.writes: list[bytes] = []

    def write(self, frames: bytes) -> None:
        self.writes.append(frames)

    async def drain(self) -> None: ...


@pytest.fixture
def writer() -> Writer:
    return Writer()


@pytest.fixture
def link(writer: Writer) -> Link:
    made: Any = Link(parse("nats://localhost"), "test", lambda link, why: None)
    made._writer, made.up = writer, True
    found: Link = made
    return found


async def test_what_is_said_in_one_turn_of_the_loop_leaves_in_one_write(link: Link, writer: Writer) -> None:
    link.send(b"PING\r\n")
    link.send(b"PONG\r\n")
    assert writer.writes == []
    await asyncio.sleep(0)
    link.send(b"PING\r\n")
    await asyncio.sleep(0)
    assert writer.writes == [b"PING\r\nPONG\r\n", b"PING\r\n"]


async def test_who_waits_until_it_is_sent_need_not_wait_for_the_next_turn(link: Link, writer: Writer) -> None:
    link.send(b"PING\r\n")
    await link.drained()
    assert writer.writes == [b"PING\r\n"]
    await asyncio.sleep(0)
    assert writer.writes == [b"PING\r\n"], "nothing is said twice"


async def test_trap_54_what_was_not_sent_is_gone_with_its_link(link: Link, writer: Writer) -> None:
    link.send(b"PING\r\n")
    link.abandon("the test cut it")
    await asyncio.sleep(0)
    assert writer.writes == []
    with pytest.raises(BrokerUnavailable):
        link.send(b"PING\r\n")
    with pytest.raises(BrokerUnavailable):
        await link.drained()
