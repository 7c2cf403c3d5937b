"""Bugs to seed into the stores through SQLAlchemy that only a server of its own shows: PostgreSQL's, MariaDB's."""

from __future__ import annotations

from tools.mutants_kit import Mutant

CLOSED = (
    "tests/integration/stores/test_servers.py"
    "::test_P10_a_connection_that_was_closed_while_nobody_used_it_costs_nobody_a_transaction"
)

USED_UP = "tests/integration/stores/test_servers.py::test_a_pool_that_is_used_up_is_told_from_a_server_that_is_away"

ENDS = (
    "tests/integration/stores/test_service.py"
    "::test_P7_P12_an_event_for_which_the_server_ends_each_transaction_becomes_a_letter_and_others_go_on"
)

LETS_WAIT = (
    "tests/integration/stores/test_servers.py"
    "::test_a_live_engine_that_lets_wait_for_longer_than_a_server_may_take_is_told_from_one_that_is_away"
)

DATABASES: tuple[Mutant, ...] = (
    Mutant(
        "databases: a connection to a database that may only be read since a failover is kept",
        "stores/_guard.py",
        "        context.is_disconnect = True\n",
        "        pass\n",
        ("tests/integration/stores/test_failover.py",),
    ),
    Mutant(
        "databases: a connection that was closed in the pool fails the next transaction",
        "stores/_transactions.py",
        "            if not error.connection_invalidated:\n",
        "            if True:\n",
        (CLOSED,),
    ),
    Mutant(
        "databases: a connection that was closed in the pool fails who only reads",
        "stores/_desk.py",
        "                if not error.connection_invalidated:\n",
        "                if True:\n",
        (CLOSED,),
    ),
    Mutant(
        "databases: a pool that is used up is taken for a server that is away",
        "stores/_database.py",
        '"pool_timeout": answers_within / 2',
        '"pool_timeout": answers_within * 2',
        (USED_UP,),
    ),
    Mutant(
        "databases: an event for which the server ends each transaction is tried without end",
        "stores/_transactions.py",
        "                self.lasted = time.monotonic() - self._began\n",
        "                pass\n",
        (ENDS,),
    ),
    Mutant(
        "databases: MariaDB is used in a mode in which the driver spoils bytes",
        "stores/_mariadb.py",
        '        if connection.dialect.driver != "aiomysql" or not',
        "        if connection.dialect.driver or not",
        ("tests/integration/stores/test_mariadb_modes.py",),
    ),
    Mutant(
        "databases: a mode of MariaDB that spoils bytes is seen at the start alone",
        "stores/_mariadb.py",
        """            if trouble := self._spoils(connection):
                raise StoreUnavailable(trouble)

        if ours:""",
        """
        if ours:""",
        ("tests/integration/stores/test_mariadb_modes.py",),
    ),
    Mutant(
        "databases: a live engine whose connections are all lent is taken for a server that is away",
        "stores/_database.py",
        " if pool.checkedout() >= pool.size() + more else None\n",
        " if False else None\n",
        (LETS_WAIT,),
    ),
)
