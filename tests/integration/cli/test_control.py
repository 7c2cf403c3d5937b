"""`pause` and `resume` on a real server, with real processes."""

from __future__ import annotations

import asyncio
import re
import time

import pytest

from tests.integration.cli.shell import Shell, await_
from tidings import control
from tidings.brokers import broker_from
from tidings.ports import Plan

pytestmark = [pytest.mark.server, pytest.mark.proves("P12", broker="nats")]
RUN = ("run", "shop.stock:stock", "--port", "0")
ORDER = ("publish", "shop.events:OrderPlaced")


async def obeying(url: str) -> list[str]:
    """The processes that obey the order that stands."""
    broker = broker_from(url)
    await broker.open(Plan(service="people"))
    try:
        order = await control.standing(broker, "stock.reserve")
        assert order is not None
        return await control.heard(broker, "stock.reserve", order)
    finally:
        await broker.close()


def test_P12_a_handler_is_paused_in_all_processes_and_in_one_that_starts_later(served: Shell) -> None:
    running = served.start(*RUN, "--workers", "2").until("2 workers are ready")
    paused = served.run("pause", "stock.reserve", "--reason", "the warehouse is counted")
    assert paused.status == 0, paused
    assert re.search("stock.reserve is paused, in [12] process(es)?: ", paused.out), "those that answered in its time"
    both = f"embedded:{served.folder / '.tidings'}"
    await_(lambda: len(asyncio.run(obeying(both))) == 2)
    assert served.run(*ORDER, '{"order_id": "1"}').status == 0
    later = served.start(*RUN).until("is ready")
    assert "begins paused" in later.err
    assert "the warehouse is counted" in later.err
    again = served.run("pause", "stock.reserve")
    assert again.status == 0
    assert "paused already, by " in again.out
    time.sleep(1.0)
    assert served.applied() == []
    resumed = served.run("resume", "stock.reserve", "--json")
    assert resumed.records == [{"position": "stock.reserve", "paused": False, "changed": True, "silent": []}]
    await_(lambda: served.applied() == ["1"])
    assert served.run("resume", "stock.reserve").status == 1
    assert later.stop() == running.stop() == 0


def test_a_name_that_no_handler_has_is_refused_with_the_one_that_was_meant(served: Shell) -> None:
    running = served.start(*RUN).until("is ready")
    refused = served.run("pause", "stock.reserv")
    assert refused.status == 3, refused
    assert "nothing was paused. Did you mean stock.reserve? The handlers of stock are: stock.reserve." in refused.err
    assert served.run("resume", "stock.reserv").status == 1, "no order was left"
    assert "shop has none there" in served.run("pause", "shop.reserve").err
    assert running.stop() == 0


def test_P12_a_handler_that_nobody_runs_begins_paused(served: Shell) -> None:
    new = served.run("pause", "stock.reserve", "--new")
    assert new.status == 0
    assert "no process that runs it has answered" in new.out
    later = served.start(*RUN).until("is ready")
    assert "begins paused" in later.err
    assert later.stop() == 0
    assert served.run("resume", "stock.reserve").status == 0
    away = served.run("pause", "stock.reserve")
    assert (away.status, "no process that runs it has answered" in away.out) == (0, True), away


@pytest.mark.parametrize("wrong", ["reserve", "stock.", "shop.stock:stock", "stock reserve", ""])
def test_what_is_no_handlers_name_is_refused(served: Shell, wrong: str) -> None:
    refused = served.run("pause", wrong)
    assert refused.status == 2, refused
    assert "write service.name" in refused.err
