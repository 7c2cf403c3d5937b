"""Lanes take in what comes one by one or together: the same deliveries, in the same order, and nobody sleeps on."""

from __future__ import annotations

import asyncio
from collections import deque

import pytest

from tidings.delivery import Delivery
from tidings.lane import Competing, Lane, Shared


def deliveries(*slots: int | None) -> list[Delivery]:
    return [Delivery(b"", "order", ("order", at), None, slot=slot) for at, slot in enumerate(slots)]


async def asleep(lanes: list[Lane]) -> list[asyncio.Task[None]]:
    """Every lane waits for something to do."""
    tasks = [asyncio.create_task(lane.sleep(5.0)) for lane in lanes]
    await asyncio.sleep(0)
    return tasks


@pytest.mark.parametrize("together", [True, False])
async def test_P8_a_key_has_one_lane_and_its_order_there(together: bool) -> None:
    lanes = [Lane(deque(), True) for _ in range(3)]
    shared = Shared(lanes, ())
    tasks = await asleep(lanes)
    came = deliveries(0, 4, 3, None, 4, 1)
    if together:
        shared.take(came)
    else:
        for one in came:
            shared(one)
    assert [[one.origin[1] for one in lane.queue] for lane in lanes] == [[0, 2, 3], [1, 4, 5], []]
    assert all(one.arrived for one in came)
    await asyncio.sleep(0)
    await asyncio.sleep(0)
    assert [task.done() for task in tasks] == [True, True, False]
    tasks[2].cancel()


@pytest.mark.parametrize("together", [True, False])
async def test_lanes_that_compete_are_woken_for_as_many_events_as_came(together: bool) -> None:
    queue: deque[Delivery] = deque()
    lanes = [Lane(queue, False) for _ in range(3)]
    competing = Competing(lanes, ())
    tasks = await asleep(lanes)
    came = deliveries(None, None)
    if together:
        competing.take(came)
    else:
        for one in came:
            competing(one)
    assert list(queue) == came
    await asyncio.sleep(0)
    await asyncio.sleep(0)
    assert [task.done() for task in tasks] == [True, True, False]
    tasks[2].cancel()


async def test_who_counts_deliveries_is_told_what_is_taken_from_a_process_that_lives() -> None:
    told: list[Delivery] = []
    lanes = [Lane(deque(), True)]
    shared = Shared(lanes, (), told.extend)
    came = deliveries(0, 0)
    shared.take(came)
    await shared.give_up(came[1:], 1.0)
    assert told == came[1:]
    assert list(lanes[0].queue) == came[:1]
