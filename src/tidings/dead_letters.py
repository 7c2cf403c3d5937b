"""Dead letters: what could not be handled, kept whole, and the ways to put it right.

They are an append-only log. To redrive or to discard one appends a marker, and the list is the fold of the log: so it
works alike where single messages can neither be browsed nor removed.
"""

from __future__ import annotations

import re
import sys
from collections.abc import AsyncIterator, Callable, Iterable, Mapping
from datetime import UTC, datetime
from hashlib import blake2b
from typing import Final, Literal

import msgspec

from tidings import points
from tidings.copies import header_text, original_headers, plain_text
from tidings.delivery import Delivery, Header, Message, Route
from tidings.errors import ConfigurationError, TidingsError
from tidings.ports import Broker

TIMEOUT: Final = 10.0

State = Literal["dead", "redriven", "discarded"]

MOST_TEXT: Final = 1000
"""Characters that a marker keeps of who, how and why."""

_ATTEMPTS: Final = re.compile(r"^failed (?:once|\d+ times)[^:]*: ")
_FRAME: Final = re.compile(r'File "(?:[^"]*[/\\])?([^"]*)", line \d+, in (.+?)(?:%0A|$)')
"""A call in a traceback as it stands in a header, where the end of a line is percent-encoded."""


class Audit(msgspec.Struct, frozen=True):
    """Who changes letters, how they were chosen, and why. All of it is kept in the log, with the time."""

    by: str = ""
    """``user@host``."""
    choice: str = ""
    reason: str = ""


NOBODY: Final = Audit()


class Mark(msgspec.Struct, frozen=True):
    """Something that was done about a letter: ``redriven`` or ``discarded``, and by whom, how chosen and why."""

    what: str
    at: str
    by: str = ""
    choice: str = ""
    reason: str = ""


class Letter(msgspec.Struct, kw_only=True):
    """One dead letter. Times are RFC 3339 with zone.

    `body`, `headers`, `traceback` and `marks` are there if it is `whole`: a list of many would be too large with them.
    """

    id: str
    position: str
    """The handler that failed, ``service.name``."""
    stream: str
    type: str
    key: str | None
    event_id: str
    code: str
    reason: str
    failures: int
    first_failure: str
    last_failure: str
    origin: str
    service_version: str = ""
    redriven_from: str = ""
    place: int = 0
    """Its place among the letters of its key, where its handler keeps their order (`on_dead`); 0 is none."""
    behind: str = ""
    """The id of the letter that it waits behind; empty for the first."""
    rank: int = 0
    """How many letters stood in the log before it, or before the one that it was when its event died first."""
    traceback: str = ""
    headers: dict[str, str] = {}
    body: bytes = b""
    whole: bool = False
    """Whether all of it was read. A list keeps no bodies; `find` does."""
    replay: str = ""
    """The replay in which it died."""
    scope: str = ""
    """The scope of that replay, in which a redrive of it is applied once."""
    where: str = ""
    """The file and the function that raised, as far as the traceback says."""
    state: State = "dead"
    redriven: int = 0
    """How often it was given back to its handler."""
    copies: int = 1
    """More than one after a crash between storing the letter and acknowledging the message."""
    died_again: str = ""
    """The id of the newest letter that a redrive of this one has become."""
    marked: str = ""
    """When something was last done about it; empty if nothing ever was."""
    marks: list[Mark] = []
    """What was done about it, oldest first."""

    @property
    def fingerprint(self) -> str:
        """Letters that died of the same thing share it: the handler, the code, the kind of error, and who raised it."""
        kind = _ATTEMPTS.sub("", self.reason).split(":", 1)[0][:60]
        place = f" in {self.where}" if self.where else ""
        return f"{self.position} · {self.type or '?'} · {self.code} · {kind}{place}"

    @property
    def error(self) -> str:
        """The fingerprint in eight digits, to name it on a command line."""
        return blake2b(self.fingerprint.encode(), digest_size=4).hexdigest()


class Fold:
    """The letters of a log, built from its messages in order."""

    def __init__(self, *, bodies: bool = False) -> None:
        self.letters: dict[str, Letter] = {}
        self._bodies = bodies
        self._parts: dict[tuple[str, int], dict[int, bytes]] = {}

    def add(self, message: Delivery) -> None:
        """Take in the next message of the log. A stranger's message is none of its business."""
        headers = message.headers
        letter_id = headers.get(Header.LETTER)
        if letter_id is None:
            return
        if marker := headers.get(Header.MARKER):
            self._mark(letter_id, marker, headers)
            return
        number, _, of = headers.get(Header.PART, "1/1").partition("/")
        count = _number(of)
        parts = self._parts.setdefault((letter_id, count), {})
        parts[_number(number)] = message.body if self._bodies else b""
        if len(parts) < count:
            return
        del self._parts[letter_id, count]
        known = self.letters.get(letter_id)
        if known is not None:
            known.copies += 1
            known.state = "dead"  # it died once more, after whatever was done about it
            return
        body = b"".join(part for _, part in sorted(parts.items()))
        letter = _letter(letter_id, message, body, whole=self._bodies)
        letter.rank = len(self.letters)
        if (before := self.letters.get(letter.redriven_from)) is not None:
            before.died_again = letter_id
            letter.rank = before.rank
        self.letters[letter_id] = letter

    def _mark(self, letter_id: str, marker: str, headers: Mapping[str, str]) -> None:
        letter = self.letters.get(letter_id)
        if letter is None or marker not in ("redriven", "discarded"):
            return
        if marker == "redriven":
            letter.state = "redriven"
            letter.redriven += 1
        else:
            letter.state = "discarded"
        letter.marked = headers.get(Header.AT, "") or letter.marked or "?"
        if self._bodies:
            said = [plain_text(headers.get(name, "")) for name in (Header.BY, Header.CHOICE, Header.REASON)]
            letter.marks.append(Mark(marker, headers.get(Header.AT, ""), *said))


async def fold(broker: Broker, *, bodies: bool = False) -> Fold:
    """Read the whole log. Without `bodies` it keeps only what a list shows."""
    result = Fold(bodies=bodies)
    async for message in broker.read(Route.DEAD):
        result.add(message)
    return result


async def list_letters(
    broker: Broker, *, state: State | None = "dead", where: Callable[[Letter], bool] = lambda letter: True
) -> list[Letter]:
    """The letters in one state (None: in any), oldest first."""
    found = await fold(broker)
    return [one for one in found.letters.values() if state in (None, one.state) and where(one)]


async def find(broker: Broker, wanted: Iterable[str], *, bodies: bool = True) -> list[Letter]:
    """Letters by their ids, or by beginnings of ids that are unique; whole ones, unless told otherwise.

    An ellipsis at the end says that the rest was cut, and is no part of the id.

    Raises:
        ConfigurationError: none, or several, begin like that.
    """
    wanted = list(wanted)
    beginnings = tuple(map(_beginning, wanted))
    result = Fold(bodies=bodies)
    async for message in broker.read(Route.DEAD):
        headers = message.headers
        ids = (headers.get(Header.LETTER, ""), headers.get(Header.REDRIVEN_FROM, ""))
        if any(one.startswith(beginnings) for one in ids):
            result.add(message)
    return [_only(one, result.letters) for one in beginnings]


def _beginning(wanted: str) -> str:
    begins = wanted.strip().rstrip(".…")
    if not begins:
        raise ConfigurationError(f"{wanted!r} is no id of a dead letter. tidings dead list shows them")
    return begins


async def redrive(broker: Broker, letter: Letter, audit: Audit = NOBODY) -> None:
    """Give a letter back to the handler that failed, and to no other; then mark it.

    It keeps its event id: with a store it is applied at most once, however often it is redriven. One that a list gave
    is read whole before, which reads the log; many are redriven in one go by `bulk.Bulk`.

    Raises:
        ConfigurationError: it is not whole, and the log of this broker does not hold it.
        WorldError, EventTooLarge: it could not be stored on the retry route; the letter stays as it was.
    """
    if not letter.whole:
        (letter,) = await find(broker, [letter.id])
    await _store(broker, redriven_copy(letter))
    points.at(points.REDRIVEN)
    await _store(broker, marker(letter, "redriven", audit))


async def discard(broker: Broker, letter: Letter, audit: Audit = NOBODY) -> None:
    """Say that a letter needs nothing any more. Its bytes stay in the log.

    One that others of its key wait behind is no longer in their way: its handler hears of it on its retry route.
    """
    if letter.place:
        await _store(broker, let_go(letter))
    await _store(broker, marker(letter, "discarded", audit))


def redriven_copy(letter: Letter) -> Message:
    """What goes onto the retry route of the handler that failed: the same, under the same id, for each try of it."""
    headers = {
        **letter.headers,
        Header.ID: header_text(letter.event_id),
        Header.ORIGIN: header_text(letter.origin),
        Header.STREAM: letter.stream,
        Header.HANDLER: letter.position,
        Header.LETTER: letter.id,
        Header.REDRIVE: str(letter.redriven + 1),
        Header.FAILURES: "0",
    }
    for name, text in (
        (Header.REPLAY, letter.replay),
        (Header.SCOPE, letter.scope),
        (Header.PLACE, str(letter.place or "")),
    ):
        if text:
            headers[name] = text
    if letter.type:
        headers[Header.TYPE] = header_text(letter.type)
    if letter.key is not None:
        headers[Header.KEY] = header_text(letter.key)
    return Message(
        id=f"{letter.id}:redrive:{letter.redriven + 1}",
        route=Route.RETRY,
        position=letter.position,
        stream=letter.stream,
        type=letter.type,
        key=letter.key,
        body=letter.body,
        headers=headers,
    )


def let_go(letter: Letter) -> Message:
    """What tells the handler that the place of a letter needs nothing any more. It goes out before the marker."""
    copy = redriven_copy(letter)
    headers = {**copy.headers, Header.MARKER: "discarded"}
    message_id = f"{letter.id}:let-go:{letter.redriven + 1}:{letter.copies}"
    return msgspec.structs.replace(copy, id=message_id, body=b"", headers=headers)


def marker(letter: Letter, what: Literal["redriven", "discarded"], audit: Audit = NOBODY) -> Message:
    """What the log is to say was done about a letter, by whom, and why."""
    said = {Header.BY: audit.by, Header.CHOICE: audit.choice, Header.REASON: audit.reason}
    return Message(
        id=f"{letter.id}:{what}:{letter.redriven + 1}:{letter.copies}",
        route=Route.DEAD,
        position=letter.position,
        stream=letter.stream,
        type=letter.type,
        body=b"",
        headers={
            Header.LETTER: letter.id,
            Header.MARKER: what,
            Header.HANDLER: letter.position,
            Header.AT: datetime.now(UTC).isoformat(timespec="milliseconds"),
            **{name: header_text(" ".join(text.split())[:MOST_TEXT]) for name, text in said.items() if text.split()},
        },
    )


async def follow(broker: Broker) -> AsyncIterator[Letter]:
    """Letters as they arrive, from now on."""
    result = Fold(bodies=True)
    seen = set((await fold(broker)).letters)
    async for message in broker.read(Route.DEAD, follow=True):
        result.add(message)
        for letter_id in result.letters.keys() - seen:
            seen.add(letter_id)
            yield result.letters[letter_id]


async def _store(broker: Broker, message: Message) -> None:
    (error,) = await broker.publish([message], timeout=TIMEOUT)
    if error is not None:
        raise error


def _only(wanted: str, letters: dict[str, Letter]) -> Letter:
    matching = [letter for letter_id, letter in letters.items() if letter_id.startswith(wanted)]
    if len(matching) == 1:
        return matching[0]
    problem: TidingsError = ConfigurationError(
        f"no dead letter has the id {wanted!r}. tidings dead list shows them"
        if not matching
        else f"{len(matching)} dead letters begin with {wanted!r}; give more of the id"
    )
    raise problem


def _letter(letter_id: str, message: Delivery, body: bytes, *, whole: bool) -> Letter:
    headers = message.headers
    known = headers.get(Header.KEY)
    same = sys.intern  # of a hundred thousand letters most share these texts
    traceback = headers.get(Header.TRACEBACK, "")
    return Letter(
        id=letter_id,
        position=same(headers.get(Header.HANDLER, "")),
        stream=same(headers.get(Header.STREAM, "")),
        type=same(plain_text(headers.get(Header.TYPE, ""))),
        key=None if known is None else plain_text(known),
        event_id=plain_text(headers.get(Header.ID, "")),
        code=same(plain_text(headers.get(Header.ERROR, ""))),
        reason=same(plain_text(headers.get(Header.REASON, ""))),
        failures=_number(headers.get(Header.FAILURES, "")),
        first_failure=headers.get(Header.FIRST_FAILURE, ""),
        last_failure=headers.get(Header.LAST_FAILURE, ""),
        origin=plain_text(headers.get(Header.ORIGIN, "")),
        service_version=same(plain_text(headers.get(Header.SERVICE_VERSION, ""))),
        redriven_from=headers.get(Header.REDRIVEN_FROM, ""),
        place=_number(headers.get(Header.PLACE, "")),
        behind=headers.get(Header.BEHIND, ""),
        replay=same(headers.get(Header.REPLAY, "")),
        scope=same(headers.get(Header.SCOPE, "")),
        where=same(_raised_in(traceback)),
        traceback=plain_text(traceback) if whole else "",
        headers=original_headers(headers) if whole else {},
        body=body,
        whole=whole,
    )


def _raised_in(traceback: str) -> str:
    """The innermost call: where the file lies, and in which line, differs between two deployments of one program."""
    at = traceback.rfind('File "')
    found = _FRAME.match(traceback, at) if at >= 0 else None
    return plain_text(f"{found[1]}:{found[2]}") if found else ""


def _number(text: str) -> int:
    """A count from a header; 0 for what is none."""
    return int(text) if text.isascii() and text.isdigit() and len(text) < 10 else 0
