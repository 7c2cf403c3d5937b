"""Bugs to seed into what becomes of calls that do not end."""

from __future__ import annotations

from tools.mutants_kit import Mutant

TESTS = (
    "tests/unit/test_limit.py",
    "tests/unit/test_pipeline.py",
    "tests/integration/service/test_stuck_handlers.py",
    "tests/walk",
)
ON_THE_COMMAND_LINE = ("tests/integration/cli/test_stuck.py",)
ON_DATABASES = ("tests/integration/service/test_stuck_on_databases.py",)


def bug(what: str, file: str, old: str, new: str, tests: tuple[str, ...] = TESTS) -> Mutant:
    return Mutant(f"stuck: {what}", file, old, new, tests)


STUCK: tuple[Mutant, ...] = (
    bug(
        "a call that does not end keeps its lane",
        "turn.py",
        "        if self._may_leave(self):\n",
        "        if False:\n",
    ),
    bug(
        "a worker that makes room for another has failed",
        "cli/workers.py",
        "Status.INTERRUPTED, MADE_ROOM, -signal",
        "Status.INTERRUPTED, -signal",
        ON_THE_COMMAND_LINE,
    ),
    bug("a call is left behind as soon as its time is over", "limit.py", "wait = self._patience\n", "wait = 0.0\n"),
    bug(
        "a call that took its time-out is left behind later",
        "limit.py",
        "self.started = self._overdue = None",
        "self.started = None",
    ),
    bug("a call without a limit is left behind", "limit.py", "if self._patience is not None:", "if True:"),
    bug(
        "a call that was left goes on with the next event",
        "turn.py",
        "        if not self.left:\n",
        "        if True:\n",
    ),
    bug(
        "a call whose effect cannot be undone is tried again beside itself",
        "leaving.py",
        "self.sets_aside = not fenced and bool(handler.rules.once or handler.rules.ordered)",
        "self.sets_aside = False",
    ),
    bug(
        "a call whose transaction is closed keeps its event",
        "leaving.py",
        "self.sets_aside = not fenced and bool(handler.rules.once or handler.rules.ordered)",
        "self.sets_aside = bool(handler.rules.once or handler.rules.ordered)",
        ON_DATABASES,
    ),
    bug(
        "what an ordered call returned at last does not count",
        "leaving.py",
        "                self.late.results.update(results)\n",
        "",
    ),
    bug("nobody goes on when the call has ended", "leaving.py", "\n        self.back(delivery)\n", "\n"),
    bug(
        "a twin is handled beside a call that was set aside",
        "handling.py",
        "return any(owner is not delivery and not owner.withdrawn for owner in owners)",
        "return False",
    ),
    bug(
        "a call that ended with an error has failed twice",
        "leaving.py",
        "        delivery.failures = max(0, delivery.failures - 1)  # what",
        "        delivery.failures = max(0, delivery.failures)  # what",
    ),
    bug(
        "an event that was given back waits for its call as well",
        "pipeline.py",
        "                self.leaving.forget(work.delivery)\n",
        "",
    ),
    bug(
        "the failure of an event that waits for its call is not counted",
        "leaving.py",
        "Retried(after=UNTIL_IT_ENDS, reason=describe(error), error=error)",
        "Retried(after=UNTIL_IT_ENDS, reason=describe(error), error=error, counted=False)",
    ),
    bug(
        "what does not end in any process never dies",
        "leaving.py",
        "            ended.append((delivery, decision))\n",
        "",
    ),
    bug(
        "what was set aside is lost when its claim cannot be closed",
        "pipeline.py",
        "            group[0].decision = group[0].decision or self.calls.decide(error, group[0])\n",
        "            group[0].decision = self.calls.decide(error, group[0])\n",
    ),
    bug(
        "a share leaves while a call runs on for an event of it",
        "lane.py",
        "        return running + [delivery for delivery in gone if delivery in self._aside]\n",
        "        return running\n",
        ("tests/unit/test_worker_shared.py",),
    ),
    bug(
        "any number of calls is left behind",
        "leaving.py",
        "        return len(self._living) >= self._most\n",
        "        return False\n",
    ),
    bug(
        "a process with calls that hold others up is well",
        "observe/health.py",
        "for worker in running.workers if worker.stuck]",
        "for worker in running.workers if not worker]",
        ("tests/unit/observe/test_health.py",),
    ),
    bug(
        "each handler has a limit of its own for calls that are left behind",
        "leaving.py",
        "Leftovers() if leftovers is None else leftovers",
        "leftovers or Leftovers()",
    ),
    bug(
        "a worker that is stuck is not replaced",
        "cli/stuck.py",
        'for worker in running.workers if worker.stuck), "")',
        'for worker in running.workers if not worker), "")',
        ON_THE_COMMAND_LINE,
    ),
    bug(
        "a worker whose loop is blocked for good is not replaced",
        "cli/stuck.py",
        "while blocked < limit + LOOK:",
        "while True:",
        ON_THE_COMMAND_LINE,
    ),
    bug(
        "a process waits at its end for calls that do not end",
        "cli/run.py",
        "    if running.leftovers:\n",
        "    if False:\n",
        ON_THE_COMMAND_LINE,
    ),
    bug("a batch that does not end is halved", "pipeline.py", "alone=isinstance(error, Abandoned)", "alone=False"),
    bug(
        "all of a batch die of a call that nobody knows the culprit of",
        "leaving.py",
        "if isinstance(decision, DeadLettered) and len(turn.works) > 1:",
        "if False:",
    ),
    bug(
        "what was in a batch that did not end is tried together again",
        "reading.py",
        "        grouping.set_apart(work)\n        if (dead",
        "        if (dead",
    ),
    bug(
        "a stop waits for ever for a call that does not end",
        "turn.py",
        "last = last or loop.call_later(LAST_PATIENCE, self._give_up)",
        "pass",
    ),
    bug(
        "a thread that was left behind goes to the next call",
        "calling.py",
        "if own is not None and running.done():",
        "if own is not None:",
    ),
    bug(
        "a thread keeps the process from ending",
        "threads.py",
        "daemon=True",
        "daemon=False",
        ("tests/unit/test_threads.py",),
    ),
    bug(
        "an asyncpg transaction stays open under a handler that does not end",
        "stores/_postgres_transactions.py",
        "            await self._end_at_the_server(connection)\n        elif",
        "            broken = False\n        elif",
        ON_DATABASES,
    ),
    bug(
        "the server goes on with a statement whose connection was cut",
        "stores/_postgresql.py",
        "                await read(lambda connection",
        "                pass; (lambda connection",
        ON_DATABASES,
    ),
    bug(
        "a thread keeps the write lock of SQLite",
        "stores/_sqlite.py",
        "            driver.rollback()\n\n        thread",
        "\n        thread",
        ON_DATABASES,
    ),
    bug(
        "a thread writes into SQLite after its transaction was rolled back",
        "stores/_sqlite.py",
        '            driver.execute("PRAGMA query_only=1")  # or what is written next would be committed at once\n',
        "",
        ON_DATABASES,
    ),
    bug(
        "the turn to write is kept by a thread that does not come back",
        "stores/_transactions.py",
        "                self._give_turn()\n                return self._tidy_up_later",
        "                return self._tidy_up_later",
        ON_DATABASES,
    ),
    bug(
        "an event whose call ends while its claim is closed waits for ever, and its key with it",
        "pipeline.py",
        "            self.leaving.settled(ended)\n",
        "            pass\n",
        ("tests/integration/service/test_stuck_handlers.py",),
    ),
    bug(
        "an event whose call ends while its claim is closed is lost to its process, in no order",
        "leaving.py",
        "                work.decision = None\n",
        "                pass\n",
        ("tests/integration/service/test_stuck_handlers.py",),
    ),
    bug(
        "a worker that was stopped with its machine ends for it",
        "cli/stuck.py",
        "blocked = blocked + min(passed, LOOK) if health.silent >= passed else 0.0",
        "blocked = health.silent + LOOK",
        ON_THE_COMMAND_LINE,
    ),
)
