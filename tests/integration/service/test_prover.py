"""The prover lets good handlers pass, and says of each kind of bad one at which point it fails and why."""

from __future__ import annotations

import sqlite3
import threading
from collections import Counter
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager, closing
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import Connection, text
from sqlalchemy.ext.asyncio import AsyncConnection

from tidings import Dead, Event, Retry, Service, points
from tidings.delivery import ACK
from tidings.pipeline import Pipeline
from tidings.ports import NEW, Key, Store
from tidings.stores.sqlalchemy import SqlAlchemyStore
from tidings.testing.prover import Differs, Prover
from tidings.testing.prover.prover import _Fault
from tidings.turn import Turn

pytest_plugins = ["tidings.testing.plugin"]


class Placed(Event, type="order.placed", version=1, key="order_id"):
    order_id: str
    quantity: int = 1


class Reserved(Event, type="stock.reserved", version=1, key="order_id"):
    order_id: str


SETUP = "CREATE TABLE stock (sku TEXT PRIMARY KEY, taken INTEGER); INSERT INTO stock VALUES ('tea', 0);"
STATE = "SELECT sku, taken FROM stock ORDER BY sku"
TAKE = text("UPDATE stock SET taken = taken + :quantity")
ORDERS = [Placed(order_id="1"), Placed(order_id="2", quantity=2), Placed(order_id="1", quantity=4)]


def service() -> Service:
    return Service("stock", publishes=[Reserved])


async def test_P3_P4_a_handler_that_writes_and_publishes_in_its_transaction_is_proved(prover: Prover) -> None:
    stock = service()

    @stock.on(Placed)
    async def reserve(order: Placed, db: AsyncConnection) -> Reserved:
        await db.execute(TAKE, {"quantity": order.quantity})
        await db.execute(text("SELECT 1"))
        return Reserved(order_id=order.order_id)

    proof = await prover.prove(stock, ORDERS[1:], setup=SETUP, state=STATE)
    assert set(proof.points) == set(points.ALL)
    assert proof.points["before-statement"] == proof.points["after-statement"] == 4
    assert proof.rounds >= 1 + proof.crashes + 4
    assert str(proof) == f"{proof.rounds} rounds, {proof.crashes} of them with a crash, all with the same end"


async def test_sync_handlers_and_batch_handlers_are_proved_and_dead_letters_are_compared(prover: Prover) -> None:
    """The connection of a sync handler belongs to a thread, which a crash has to stop as well."""
    stock = service()

    @stock.on(Placed, retry=Retry(attempts=1))
    def reserve(order: Placed, db: Connection) -> Reserved:
        if order.quantity > 1:
            raise Dead("too many")
        db.execute(TAKE, {"quantity": order.quantity})
        return Reserved(order_id=order.order_id)

    @stock.on_batch(Placed)
    async def count(orders: list[Placed], db: AsyncConnection) -> list[Reserved]:
        await db.execute(TAKE, [{"quantity": 100} for _ in orders])
        return [Reserved(order_id=f"all {order.order_id}") for order in orders]

    proof = await prover.prove(stock, ORDERS[:2], setup=SETUP, state=STATE)
    assert proof.points["before-statement"] >= 2


# ── what it must catch ──────────────────────────────────────────────────────────────────────────────────────────────


async def differs(prover: Prover, stock: Service, events: Sequence[Event] = ORDERS[:1], **more: Any) -> str:
    with pytest.raises(Differs) as caught:
        await prover.prove(stock, events, **{"setup": SETUP, "state": STATE, **more})
    return str(caught.value)


async def test_P4_an_event_that_is_published_outside_of_the_transaction_is_caught(prover: Prover) -> None:
    stock = service()

    @stock.on(Placed)
    async def reserve(order: Placed, db: AsyncConnection) -> None:
        await db.execute(TAKE, {"quantity": order.quantity})
        running = stock._begun or stock.active
        await running.broker.publish([running.wrapper.message(Reserved(order_id=order.order_id))], timeout=5)

    said = await differs(prover, stock)
    assert said.startswith("stock: a crash at before-commit, the 1st time that it is passed\n")
    assert 'too many  stock.reserved {"order_id":"1"}' in said
    assert "the state differs" not in said
    assert "likely: an event is published outside the transaction that causes it" in said


@pytest.mark.parametrize("where", ["a connection of its own", "a file", "the process"])
async def test_P4_a_write_outside_of_the_transaction_is_caught(prover: Prover, where: str) -> None:
    stock, kept = service(), Counter[str]()

    def other() -> Path:
        return prover.path.parent / "other"

    @stock.on(Placed)
    async def reserve(order: Placed, db: AsyncConnection) -> None:
        if where == "a file":
            with other().open("a") as file:
                file.write(order.order_id)
        elif where == "the process":
            kept[order.order_id] += 1
        else:
            with closing(sqlite3.connect(other())) as connection:
                connection.execute("INSERT INTO other VALUES (?)", (order.order_id,))
                connection.commit()
        await db.execute(TAKE, {"quantity": order.quantity})

    def setup(path: Path) -> None:
        kept.clear()
        other().unlink(missing_ok=True)
        with closing(sqlite3.connect(path)) as connection:
            connection.executescript(SETUP)
        if where == "a connection of its own":
            with closing(sqlite3.connect(other())) as connection:
                connection.execute("CREATE TABLE other (id TEXT)")

    def state(path: Path) -> object:
        if where == "a file":
            return other().read_text()
        if where == "the process":
            return dict(kept)
        with closing(sqlite3.connect(other())) as connection:
            return connection.execute("SELECT id FROM other").fetchall()

    said = await differs(prover, stock, setup=setup, state=state)
    assert said.startswith("stock: a crash at before-statement, the 1st time that it is passed\n\nthe state differs:\n")
    assert "likely: something is written outside the transaction" in said


class Forgets(SqlAlchemyStore):
    """Knows no key, so that every delivery is new."""

    @asynccontextmanager
    async def claim(self, keys: Sequence[Key], *, resource: type | None, sync: bool) -> AsyncIterator[Any]:
        async with super().claim([], resource=resource, sync=sync) as claim:
            claim.states = [NEW] * len(keys)
            yield claim


@pytest.mark.parametrize(
    "fault", [_Fault("twice", doubled="at once"), _Fault("twice", doubled="later"), _Fault("twice", workers=2)]
)
async def test_P4_a_store_that_does_not_know_what_comes_again_is_caught_without_any_crash(
    prover: Prover, monkeypatch: pytest.MonkeyPatch, fault: _Fault
) -> None:
    monkeypatch.setattr("tidings.testing.prover.prover._faults", lambda passed: [fault])
    stock = service()
    stock.on(Placed)(reserve_rightly)
    said = await differs(prover, stock, store=lambda url: Forgets(url, poll=0.02))
    assert said.startswith("stock: twice\n\nthe state differs:\n  expected  [('tea', 1)]\n  found     [('tea', 2)]")


class MarksFirst(SqlAlchemyStore):
    """Commits the keys before the handler has done anything."""

    @asynccontextmanager
    async def claim(self, keys: Sequence[Key], *, resource: type | None, sync: bool) -> AsyncIterator[Any]:
        async with super().claim(keys, resource=resource, sync=sync) as marked:
            states = marked.states
        async with super().claim([], resource=resource, sync=sync) as claim:
            claim.states = states
            yield claim


def marks_first(url: str) -> Store:
    return MarksFirst(url, poll=0.02)


async def reserve_rightly(order: Placed, db: AsyncConnection) -> Reserved:
    await db.execute(TAKE, {"quantity": order.quantity})
    return Reserved(order_id=order.order_id)


async def test_P4_a_store_that_marks_a_key_before_its_effect_is_caught(prover: Prover) -> None:
    stock = service()
    stock.on(Placed)(reserve_rightly)
    said = await differs(prover, stock, store=marks_first)
    assert said.startswith("stock: a crash at after-commit, the 1st time")  # of the keys alone
    assert "expected  [('tea', 1)]\n  found     [('tea', 0)]" in said
    assert 'missing   stock.reserved {"order_id":"1"}' in said
    assert "likely: the key of the event was durable before its effect was" in said


async def test_P3_an_acknowledgement_before_the_commit_is_caught(
    prover: Prover, monkeypatch: pytest.MonkeyPatch
) -> None:
    right = Pipeline._handle_all

    async def early(self: Pipeline, turn: Turn) -> None:
        await right(self, turn)
        await self._broker.settle([(turn.group[place].delivery, ACK) for place in turn.decided])

    monkeypatch.setattr(Pipeline, "_handle_all", early)
    stock = service()
    stock.on(Placed)(reserve_rightly)
    said = await differs(prover, stock)
    assert said.startswith("stock: a crash at before-commit, the 1st time that it is passed\n")
    assert "expected  [('tea', 1)]\n  found     [('tea', 0)]" in said
    assert "likely: the broker was told that the event is done before its effect was committed" in said


async def test_P4_an_effect_that_may_not_repeat_after_all_is_caught(prover: Prover) -> None:
    stock = service()

    @stock.on(Placed, idempotent=True)
    async def reserve(order: Placed, db: AsyncConnection) -> None:
        await db.execute(TAKE, {"quantity": order.quantity})

    said = await differs(prover, stock)
    assert "a crash at after-commit" in said
    assert "an idempotent=True handler has to have an effect that may repeat" in said


async def test_what_depends_on_more_than_the_events_is_told_before_any_crash(prover: Prover) -> None:
    stock, calls = service(), Counter[str]()

    @stock.on(Placed)
    async def reserve(order: Placed, db: AsyncConnection) -> Reserved:
        calls["all"] += 1
        return Reserved(order_id=f"call {calls['all']}")

    said = await differs(prover, stock)
    assert said.startswith("stock: a second run without a fault\n\nthe published events differ:\n  missing   ")
    assert "depends on more than the events" in said
    proof = await prover.prove(stock, ORDERS[:1], setup=SETUP, state=STATE, ignore=["order_id"])
    assert proof.crashes > 5


async def test_a_service_that_never_comes_to_an_end_is_told(prover: Prover, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tidings.testing.prover.life.LIMIT", 0.5)
    stock = service()
    stock.on(Placed, retry=Retry(attempts=9, first=60, most=60))(fail)
    assert "the run without a fault: it was still at work after 0.5 s" in await differs(prover, stock)


async def fail(order: Placed, db: AsyncConnection) -> None:
    raise ValueError("no")


async def test_a_proof_leaves_no_thread_no_file_and_no_hook_behind(prover: Prover) -> None:
    before = threading.enumerate()
    stock = service()
    stock.on(Placed)(reserve_rightly)
    await prover.prove(stock, ORDERS[:1], setup=SETUP, state=STATE)
    assert [thread.name for thread in threading.enumerate() if "life" in thread.name] == []
    # This loop's own executor keeps its threads, as many as it has needed.
    left = [one for one in threading.enumerate() if one not in before and not one.name.startswith("asyncio_")]
    for one in left:
        one.join(10)
    assert [one.name for one in left if one.is_alive()] == []
    assert [path.name for path in prover.path.parent.iterdir()] == ["proof.db"]
    assert points.reached is None
