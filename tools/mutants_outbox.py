"""Bugs to seed into the outbox: its relay, the direct way, and what the inbox forgets."""

from __future__ import annotations

from tools.mutants_kit import Mutant

DIRECT = "outbox/direct.py"
ROWS = "outbox/rows.py"
RELAY = "outbox/relay.py"
TEXTS = "outbox/texts.py"
SWEEPING = "sweeping.py"
RETENTION = "outbox/retention.py"

_DIRECT = ("tests/unit/outbox/test_direct.py", "tests/integration/outbox/test_direct_on_sqlite.py")
_RELAY = ("tests/unit/outbox/test_relay.py", "tests/integration/outbox/test_relay_on_sqlite.py")
_UNREADABLE = ("tests/integration/stores/test_unreadable_rows.py",)
_SWEEPING = ("tests/unit/test_sweeping.py", "tests/integration/stores/test_sqlite_retention.py")

OUTBOX: tuple[Mutant, ...] = (
    Mutant(
        "an event leaves from memory although a row of another process is unsent before it",
        ROWS,
        "    chosen = [key is None or key not in unsent or key in before for key in hashes]\n",
        "    chosen = [True for key in hashes]\n",
        _DIRECT,
    ),
    Mutant(
        "the relay takes rows that their own process still holds",
        ROWS,
        "sa.select(outbox.c.id, weight).where(~_waits(outbox, now), ~held)",
        "sa.select(outbox.c.id, weight).where(outbox.c.parked == sa.false(), ~held)",
        _DIRECT,
    ),
    Mutant(
        "a row waits for as long as a wrong clock says",
        ROWS,
        "    return sa.and_(table.c.retry_at > now, right)",
        "    return sa.and_(table.c.retry_at > now)",
        _RELAY,
    ),
    Mutant(
        "a parked row leaves, and those behind it",
        ROWS,
        ", table.c.parked == sa.true())\n",
        ")\n",
        _RELAY,
    ),
    Mutant(
        "a process sends what it held, however long it stood still",
        DIRECT,
        "            if not entry.held_for(LEAST * self.hold) or any(",
        "            if any(",
        _DIRECT,
    ),
    Mutant(
        "the relay skips a row that committed late: it goes on behind the last id",
        ROWS,
        """    ids: list[int] = []
    total = 0
    for id, size in found.all():
""",
        """    ids: list[int] = []
    total = 0
    for id, size in found.all():
        if id <= getattr(ready, "last", 0):
            continue
        setattr(ready, "last", id)
""",
        (*_RELAY, *_DIRECT),
    ),
    Mutant(
        "rows of any size are written in one statement",
        ROWS,
        "if some and size + own > STATEMENT_BYTES:",
        "if some and False:",
        ("tests/integration/stores/test_direct.py",),
    ),
    Mutant(
        "a row does not wait for the one before it of another lane",
        DIRECT,
        "all(one.stage is Stage.PUBLISHED or (together and one in inside) for one in entry.before)",
        "all(one.stage is not Stage.LEFT for one in entry.before)",
        _DIRECT,
    ),
    Mutant(
        "behind a row that was refused the next of its key leaves from memory",
        DIRECT,
        " or any(one.stage is Stage.LEFT for one in entry.before):",
        ":\n                pass\n            if not entry.held_for(LEAST * self.hold):",
        _DIRECT,
    ),
    Mutant(
        "rows whose broker was away wait until their hold is over",
        DIRECT,
        "            self._due.left += [entry.id for entry in entries]\n",
        "            pass\n",
        _DIRECT,
    ),
    Mutant(
        "what a transaction took to write down is forgotten when it is rolled back",
        DIRECT,
        "            self._due.stored += due.stored\n",
        "            pass\n",
        _DIRECT,
    ),
    Mutant(
        "events of a transaction that was rolled back leave from memory",
        "stores/_transactions.py",
        "            self._desk.direct.not_committed(self._entries)\n",
        "            self._desk.direct.committed(self._entries)\n",
        _DIRECT,
    ),
    Mutant(
        "behind a row that failed the relay publishes the next of its key",
        RELAY,
        "                if error is not None and row.message.key is not None:\n",
        "                if False:\n",
        _RELAY,
    ),
    Mutant(
        "a row of the outbox that cannot be read stops all others",
        TEXTS,
        "    except (msgspec.MsgspecError, TypeError, ValueError) as error:\n        where",
        "    except AssertionError as error:\n        where",
        _UNREADABLE,
    ),
    Mutant(
        "rows overtake one of their key that cannot be read",
        TEXTS,
        '                held.add(row["key_hash"])\n',
        "                pass\n",
        _UNREADABLE,
    ),
    Mutant(
        "a row that the driver cannot read stops all others",
        ROWS,
        "        if error.connection_invalidated:\n",
        "        if True:\n",
        _UNREADABLE,
    ),
    Mutant(
        "two relays publish at once where the clocks of their machines differ",
        ROWS,
        "    now: sa.ColumnElement[float] = sa.literal_column(",
        "    now: Any = sa.literal(time.time()) if True else sa.literal_column(",
        ("tests/integration/stores/test_relay_clocks.py",),
    ),
    Mutant("two relays publish at once", ROWS, "    return bool(taken.rowcount)\n", "    return True\n", _RELAY),
    Mutant("an id is forgotten the moment its stream has", SWEEPING, "keep + margin_of(keep)", "keep", _SWEEPING),
    Mutant(
        "business keys are forgotten like ids",
        RETENTION,
        'key.startswith(EVENT_MARK) == (kind == "event")',
        "True",
        _SWEEPING,
    ),
    Mutant(
        "a key that was applied anew is forgotten",
        RETENTION,
        ", some, inbox.c.applied_at < before)",
        ", some)",
        _SWEEPING,
    ),
    Mutant(
        "keys are forgotten when the broker cannot be asked",
        SWEEPING,
        "    keep = await keeps()\n",
        """    try:
        keep = await keeps()
    except BrokerUnavailable:
        keep = SMALLEST_MARGIN
""",
        _SWEEPING,
    ),
)
