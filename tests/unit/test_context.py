"""The ids of caused events: the same for a repeat, another for anything else."""

from __future__ import annotations

import uuid

from hypothesis import given
from hypothesis import strategies as st

from tests.unit.parts import Placed, delivery, handler_of
from tidings.calls import Calls
from tidings.claims import Claimer, NoClaim
from tidings.context import Scope, current, derived_id
from tidings.delivery import Route
from tidings.grouping import Work
from tidings.handling import Handling
from tidings.leaving import Leaving
from tidings.publisher import Wrapper

NAMES = st.text(min_size=1, max_size=20)
POSITIONS = st.from_regex(r"[a-z][a-z0-9-]{0,9}\.[a-z][a-z0-9-]{0,9}", fullmatch=True)


@given(NAMES, POSITIONS, st.integers(0, 99))
def test_P4_a_repeat_causes_the_same_id_and_it_is_a_uuid_of_version_8(cause: str, position: str, place: int) -> None:
    made = derived_id(cause, position, place)
    assert made == derived_id(cause, position, place)
    parsed = uuid.UUID(made)
    assert parsed.version == 8
    assert parsed.variant == uuid.RFC_4122


@given(st.sets(st.tuples(NAMES, POSITIONS, st.integers(0, 9)), min_size=2, max_size=8))
def test_another_cause_handler_or_place_gives_another_id(parts: set[tuple[str, str, int]]) -> None:
    assert len({derived_id(*one) for one in parts}) == len(parts)


def test_a_replay_has_ids_of_its_own() -> None:
    assert derived_id("a", "stock.step", 0) != derived_id("a", "stock.step", 0, "replay-1")


def test_a_scope_counts_what_its_delivery_causes() -> None:
    scope = Scope(delivery(read=True), "stock.step")
    assert [scope.next_id(), scope.next_id()] == [derived_id("a1", "stock.step", 0), derived_id("a1", "stock.step", 1)]


def test_P4_what_a_delivery_of_a_replay_causes_has_ids_of_its_scope() -> None:
    copy = delivery(read=True, headers={"tidings-scope": "r-1"}, route=Route.RETRY)
    assert Scope(copy, "stock.step").next_id() == derived_id("a1", "stock.step", 0, "r-1")


def test_no_delivery_runs_outside_of_handlers() -> None:
    assert current.get() is None


async def test_a_delivery_is_current_while_its_handler_runs_and_no_longer() -> None:
    seen: list[object] = []

    async def handle(event: Placed) -> None: ...

    async def call(event: object, claim: object, asked: object) -> None:
        scope = current.get()
        seen.append(scope.delivery if scope else None)

    handler = handler_of(handle, Placed)
    handling = Handling(handler, call, Wrapper("stock", [], "structured").caused)
    calls = Calls(handler, Claimer(handler, None, None), handling)
    works = [Work(delivery(name, read=True), Placed(order_id=name)) for name in ("a", "b")]
    turn = Leaving(handler, handling.late, fenced=False).turn(works, NoClaim(2))
    await calls.run(turn)
    seen.append(current.get())
    assert seen == [works[0].delivery, works[1].delivery, None]
