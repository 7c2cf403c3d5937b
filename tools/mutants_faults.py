"""Bugs to seed that only faults show: what part C of the conformance suite catches on a real server, and nothing else
has to. `tests/conformance/test_awake.py` counts on them, by their words, where the memory broker cannot be used."""

from __future__ import annotations

from tools.mutants_kit import Mutant

SINGLE = "tests/conformance/test_nats.py::TestNats::"
CLUSTER = "tests/conformance/test_nats_cluster.py::TestNatsCluster::"

ACK_WAIT = "test_P2_a_handler_that_takes_three_times_the_ack_wait_gets_its_event_once"
KILLED = "test_P4_a_process_that_was_killed_at_a_point_loses_nothing_and_doubles_nothing"
MEMORY = "test_P11_memory_is_bounded_with_a_slow_handler_and_a_long_backlog"
COPIES = "test_P8_copies_keep_their_order_when_the_process_that_had_some_is_lost"
LOSS = "test_P1_P10_complete_packet_loss_for_a_while_loses_nothing_and_doubles_nothing"
SILENT = "test_P10_connections_that_died_without_a_word_are_noticed_and_replaced"
ROLLING = "test_P1_P10_a_cluster_stopped_node_by_node_down_to_none_comes_back_with_everything"
LEADERS = "test_P4_P8_P10_leaders_killed_under_load_lose_nothing_double_nothing_and_keep_the_order"

FAULTS: tuple[Mutant, ...] = (
    Mutant(
        "faults: what is slow is not kept alive",
        "brokers/nats/feed.py",
        "        if not old:\n            return\n",
        "        if old or not old:\n            return\n",
        (SINGLE + ACK_WAIT,),
    ),
    Mutant(
        "faults: what a dead process held in the outbox stays there",
        "outbox/rows.py",
        "where(~_waits(outbox, now), ~held)",
        "where(~_waits(outbox, now), ~held, sa.false())",
        (SINGLE + KILLED,),
    ),
    Mutant(
        "faults: what was applied by a dead process is applied again",
        "stores/_claims.py",
        "states.append(Claimed(State.DONE, key.event_id if event_id == self._id(key) else event_id, digest))",
        "states.append(NEW)",
        (SINGLE + KILLED,),
    ),
    Mutant(
        "faults: a feed takes whatever there is",
        "brokers/nats/pull.py",
        "        self._most, self._most_bytes = most, most_bytes\n",
        "        self._most, self._most_bytes = 1 << 20, 1 << 40\n",
        (SINGLE + MEMORY,),
    ),
    Mutant(
        "faults: copies that a lost process had come behind later ones",
        "brokers/nats/share_copies.py",
        "if await self._left_by_others():",
        "if not await self._left_by_others():",
        (SINGLE + COPIES,),
    ),
    Mutant(
        "faults: a silent connection is believed for ever",
        "brokers/nats/connection.py",
        'link.abandon(f"the server was silent for {quiet:.0f} s")',
        "asked = 1",
        (SINGLE + SILENT,),
    ),
    Mutant(
        "faults: on a new connection no share is asked for",
        "brokers/nats/share.py",
        "        if self.wanted:\n            self.restart(link)\n",
        "        pass\n",
        (SINGLE + LOSS,),
    ),
    Mutant(
        "faults: when a server has gone no other is looked for",
        "brokers/_healing.py",
        "    async def _keep_up(self) -> None:\n        while not self._closing:\n",
        "    async def _keep_up(self) -> None:\n        while self.link is not None:\n",
        (CLUSTER + ROLLING,),
    ),
    Mutant(
        "faults: a process whose pin the server has forgotten goes on asking in its name",
        "brokers/nats/share.py",
        "        self._over.forget()\n        self._stand_by()\n",
        "        self._over.forget()\n",
        (CLUSTER + LEADERS,),
    ),
    Mutant(
        "suite: the wait for effects counts those that came since it looked",
        "testing/conformance/stage.py",
        "max(len(wanted), len(found) + 1)",
        "max(len(wanted), self.count(position) + 1)",
        ("tests/unit/testing/test_stage.py",),
    ),
    Mutant(
        "suite: a gap needs no reason",
        "testing/conformance/plugin.py",
        "        if not reason:\n",
        "        if not name:\n",
        ("tests/conformance/test_by_url.py",),
    ),
    Mutant(
        "brokers: another package's scheme goes before ours",
        "brokers/__init__.py",
        "_SCHEMES.get(scheme.lower()) or _of_another_package(scheme.lower())",
        "_of_another_package(scheme.lower()) or _SCHEMES.get(scheme.lower())",
        ("tests/unit/brokers/test_broker_from.py",),
    ),
)
