"""Holding keys: a model that is too simple to be wrong, beside the real thing."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from tests.unit.parts import delivery
from tidings.delivery import Delivery
from tidings.order import NOT_YET, Holds


def test_P8_what_follows_a_held_event_comes_out_behind_it() -> None:
    holds, first, second = Holds(), delivery("a", 1), delivery("a", 2)
    holds.hold("a", first, 10.0)
    assert holds.blocks("a")
    assert not holds.blocks("b")
    assert not holds.blocks(None)
    holds.follow("a", second)
    assert len(holds) == 2
    assert list(holds.release(9.999)) == []
    assert list(holds.release(10.0)) == [first, second]
    assert not holds.blocks("a")
    assert holds.next_due() is None


def test_P8_an_event_of_a_key_that_is_held_already_stays_behind_the_first() -> None:
    holds, first, second = Holds(), delivery("a", 1), delivery("a", 2)
    holds.hold("a", first, 10.0)
    holds.hold("a", second, 5.0)
    assert list(holds.release(7.0)) == []
    assert list(holds.release(10.0)) == [first, second]


def test_the_next_to_be_due_is_known() -> None:
    holds, later, sooner = Holds(), delivery("a"), delivery("b")
    holds.hold("a", later, 10.0)
    holds.hold("b", sooner, 5.0)
    assert holds.next_due() == 5.0
    assert list(holds.release(6.0)) == [sooner]
    assert holds.next_due() == 10.0


def test_P9_everything_can_be_taken_out_to_give_it_back() -> None:
    holds, one, two = Holds(), delivery("a", 1), delivery("a", 2)
    holds.hold("a", one, 1.0)
    holds.follow("a", two)
    assert holds.clear() == [one, two]
    assert len(holds) == 0
    assert holds.next_due() is None


def test_P8_what_follows_an_event_that_is_being_told_comes_out_once_all_before_it_are_told() -> None:
    woken: list[str] = []
    holds = Holds(lambda: woken.append("woken"))
    first, second, third = delivery("a", 1), delivery("a", 2), delivery("a", 3)
    holds.hold_until_told("a", first)
    holds.hold_until_told("a", second)
    holds.follow("a", third)
    holds.told("a", third, 5.0)  # of which nobody was told
    holds.told("a", second, 5.0)
    assert (list(holds.release(1e9)), woken) == ([], [])
    holds.told("a", first, 6.0)
    assert woken == ["woken"]
    assert list(holds.release(6.0)) == [third]
    holds.hold_until_told("a", first)
    holds.told("a", first, 7.0)
    assert not holds.blocks("a")


def test_P8_whoever_waits_is_woken_where_what_was_being_told_is_held_for_a_time_after_all() -> None:
    woken: list[float | None] = []
    holds = Holds(lambda: woken.append(holds.next_due()))
    first = delivery("a", 1)
    holds.hold_until_told("a", first)
    assert holds.next_due() is None, "nobody knows when"
    holds.hold("a", first, 5.0)
    assert woken == [5.0]
    holds.told("a", first, 1.0)
    assert list(holds.release(5.0)) == [first]


def test_P9_what_is_being_told_is_not_given_back() -> None:
    holds, first, second = Holds(), delivery("a", 1), delivery("a", 2)
    holds.hold_until_told("a", first)
    holds.follow("a", second)
    assert holds.clear() == [second]
    holds.told("a", first, 1.0)
    assert len(holds) == 0


def test_P8_what_follows_goes_on_where_another_process_has_what_was_being_told() -> None:
    holds, first, second = Holds(), delivery("a", 1), delivery("a", 2)
    holds.hold_until_told("a", first)
    holds.follow("a", second)
    holds.forget([first])
    holds.told("a", first, 1.0)
    assert list(holds.release(1.0)) == [second]


def test_P8_what_is_held_for_its_next_attempt_waits_for_what_is_being_told_behind_it() -> None:
    """Else that would come out too: it would be handled once more, and held a second time while it is held already."""
    woken: list[float | None] = []
    holds = Holds(lambda: woken.append(holds.next_due()))
    first, second, third = delivery("a", 1), delivery("a", 2), delivery("a", 3)
    holds.hold("a", first, 5.0)
    holds.hold_until_told("a", second)
    holds.follow("a", third)
    assert (list(holds.release(9.0)), holds.next_due()) == ([], None)
    holds.told("a", second, 9.0)
    assert woken == [5.0]
    assert list(holds.release(9.0)) == [first, third]


def test_P8_what_is_held_goes_on_where_what_was_being_told_behind_it_is_held_after_all() -> None:
    woken: list[float | None] = []
    holds = Holds(lambda: woken.append(holds.next_due()))
    first, second = delivery("a", 1), delivery("a", 2)
    holds.hold("a", first, 5.0)
    holds.hold_until_told("a", second)
    holds.hold("a", second, 20.0)
    assert woken == [5.0]
    assert list(holds.release(9.0)) == [first, second]


def test_P8_what_waits_for_its_call_is_not_let_go_by_what_was_told_behind_it() -> None:
    holds, first, second = Holds(), delivery("a", 1), delivery("a", 2)
    holds.hold("a", first, NOT_YET)
    holds.hold_until_told("a", second)
    holds.told("a", second, 5.0)
    assert list(holds.release(1e9)) == []
    assert holds.go_on("a", first, 6.0)
    assert list(holds.release(6.0)) == [first]


STEPS = st.lists(
    st.one_of(
        st.tuples(st.just("arrive"), st.sampled_from("abc"), st.booleans()),
        st.tuples(st.just("wait"), st.integers(1, 5), st.booleans()),
    ),
    max_size=40,
)


@given(STEPS)
def test_P8_whatever_fails_and_whenever_the_events_of_a_key_end_in_their_order(
    steps: list[tuple[str, str | int, bool]],
) -> None:
    """A lane in miniature: each event fails or not at its turn; in the end all are done, in order."""
    holds, done, arrived, now = Holds(), list[Delivery](), list[Delivery](), 0.0
    keys: dict[int, str] = {}

    def turn(one: Delivery, fails: bool) -> None:
        key = keys[id(one)]
        if holds.blocks(key):
            holds.follow(key, one)
        elif fails:
            holds.hold(key, one, now + 2.0)
        else:
            done.append(one)

    for what, value, fails in steps:
        if what == "arrive":
            one = delivery(str(value), len(arrived))
            keys[id(one)] = str(value)
            arrived.append(one)
            turn(one, fails)
        else:
            now += float(value)
            for number, one in enumerate(list(holds.release(now))):
                turn(one, fails and number == 0)
        assert len(done) + len(holds) == len(arrived)
    for one in holds.release(now + 10.0):
        turn(one, False)
    for key in "abc":
        assert [one for one in done if keys[id(one)] == key] == [one for one in arrived if keys[id(one)] == key]
