"""Dead letters as a person reads them: in a list, or one with its whole story. And as a program does."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from typing import Any, Final

import msgspec

from tidings.dead_letters import Letter, Mark
from tidings.errors import MisuseError
from tidings.policy import often

MOST_HEX: Final = 4096
"""Bytes of a body that is no JSON which are shown."""
SHORT: Final = 10
"""Characters of an id that a list shows; a beginning is enough to name a letter."""

EACH: Final = ("id", "handler", "type", "key", "code", "attempts", "last failure", "error", "reason")
GROUPED: Final = ("letters", "handler", "type", "code", "error", "oldest", "newest", "such as", "reason")


def row_of(letter: Letter) -> Sequence[str]:
    return (
        letter.id[:SHORT],
        letter.position,
        letter.type or "?",
        letter.key or "-",
        letter.code,
        str(letter.failures),
        letter.last_failure,
        letter.error,
        letter.reason,
    )


def grouped(letters: Sequence[Letter]) -> list[Sequence[str]]:
    """The letters by handler and fingerprint, the most frequent death of a handler first."""
    groups: dict[str, list[Letter]] = {}
    for letter in letters:
        groups.setdefault(letter.fingerprint, []).append(letter)
    rows: list[Sequence[str]] = []
    for group in sorted(groups.values(), key=lambda group: (group[0].position, -len(group))):
        newest = max(group, key=lambda one: one.last_failure)
        oldest = min(one.last_failure for one in group)
        what = (newest.position, newest.type or "?", newest.code, newest.error)
        times = (_to_the_second(oldest), _to_the_second(newest.last_failure))
        rows.append((str(len(group)), *what, *times, newest.id[:SHORT], newest.reason))
    return rows


def _to_the_second(stamp: str) -> str:
    """A time as we write it, in a table where room is short."""
    return f"{stamp[:19]}Z" if len(stamp) > 19 and stamp.endswith("+00:00") else stamp


def record_of(letter: Letter) -> dict[str, Any]:
    """What a program gets of each letter of a list."""
    fields = {name: getattr(letter, name) for name in letter.__struct_fields__}
    for name in ("body", "whole", "headers", "traceback", "marks", "rank"):
        del fields[name]
    return {**fields, "error": letter.error, "fingerprint": letter.fingerprint}


def body_of(letter: Letter) -> dict[str, Any]:
    try:
        return {"body": msgspec.json.decode(letter.body)}
    except (msgspec.MsgspecError, RecursionError):
        return {"body_hex": letter.body.hex()}


def story(letter: Letter) -> str:
    """What happened, in the order in which one asks: what, whose, why, since when; then headers, body, traceback.

    Raises:
        MisuseError: the letter comes from a list and has no body.
    """
    if not letter.whole:
        raise MisuseError(f"letter {letter.id} comes from a list and has no body; find() reads it whole")
    return "\n".join(_lines(letter))


def _lines(letter: Letter) -> Iterator[str]:
    again = f", redriven {often(letter.redriven)}" if letter.redriven else ""
    yield f"letter {letter.id}  ({letter.state}{again})"
    yield f"  handler      {letter.position}{f' (version {letter.service_version})' if letter.service_version else ''}"
    yield f"  event        {letter.type or 'unknown type'}  {letter.event_id}  key {letter.key or '-'}"
    yield f"  died of      {letter.code}: {letter.reason}"
    yield f"  error        {letter.error}{f'  raised in {letter.where}' if letter.where else ''}"
    yield f"  attempts     {letter.failures}, from {letter.first_failure} to {letter.last_failure}"
    yield f"  stood at     {letter.origin}"
    if letter.replay:
        yield f"  replay       {letter.replay}{', applied again' if letter.scope else ''}"
    if letter.redriven_from:
        yield f"  came from    letter {letter.redriven_from}, which was redriven and died again"
    if letter.place:
        behind = f", behind letter {letter.behind}" if letter.behind else ", and the others of its key wait behind it"
        yield f"  place        {letter.place} in its key{behind}"
    yield from map(_deed, letter.marks)
    if letter.died_again:
        yield f"  died again   as letter {letter.died_again}"
    if letter.headers:
        yield "headers"
        yield from (f"  {name}: {value}" for name, value in sorted(letter.headers.items()))
    yield from _body(letter.body)
    if letter.traceback:
        yield "traceback"
        yield from (f"  {line}" for line in letter.traceback.splitlines())


def _deed(mark: Mark) -> str:
    by = f" by {mark.by}" if mark.by else ""
    how = f", chosen by {mark.choice}" if mark.choice else ""
    why = f", because: {mark.reason}" if mark.reason else ""
    return f"  {mark.what:<11}  {mark.at or 'at an unknown time'}{by}{how}{why}"


def _body(body: bytes) -> Iterator[str]:
    try:
        found = msgspec.json.decode(body)
    except (msgspec.MsgspecError, RecursionError):
        yield f"body, {len(body)} bytes that are no JSON"
        yield from _hex(body[:MOST_HEX])
        if len(body) > MOST_HEX:
            yield f"  … and {len(body) - MOST_HEX} bytes more (--json has all of them)"
        return
    yield f"body, {len(body)} bytes"
    yield from (f"  {line}" for line in json.dumps(found, indent=2, ensure_ascii=False).splitlines())


def _hex(data: bytes) -> Iterator[str]:
    for at in range(0, len(data), 16):
        row = data[at : at + 16]
        text = "".join(chr(one) if 0x20 <= one < 0x7F else "." for one in row)
        yield f"  {at:06x}  {row.hex(' '):<47}  {text}"
