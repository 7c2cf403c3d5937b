"""How far a position has come in a partition, and what the next process knows of it."""

from __future__ import annotations

import random

import pytest

from tidings.brokers.kafka.progress import MOST_BOUNDS, MOST_TEXT, WINDOW, Progress, open_in


def handed(progress: Progress, offsets: range) -> None:
    for offset in offsets:
        progress.take(offset)
        progress.handed = offset + 1


def test_P3_the_mark_never_passes_what_is_not_done() -> None:
    progress = Progress(10, None, "us")
    handed(progress, range(10, 20))
    for offset in (10, 11, 13, 14):
        progress.done(offset)
    assert progress.snapshot()[0] == progress.mark == 12
    progress.done(12)
    assert progress.mark == 15


def test_what_is_done_behind_the_mark_is_known_to_the_next_process() -> None:
    progress = Progress(0, None, "us")
    handed(progress, range(20))
    done = {0, 1, 3, 4, 9, 17, 19}
    for offset in done:
        progress.done(offset)
    mark, text = progress.snapshot(final=True)
    after = Progress(mark, text, "they")
    assert mark == 2
    assert {offset for offset in range(mark, 30) if after.is_done(offset)} == done - {0, 1}
    assert open_in(mark, text, 20) == 20 - len(done)
    assert open_in(mark, text, 25) == 25 - len(done)


def test_what_is_none_of_its_business_does_not_hold_up_the_mark() -> None:
    progress = Progress(0, None, "us")
    for offset in range(5):
        progress.skip(offset)
    assert progress.snapshot()[0] == 5


def test_a_position_at_rest_has_nothing_open() -> None:
    progress = Progress(0, None, "us")
    handed(progress, range(3))
    for offset in range(3):
        progress.done(offset)
    assert open_in(*progress.snapshot(final=True), 3) == 0


@pytest.mark.parametrize("seed", range(20))
def test_P3_whatever_is_done_in_whatever_order_nothing_open_is_taken_for_done(seed: int) -> None:
    chance = random.Random(seed)
    progress, open_now, everything = Progress(5, None, "us"), set[int](), 5
    for _ in range(6):
        for offset in range(everything, everything + chance.randrange(60)):
            if progress.is_done(offset):
                progress.skip(offset)
            else:
                progress.take(offset)
                open_now.add(offset)
        everything = progress.seen
        for offset in chance.sample(sorted(open_now), k=len(open_now) * 2 // 3):
            progress.done(offset)
            open_now.discard(offset)
        mark, text = progress.snapshot(final=chance.random() < 0.5)
        progress = Progress(mark, text, "they")
        found = {offset for offset in range(mark, everything) if not progress.is_done(offset)}
        assert found == open_now
        assert open_in(mark, text, everything) == len(open_now)
        open_now.clear()
        everything = mark


def test_a_text_that_would_be_too_long_forgets_what_is_done_and_never_what_is_open() -> None:
    progress = Progress(0, None, "us")
    handed(progress, range(20_000))
    for offset in range(1, 20_000, 2):
        progress.done(offset)
    mark, text = progress.snapshot(final=True)
    after = Progress(mark, text, "they")
    assert len(text) <= MOST_TEXT
    assert after.is_done(1)
    assert not any(after.is_done(offset) for offset in range(0, 20_000, 2))
    assert not after.is_done(19_999)


@pytest.mark.parametrize("room", [0, 59, 60, 125, 250, 1000])
def test_a_text_keeps_to_the_room_that_the_brokers_leave_it(room: int) -> None:
    progress = Progress(0, None, "us")
    for times in range(MOST_BOUNDS):
        progress = Progress(*progress.snapshot(), f"a_process_with_a_name_of_its_own_{times}")
    handed(progress, range(1000))
    for offset in range(1, 1000, 2):
        progress.done(offset)
    mark, text = progress.snapshot(room=room)
    assert (mark, len(text) <= room) == (0, True)
    after = Progress(mark, text, "they")
    assert not any(after.is_done(offset) for offset in range(0, 1000, 2))
    assert after.is_done(1) == (room > 0), "names took the room of what is done"


def test_deliveries_are_counted_over_the_processes_that_had_them() -> None:
    progress = Progress(0, None, "us")
    assert progress.delivered(0) == 0
    for times in range(1, 5):
        handed(progress, range(progress.seen, 10 - times))
        progress = Progress(*progress.snapshot(final=True), f"process{times}")
        assert progress.delivered(0) == times
    assert [progress.delivered(offset) for offset in (0, 5, 6, 7, 8, 9)] == [4, 4, 3, 2, 1, 0]


def test_who_dies_without_a_word_may_have_been_handed_all_that_was_near() -> None:
    progress = Progress(100, None, "us")
    after = Progress(*progress.snapshot(), "they")
    assert after.delivered(100) == after.delivered(100 + WINDOW - 1) == 1
    assert after.delivered(100 + WINDOW) == 0


def test_who_loses_a_partition_and_gets_it_again_lives_and_counts_once_however_often() -> None:
    progress = Progress(100, Progress(100, None, "they").snapshot()[1], "us")
    for _ in range(5):
        progress = Progress(*progress.snapshot(), "us")
        assert progress.delivered(100) == 2
    for who in ("they", "us", "they", "us"):
        progress = Progress(*progress.snapshot(), who)
        assert progress.delivered(100) == 2
    assert Progress(*progress.snapshot(), "a third").delivered(100) == 2


def test_of_many_processes_the_one_that_speaks_is_never_left_out() -> None:
    progress = Progress(100, None, "us")
    for number in range(2 * MOST_BOUNDS):
        progress = Progress(*progress.snapshot(), f"process{number}")
    assert progress.delivered(100) == MOST_BOUNDS
    handed(progress, range(100, 103))
    again = Progress(*progress.snapshot(final=True), "us")
    assert again.delivered(100) == MOST_BOUNDS
    assert ";us:" in again.snapshot()[1]


def test_a_process_that_takes_much_at_once_says_so_sooner() -> None:
    progress = Progress(0, None, "us")
    progress.snapshot()
    for offset in range(WINDOW // 2 + 1):
        assert not progress.hurries
        progress.take(offset)
    assert progress.hurries
    progress.snapshot()
    assert not progress.hurries


@pytest.mark.parametrize(
    "text", ["", None, "0;1;2;3", "1;5;7;", "2;x;;", "2;5", "2;5;;;", "2;5;us;", "2;5;us:x,;", "somebody else's words"]
)
def test_a_text_of_somebody_else_says_nothing(text: str | None) -> None:
    progress = Progress(7, text, "us")
    assert not progress.is_done(7)
    assert progress.delivered(7) == 0
    assert open_in(7, text, 9) == 2
