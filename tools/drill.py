"""`python -m tools.drill`: do what a new user does wrong and what a bad day does, and print what came of it.

Each row says the action, the message, the exit status, and where events are involved how many were lost and how many
effects were applied twice, as the handlers' own ledger tells. The messages stand in full below. The exit status is 1 if
anything is not as expected: another status, a message without its remedy, a traceback, a secret in anything that was
said, an event lost or applied twice, a process left behind.

    python -m tools.drill [part of an action …]     only the actions that hold one of these
"""

from __future__ import annotations

import sys
import tempfile
import textwrap
import time
import traceback
from collections.abc import Sequence
from pathlib import Path

from tools import drill_days, drill_mistakes
from tools.drill_kit import Case, Kit, NotToBeHad, Seen

WIDTH = 76
"""How much of a message the table shows."""


def play(case: Case, folder: Path) -> tuple[Seen, list[str]]:
    """Do it; what was seen, and what is wrong with that."""
    with Kit(folder) as kit:
        try:
            seen = case.run(kit)
        except NotToBeHad as error:
            return Seen(f"could not be had here: {error}", None), []
        except Exception as error:
            trouble = "".join(traceback.format_exception(error))
            return Seen(f"the drill itself failed: {error!r}", None), [trouble, kit.everything()[-3000:]]
        return seen, wrongs(case, seen, kit)


def wrongs(case: Case, seen: Seen, kit: Kit) -> list[str]:
    """Everything that is not as it should be."""
    said = kit.everything()
    found = [seen.wrong] if seen.wrong else []
    if seen.status != case.status:
        found.append(f"exit status {seen.status} instead of {case.status}")
    found += [f"the message does not say {needle!r}" for needle in case.says if needle not in seen.message]
    if "Traceback (most recent call last)" in said:
        found.append("somebody was shown a traceback")
    found += [f"secret number {number} was shown" for number, secret in enumerate(kit.secrets) if secret in said]
    if seen.lost or seen.twice:
        found.append(f"{seen.lost} lost, {seen.twice} applied twice")
    if left := kit.left_behind():
        found.append(f"{len(left)} processes were left behind")
    return found


def row(cells: Sequence[str]) -> str:
    widths = (38, WIDTH, 6, 5, 5)
    return "  ".join(
        cell.ljust(width) if at < 2 else cell.rjust(width)
        for at, (cell, width) in enumerate(zip(cells, widths, strict=True))
    ).rstrip()


def number(value: int | None) -> str:
    return "-" if value is None else str(value)


def brief(text: str) -> str:
    line = " ".join(text.splitlines()[0].split()) if text else "(nothing)"
    return textwrap.shorten(line.removeprefix("tidings: "), WIDTH, placeholder=" …")


def main(arguments: Sequence[str]) -> int:
    cases = [*drill_mistakes.CASES, *drill_days.CASES]
    chosen = [one for one in cases if not arguments or any(word in one.action for word in arguments)]
    began, messages, failed = time.monotonic(), [], 0
    print(row(("action", "message", "status", "lost", "twice")))
    print(row(("-" * 38, "-" * WIDTH, "-" * 6, "-" * 5, "-" * 5)))
    with tempfile.TemporaryDirectory(prefix="tidings-drill-") as folder:
        for place, case in enumerate(chosen):
            seen, wrong = play(case, Path(folder) / f"case-{place:02}")
            failed += bool(wrong)
            print(row((case.action, brief(seen.message), number(seen.status), number(seen.lost), number(seen.twice))))
            for one in wrong:
                print(textwrap.indent(f"NOT AS EXPECTED: {one}", "    "))
            sys.stdout.flush()
            messages.append((case.action, seen.message))
    print("\nThe messages in full\n")
    for action, message in messages:
        print(f"{action}:")
        print(textwrap.indent("\n".join(textwrap.fill(line, 118) for line in message.splitlines()), "    ") + "\n")
    print(f"actions={len(chosen)} as_expected={len(chosen) - failed} failed={failed}", end=" ")
    print(f"seconds={time.monotonic() - began:.0f}")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
