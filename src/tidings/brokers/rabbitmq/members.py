"""How the processes of an ordered position hear of each other: a word a second over an exchange, and none is stored.

Nothing is said on the connection by which deliveries come: while a server takes no messages it reads nothing of whoever
sends one, acknowledgements neither.
"""

from __future__ import annotations

import asyncio
import secrets
from collections.abc import Callable
from typing import Final

from pamqp import commands

from tidings.brokers._members import Others
from tidings.brokers.rabbitmq import frames, names
from tidings.brokers.rabbitmq.channel import Channel
from tidings.brokers.rabbitmq.connection import Connection
from tidings.errors import BrokerUnavailable

ANSWER: Final = 10.0


class Members(Others):
    """See `Others`."""

    def __init__(self, position: str, changed: Callable[[bool], None], outward: Connection) -> None:
        super().__init__(changed)
        self._position = position
        self._outward = outward
        self._channel: Channel | None = None
        self._voice: Channel | None = None
        self._ended = asyncio.Event()
        self.why: BrokerUnavailable | None = None
        """Why nothing could be heard any more when that was last so."""

    async def attach(self, connection: Connection) -> None:
        """Listen, by a queue that goes with its channel's connection. Raises BrokerUnavailable."""
        link = await connection.ready(ANSWER)
        self._ended.clear()
        channel = await link.channel(ANSWER)
        channel.on_closed = self._closed
        queue = f"{names.LIVE}.{secrets.token_hex(8)}"  # the server's own names would need a right of their own
        await channel.call(commands.Queue.Declare(0, queue, False, False, True, True, False, {}), ANSWER)
        await channel.call(commands.Queue.Bind(0, queue, names.LIVE, self._position, False, {}), ANSWER)
        await channel.consume(
            queue, lambda content: self.heard(content.body), lambda tag: self._ended.set(), ANSWER, no_ack=True
        )
        self.revive()
        self._channel = channel

    def _closed(self, why: BrokerUnavailable) -> None:
        self.why = why
        self._ended.set()

    async def ended(self) -> None:
        """Return when nothing can be heard any more."""
        await self._ended.wait()

    def say(self, wants: int, *, new: bool = False, leaves: bool = False) -> None:
        """To whoever listens; to nobody while there is no way out. Raises BrokerUnavailable."""
        voice = self._voice
        if voice is None or not voice.open or voice.link.blocked:
            return
        word = self.word(wants, new=new, leaves=leaves)
        header = frames.properties({}, self.id, len(word))
        most = voice.link.most_frame
        said = frames.message(voice.number, names.LIVE, self._position, header, word, most, mandatory=False)
        voice.link.send(said)

    async def find_voice(self) -> None:
        """Have a channel to say something on, if there can be one now. Raises BrokerUnavailable."""
        link = self._outward.link
        if link is not None and not link.blocked and (self._voice is None or not self._voice.open):
            self._voice = await link.channel(ANSWER)
            self._voice.on_closed = self._closed

    async def detach(self) -> None:
        """Listen no more."""
        channels, self._channel, self._voice = (self._channel, self._voice), None, None
        for channel in channels:
            if channel is not None:
                try:
                    await channel.close(2.0)
                except BrokerUnavailable:
                    pass  # it went with its link
