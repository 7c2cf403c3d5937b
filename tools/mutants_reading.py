"""Bugs to seed where a batch is read at once."""

from __future__ import annotations

from tools.mutants_kit import Mutant


def bug(what: str, file: str, old: str, new: str) -> Mutant:
    return Mutant(f"reading: {what}", file, old, new, ("tests/unit/test_reading.py",))


READING: tuple[Mutant, ...] = (
    bug("escapes are not looked at", "envelope.py", "_BACKSLASH not in text and ", ""),
    bug("lists are not looked at", "envelope.py", "_BRACKET not in text and ", ""),
    bug("deletes are not looked at", "envelope.py", "_DELETE not in text and ", ""),
    bug("what is beyond ASCII is not looked at", "envelope.py", " and text.isascii()\n", "\n"),
    bug(
        "how deep long ones are is not looked at",
        "envelope.py",
        '(size > _SHORT or body.count(b"{") > MAX_DEPTH)',
        "size > _SHORT",
    ),
    bug("how large they are is not looked at", "envelope.py", "(size > _SHORT or body", "(body"),
    bug(
        "only the first is looked at closer",
        "envelope.py",
        "any([_look_at(body) for body in bodies])",
        "_look_at(bodies[0])",
    ),
    bug("texts are not looked at", "envelope.py", "        if controls:\n", "        if not controls:\n"),
    bug(
        "data may be missing", "envelope.py", "envelopes if all([one.data for one in envelopes]) else None", "envelopes"
    ),
    bug("the mode of the first is that of all", "envelope.py", "        known = some\n", "        break\n"),
    bug(
        "stamps are forgotten",
        "evolution.py",
        "        for event, envelope in zip(events, envelopes",
        "        for event, envelope in zip([], []",
    ),
    bug(
        "what has failed is new", "reading.py", "if any([delivery.failures or delivery.route", "if any([delivery.route"
    ),
    bug(
        "a copy is an event", "reading.py", "delivery.failures or delivery.route is _RETRY for", "delivery.failures for"
    ),
    bug(
        "envelopes are forgotten",
        "reading.py",
        "        delivery.envelope = envelope\n    return",
        "        pass\n    return",
    ),
)
