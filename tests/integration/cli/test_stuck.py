"""A process whose handler does not end: it stops all the same, and as a worker it is replaced."""

from __future__ import annotations

import os
import signal
import time

import pytest

from tests.integration.cli.shell import Shell, alive, await_
from tests.integration.cli.test_run import RUN, pids, place

pytestmark = [pytest.mark.server, pytest.mark.proves(broker="nats", store="none")]

STUCK = """
import asyncio, os, time
from tidings import Retry, Service
from shop.events import OrderPlaced

stock = Service("stock")

@stock.on(OrderPlaced, idempotent=True, ORDER, timeout=0.5, abandon_after=0.5, retry=Retry(attempts=2, first=0.05))
async def reserve(order: OrderPlaced) -> None:
    with open("begun", "a") as begun:
        begun.write(f"{order.order_id} {os.getpid()}\\n")
    if order.wanted == "block" and not os.path.exists("blocked"):
        open("blocked", "w").close()
        time.sleep(600)
    while order.wanted == "stuck":
        try:
            await asyncio.sleep(600)
        except asyncio.CancelledError:
            pass
    with open("ledger", "a") as ledger:
        ledger.write(f"{order.order_id} {os.getpid()}\\n")
"""


def begun(shell: Shell) -> list[int]:
    """The processes that began the first order."""
    path = shell.folder / "begun"
    lines = path.read_text().splitlines() if path.exists() else []
    return [int(line.split()[1]) for line in lines if line.startswith("1 ")]


def test_P9_a_process_with_a_call_that_does_not_end_stops_in_its_time_and_ends_with_0(served: Shell) -> None:
    served.write("shop/stock.py", STUCK.replace("ORDER", "order=None"))
    running = served.start(*RUN).until("is ready")
    place(served, "1", "stuck")
    running.until("is left behind, and its event has failed", err=True)
    place(served, "2")
    await_(lambda: served.applied() == ["2"])
    began = time.monotonic()
    assert running.stop() == 0
    assert time.monotonic() - began < 27, "it did not wait for its last moment"
    assert "the process ends without them" in running.err


def test_P7_P12_a_worker_whose_call_holds_others_up_is_replaced_until_its_event_is_dead(served: Shell) -> None:
    served.write("shop/stock.py", STUCK.replace("ORDER", 'order="key"'))
    parent = served.start(*RUN, "--workers", "2").until("workers are ready")
    place(served, "1", "stuck")
    place(served, "1")  # the same key: it waits for the first
    place(served, "2")
    parent.until("This worker stops, for another to take its place", err=True)
    parent.until("made room for another; it is started again", err=True)
    await_(lambda: sorted(served.applied()) == ["1", "2"], 60)
    assert len(begun(served)) == 3, "two attempts of the first, and the one that follows"
    assert len(set(begun(served)[:2])) == 2, "each in a process of its own"
    assert '"state": "dead"' in served.run("dead", "list", "--json").out
    assert parent.stop() == 0


@pytest.mark.proves("P9", broker="nats", store="none")
def test_P9_a_stop_while_a_worker_makes_room_for_another_ends_with_0(served: Shell) -> None:
    served.write("shop/stock.py", STUCK.replace("ORDER", 'order="key"'))
    parent = served.start(*RUN, "--workers", "2").until("workers are ready")
    place(served, "1", "stuck")
    parent.until("This worker stops, for another to take its place", err=True)
    assert parent.stop() == 0


@pytest.mark.proves("P12", broker="nats", store="none")
def test_P12_workers_that_were_stopped_with_their_machine_go_on_and_are_not_replaced(served: Shell) -> None:
    served.write("shop/stock.py", STUCK.replace("ORDER", "order=None"))
    parent = served.start(*RUN, "--workers", "2").until("workers are ready")
    for _ in range(6):  # which of its threads goes on first is chance
        for pid in pids(parent):
            os.kill(pid, signal.SIGSTOP)
        time.sleep(1.6)  # longer than a loop may be blocked here, and than the pause between two looks
        for pid in pids(parent):
            os.kill(pid, signal.SIGCONT)
        time.sleep(0.4)
    time.sleep(2.5)  # until they have looked again
    assert "this process ends" not in parent.err
    assert all(map(alive, pids(parent)))
    place(served, "1")
    await_(lambda: served.applied() == ["1"])
    assert parent.stop() == 0


@pytest.mark.proves("P12", broker="nats", store="none")
def test_P12_a_worker_whose_loop_is_blocked_for_good_is_replaced(served: Shell) -> None:
    served.write("shop/stock.py", STUCK.replace("ORDER", "order=None"))
    parent = served.start(*RUN, "--workers", "2").until("workers are ready")
    place(served, "1", "block")
    await_(lambda: begun(served))
    parent.until("this process ends, for another to go on", err=True)
    blocked = begun(served)[0]
    assert blocked in pids(parent)
    await_(lambda: not alive(blocked))
    await_(lambda: parent.out.count("stock is ready") >= 3)
    place(served, "2")
    await_(lambda: "2" in served.applied())  # beside the first, which comes again in its time and blocks nobody more
    assert parent.stop() == 0
