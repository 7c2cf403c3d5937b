"""One line for each outcome but done, which nothing from outside can forge."""

from __future__ import annotations

import io
import json
import logging
import subprocess
import sys
from collections.abc import Iterator
from datetime import UTC, datetime
from typing import Any

import msgspec
import pytest

from tests.unit.observe.shop import Placed, shop
from tidings import Delivery, Service
from tidings.context import Scope, current
from tidings.delivery import DeadLettered, Done, Duplicate, Envelope, Outcome, Retried, Unsettled
from tidings.observe.logs import OutcomeLog, configure_logging
from tidings.ports import Settled
from tidings.testing import MemoryBroker


def delivery(*, id: str = "e-1", key: str | None = "o-1") -> Delivery:
    envelope = Envelope(
        id=id,
        source="orders",
        type="order.placed",
        version="v1",
        key=key,
        correlation_id="c-1",
        time=datetime.now(UTC),
        data=msgspec.Raw(b"{}"),
    )
    return Delivery(body=b"{}", stream="order", origin=("order", 7), token=None, failures=1, envelope=envelope)


def told(caplog: pytest.LogCaptureFixture, outcome: Outcome, one: Delivery | None = None) -> list[Any]:
    with caplog.at_level(logging.INFO, logger="tidings"):
        OutcomeLog().settled("stock.reserve", [Settled(one or delivery(), outcome)], 0.01)
    return list(caplog.records)


@pytest.fixture
def lines() -> Iterator[io.StringIO]:
    """What a program that configured logging would write."""
    root = logging.getLogger()
    before, level = root.handlers[:], root.level
    stream = io.StringIO()
    yield stream
    root.handlers[:] = before
    root.setLevel(level)


@pytest.mark.parametrize(
    "outcome",
    [
        Duplicate(),
        Duplicate(of="e-0"),
        Retried(after=1.0, reason="ValueError: no"),
        Retried(after=0.2, reason="another worker holds its key", counted=False),
        DeadLettered(reason="no such thing", code="rejected"),
        Unsettled(Done(), "the connection is gone"),
    ],
    ids=repr,
)
def test_P14_every_outcome_but_done_is_one_line(caplog: pytest.LogCaptureFixture, outcome: Outcome) -> None:
    (record,) = told(caplog, outcome)
    fields = {name: getattr(record, name) for name in ("service", "handler", "type", "event_id", "key", "attempt")}
    assert fields == {
        "service": "stock",
        "handler": "reserve",
        "type": "order.placed",
        "event_id": "e-1",
        "key": "o-1",
        "attempt": 2,
    }
    assert (record.outcome, record.correlation_id) == (outcome.kind, "c-1")
    assert record.reason
    assert record.duration == 0.01
    assert "\n" not in record.getMessage()


def test_done_is_told_for_the_batch_and_only_at_debug(caplog: pytest.LogCaptureFixture) -> None:
    batch = [Settled(delivery(), Done())] * 3 + [Settled(delivery(), Done(skipped=True))]
    with caplog.at_level(logging.INFO, logger="tidings"):
        OutcomeLog().settled("stock.reserve", batch, 0.01)
    assert not caplog.records
    with caplog.at_level(logging.DEBUG, logger="tidings"):
        OutcomeLog().settled("stock.reserve", batch, 0.01)
    assert [record.getMessage() for record in caplog.records] == ["stock.reserve: 3 done, 1 skipped in 10.0 ms"]


def test_a_duplicate_of_another_event_names_both(caplog: pytest.LogCaptureFixture) -> None:
    (record,) = told(caplog, Duplicate(of="e-0"))
    assert (record.event_id, record.duplicate_of) == ("e-1", "e-0")
    assert "e-1" in record.getMessage()
    assert "e-0" in record.getMessage()


FORGED = "o-1\n2026-01-01 stock.reserve: all is well\r\x1b[2J\x1b[31m\u202e"


def test_control_characters_in_ids_and_keys_cannot_forge_a_line(caplog: pytest.LogCaptureFixture) -> None:
    """Trap 169."""
    one = delivery(id=FORGED, key=FORGED)
    (record,) = told(caplog, DeadLettered(reason=FORGED, code="rejected"), one)
    for text in (record.getMessage(), record.key, record.event_id, record.reason):
        assert text.isprintable()
        assert "\\n" in text


def test_what_a_line_shows_is_bounded(caplog: pytest.LogCaptureFixture) -> None:
    """Trap 169."""
    one = delivery(id="e" * 250, key="k" * 250)
    (record,) = told(caplog, Retried(after=1.0, reason="r" * 100_000), one)
    assert len(record.key) == 201
    assert len(record.getMessage()) < 1500


def test_the_line_says_where_the_handler_raised(caplog: pytest.LogCaptureFixture) -> None:
    try:
        raise ValueError("no")
    except ValueError as error:
        (record,) = told(caplog, DeadLettered(reason="ValueError: no", error=error))
    assert __file__ in record.where
    assert "test_the_line_says_where" in record.where


async def test_P14_a_service_writes_these_lines_without_being_asked(caplog: pytest.LogCaptureFixture) -> None:
    service, broker = shop(), MemoryBroker()
    with caplog.at_level(logging.INFO, logger="tidings.outcomes"):
        async with service.running(broker=broker):
            await service.publish(Placed(order_id="1", wanted="fail"))
            await service.publish(Placed(order_id="2", wanted="dead"))
            await service.publish(Placed(order_id="3"))
            await broker.idle()
    told = [(record.__dict__["key"], record.__dict__["outcome"]) for record in caplog.records]
    assert sorted(told) == [("1", "dead"), ("1", "retry"), ("2", "dead")]


def test_lines_are_json_for_machines(lines: io.StringIO) -> None:
    configure_logging(None, stream=lines)
    OutcomeLog().settled("stock.reserve", [Settled(delivery(key=FORGED), Duplicate(of="e-0"))], 0.01)
    (line,) = lines.getvalue().splitlines()
    found = json.loads(line)
    assert found["level"] == "warning"
    assert found["logger"] == "tidings.outcomes"
    assert (found["service"], found["handler"], found["duplicate_of"]) == ("stock", "reserve", "e-0")
    assert datetime.fromisoformat(found["timestamp"]).tzinfo is not None
    assert "e-1" in found["message"]


def test_on_a_terminal_a_line_stays_a_line(lines: io.StringIO) -> None:
    configure_logging(False, stream=lines)
    logging.getLogger("shop").warning("got %s", FORGED, extra={"sku": FORGED})
    (line,) = lines.getvalue().splitlines()
    assert line.isprintable()


def test_a_traceback_on_a_terminal_cannot_begin_a_line(lines: io.StringIO) -> None:
    configure_logging(False, stream=lines)
    try:
        raise ValueError(FORGED)
    except ValueError:
        logging.getLogger("shop").exception("failed")
    first, *rest = lines.getvalue().splitlines()
    assert "failed" in first
    assert rest
    assert all(one.startswith("  | ") and one.isprintable() for one in rest)


@pytest.mark.parametrize("machine", [True, False])
def test_lines_of_a_handler_get_the_ids_of_its_event(lines: io.StringIO, machine: bool) -> None:
    configure_logging(machine, stream=lines)
    token = current.set(Scope(delivery(), "stock.reserve"))
    try:
        logging.getLogger("shop").info("looking")
    finally:
        current.reset(token)
    logging.getLogger("shop").info("elsewhere")
    inside, outside = lines.getvalue().splitlines()
    for known in ("e-1", "o-1", "c-1", "reserve"):
        assert known in inside
        assert known not in outside


async def test_lines_of_a_sync_handler_get_them_too(lines: io.StringIO) -> None:
    configure_logging(True, stream=lines)
    service, broker = Service("shop", publishes=[Placed]), MemoryBroker()

    @service.on(Placed, idempotent=True)
    def handle(event: Placed) -> None:
        logging.getLogger("shop").info("in a thread")

    async with service.running(broker=broker):
        await service.publish(Placed(order_id="o-9"))
        await broker.idle()
    found = [json.loads(line) for line in lines.getvalue().splitlines()]
    assert [one["key"] for one in found if one["message"] == "in a thread"] == ["o-9"]


def test_importing_tidings_loads_nothing_heavy_and_configures_nothing() -> None:
    program = (
        "import logging, sys; import tidings\n"
        "heavy = 'structlog prometheus_client sqlalchemy nats cyclopts rich http.server'.split()\n"
        "assert not (found := [name for name in heavy if name in sys.modules]), found\n"
        "assert not logging.getLogger().handlers\n"
    )
    subprocess.run([sys.executable, "-c", program], check=True, timeout=60)
