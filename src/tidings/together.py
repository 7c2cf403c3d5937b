"""Copies of several lanes in one call: one write of the broker's disk in place of many.

A broker that syncs what it stores takes about as long for a hundred copies as for one. So while one call is under way
the next ones gather, and leave together.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence

from tidings.delivery import Message

Answers = Sequence[Exception | None]


class _Waiting:
    """What one lane wants stored, and the answers to it once they are there."""

    def __init__(self, messages: Sequence[Message]) -> None:
        self.messages = messages
        self.answers: Answers | None = None


class Together:
    """Stores messages through `store`, which answers for each of them and does not raise."""

    def __init__(self, store: Callable[[Sequence[Message]], Awaitable[Answers]]) -> None:
        self._store = store
        self._turn = asyncio.Lock()
        self._gathered: list[_Waiting] = []

    async def publish(self, messages: Sequence[Message]) -> Answers:
        """Store messages together with what others bring meanwhile; None for each that is stored, or why it is not."""
        mine = _Waiting(messages)
        self._gathered.append(mine)
        try:
            async with self._turn:
                if mine.answers is None:
                    await self._publish([one for one in self._gathered if one.answers is None])
        finally:
            self._gathered.remove(mine)  # also when cancelled: what was not sent by now must not be sent later
        assert mine.answers is not None
        return mine.answers

    async def _publish(self, taken: list[_Waiting]) -> None:
        answers = iter(await self._store([message for one in taken for message in one.messages]))
        for one in taken:
            one.answers = [next(answers) for _ in one.messages]
