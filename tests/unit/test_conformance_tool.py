"""The table of what the conformance suite has seen says no more than was seen."""

from __future__ import annotations

import json

from tools.conformance import Column, Test, _with, read, table

ONE = "test_P1_what_is_stored_stays"


def _lines(*found: dict[str, object]) -> list[str]:
    return [json.dumps({"test": ONE, **one}) for one in found]


def test_a_test_that_failed_for_one_parameter_has_failed() -> None:
    found = read(_lines({"outcome": "passed"}, {"outcome": "failed"}, {"outcome": "passed"}))
    assert found[ONE].outcome == "failed"


def test_a_test_whose_end_failed_has_failed() -> None:
    assert read(_lines({"outcome": "passed"}, {"outcome": "failed", "sizes": {}}))[ONE].outcome == "failed"


def test_a_gap_is_told_also_where_another_parameter_passed() -> None:
    assert read(_lines({"outcome": "passed"}, {"outcome": "not supported"}))[ONE].outcome == "not supported"


def test_a_part_that_runs_in_another_class_has_passed_where_it_did() -> None:
    found = read(_lines({"outcome": "not in this run"}, {"outcome": "passed"}, {"outcome": "passed"}))
    assert (found[ONE].outcome, found[ONE].times) == ("passed", 2)


def test_a_test_that_never_ended_did_not_pass() -> None:
    assert read(_lines({"sizes": {"events": [20, 1000]}}))[ONE].outcome == "skipped"


def test_the_table_has_the_sizes_and_a_cell_for_each_broker() -> None:
    sizes = {"events": (20, 1000)}
    columns = {
        "memory": Column("2030-01-01", "1.0", "short", {ONE: Test("passed", 2, sizes)}),
        "kafka": Column("2030-01-02", "1.0", "full", {ONE: Test("failed", 0, {"events": (1000, 1000)})}),
        "rabbitmq": Column("2030-01-02", "1.0", "full", {}),
    }
    row, last = table(columns).splitlines()[2], table(columns).splitlines()[-1]
    assert row == "| P1 | what is stored stays | events 20 to 1,000 | passed 2 | **FAILED** |  |"
    assert last == "RabbitMQ: full sizes, Tidings 1.0, 2030-01-02."


def test_a_part_that_is_run_again_leaves_the_others_as_they_were_seen() -> None:
    before = Column("2030-01-01", "1.0", "full", {ONE: Test("failed"), "test_other": Test("passed", 1)})
    now = Column("2030-01-02", "1.0", "full", {ONE: Test("passed", 1), "test_other": Test()})
    assert _with(before, now).tests == {ONE: Test("passed", 1), "test_other": Test("passed", 1)}
    assert _with(before, Column("2030-01-02", "1.0", "short", now.tests)).tests == now.tests
