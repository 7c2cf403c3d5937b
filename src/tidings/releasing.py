"""The followers of a key that goes on after its first was decided about: given back to their handler, in order."""

from __future__ import annotations

import asyncio
import logging
from typing import Final

from tidings import dead_letters
from tidings.copies import plain_text
from tidings.dead_letters import Fold, Letter
from tidings.delivery import Delivery, Header, Route
from tidings.errors import TidingsError
from tidings.holding import Held, Holding, held_keys
from tidings.policy import describe
from tidings.ports import Broker

log = logging.getLogger("tidings.releasing")

ROUND: Final = 5.0
"""Seconds until it looks again whether followers wait, while keys go on."""
REST: Final = 30.0
"""The same while none does, as far as is known here: another process may have left one behind."""
PORTION: Final = 100
"""Whole letters that are held in memory at a time."""


class Releaser:
    """Redrives the followers of keys that go on. It goes by the notes alone, so any process may do it, at any time."""

    def __init__(self, position: str, broker: Broker, holding: Holding) -> None:
        self._position = position
        self._broker = broker
        self._holding = holding

    async def run(self) -> None:
        """Until cancelled."""
        while True:
            self._holding.decided.clear()
            going = False
            try:
                going = await self.look()
            except TidingsError as error:
                going = True
                log.warning("%s: the followers of its held keys wait: %s", self._position, describe(error))
            try:
                async with asyncio.timeout(ROUND if going else REST):
                    await self._holding.decided.wait()
            except TimeoutError:
                pass

    async def look(self) -> bool:
        """Give back what waits behind letters that were decided about; whether there are such keys.

        Raises:
            TidingsError: the broker does not answer.
        """
        going = {key: held for key, held in held_keys(await self._holding.notes()).items() if held.going}
        if going:
            letters = await self._letters(going)
            for key, held in going.items():
                await self._give_back(key, _line(held, letters.get(key, {})))
        return bool(going)

    async def _letters(self, going: dict[str, Held]) -> dict[str, dict[int, Letter]]:
        """The newest letter of each place of these keys, without bodies."""
        fold = Fold()
        async for message in self._broker.read(Route.DEAD):
            if message.headers.get(Header.HANDLER) == self._position and _concerns(message, going):
                fold.add(message)
        found: dict[str, dict[int, Letter]] = {}
        for letter in fold.letters.values():
            if letter.place and letter.key in going:
                places = found.setdefault(letter.key, {})
                known = places.get(letter.place)
                if known is None or known.state != "dead" or letter.state == "dead":
                    places[letter.place] = letter
        return found

    async def _give_back(self, key: str, line: list[str]) -> None:
        for at in range(0, len(line), PORTION):
            for letter in await dead_letters.find(self._broker, line[at : at + PORTION]):
                held = self._holding.keys.get(key)
                if held is not None and not held.going:
                    return  # one of them is dead again: the others wait once more
                await dead_letters.redrive(self._broker, letter)


def _concerns(message: Delivery, going: dict[str, Held]) -> bool:
    key = message.headers.get(Header.KEY)
    return Header.MARKER in message.headers or (key is not None and plain_text(key) in going)


def _line(held: Held, letters: dict[int, Letter]) -> list[str]:
    """The ids of those to give back, in order, up to the first that is not stored yet: it comes again by itself."""
    line = []
    for place in range(held.settled + 1, held.placed + 1):
        letter = letters.get(place)
        if letter is None and place not in held.gone:
            break
        if letter is not None and letter.state == "dead":
            line.append(letter.id)
    return line
