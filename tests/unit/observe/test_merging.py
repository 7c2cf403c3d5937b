"""What several workers say as one page: sums that never fall, and the worst of what all see alike."""

from __future__ import annotations

from collections.abc import Hashable, Mapping

import pytest

from tests.unit.observe.shop import shop
from tests.unit.observe.test_metrics import delivery, sample
from tidings.delivery import Done
from tidings.observe._figures import Figures, Lanes, Now
from tidings.observe.merging import Merged
from tidings.observe.metrics import Metrics
from tidings.ports import Backlog, Settled

DONE = 'tidings_outcomes_total{handler="handle",outcome="done",service="shop",type="order.placed"}'
WHERE = '{handler="handle",service="shop"}'


def worker(done: int, *, ready: bool = True, busy: int = 1, pending: int = 10) -> str:
    metrics = Metrics("shop", lambda: shop().handlers, now=Now(ready=lambda: ready))
    for _ in range(done):
        metrics.settled("shop.handle", [Settled(delivery("order.placed"), Done())], 0.02)
    lanes = Lanes(waiting=2, busy=busy, backlog=Backlog(pending=pending, in_flight=0))
    metrics.figures = Figures(connected=True, lanes={"shop.handle": lanes})
    return metrics.text().decode()


def page(merged: Merged, alive: set[Hashable], texts: Mapping[Hashable, str]) -> bytes:
    return merged.page(lambda: alive, texts)


def test_what_is_counted_and_what_each_has_of_its_own_is_summed() -> None:
    found = sample(page(Merged(), {"a", "b"}, {"a": worker(3), "b": worker(4)}).decode())
    assert found[DONE] == 7
    assert found[f"tidings_batch_seconds_count{WHERE}"] == 7
    assert found['tidings_batch_seconds_bucket{handler="handle",le="+Inf",service="shop"}'] == 7
    assert found[f"tidings_batch_seconds_sum{WHERE}"] == pytest.approx(0.14)
    assert found[f"tidings_lanes_busy{WHERE}"] == 2
    assert found[f"tidings_deliveries_waiting{WHERE}"] == 4


def test_what_all_see_alike_is_not_summed_and_what_is_red_in_one_is_red() -> None:
    texts: dict[Hashable, str] = {"a": worker(0, pending=10), "b": worker(0, pending=12, ready=False)}
    found = sample(page(Merged(), {"a", "b"}, texts).decode())
    assert found[f"tidings_backlog_pending{WHERE}"] == 12
    assert found['tidings_ready{service="shop"}'] == 0
    assert found['tidings_live{service="shop"}'] == 1
    assert found['tidings_broker_connected{service="shop"}'] == 1
    (build,) = [value for name, value in found.items() if name.startswith("tidings_build_info")]
    assert build == 1


def test_a_sum_does_not_fall_when_a_worker_ends_or_does_not_answer() -> None:
    merged = Merged()
    page(merged, {"a", "b"}, {"a": worker(3), "b": worker(4)})
    silent = sample(page(merged, {"a", "b"}, {"a": worker(5)}).decode())
    assert silent[DONE] == 9
    assert silent[f"tidings_lanes_busy{WHERE}"] == 1, "what it does just now, nobody knows"
    ended = sample(page(merged, {"a"}, {"a": worker(5)}).decode())
    assert ended[DONE] == 9
    another = sample(page(merged, {"a", "c"}, {"a": worker(5), "c": worker(1)}).decode())
    assert another[DONE] == 10
    assert sample(page(merged, set(), {}).decode())[DONE] == 10


def test_no_worker_counts_twice_where_two_ask_at_a_time_and_one_of_them_for_longer() -> None:
    """As a pair of Prometheus does, while one worker does not answer and another one ends, or begins."""
    alive: set[Hashable] = {"a", "b"}
    merged = Merged()
    late: dict[Hashable, str] = {"a": worker(3), "b": worker(4)}
    page(merged, alive, {"a": worker(3), "b": worker(5)})
    alive.remove("b")
    alive.add("c")
    assert sample(page(merged, alive, {"a": worker(4), "c": worker(1)}).decode())[DONE] == 4 + 5 + 1
    assert sample(page(merged, alive, late).decode())[DONE] == 4 + 5 + 1, "what is known is newer"
    assert sample(page(merged, alive, {}).decode())[DONE] == 4 + 5 + 1


def test_what_a_worker_had_counted_when_it_ended_counts() -> None:
    merged = Merged()
    page(merged, {"a", "b"}, {"a": worker(3), "b": worker(4)})
    found = sample(page(merged, {"a"}, {"a": worker(3), "b": worker(6)}).decode())
    assert found[DONE] == 9
    assert found[f"tidings_lanes_busy{WHERE}"] == 1


def test_the_page_of_one_worker_is_its_own() -> None:
    one = worker(1)
    assert sample(page(Merged(), {"a"}, {"a": one}).decode()) == sample(one)
