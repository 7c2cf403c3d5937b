"""Many dead letters at once: which are meant, and how they are given back in order without being all in memory."""

from __future__ import annotations

import re
import shlex
from collections.abc import AsyncIterator, Callable, Sequence
from datetime import datetime
from typing import Final, Literal, NamedTuple

import msgspec

from tidings.dead_letters import NOBODY, TIMEOUT, Audit, Fold, Letter, let_go, marker, redriven_copy
from tidings.delivery import Header, Route
from tidings.errors import BrokerUnavailable, ConfigurationError
from tidings.pace import Pace
from tidings.ports import Broker

TOGETHER: Final = 100
"""Letters that are stored in one go."""
TOGETHER_BYTES: Final = 4 * 1024 * 1024
WAITING_BYTES: Final = 32 * 1024 * 1024
"""Bytes of letters that were read before an earlier one of their key. What is more than that is read once more."""

_PLACE: Final = re.compile(r"(.+)@(\d+)", re.DOTALL)

Verb = Literal["redriven", "discarded"]


class Choice(msgspec.Struct, frozen=True, kw_only=True):
    """Which letters are meant; what is None does not matter. Times are compared with the last failure."""

    handler: str | None = None
    """``service.name``, or the name alone."""
    type: str | None = None
    code: str | None = None
    error: str | None = None
    """`Letter.error`, or a part of the fingerprint or of the reason, whatever its case."""
    key: str | None = None
    since: datetime | None = None
    until: datetime | None = None
    """Up to and with this moment."""

    def __bool__(self) -> bool:
        return any(getattr(self, name) is not None for name in self.__struct_fields__)

    def __str__(self) -> str:
        given = [(name, found) for name in self.__struct_fields__ if (found := getattr(self, name)) is not None]
        texts = [(name, one.isoformat() if isinstance(one, datetime) else one) for name, one in given]
        return " ".join(f"--{name} {shlex.quote(text)}" for name, text in texts)

    def __call__(self, letter: Letter) -> bool:
        return (
            self.handler in (None, letter.position, letter.position.partition(".")[2])
            and self.type in (None, letter.type)
            and self.code in (None, letter.code)
            and self.key in (None, letter.key)
            and (self.error is None or self._is_of(letter, self.error))
            and ((self.since is None and self.until is None) or self._is_in_time(letter))
        )

    def _is_of(self, letter: Letter, error: str) -> bool:
        wanted = error.lower()
        return wanted == letter.error or wanted in letter.fingerprint.lower() or wanted in letter.reason.lower()

    def _is_in_time(self, letter: Letter) -> bool:
        moment = moment_of(letter.last_failure)
        if moment is None:
            return False  # nobody can say when it was
        return (self.since is None or moment >= self.since) and (self.until is None or moment <= self.until)


def moment_of(stamp: str) -> datetime | None:
    """A time as a letter has it; None for what is none."""
    try:
        moment = datetime.fromisoformat(stamp)
    except ValueError:
        return None
    return moment if moment.tzinfo is not None else None


class Changed(NamedTuple):
    """What became of a letter: nothing was done about it where there is an error."""

    letter: Letter
    error: Exception | None


class Bulk:
    """Gives letters back, or discards them: in the order of their stream, at a pace, each one marked.

    Letters of one key go one after the other, and none goes past an earlier one that could not be given back. When
    it is stopped, whatever was stored has been marked: the rest can be done later, and nothing is done twice. Only a
    crash between storing a copy and marking it leaves a letter that is given back again, under the same id.

    Parameters:
        stopped: asked between two portions; what is not begun then stays as it is.
    """

    def __init__(
        self,
        broker: Broker,
        verb: Verb,
        audit: Audit = NOBODY,
        *,
        pace: Pace | None = None,
        stopped: Callable[[], bool] = lambda: False,
    ) -> None:
        self._broker = broker
        self._verb = verb
        self._audit = audit
        self._pace = pace or Pace(None)
        self._stopped = stopped

    async def run(self, letters: Sequence[Letter]) -> AsyncIterator[Changed]:
        """Change these letters of a list, and say of each what became of it.

        Raises:
            WorldError: the log cannot be read; those that were told have been changed.
        """
        whole = self._verb == "redriven"
        failed: dict[tuple[str, str], str] = {}
        source = _read_whole(self._broker, letters) if whole else _each(letters)
        async for wave in _waves(source, self._pace.portion(TOGETHER), apart=whole):
            if self._stopped():
                return
            held = [one for one in wave if _line(one) in failed]
            for one in held:
                earlier = failed[_line(one)]
                yield Changed(one, BrokerUnavailable(f"an earlier letter of its key was not given back: {earlier}"))
            going = [one for one in wave if _line(one) not in failed]
            await self._pace.take(len(going))
            for changed in await self._store(going):
                if changed.error is not None and whole:
                    failed[_line(changed.letter)] = changed.letter.id
                yield changed

    async def _store(self, letters: Sequence[Letter]) -> list[Changed]:
        """First the copies, then the marks of those that are stored."""
        errors: dict[str, Exception] = {}
        redriven = self._verb == "redriven"
        told = [one for one in letters if redriven or one.place]  # a discarded place is told to those that wait for it
        if told:
            copies = [redriven_copy(one) if redriven else let_go(one) for one in told]
            answers = await self._broker.publish(copies, timeout=TIMEOUT)
            errors = {one.id: answer for one, answer in zip(told, answers, strict=True) if answer is not None}
        stored = [one for one in letters if one.id not in errors]
        if stored:
            marks = [marker(one, self._verb, self._audit) for one in stored]
            for one, answer in zip(stored, await self._broker.publish(marks, timeout=TIMEOUT), strict=True):
                if answer is not None:
                    errors[one.id] = self._unmarked(answer)
        return [Changed(one, errors.get(one.id)) for one in letters]

    def _unmarked(self, answer: Exception) -> Exception:
        if self._verb != "redriven":
            return answer
        return BrokerUnavailable(f"it was given back, and the log could not be told, so that it stays listed: {answer}")


def in_order(letters: Sequence[Letter]) -> list[Letter]:
    """Letters as they are given back: those of one key as their events stood in the stream, else as they died.

    A letter that was redriven and died again stands late in the log, behind letters of events that came after it. Where
    a broker keeps no history, and events have no place, they go in the order in which they died first.
    """
    places: dict[tuple[str, str], list[int]] = {}
    for index, letter in enumerate(letters):
        places.setdefault(_line(letter), []).append(index)
    result = list(letters)
    for indices in places.values():
        if len(indices) > 1:
            line = sorted((letters[index] for index in indices), key=lambda one: one.rank)
            if all(_PLACE.fullmatch(one.origin) for one in line):
                line.sort(key=lambda one: _place(one.origin))
            for index, letter in zip(indices, line, strict=True):
                result[index] = letter
    return result


def _line(letter: Letter) -> tuple[str, str]:
    """What shares it goes one after the other: the events of one key and handler, and each without key alone."""
    return (letter.position, f"key {letter.key}" if letter.key is not None else f"id {letter.id}")


def _place(origin: str) -> tuple[str, int]:
    found = _PLACE.fullmatch(origin)
    return (found[1], int(found[2])) if found else (origin, 0)


async def _each(letters: Sequence[Letter]) -> AsyncIterator[Letter]:
    for letter in letters:
        yield letter


async def _waves(letters: AsyncIterator[Letter], most: int, *, apart: bool) -> AsyncIterator[list[Letter]]:
    """Letters that are stored in one go; if `apart`, one of each key: none is stored where one before it is not."""
    wave: list[Letter] = []
    lines: set[tuple[str, str]] = set()
    size = 0
    async for letter in letters:
        full = len(wave) >= most or size + len(letter.body) > TOGETHER_BYTES
        if wave and (full or (apart and _line(letter) in lines)):
            yield wave
            wave, lines, size = [], set(), 0
        wave.append(letter)
        lines.add(_line(letter))
        size += len(letter.body)
    if wave:
        yield wave


async def _read_whole(broker: Broker, letters: Sequence[Letter]) -> AsyncIterator[Letter]:
    """The same letters with all that belongs to them, in order; few of them are in memory at a time.

    The log is read through once. What stands in it before an earlier one of its key waits; where too much would wait,
    it is read once more later.

    Raises:
        ConfigurationError: one of them is not in the log of this broker.
    """
    line: dict[tuple[str, str], list[Letter]] = {}
    for letter in reversed(in_order(letters)):
        line.setdefault(_line(letter), []).append(letter)  # the next one is the last
    left = {letter.id: letter for letter in letters}
    while left:
        before = len(left)
        waiting: dict[str, Letter] = {}
        size = 0
        log = Fold(bodies=True)
        async for message in broker.read(Route.DEAD):
            listed = left.get(message.headers.get(Header.LETTER, ""))
            if listed is None or listed.id in waiting or Header.MARKER in message.headers:
                continue
            log.add(message)
            found = log.letters.pop(listed.id, None)
            if found is None:
                continue  # there are more parts of it
            own = line[_line(listed)]
            if own[-1].id != listed.id and size + len(found.body) > WAITING_BYTES:
                continue
            waiting[listed.id] = found
            size += len(found.body)
            while own and (ready := waiting.pop(own[-1].id, None)) is not None:
                size -= len(ready.body)
                known = left.pop(own.pop().id)
                yield msgspec.structs.replace(
                    known, body=ready.body, headers=ready.headers, traceback=ready.traceback, whole=True
                )
            if not left:
                return
        if len(left) == before:
            raise ConfigurationError(f"no dead letter has the id {next(iter(left))!r} any more")
