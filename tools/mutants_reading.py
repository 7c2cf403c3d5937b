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
    bug("the mode of the first is that of all", "envelope.py", "        known = some\n", "        break\n"),
    bug("only the first is looked at closer", "envelope.py", '_is_plain(b"".join(bodies))', "True"),
    bug("stamps are forgotten", "reading.py", "        set_stamp(event, envelope)\n", ""),
    bug("what has failed is new", "reading.py", "any([delivery.failures or delivery.route", "any([delivery.route"),
    bug(
        "a copy is an event", "reading.py", "delivery.failures or delivery.route is _RETRY for", "delivery.failures for"
    ),
    bug("envelopes are forgotten", "reading.py", "        delivery.envelope = envelope\n    return", "    return"),
    bug(
        "what a class raises ends the batch",
        "reading.py",
        "    except BaseException as error:  # also",
        "    except UndecodableEvent as error:  # also",
    ),
    bug(
        "one that is special has all looked at closer",
        "reading.py",
        "_TOGETHER: Final = 64",
        "_TOGETHER: Final = 1 << 30",
    ),
)
