"""A dead letter as a person reads it."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Final

import msgspec

from tidings.dead_letters import Letter
from tidings.errors import MisuseError

MOST_HEX: Final = 4096
"""Bytes of a body that is no JSON which are shown."""


def story(letter: Letter) -> str:
    """What happened, in the order in which one asks: what, whose, why, since when; then headers, body, traceback.

    Raises:
        MisuseError: the letter comes from a list and has no body.
    """
    if not letter.whole:
        raise MisuseError(f"letter {letter.id} comes from a list and has no body; find() reads it whole")
    return "\n".join(_lines(letter))


def _lines(letter: Letter) -> Iterator[str]:
    again = f", redriven {letter.redriven} times" if letter.redriven else ""
    yield f"letter {letter.id}  ({letter.state}{again})"
    yield f"  handler      {letter.position}{f' (version {letter.service_version})' if letter.service_version else ''}"
    yield f"  event        {letter.type or 'unknown type'}  {letter.event_id}  key {letter.key or '-'}"
    yield f"  died of      {letter.code}: {letter.reason}"
    yield f"  attempts     {letter.failures}, from {letter.first_failure} to {letter.last_failure}"
    yield f"  stood at     {letter.origin}"
    if letter.redriven_from:
        yield f"  came from    letter {letter.redriven_from}, which was redriven and died again"
    if letter.headers:
        yield "headers"
        yield from (f"  {name}: {value}" for name, value in sorted(letter.headers.items()))
    yield from _body(letter.body)
    if letter.traceback:
        yield "traceback"
        yield from (f"  {line}" for line in letter.traceback.splitlines())


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
