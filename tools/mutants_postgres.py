"""Bugs to seed into the store on PostgreSQL: claims, commits, the guard, and the outbox."""

from __future__ import annotations

from tidings.outbox.tables import SCHEMA_VERSION
from tools.mutants_kit import Mutant

CLAIMS = "stores/_postgres_claims.py"
TRANSACTIONS = "stores/_postgres_transactions.py"
SQL = "stores/_postgres_sql.py"
ERRORS = "stores/_postgres_errors.py"
OUTBOX = "stores/_postgres_outbox.py"
CONNECTIONS = "stores/_postgres_connections.py"
STATEMENTS = "stores/_postgres_statements.py"

_TESTS = {
    name: (f"tests/integration/postgres/test_{name}.py",)
    for name in ("claims", "faults", "outbox", "service", "kills", "undone")
}

_ISOLATION = tuple(
    f"tests/integration/postgres/test_faults.py::test_{words}"
    for words in (
        "several_processes_make_the_tables_at_once_whatever_isolation_is_the_default",
        "the_relays_of_two_processes_never_meet_in_an_error_of_isolation",
    )
)

_ENDS = "test_P7_P12_an_event_for_which_the_server_ends_each_transaction_becomes_a_letter_and_others_go_on"
_OVERSTAYED = (f"tests/integration/postgres/test_service.py::{_ENDS}",)

POSTGRES: tuple[Mutant, ...] = (
    Mutant(
        "postgres: on a connection of a pool nobody looks up what became of a commit",
        TRANSACTIONS,
        "self.doubtful = gone(connection) or not answered",
        "self.doubtful = connection.is_closed() or not answered",
        _TESTS["faults"],
    ),
    Mutant(
        "databases: a commit that waits for a standby is cancelled, and with that done",
        "stores/_postgresql.py",
        "    commits_by_cancel = True\n",
        "    commits_by_cancel = False\n",
        ("tests/integration/postgres/test_standby.py",),
    ),
    Mutant(
        "postgres: an event for which the server ends each transaction is tried without end",
        CLAIMS,
        "            if (culprit := await self._overstayed(error) or culprit) is not None:\n",
        "            if culprit is not None:\n",
        _OVERSTAYED,
    ),
    Mutant(
        "postgres: a handler that returns after the server ended its transaction has not failed",
        CLAIMS,
        "raise await self._overstayed(trouble) or trouble from",
        "raise trouble from",
        _OVERSTAYED,
    ),
    Mutant(
        "a server that was away for a moment is taken for one that ended a transaction for its time",
        "stores/_patience.py",
        "    if found is None or lasted < found[1]:\n",
        "    if found is None:\n",
        ("tests/unit/stores/test_patience.py",),
    ),
    Mutant(
        "postgres: a connection that was told its end while it was idle is a mistake of the program",
        ERRORS,
        "isinstance(error, asyncpg.InternalClientError)",
        "isinstance(error, AssertionError)",
        _TESTS["faults"],
    ),
    Mutant(
        "postgres: a connection to a server that may only be read since a failover is kept",
        TRANSACTIONS,
        "                broken = self._misled\n",
        "                broken = False\n",
        _TESTS["faults"],
    ),
    Mutant(
        "postgres: tables are made with the snapshot from before their lock",
        "stores/_postgres_schema.py",
        '            isolation_level="READ COMMITTED",\n',
        "",
        _ISOLATION,
    ),
    Mutant(
        "postgres: a step of our own has the isolation that is the database's default",
        "stores/_postgres_desk.py",
        'connection.transaction(isolation="read_committed")',
        "connection.transaction()",
        _ISOLATION,
    ),
    Mutant(
        "postgres: a key whose insert waited too long is taken for a duplicate",
        CLAIMS,
        "            self.states = await self._transaction.open(self._claim)\n",
        """            try:
                self.states = await self._transaction.open(self._claim)
            except TidingsError:
                self.states = [Claimed(State.DONE, key.event_id, key.digest) for key in self._keys]
                await self._transaction.open(self._transaction.keyless)
""",
        _TESTS["claims"],
    ),
    Mutant(
        "postgres: a commit whose answer was lost is guessed to be done",
        CLAIMS,
        "self._transaction.doubtful and await self._took_effect()",
        "self._transaction.doubtful",
        _TESTS["faults"],
    ),
    Mutant(
        "postgres: a commit whose answer was lost is guessed to have failed",
        CLAIMS,
        "self._transaction.doubtful and await self._took_effect()",
        "False",
        _TESTS["faults"],
    ),
    Mutant(
        "postgres: anybody may commit the transaction of a claim",
        SQL,
        "VALUES ($1::bigint, -1)",
        f"VALUES ($1::bigint, {SCHEMA_VERSION})",  # a version that the rule finds
        _TESTS["claims"],
    ),
    Mutant(
        "postgres: it is not seen that the transaction is another one",
        SQL,
        "SELECT 1 / count(*) FROM closed",
        "SELECT count(*) FROM closed",
        _TESTS["claims"],
    ),
    Mutant(
        "postgres: after a handler that rolled back the next one begins",
        TRANSACTIONS,
        "        if not connection.is_in_transaction():\n            # Whatever",
        "        if False:\n            # Whatever",
        _TESTS["claims"],
    ),
    Mutant(
        "postgres: a deadlock counts as a failure of the event",
        ERRORS,
        """    "40P01": "a deadlock with another transaction was ended",\n""",
        "",
        _TESTS["claims"],
    ),
    Mutant(
        "postgres: keys are inserted in the order in which they came",
        CLAIMS,
        "for stored in sorted(first)]",
        "for stored in first]",
        _TESTS["claims"],
    ),
    Mutant(
        "postgres: a failed key is kept",
        CLAIMS,
        "            self._given_back.add(index)\n",
        "            pass\n",
        _TESTS["claims"],
    ),
    Mutant(
        "postgres: queued statements are grouped by their text, out of order",
        STATEMENTS,
        "groupby(queue, itemgetter(0))",
        "groupby(sorted(queue, key=itemgetter(0)), itemgetter(0))",
        _TESTS["claims"],
    ),
    Mutant(
        "postgres: a failed statement of an earlier handler is blamed on the one that asks",
        STATEMENTS,
        "                if sent < begins:\n",
        "                if False:\n",
        _TESTS["claims"],
    ),
    Mutant(
        "postgres: the relay reads on after the last number that it saw",
        OUTBOX,
        """            found = await connection.fetch(READY, time.time(), most, most_bytes)
""",
        """            found = await connection.fetch(READY, time.time(), most, most_bytes)
            seen = getattr(self, "seen", 0)
            found = [row for row in found if row["id"] > seen]
            self.seen = max([seen, *(row["id"] for row in found)])
""",
        _TESTS["outbox"],
    ),
    Mutant(
        "postgres: what was emitted is not in the transaction",
        TRANSACTIONS,
        "                self._entries = await outbox.insert_held(connection, self._messages, self._desk)\n",
        """                async with self._desk.session() as other:
                    self._entries = await outbox.insert_held(other, self._messages, self._desk)
                if self._messages[0].id == "m" or len(self._messages) > 1:
                    raise asyncpg.SerializationError("late")
""",
        _TESTS["outbox"],
    ),
    Mutant(
        "postgres: nobody is told of new rows",
        OUTBOX,
        "desk.wake.soon())",
        "None)",
        _TESTS["outbox"],
    ),
    Mutant(
        "postgres: what an event sent before it failed is committed",
        TRANSACTIONS,
        "        sent = self.touched or (self._statements is not None and self._statements.sent)\n",
        "        sent = False\n",
        _TESTS["undone"],
    ),
    Mutant(
        "postgres: what an event queued before it failed is sent",
        TRANSACTIONS,
        "            self._statements.undo()\n",
        "            pass\n",
        _TESTS["undone"],
    ),
    Mutant(
        "postgres: what an event published before it failed leaves",
        TRANSACTIONS,
        "        del self._messages[self._before :]\n",
        "",
        _TESTS["undone"],
    ),
    Mutant(
        "postgres: a statement on a user's own connection is not seen",
        TRANSACTIONS,
        "self.touched = type(connection) is not GuardedConnection",
        "self.touched = False",
        _TESTS["undone"],
    ),
    Mutant(
        "postgres: what a COPY sent is not seen",
        CONNECTIONS,
        "    async def _copy_in(self, *args: Any) -> str:\n        self._check_open()\n",
        "    async def _copy_in(self, *args: Any) -> str:\n",
        _TESTS["undone"],
    ),
    Mutant(
        "postgres: a statement that a handler kept sends in the turn of the next",
        CONNECTIONS,
        "self._pool_release_ctr += 1",
        "self._pool_release_ctr += 0",
        _TESTS["claims"],
    ),
    Mutant(
        "postgres: an event that failed takes back all although it sent nothing",
        TRANSACTIONS,
        "        if sent or self.trouble is not None",
        "        if True or self.trouble is not None",
        _TESTS["undone"],
    ),
    Mutant(
        "postgres: a lane hangs for ever in statements that a silent server does not answer",
        TRANSACTIONS,
        "async with asyncio.timeout(self._desk.answer_timeout):  # their",
        "async with asyncio.timeout(None):  # their",
        _TESTS["faults"],
    ),
)
