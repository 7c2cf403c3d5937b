"""The keys of a batch, and what stands in where no store is needed."""

from __future__ import annotations

from typing import Any

import pytest

from tests.unit.parts import Placed, ToldStore, Tx, delivery, handler_of
from tidings.claims import Claimer, NoClaim
from tidings.delivery import Route
from tidings.errors import Contention, MisuseError, StoreUnavailable
from tidings.event import Event
from tidings.grouping import Work
from tidings.ports import State


def _claimer(store: ToldStore | None, resource: type | None = None, **rules: Any) -> Claimer:
    async def step(event: Placed) -> None: ...

    return Claimer(handler_of(step, **rules), store, resource)


async def test_without_a_store_every_event_is_new_and_nothing_can_be_asked_for() -> None:
    async with _claimer(None, once=False).open([Work(delivery(), Placed(order_id="a"))] * 3) as claim:
        assert [claimed.state for claimed in claim.states] == [State.NEW] * 3
        assert await claim.emit([]) is False
        claim.fail(0)
        with pytest.raises(MisuseError, match="Tx"):
            claim.resource(Tx)


def test_a_handler_that_may_repeat_and_wants_no_connection_leaves_the_store_alone() -> None:
    claimer = _claimer(ToldStore(transactional=True), once=False)
    assert isinstance(claimer.open([Work(delivery(), Placed(order_id="a"))]), NoClaim)
    assert not claimer.shared


@pytest.mark.parametrize(("transactional", "shared"), [(True, True), (False, False)])
def test_a_failure_takes_back_what_others_did_only_where_they_share_a_transaction(
    transactional: bool, shared: bool
) -> None:
    assert _claimer(ToldStore(transactional=transactional)).shared is shared


@pytest.mark.parametrize(
    ("once", "key"),
    [(True, "@a1"), ("order_id", "order_id:a")],
)
def test_P4_what_is_applied_once_is_the_event_id_or_the_field_that_the_handler_named(
    once: bool | str, key: str
) -> None:
    found = _claimer(ToldStore(), once=once).key(delivery(read=True), Placed(order_id="a", number=1))
    assert (found.position, found.key, found.event_id) == ("stock.step", key, "a1")


@pytest.mark.parametrize(("once", "key"), [(True, "@r-1:@a1"), ("order_id", "@r-1:order_id:a")])
def test_P4_within_a_replay_of_its_own_scope_a_key_is_another_one_and_goes_with_the_ids_of_events(
    once: bool | str, key: str
) -> None:
    headers = {"tidings-scope": "r-1"}
    claimer = _claimer(ToldStore(), once=once)
    copy = delivery(read=True, headers=headers, route=Route.RETRY)
    assert claimer.key(copy, Placed(order_id="a", number=1)).key == key
    event = delivery(read=True, headers=headers)
    assert claimer.key(event, Placed(order_id="a", number=1)).key in ("@a1", "order_id:a"), "a stranger's word counted"


def test_the_digest_tells_other_data_under_the_same_key() -> None:
    claimer = _claimer(ToldStore(), once="order_id")
    one, same, other = (
        claimer.key(delivery("a", number, id=id, read=True), Placed(order_id="a")).digest
        for number, id in ((1, "x"), (1, "y"), (2, "z"))
    )
    assert one == same != other


@pytest.mark.parametrize("error", [Contention("a lock"), StoreUnavailable("gone")])
def test_an_error_of_the_connection_that_a_handler_was_lent_is_the_stores(error: Exception) -> None:
    store = ToldStore(transactional=True)
    assert _claimer(store, Tx).of_the_store(error) is error
    assert _claimer(store, Tx).of_the_store(ValueError()) is None


def test_P12_an_error_of_a_handler_that_was_lent_no_connection_is_its_own() -> None:
    assert _claimer(ToldStore(transactional=True)).of_the_store(Contention("in its own database")) is None
    assert _claimer(None, once=False).of_the_store(Contention("in its own database")) is None


class Empty(Event, type="order.empty", version=1):
    """An event that counts as false."""

    def __len__(self) -> int:
        return 0


def test_an_event_that_counts_as_false_is_an_event() -> None:
    assert not Empty()
    claimer = _claimer(ToldStore())
    assert claimer.key(delivery(read=True), Empty()).key == "@a1"
