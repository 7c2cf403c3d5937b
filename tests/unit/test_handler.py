"""What may be registered as a handler: each wrong way with the message that shows the right one."""

from __future__ import annotations

import enum
import functools
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine, Iterable, Iterator, Sequence
from typing import TYPE_CHECKING, Annotated, Any, Optional, Protocol
from uuid import UUID

import pytest

from tidings import DeclarationError, Delivery, Event, Retry, Service, event_id
from tidings.claims import Claimer
from tidings.envelope import envelope_of
from tidings.handler import Handler

if TYPE_CHECKING:
    from decimal import Decimal


class Size(enum.Enum):
    SMALL = "small"


class OrderPlaced(Event, type="order.placed", version=1, key="order_id"):
    order_id: str
    quantity: int = 1
    shop: str | None = None
    size: Size = Size.SMALL
    weight: float


class OrderPaid(Event, type="order.paid", version=1, key="order_id"):
    order_id: str


class StockReserved(Event, type="stock.reserved", version=1, key="order_id"):
    order_id: str


class OrderNoticed(Event, type="order.noticed", version=1):
    id: UUID


class Clients:
    """What a lifespan might yield."""


def register(function: Callable[..., Any], *events: type[Event], **rules: Any) -> Handler:
    service = Service("shop")
    assert service.on(*(events or (OrderPlaced,)), **rules)(function) is function
    return service.handlers[0]


def refused(function: Callable[..., Any], *events: type[Event], **rules: Any) -> str:
    with pytest.raises(DeclarationError) as caught:
        register(function, *events, **rules)
    return str(caught.value)


# ── what is taken ───────────────────────────────────────────────────────────────────────────────────────────────────


async def reserve_stock(order: OrderPlaced, clients: Clients, delivery: Delivery) -> StockReserved:
    raise NotImplementedError


def test_a_handler_says_what_it_takes_and_gives() -> None:
    handler = register(reserve_stock)
    assert handler.name == "reserve-stock"
    assert handler.position == "shop.reserve-stock"
    assert handler.stream == "order"
    assert handler.wants == (("clients", Clients), ("delivery", Delivery))
    assert handler.returns == (StockReserved,)
    assert not handler.sync
    assert repr(handler) == "<Handler shop.reserve-stock of order.placed>"


def test_a_parameter_with_a_default_is_left_alone() -> None:
    async def handle(order: OrderPlaced, limit: int = 3) -> None: ...

    assert register(handle).wants == ()


def returning(hint: Any) -> Callable[..., Any]:
    async def handle(order: OrderPlaced) -> None: ...

    handle.__annotations__ = {"order": OrderPlaced, "return": hint}
    return handle


@pytest.mark.parametrize(
    ("hint", "found"),
    [
        (None, ()),
        (StockReserved, (StockReserved,)),
        (StockReserved | None, (StockReserved,)),
        (Optional[StockReserved], (StockReserved,)),  # noqa: UP045  # the old spelling
        (list[StockReserved], (StockReserved,)),
        (list[StockReserved | OrderPaid] | None, (StockReserved, OrderPaid)),
        (tuple[StockReserved, OrderPaid], (StockReserved, OrderPaid)),
        (Sequence[StockReserved], (StockReserved,)),
        (Any, ()),
        (object, ()),
        (Awaitable[StockReserved], (StockReserved,)),
        (Annotated[StockReserved | None, "said"], (StockReserved,)),
        (Iterable[StockReserved | None], ()),
    ],
    ids=str,
)
def test_the_events_that_a_handler_returns_are_read_from_its_annotation(
    hint: Any, found: tuple[type[Event], ...]
) -> None:
    assert register(returning(hint)).returns == found


class Priced:
    """What some events share."""


class OrderPriced(Priced, Event, type="order.priced", version=1):
    order_id: str


class Answers(Protocol):
    def answer(self) -> None: ...


@pytest.mark.parametrize("hint", [Priced, Answers, Event, list, tuple[()], tuple[OrderPaid, ...]], ids=str)
def test_what_may_be_an_event_may_be_annotated(hint: Any) -> None:
    register(returning(hint))


@pytest.mark.parametrize(
    ("hint", "name"),
    [
        (int, "int"),
        (str, "str"),
        (Clients, "Clients"),
        (StockReserved | bool, "bool"),
        (int | None, "int"),
        (list[str], "str"),
        (list[dict[str, int]], "dict"),
        (dict[str, StockReserved], "dict"),
        (set[StockReserved], "set"),
        (Awaitable[int], "int"),
        (Coroutine[Any, Any, int], "int"),
        (type[StockReserved], "type"),
    ],
    ids=str,
)
def test_an_annotation_that_is_never_an_event_is_refused_where_it_is_written(hint: Any, name: str) -> None:
    said = refused(returning(hint))
    assert f"annotated to return {name}, which is never an event" in said
    assert "Write: -> None" in said


def test_a_plain_function_runs_in_a_thread() -> None:
    def handle(order: OrderPlaced) -> None: ...

    assert register(handle).sync


def test_methods_objects_and_wrapped_functions_are_handlers_too() -> None:
    class Desk:
        async def take(self, order: OrderPlaced) -> None: ...

        async def __call__(self, order: OrderPlaced) -> StockReserved:
            raise NotImplementedError

    def logged(function: Callable[[OrderPlaced], Awaitable[None]]) -> Callable[[OrderPlaced], Awaitable[None]]:
        @functools.wraps(function)
        async def wrapper(order: OrderPlaced) -> None:
            await function(order)

        return wrapper

    @logged
    async def wrapped(order: OrderPlaced) -> None: ...

    assert register(Desk().take).name == "take"
    handler = register(Desk(), name="desk")
    assert not handler.sync
    assert handler.returns == (StockReserved,)
    assert register(wrapped).name == "wrapped"


def test_names_declared_inside_a_function_are_known_where_the_handler_is_registered() -> None:
    class Shipped(Event, type="order.shipped", version=1):
        order_id: str

    class Billed(Event, type="bill.sent", version=1):
        order_id: str

    service = Service("shop")

    @service.on(Shipped)
    async def bill(event: Shipped) -> Billed:
        raise NotImplementedError

    assert service.handlers[0].returns == (Billed,)


def test_one_handler_may_take_several_types_of_a_stream() -> None:
    async def follow(event: OrderPlaced | OrderPaid) -> None: ...
    async def follow_all(event: Event) -> None: ...

    assert register(follow, OrderPlaced, OrderPaid).reader.types == ("order.placed", "order.paid")
    assert register(follow_all, OrderPlaced, OrderPaid)


@pytest.mark.parametrize("once", ["order_id"])
def test_once_may_name_a_field_that_tells_events_apart(once: str) -> None:
    assert register(reserve_stock, once=once).rules.once == once


def test_once_may_name_a_uuid() -> None:
    async def handle(event: OrderNoticed) -> None: ...

    assert register(handle, OrderNoticed, once="id").rules.once == "id"


# ── what is refused ─────────────────────────────────────────────────────────────────────────────────────────────────


async def untyped(order) -> None: ...  # type: ignore[no-untyped-def]  # what is refused


async def none_at_all() -> None: ...


async def starred(order: OrderPlaced, *rest: int) -> None: ...


async def named(order: OrderPlaced, **rest: int) -> None: ...


async def another(order: OrderPaid) -> None: ...


async def keyword(*, order: OrderPlaced) -> None: ...


async def positional(order: OrderPlaced, clients: Clients, /) -> None: ...


async def vague(order: OrderPlaced, what: int | str) -> None: ...


async def hidden(order: OrderPlaced, price: Decimal) -> None: ...


async def stream_of(order: OrderPlaced) -> AsyncIterator[StockReserved]:
    yield StockReserved(order_id=order.order_id)


def sequence_of(order: OrderPlaced) -> Iterator[StockReserved]:
    yield StockReserved(order_id=order.order_id)


async def _(order: OrderPlaced) -> None: ...


async def größe(order: OrderPlaced) -> None: ...


REFUSED = {
    "no annotation": (untyped, "the parameter 'order' has no annotation, which says what to hand over. Write:\n"),
    "no annotation, its line": (untyped, "    async def untyped(order: OrderPlaced) -> None"),
    "no parameter": (none_at_all, "takes no event. Write: async def none_at_all(order: OrderPlaced) -> None"),
    "a star": (starred, "*rest cannot be filled; name each parameter and its type"),
    "two stars": (named, "*rest cannot be filled"),
    "another event": (another, "is registered for OrderPlaced, but its first parameter takes <class"),
    "another event, its line": (another, "Write: event: OrderPlaced"),
    "an event by name only": (keyword, "the event is handed over by position and the rest by name; 'order' cannot be"),
    "a client by position only": (positional, "'clients' cannot be. Take off the * or the /"),
    "no class": (vague, "what: int | str is no class, so nothing can be handed over for it"),
    "a name for type checkers only": (hidden, "Import its name at the top of the module, not only under TYPE_CHECKING"),
    "an async generator": (stream_of, "yields, so calling it would do nothing. Return the events: a list of them"),
    "a generator": (sequence_of, "yields, so calling it would do nothing"),
    "no name": (_, "'' is no name for a handler: lower case letters, digits and hyphens. Write: name="),
    "a name beyond ASCII": (größe, "'größe' is no name for a handler"),
}


@pytest.mark.parametrize(("function", "says"), REFUSED.values(), ids=REFUSED)
def test_a_handler_that_cannot_work_is_refused_where_it_is_registered(function: Callable[..., Any], says: str) -> None:
    message = refused(function)
    assert says in message
    assert getattr(function, "__name__", "") in message


def handler_of_all(event: Event) -> None: ...


ONCE = {
    "no field": ("id", "once='id' is no field of OrderPlaced (it has: order_id, quantity, shop, size, weight)"),
    "one that may be None": ("shop", "never None: all events without it would count as one. Write in OrderPlaced:\n"),
    "one that may be None, its line": ("shop", "    shop: str"),
    "one with a default": ("quantity", "has a default, and all events that leave it out would count as one"),
    "an enum with a default": ("size", "has a default"),
    "a float": ("weight", "must be text, a whole number, a UUID or an enum"),
}


@pytest.mark.parametrize(("once", "says"), ONCE.values(), ids=ONCE)
def test_once_refuses_a_field_by_which_events_cannot_be_told_apart(once: str, says: str) -> None:
    assert says in refused(handler_of_all, once=once)


def test_types_of_two_streams_are_refused() -> None:
    assert "takes events of several streams (order, stock)" in refused(handler_of_all, OrderPlaced, StockReserved)


def test_no_type_at_all_is_refused() -> None:
    with pytest.raises(DeclarationError, match=r"names no event. Write: @service\.on\(OrderPlaced\)"):
        Service("shop").on()(handler_of_all)


def test_what_is_no_event_class_is_refused() -> None:
    assert "Clients is no event class. Write: class Clients(Event, type=" in refused(
        handler_of_all,
        Clients,  # type: ignore[arg-type]  # what is refused
    )
    assert "takes event classes" in refused(handler_of_all, OrderPaid(order_id="1"))  # type: ignore[arg-type]  # so too


def test_a_name_is_taken_once() -> None:
    service = Service("shop")
    service.on(OrderPlaced)(handler_of_all)
    with pytest.raises(DeclarationError, match=r"has a handler 'handler-of-all' already\. Write: name="):
        service.on(OrderPaid)(handler_of_all)


def test_order_needs_keys() -> None:
    assert "not all of its events have a key" in refused(handler_of_all, OrderNoticed, order="key")
    assert register(handler_of_all, OrderNoticed).rules.ordered is False
    assert register(handler_of_all, OrderPlaced).rules.ordered is True


def test_numbers_that_cannot_be_are_refused() -> None:
    for rules in ({"concurrency": 0}, {"timeout": 0}, {"batch": 0}):
        refused(handler_of_all, **rules)
    for wrong in ({"attempts": 0}, {"first": -1}, {"first": 5, "most": 1}):
        with pytest.raises(ValueError, match="attempts is at least 1"):
            Retry(**wrong)  # type: ignore[arg-type]  # a table


class SizeSet(Event, type="order.size-set", version=1):
    size: Size


def test_a_key_to_apply_once_is_the_value_as_it_travels() -> None:
    event = SizeSet(size=Size.SMALL)
    envelope = envelope_of(event, "shop")
    delivery = Delivery(body=b"", stream="order", origin=("order", 1), token=None, envelope=envelope)
    key = Claimer(register(handler_of_all, SizeSet, once="size"), None, None).key(delivery, event)
    assert (key.key, key.event_id) == ("size:small", event_id(event))
