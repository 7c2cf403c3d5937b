"""A channel that ends: its number is not given to the next one while the server still speaks to this one."""

from __future__ import annotations

import pamqp.frame
import pytest
from pamqp import commands
from pamqp.base import Frame

from tidings.brokers.rabbitmq.channel import Channel
from tidings.brokers.rabbitmq.frames import METHOD
from tidings.errors import BrokerUnavailable


class Carried:
    """What a link would do for its channel, written down."""

    most_frame = 4096
    blocked = ""

    def __init__(self) -> None:
        self.said: list[str] = []
        self.forgotten = False

    def send(self, data: bytes) -> None:
        _, _, frame = pamqp.frame.unmarshal(data)
        assert isinstance(frame, Frame)
        self.said.append(frame.name)

    def forget(self, channel: Channel) -> None:
        self.forgotten = True

    async def drained(self) -> None:
        pass


def comes(channel: Channel, frame: Frame) -> None:
    channel.take(METHOD, pamqp.frame.marshal(frame, channel.number)[7:-1])


async def test_a_channel_that_is_left_keeps_its_number_until_the_server_has_closed_it_too() -> None:
    link = Carried()
    channel = Channel(link, 3)
    channel.leave()
    comes(channel, commands.Channel.OpenOk())  # the answer to what nobody waits for any more
    assert (channel.open, link.forgotten) == (False, False)
    comes(channel, commands.Channel.CloseOk())
    assert link.forgotten
    assert link.said == ["Channel.Close"]


async def test_a_channel_whose_end_is_not_answered_in_time_keeps_its_number_as_well() -> None:
    link = Carried()
    channel = Channel(link, 3)
    with pytest.raises(BrokerUnavailable, match="no answer"):
        await channel.close(0.01)
    assert not link.forgotten
    comes(channel, commands.Channel.Close(406, "at the same time", 0, 0))
    assert link.said == ["Channel.Close", "Channel.CloseOk"]
    assert link.forgotten


async def test_a_channel_that_the_server_closes_is_forgotten_at_once() -> None:
    link = Carried()
    channel = Channel(link, 3)
    comes(channel, commands.Channel.Close(404, "no queue", 0, 0))
    assert (channel.open, link.forgotten, link.said) == (False, True, ["Channel.CloseOk"])
