"""What the processes of one handler have to remember together: small texts under names, kept by the broker.

Which keys are held, how often an event has failed that waits in place, that an operator paused the handler: none of it
may be lost with a process, and a process that takes over has to know it. The last text under a name counts.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping
from typing import Final

import uuid_utils

from tidings.copies import header_text, plain_text
from tidings.delivery import Delivery, Header, Message, Route
from tidings.errors import NotStored, TidingsError, WorldError
from tidings.policy import describe
from tidings.ports import Broker

TIMEOUT: Final = 10.0


class Notes:
    """The notes of one position, ``service.handler``."""

    def __init__(self, broker: Broker, position: str) -> None:
        self._broker = broker
        self._position = position

    async def write(self, texts: Mapping[str, str], *, timeout: float = TIMEOUT) -> None:
        """Store a text under each name, in this order; an empty one takes the name back.

        Raises:
            WorldError: not all of them are stored.
        """
        messages = [self._message(name, text) for name, text in texts.items()]
        what = f"the notes of {self._position} cannot be written"
        try:
            answers = await self._broker.publish(messages, timeout=timeout)
        except Exception as error:  # a broker that breaks its word and raises
            raise _of_the_world(error, what) from error
        for answer in answers:
            if answer is not None:
                raise _of_the_world(answer, what) from answer

    async def read(self) -> dict[str, str]:
        """All that stands written now.

        Raises:
            WorldError: the broker does not answer.
        """
        found: dict[str, str] = {}
        try:
            async for note in self._broker.read(Route.NOTE, self._position):
                name, text = _of(note)
                found.pop(name, None)
                if text:
                    found[name] = text
        except TidingsError as error:
            raise _of_the_world(error, f"the notes of {self._position} cannot be read") from error
        return found

    async def follow(self) -> AsyncIterator[tuple[str, str]]:
        """Names and texts, first those that stand written, then each change; an empty text takes the name back.

        A change that another follows at once may be left out.

        Raises:
            WorldError: the broker does not answer for too long. Whoever follows begins again.
        """
        async for note in self._broker.read(Route.NOTE, self._position, follow=True):
            yield _of(note)

    def _message(self, name: str, text: str) -> Message:
        return Message(
            id=f"note-{uuid_utils.uuid4().hex}",
            route=Route.NOTE,
            position=self._position,
            stream="",
            type="",
            key=name,
            body=text.encode(),
            headers={Header.NOTE: header_text(name), Header.HANDLER: self._position},
        )


def _of_the_world(error: Exception, what: str) -> WorldError:
    """Whatever is wrong with the notes is not the fault of the events that they are about."""
    return error if isinstance(error, WorldError) else NotStored(f"{what}: {describe(error)}")


def _of(note: Delivery) -> tuple[str, str]:
    return plain_text(note.headers.get(Header.NOTE, "")), bytes(note.body).decode("utf-8", "replace")
