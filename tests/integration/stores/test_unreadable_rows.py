"""A row of the outbox of which no message can be made: set aside, shown, and in nobody's way but its key's."""

from __future__ import annotations

import logging
from pathlib import Path

import pytest

from tests.integration.stores.ledger import Where, eventually, message, query, waiting
from tests.integration.stores.test_direct import Recorder, opened
from tidings.delivery import Message

HEADERS = "headers = 'garbage'"
NUMBERS = "headers = '{\"a\": 1}'"
ROUTE = "route = 'by pigeon'"

NO_TEXT = "position = CAST(x'ff' AS TEXT)"
BYTES = "stream = x'73746f636b'"


async def spoil(where: Where, how: str, *messages: Message) -> None:
    """Write events, and spoil the one whose id is `bad`."""
    async with opened(where) as store, store.transaction() as db:
        await store.emit(db, messages)
    query(where, f"UPDATE tidings_outbox SET {how} WHERE message_id = 'bad'")


@pytest.mark.parametrize("how", [HEADERS, NUMBERS, ROUTE])
async def test_P8_P12_a_row_that_cannot_be_read_is_parked_and_stops_its_key_alone(
    where: Where, how: str, caplog: pytest.LogCaptureFixture
) -> None:
    await check(where, how, caplog)


@pytest.mark.parametrize("how", [NO_TEXT, BYTES])
async def test_P8_P12_on_sqlite_a_column_may_hold_what_is_no_text_at_all(
    path: Path, how: str, caplog: pytest.LogCaptureFixture
) -> None:
    await check(path, how, caplog)


async def check(where: Where, how: str, caplog: pytest.LogCaptureFixture) -> None:
    await spoil(where, how, message("1", "a"), message("bad", "b"), message("2", "b"), message("3", "c"))
    broker = Recorder()
    with caplog.at_level(logging.ERROR, "tidings.outbox"):
        async with opened(where, broker) as store:
            await eventually(lambda: sorted(broker.ids) == ["1", "3"])
            await eventually(lambda: query(where, "SELECT message_id FROM tidings_outbox WHERE parked") == [("bad",)])
            assert (await store.outbox_backlog()).parked == 1
            (parked,) = await store.outbox_parked()
            assert (parked.message.id, parked.message.key) == ("bad", "b")
            assert how.partition(" ")[0] in parked.error
            assert f"row {parked.id} of tidings_outbox holds no message" in parked.error

            assert await store.outbox_release(parked.id)  # as it was: parked anew
            await eventually(lambda: query(where, "SELECT max(attempts) FROM tidings_outbox WHERE parked") == [(2,)])
            assert broker.ids.count("2") == 0

            mended = "headers = '{}', route = 'event', position = '', stream = 'stock'"
            query(where, f"UPDATE tidings_outbox SET {mended} WHERE id = {parked.id}")
            assert await store.outbox_release(parked.id)
            await eventually(lambda: not waiting(where))
    assert broker.ids[-2:] == ["bad", "2"]
    assert [record.exc_info for record in caplog.records] == [None, None]
    assert "event bad (stock.reserved, key b) cannot be published and is parked" in caplog.text


async def test_on_sqlite_a_body_that_was_written_by_hand_as_text_leaves_as_bytes(path: Path) -> None:
    await spoil(path, "body = '{\"left\": 1}'", message("bad", "b"))
    broker = Recorder()
    async with opened(path, broker):
        await eventually(lambda: not waiting(path))
    assert [one.body for one in broker.stored] == [b'{"left": 1}']
