"""`pause` and `resume` on a real server, with real processes."""

from __future__ import annotations

import time

import pytest

from tests.integration.cli.shell import Shell, await_

pytestmark = [pytest.mark.server, pytest.mark.proves("P12", broker="nats")]
RUN = ("run", "shop.stock:stock", "--port", "0")
ORDER = ("publish", "shop.events:OrderPlaced")


def test_P12_a_handler_is_paused_in_all_processes_and_in_one_that_starts_later(served: Shell) -> None:
    running = served.start(*RUN, "--workers", "2").until("2 workers are ready")
    paused = served.run("pause", "stock.reserve", "--reason", "the warehouse is counted")
    assert paused.status == 0, paused
    assert "stock.reserve is paused, in 2 processes: " in paused.out
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


def test_a_name_that_nobody_runs_is_said_to_be_one(served: Shell) -> None:
    paused = served.run("pause", "stock.reverse")
    assert paused.status == 0
    assert "no process that runs it has answered. Is this its name?" in paused.out
    assert served.run("resume", "stock.reverse").out == "stock.reverse goes on\n"


@pytest.mark.parametrize("wrong", ["reserve", "stock.", "shop.stock:stock", "stock reserve", ""])
def test_what_is_no_handlers_name_is_refused(served: Shell, wrong: str) -> None:
    refused = served.run("pause", wrong)
    assert refused.status == 2, refused
    assert "write service.name" in refused.err
