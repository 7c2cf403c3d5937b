"""`up`, `publish`, `tail` and `dead` on a real server."""

from __future__ import annotations

import asyncio
import json
import re
import signal
import subprocess
import sys
from typing import Any

import pytest

from tests.integration.cli.shell import Shell, await_
from tidings.brokers import broker_from
from tidings.ports import Plan

pytestmark = pytest.mark.server
RUN = ("run", "shop.stock:stock", "--port", "0")


def lines(*events: Any) -> str:
    return "".join((one if isinstance(one, str) else json.dumps(one)) + "\n" for one in events)


def order(order_id: str, **more: str) -> dict[str, Any]:
    return {"type": "order.placed", "data": {"order_id": order_id, **more}}


# ── up ──────────────────────────────────────────────────────────────────────────────────────────────────────────────


def test_up_says_how_to_reach_the_server_and_keeps_the_password(shell: Shell) -> None:
    up = shell.start("up").until("Ctrl-C")
    password = (shell.folder / ".tidings" / "password").read_text().strip()
    assert "TIDINGS_BROKER=embedded:" in up.out
    assert str(shell.folder / ".tidings" / "password") in up.out
    assert up.stop(signal.SIGINT) == 0
    assert password not in up.out + up.err
    assert "it has ended" in up.out


def test_up_leaves_a_server_that_others_use(shell: Shell) -> None:
    up = shell.embedded()
    running = shell.start(*RUN).until("is ready")
    assert up.stop() == 0
    assert "it still runs" in up.out
    assert shell.run("publish", "shop.events:OrderPlaced", '{"order_id": "1"}').status == 0
    await_(lambda: shell.applied() == ["1"])
    assert running.stop() == 0


def test_up_has_json_too(shell: Shell) -> None:
    up = shell.start("up", "--json").until("ready")
    found = json.loads(up.out.splitlines()[0])
    assert found["broker"] == f"embedded:{shell.folder / '.tidings'}"
    assert "url" not in found
    assert up.stop() == 0


# ── publish and tail ────────────────────────────────────────────────────────────────────────────────────────────────


def test_one_event_is_published_and_seen(served: Shell) -> None:
    result = served.run("publish", "shop.events:OrderPlaced", '{"order_id": "1"}', "--json")
    (stored,) = result.records
    assert stored["stored"]
    (event,) = served.run("tail", "order", "--json").records
    assert (event["id"], event["type"], event["subject"]) == (stored["id"], "order.placed", "1")
    assert (event["specversion"], event["version"], event["source"]) == ("1.0", "v1", "tidings-cli")
    (shown,) = served.run("tail", "order.placed").out.splitlines()
    assert stored["id"] in shown


@pytest.mark.parametrize("data", ['{"order_id": 1}', "{}", "nonsense", '{"order_id": ""}'])
def test_a_bad_event_is_refused_with_status_5(served: Shell, data: str) -> None:
    result = served.run("publish", "shop.events:OrderPlaced", data)
    assert (result.status, result.out, result.err.count("\n")) == (5, "", 1), result


def test_two_megabytes_are_refused_before_they_travel(served: Shell) -> None:
    big = json.dumps({"order_id": "1", "wanted": "x" * 2_000_000})
    result = served.run("publish", "shop.events:OrderPlaced", "-", stdin=big)
    assert result.status == 5
    assert "2000" in result.err
    assert len(result.err) < 1000


def test_of_many_lines_the_bad_ones_are_named_and_the_others_published(served: Shell) -> None:
    text = lines(order("1"), "garbage", order("2"), "", {"type": "order.plced", "data": {}}, order("3"))
    result = served.run("publish", "shop.events", "--ndjson", "-", stdin=text)
    assert result.status == 5
    told = result.out.splitlines()
    assert [line.partition(":")[0] for line in told[:-1]] == ["line 2", "line 5"]
    assert told[-1] == "published 3, bad 2, not stored 0"
    assert [event["subject"] for event in served.run("tail", "order", "--json").records] == ["1", "2", "3"]


def test_what_was_tailed_can_be_published_again_and_is_known_by_its_id(served: Shell) -> None:
    text = lines(*(order(str(number)) for number in range(700)))
    assert served.run("publish", "shop.stock:stock", "--ndjson", "-", stdin=text).status == 0
    stored = served.run("tail", "order", "--json").out
    (served.folder / "events").write_text(stored)
    again = served.run("publish", "shop.events", "--ndjson", "events")
    assert (again.status, again.out) == (0, "published 700, bad 0, not stored 0\n")
    assert served.run("tail", "order", "--json").out == stored


def test_a_tail_is_cut_where_it_is_asked_to_be(served: Shell) -> None:
    text = lines(*(order(str(number)) for number in range(5)))
    assert served.run("publish", "shop.events", "--ndjson", "-", stdin=text).status == 0
    for arguments, found in {
        ("--limit", "2"): ["0", "1"],
        ("--last", "2"): ["3", "4"],
        ("--since", "1h"): ["0", "1", "2", "3", "4"],
    }.items():
        assert [one["subject"] for one in served.run("tail", "order", "--json", *arguments).records] == found
    assert served.run("tail", "order", "--last", "2", "--follow").status == 2


def test_a_tail_follows_until_it_is_interrupted(served: Shell) -> None:
    assert served.run("publish", "shop.events:OrderPlaced", '{"order_id": "1"}').status == 0
    tail = served.start("tail", "order", "--follow", "--json").until('"1"')
    assert served.run("publish", "shop.events:OrderPlaced", '{"order_id": "2"}').status == 0
    tail.until('"2"')
    assert tail.stop(signal.SIGINT) == 130
    assert "Traceback" not in tail.err


def test_a_stream_that_is_not_there_is_said(served: Shell) -> None:
    result = served.run("tail", "nothing")
    assert result.status == 3
    assert "'nothing'" in result.err


def test_a_reader_that_goes_away_ends_it_without_a_traceback(served: Shell) -> None:
    text = lines(*(order(str(number), wanted="x" * 2000) for number in range(200)))
    assert served.run("publish", "shop.events", "--ndjson", "-", stdin=text).status == 0
    tail = subprocess.Popen(
        [sys.executable, "-m", "tidings.cli", "tail", "order"],
        cwd=served.folder,
        env=served.environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )
    assert tail.stdout is not None
    assert tail.stderr is not None
    with tail.stdout, tail.stderr:
        tail.stdout.readline()
        tail.stdout.close()
        assert tail.wait(30) == 141
        assert b"Traceback" not in tail.stderr.read()


# ── dead ────────────────────────────────────────────────────────────────────────────────────────────────────────────


def test_P7_a_dead_letter_is_listed_shown_and_redriven_to_the_handler_that_failed(served: Shell) -> None:
    running = served.start(*RUN).until("is ready")
    text = lines(order("1", wanted="fail"), order("2", wanted="fail"), order("3"))
    assert served.run("publish", "shop.events", "--ndjson", "-", stdin=text).status == 0
    await_(lambda: running.err.count('"outcome": "dead"') == 2)

    letters = served.run("dead", "list", "--json").records
    assert {(one["position"], one["key"], one["code"]) for one in letters} == {
        ("stock.reserve", "1", "failed"),
        ("stock.reserve", "2", "failed"),
    }
    _, row = served.run("dead", "list").out.splitlines()
    assert row.startswith("2\tstock.reserve\torder.placed\tfailed\t")

    first = letters[0]["id"]
    story = served.run("dead", "show", first[:8]).out
    for part in ("ValueError: it cannot be done", '"order_id": "1"', "shop/stock.py", "traceback"):
        assert part in story
    (record,) = served.run("dead", "show", first, "--json").records
    assert record["body"]["data"]["order_id"] == "1"

    # It is put right, and given back.
    running.stop()
    fixed = (served.folder / "shop/stock.py").read_text().replace('raise ValueError("it cannot be done")', "pass")
    served.write("shop/stock.py", fixed)
    served.start(*RUN).until("is ready")
    refused = served.run("dead", "redrive", "--handler", "reserve")
    assert (refused.status, "--yes" in refused.err) == (2, True)
    dry = served.run("dead", "redrive", "--handler", "reserve", "--dry-run")
    assert dry.out.count("would redrive") == 2
    assert served.run("dead", "redrive", "--code", "failed", "--yes").out == "2 redriven\n"
    await_(lambda: sorted(served.applied()) == ["1", "2", "3"])
    assert served.run("dead", "list").out == "no dead letters\n"
    before = served.run("dead", "redrive", first)
    assert "was redriven before; --again" in before.out


def test_P7_letters_of_a_handler_whose_position_was_removed_are_not_given_to_nobody(served: Shell) -> None:
    running = served.start(*RUN).until("is ready")
    served.run("publish", "shop.events:OrderPlaced", '{"order_id": "1", "wanted": "fail"}')
    running.until('"outcome": "dead"', err=True)
    assert running.stop() == 0
    asyncio.run(_remove(f"embedded:{served.folder / '.tidings'}", "stock_reserve"))

    result = served.run("dead", "redrive", "--handler", "reserve")
    assert (result.status, result.out) == (3, ""), result
    assert "there is no handler stock.reserve at this broker" in result.err
    assert '"state": "dead"' in served.run("dead", "list", "--json").out


async def _remove(url: str, durable: str) -> None:
    """What the message about a renamed handler tells people to do."""
    broker: Any = broker_from(url)
    await broker.open(Plan(service="people"))
    try:
        for stream in ("order", "tidings-retry"):
            await broker._api.call(f"CONSUMER.DELETE.{stream}.{durable}")
    finally:
        await broker.close()


def test_letters_are_discarded_and_stay_in_the_log(served: Shell) -> None:
    running = served.start(*RUN).until("is ready")
    assert served.run("publish", "shop.events:OrderPlaced", '{"order_id": "1", "wanted": "fail"}').status == 0
    running.until('"outcome": "dead"', err=True)
    assert served.run("dead", "discard", "--type", "order.placed").out == "1 discarded\n"
    assert served.run("dead", "list", "--json").out == ""
    (letter,) = served.run("dead", "list", "--state", "discarded", "--json").records
    assert re.fullmatch("[0-9a-f]{24}", letter["id"])


def test_which_letters_are_meant_has_to_be_said(served: Shell) -> None:
    for arguments in ((), ("abc", "--code", "failed")):
        result = served.run("dead", "redrive", *arguments)
        assert (result.status, "tidings dead list" in result.err) == (2, True)
    result = served.run("dead", "show", "abc")
    assert (result.status, "no dead letter has the id 'abc'" in result.err) == (3, True)
