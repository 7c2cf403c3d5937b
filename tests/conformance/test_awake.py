"""The suite is awake: each of its tests fails on a broker, or a core, that breaks what the test is there for."""

from __future__ import annotations

import inspect
import logging
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.conformance import mutants
from tests.conformance.mutants import Mutant
from tests.conformance.rigs import MemoryRig
from tidings.testing.conformance import Bench, Conformance, Stage
from tools import mutants_faults

CAUGHT: dict[Mutant, tuple[str, ...]] = {
    mutants.loses_one: (
        "test_P3_P4_a_chain_through_restarts_loses_nothing_and_applies_nothing_twice",
        "test_many_publishers_and_competing_consumers_lose_nothing",
        "test_two_positions_of_one_stream_each_get_everything",
        "test_a_position_goes_on_where_it_was",
    ),
    mutants.returns_before_it_is_stored: (
        "test_P1_what_publish_returned_for_is_stored",
        "test_P1_whoever_looks_after_publish_returned_sees_it",
    ),
    mutants.begins_with_everything_instead_of_at_a_moment: (
        "test_a_new_position_may_begin_at_a_moment_and_then_goes_on_where_it_is",
    ),
    mutants.does_not_say_when_a_message_was_stored: ("test_a_log_that_is_read_says_when_its_messages_were_stored",),
    mutants.does_not_count_copies_that_wait: ("test_positions_can_be_asked_for_and_their_copies_counted_from_outside",),
    mutants.redrives_a_letter_of_a_list_without_its_body: (
        "test_P7_a_letter_of_a_list_is_redriven_with_its_whole_body",
    ),
    mutants.forgets_the_failures_of_what_waits_in_place: (
        "test_P6_failures_are_counted_across_processes_and_restarts",
    ),
    mutants.hides_that_it_takes_over: ("test_P8_whoever_begins_to_take_says_so_before_its_first_delivery",),
    mutants.stores_an_id_again: (
        "test_P1_an_id_published_again_loses_nothing_and_is_stored_once_where_the_broker_says_so",
    ),
    mutants.takes_each_copy_of_an_id_for_another: ("test_P4_an_id_published_again_is_applied_once",),
    mutants.takes_what_nothing_stores: ("test_P1_a_stream_that_nobody_declared_takes_nothing",),
    mutants.takes_what_is_too_large: ("test_P1_one_byte_too_many_is_refused_and_the_limit_travels",),
    mutants.one_that_is_refused_takes_others_with_it: ("test_P1_one_byte_too_many_is_refused_and_the_limit_travels",),
    mutants.says_stored_after_it_was_closed: ("test_P1_a_publisher_closed_under_load_loses_nothing_it_returned_for",),
    mutants.changes_the_bytes: ("test_P1_what_is_published_comes_back_equal",),
    mutants.changes_the_names_of_headers: (
        "test_P1_what_is_published_comes_back_equal",
        "test_P6_a_copy_reaches_its_handler_alone_and_not_before_its_time",
    ),
    mutants.passes_over_what_has_no_bytes: ("test_P1_a_message_without_bytes_that_comes_alone_is_taken",),
    mutants.drops_empty_headers: ("test_P1_what_is_published_comes_back_equal",),
    mutants.puts_headers_of_its_own_among_them: (
        "test_P1_what_is_published_comes_back_equal",
        "test_P7_a_dead_letter_is_kept_as_it_was_and_can_be_read_again",
    ),
    mutants.gives_a_key_another_slot: ("test_P1_what_is_published_comes_back_equal",),
    mutants.gives_each_delivery_another_origin: ("test_what_fails_twice_comes_again_and_arrives",),
    mutants.does_not_count_deliveries: ("test_what_fails_twice_comes_again_and_arrives",),
    mutants.delivers_again_what_was_acknowledged: (
        "test_many_publishers_and_competing_consumers_lose_nothing",
        "test_P3_success_settles_once_and_for_all",
        "test_a_position_that_is_to_begin_anew_misses_nothing_after_its_start",
    ),
    mutants.takes_a_failure_for_success: ("test_what_fails_twice_comes_again_and_arrives",),
    mutants.copies_to_competing_consumers: ("test_many_publishers_and_competing_consumers_lose_nothing",),
    mutants.ignores_the_delay_of_a_release: ("test_P6_what_is_given_back_for_a_while_does_not_come_before",),
    mutants.delivers_a_copy_early: (
        "test_P6_a_copy_reaches_its_handler_alone_and_not_before_its_time",
        "test_P6_copies_that_wait_hold_up_nothing",
        "test_P6_a_failure_comes_again_after_its_delay_and_not_before",
    ),
    mutants.delivers_a_copy_to_every_handler: (
        "test_P6_a_copy_reaches_its_handler_alone_and_not_before_its_time",
        "test_P7_a_redriven_letter_reaches_only_the_handler_that_failed",
    ),
    mutants.counts_waiting_copies_as_in_flight: ("test_P6_copies_that_wait_hold_up_nothing",),
    mutants.forgets_copies_and_letters_at_a_restart: (
        "test_P6_copies_outlive_a_restart",
        "test_P7_a_dead_letter_is_kept_as_it_was_and_can_be_read_again",
    ),
    mutants.forgets_events_at_a_restart: (
        "test_P1_P10_restarts_under_load_lose_nothing",
        "test_P1_what_publish_returned_for_is_stored",
    ),
    mutants.shows_notes_of_other_handlers: ("test_of_each_name_the_last_note_is_kept_for_the_position_that_wrote_it",),
    mutants.lets_followers_live_through_the_past: (
        "test_who_begins_to_follow_notes_hears_what_stands_and_not_what_stood",
    ),
    mutants.keeps_no_more_than_three_hundred_notes: ("test_many_notes_are_read_whole_while_others_are_written",),
    mutants.loses_dead_letters: (
        "test_P7_a_dead_letter_is_kept_as_it_was_and_can_be_read_again",
        "test_P7_the_log_of_dead_letters_can_be_followed",
        "test_P7_the_last_attempt_dies_with_its_reason",
    ),
    mutants.ends_a_followed_log: (
        "test_P7_the_log_of_dead_letters_can_be_followed",
        "test_notes_can_be_followed_through_a_restart",
    ),
    mutants.reads_a_log_to_an_end_that_moves: ("test_a_stream_can_be_read_without_a_position",),
    mutants.has_no_limits: (
        "test_P11_with_a_limit_of_one_the_second_waits_for_the_first",
        "test_P11_never_more_in_flight_than_the_limits_say",
    ),
    mutants.has_no_limit_of_bytes: ("test_P11_never_more_in_flight_than_the_limits_say",),
    mutants.keeps_what_a_closed_feed_had: (
        "test_P9_closing_gives_back_at_once_what_was_not_settled",
        "test_P6_a_copy_that_is_given_back_comes_again",
        "test_consumers_that_fail_everything_leave_it_to_the_next",
        "test_a_consumer_closed_and_reopened_while_reading_misses_nothing",
        "test_P8_a_standby_takes_over_in_order_what_the_active_one_had",
    ),
    mutants.acknowledges_what_it_hands_over: (
        "test_P3_while_the_store_is_away_nothing_is_acknowledged_and_it_goes_on_by_itself",
    ),
    mutants.hands_over_by_a_timer: ("test_P6_one_event_a_second_takes_as_long_as_a_single_one",),
    mutants.does_not_stop: ("test_P9_a_stopped_feed_takes_nothing_new_and_may_settle_what_it_has",),
    mutants.acknowledges_what_it_gives_back: (
        "test_what_fails_twice_comes_again_and_arrives",
        "test_P9_a_stop_finishes_what_runs_and_gives_back_the_rest",
        "test_P4_P8_a_second_process_that_joins_and_leaves_under_load_changes_nothing",
    ),
    mutants.reorders_one_call: ("test_P8_one_call_keeps_the_order_of_its_messages",),
    mutants.lets_everybody_take_from_an_ordered_position: (
        "test_P10_an_ordered_position_keeps_its_order_through_a_restart",
        "test_P8_the_order_of_keys_holds_while_consumers_come_and_go",
        "test_P8_a_standby_takes_over_in_order_what_the_active_one_had",
    ),
    mutants.gives_back_in_another_order: ("test_P8_a_standby_takes_over_in_order_what_the_active_one_had",),
    mutants.begins_everything_with_the_history: ("test_a_new_position_reads_the_history_or_only_what_follows",),
    mutants.begins_everything_anew: ("test_a_new_position_reads_the_history_or_only_what_follows",),
    mutants.begins_a_new_position_with_its_first_feed: (
        "test_a_position_that_is_to_begin_anew_misses_nothing_after_its_start",
    ),
    mutants.begins_again_with_each_feed: (
        "test_a_position_goes_on_where_it_was",
        "test_consumers_that_open_and_close_at_once_break_nothing",
    ),
    mutants.passes_over_what_newer_code_asks_for: (
        "test_P3_P8_P13_what_newer_code_asks_for_waits_where_older_code_gets_it",
    ),
    mutants.remembers_what_was_rolled_back: (
        "test_P13_what_newer_code_asked_for_waits_no_more_once_it_is_rolled_back",
    ),
    mutants.takes_away_what_others_ask_for: (
        "test_P3_P13_an_old_process_that_starts_again_takes_nothing_from_newer_code",
    ),
    mutants.gives_types_to_what_is_only_named: (
        "test_P13_a_tool_that_names_a_position_and_does_not_run_it_gives_it_no_types",
    ),
    mutants.gives_every_type: ("test_P13_a_position_gets_the_types_it_asked_for_and_no_others",),
    mutants.mixes_streams: ("test_many_streams_at_once_each_give_their_own",),
    mutants.reports_differences_that_are_none: ("test_many_may_declare_the_same_at_once",),
    mutants.lets_a_renamed_handler_start_over: ("test_a_renamed_handler_does_not_start_over",),
    mutants.tells_a_backlog_that_is_none: ("test_the_backlog_is_told",),
    mutants.never_tells_its_trouble: ("test_P10_trouble_is_told_while_it_lasts_and_ends_by_itself",),
    mutants.always_tells_trouble: ("test_trouble_is_empty_while_all_is_well",),
    mutants.never_comes_back: ("test_P1_P10_restarts_under_load_lose_nothing",),
    mutants.serves_one_feed_of_a_client_at_a_time: ("test_P12_a_handler_that_waits_stops_only_itself",),
    mutants.applies_again_what_was_applied: ("test_P7_a_letter_redriven_twice_is_applied_once",),
    mutants.forgets_who_caused_it: ("test_P14_cause_and_correlation_pass_from_an_event_to_those_it_causes",),
    mutants.gives_up_handlers_at_once: (
        "test_P9_a_stop_finishes_what_runs_and_gives_back_the_rest",
        "test_P9_a_graceful_stop_under_load_finishes_what_runs_and_kills_nothing",
    ),
    mutants.counts_no_failures: ("test_P6_failures_are_counted_across_processes_and_restarts",),
    mutants.tries_again_at_once: ("test_P6_a_failure_comes_again_after_its_delay_and_not_before",),
    mutants.tries_again_what_never_can: ("test_P7_what_says_that_it_cannot_be_handled_dies_at_once_and_whole",),
    mutants.drops_what_it_cannot_read: (
        "test_P2_P13_every_shape_has_its_outcome",
        "test_P13_what_nobody_can_read_holds_up_nobody_else",
    ),
    mutants.forgets_the_headers_of_the_dead: ("test_P7_what_says_that_it_cannot_be_handled_dies_at_once_and_whole",),
    mutants.cuts_off_large_letters: ("test_P1_P7_the_largest_event_travels_and_dies_whole",),
    mutants.lets_later_events_of_a_key_pass: ("test_P8_the_order_of_a_key_holds_across_retries_lanes_and_processes",),
    mutants.forgets_to_acknowledge: ("test_P3_success_settles_once_and_for_all",),
}
"""Each mutant, and the tests that it must make fail."""

ELSEWHERE = {
    mutants_faults.ACK_WAIT: "what is slow is not kept alive",
    mutants_faults.KILLED: "what a dead process held in the outbox stays there",
    mutants_faults.MEMORY: "a feed takes whatever there is",
    mutants_faults.COPIES: "copies that a lost process had come behind later ones",
    mutants_faults.LOSS: "on a new connection no share is asked for",
    mutants_faults.SILENT: "a silent connection is believed for ever",
    mutants_faults.ROLLING: "when a server has gone no other is looked for",
    mutants_faults.LEADERS: "a process whose pin the server has forgotten goes on asking in its name",
}
"""Tests of what the memory broker cannot do, and the bug of `make mutants` that makes each fail on a real server."""

IN_PLACE = (mutants.forgets_the_failures_of_what_waits_in_place,)
"""Those that show where a failed event waits in its place."""

CASES = [(mutant, test) for mutant, tests in CAUGHT.items() for test in tests]


@pytest.fixture(autouse=True)
def _silence() -> Iterator[None]:
    """What mutants break is logged at length."""
    logging.disable(logging.CRITICAL)
    yield
    logging.disable(logging.NOTSET)


@pytest.mark.parametrize(("mutant", "test"), CASES, ids=[f"{mutant.__name__}-{test}" for mutant, test in CASES])
async def test_the_suite_catches(mutant: Mutant, test: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    mutant(monkeypatch)
    rig = MemoryRig()
    bench = Bench(rig, test, patience=0.7)
    method = getattr(Conformance(), test)
    arguments: dict[str, object] = {}
    for name in inspect.signature(method).parameters:
        if name == "bench":
            arguments[name] = bench
        elif name == "stage":
            arguments[name] = Stage(bench, _store_of(method), tmp_path)
        elif name == "monkeypatch":
            arguments[name] = monkeypatch
        else:
            arguments[name] = "key" if mutant in IN_PLACE else None  # order: else the retry route
    try:
        await method(**arguments)
    except pytest.fail.Exception:
        return  # pytest.raises saw nothing
    except Exception as error:
        if not _says_why(error):
            raise
        return
    finally:
        await bench.close()
    pytest.fail(f"{test} does not see that a broker {mutant.__name__.replace('_', ' ')}")


def _says_why(error: Exception) -> bool:
    """It is the judgement of a test, not an accident in it."""
    if isinstance(error, ExceptionGroup):
        return error.subgroup(AssertionError) is not None
    return isinstance(error, AssertionError)


def _store_of(method: object) -> str:
    """The store that a test asks for; the database where it takes any."""
    marks = getattr(method, "pytestmark", [])
    return next((mark.args[1][0] for mark in marks if mark.args[:1] == ("store",)), "sqlite")


def test_every_test_of_the_suite_was_seen_to_fail() -> None:
    tests = {name for name in dir(Conformance) if name.startswith("test_")}
    assert tests == {test for tests in CAUGHT.values() for test in tests} | set(ELSEWHERE)
    seeded = {bug.what: bug.tests for bug in mutants_faults.FAULTS}
    for test, bug in ELSEWHERE.items():
        assert any(one.endswith(test) for one in seeded[f"faults: {bug}"])


def test_every_mutant_is_tried() -> None:
    made = {
        one
        for name, one in vars(mutants).items()
        if not name.startswith("_") and inspect.isfunction(one) and one.__module__ == mutants.__name__
    }
    assert made == set(CAUGHT)
