"""A handler as it was registered: which events, which rules, and what it wants besides the event."""

from __future__ import annotations

import inspect
import re
import types
import typing
from collections.abc import Awaitable, Callable, Sequence
from datetime import datetime, timedelta
from typing import Any, Final, Literal

import msgspec

from tidings.declaration import check_once
from tidings.delivery import Delivery
from tidings.errors import DeclarationError
from tidings.event import Event, spec_of
from tidings.evolution import Reader
from tidings.policy import Retry
from tidings.ports import Subscription
from tidings.switch import KillSwitch

Function = Callable[..., Any]

BATCH: Final = 64
BATCH_WITH_STORE: Final = 256

NAME = re.compile(r"[a-z][a-z0-9-]{0,62}")


class Deliveries(list[Delivery]):
    """What `list[Delivery]` of a batch handler stands for, where a class is needed."""


class Rules(msgspec.Struct, frozen=True, kw_only=True):
    """What `on(…)` was told."""

    once: bool | str
    """True: by event id. Text: by that field. False: the effect may repeat."""
    ordered: bool
    concurrency: int
    timeout: float
    abandon_after: float | None = None
    """Seconds after `timeout` until a call that has not ended is left behind; None waits for ever."""
    batch: int | None
    retry: Retry
    conflict: Literal["duplicate", "dead"]
    start: Literal["all", "new"]
    forget_after: timedelta | None = None
    """How long a business key is known; None is without end."""
    kill_switch: KillSwitch | None = None
    on_dead: Literal["skip", "park", "block"] = "skip"


class Handler(msgspec.Struct, frozen=True, kw_only=True):
    """A function with its place in a service."""

    service: str
    name: str
    function: Function
    events: tuple[type[Event], ...]
    returns: tuple[type[Event], ...]
    """The events its return annotation names."""
    rules: Rules
    sync: bool
    reader: Reader
    wants: tuple[tuple[str, type], ...]
    """The parameters after the event, with their types."""
    batches: bool = False
    """It takes a list of events, and is called once for all that are new."""
    since: datetime | None = None
    """A position that does not exist yet begins here instead of where `rules.start` says."""

    @property
    def position(self) -> str:
        return f"{self.service}.{self.name}"

    @property
    def stream(self) -> str:
        return spec_of(self.events[0]).stream

    @property
    def batch(self) -> int:
        """How many events it takes at once, at most."""
        return self.rules.batch or (BATCH_WITH_STORE if self.rules.once else BATCH)

    @property
    def subscription(self) -> Subscription:
        """What it needs from its broker."""
        return Subscription(
            position=self.position,
            stream=self.stream,
            types=self.reader.types,
            ordered=self.rules.ordered,
            slots=self.rules.concurrency > 1,
            start=self.rules.start,
            since=self.since,
            max_in_flight=4 * self.batch * self.rules.concurrency,
        )

    def __repr__(self) -> str:
        return f"<Handler {self.position} of {', '.join(self.reader.types)}>"


def check_rules(rules: Rules) -> None:
    """Refuse numbers that mean nothing.

    Raises:
        DeclarationError: one of them does.
    """
    if not 1 <= rules.concurrency <= 64:
        raise DeclarationError(f"concurrency={rules.concurrency}: between 1 and 64 lanes")
    if rules.timeout <= 0:
        raise DeclarationError(f"timeout={rules.timeout}: more than 0 seconds")
    if rules.abandon_after is not None and rules.abandon_after <= 0:
        raise DeclarationError(f"abandon_after={rules.abandon_after}: more than 0 seconds, or None to wait for ever")
    if rules.batch is not None and not 1 <= rules.batch <= 1000:
        raise DeclarationError(f"batch={rules.batch}: between 1 and 1000 events")
    if rules.forget_after is None:
        return
    if not isinstance(rules.once, str):
        raise DeclarationError(
            'forget_after= is for business keys, such as once="order_id". The ids of events are forgotten by'
            " themselves, when their stream no longer keeps the events"
        )
    if rules.forget_after <= timedelta(0):
        raise DeclarationError(f"forget_after={rules.forget_after}: more than no time, or None to know keys for ever")


def make_handler(
    service: str,
    function: Function,
    types_: Sequence[type[Event]],
    name: str | None,
    rules: Rules,
    *,
    batches: bool = False,
) -> Handler:
    """Look at a function once, when it is registered, and refuse what could not work.

    Raises:
        DeclarationError: no event type, types of two streams, no annotation, a `once=` that tells no events apart.
    """
    label = getattr(function, "__qualname__", repr(function))
    chosen = name if name is not None else getattr(function, "__name__", "").strip("_").replace("_", "-").lower()
    if not NAME.fullmatch(chosen):
        raise DeclarationError(
            f"{label}: {chosen!r} is no name for a handler: lower case letters, digits and hyphens."
            f' Write: name="reserve"'
        )
    _check_events(label, types_)
    _check_kind(label, function)
    hints = _hints(label, function, types_)
    first, wants = _parameters(label, function, hints, batches)
    _check_first(label, first, types_, batches)
    if isinstance(rules.once, str):
        for event in types_:
            check_once(label, event, rules.once)
    return Handler(
        service=service,
        name=chosen,
        function=function,
        events=tuple(types_),
        returns=_events_in(hints.get("return")),
        rules=rules,
        sync=not inspect.iscoroutinefunction(_unwrapped(function)),
        reader=Reader(types_),
        wants=wants,
        batches=batches,
    )


def _unwrapped(function: Function) -> Function:
    call: Function = function if inspect.isroutine(function) else getattr(function, "__call__", function)  # noqa: B004
    return call


def _check_events(label: str, events: Sequence[type[Event]]) -> None:
    if not events:
        raise DeclarationError(f"{label} names no event. Write: @service.on(OrderPlaced)")
    specs = [spec_of(event) for event in events]
    if len({spec.stream for spec in specs}) > 1:
        found = ", ".join(sorted({spec.stream for spec in specs}))
        raise DeclarationError(
            f"{label} takes events of several streams ({found}); order holds within one. Write a handler for each"
        )


def _check_kind(label: str, function: Function) -> None:
    target = _unwrapped(function)
    if inspect.isgeneratorfunction(target) or inspect.isasyncgenfunction(target):
        raise DeclarationError(f"{label} yields, so calling it would do nothing. Return the events: a list of them")


def _hints(label: str, function: Function, events: Sequence[type[Event]]) -> dict[str, Any]:
    target = _unwrapped(function)
    scope: dict[str, Any] = {}
    if closure := getattr(target, "__closure__", None):
        names = target.__code__.co_freevars
        scope = {name: cell.cell_contents for name, cell in zip(names, closure, strict=True) if _filled(cell)}
    try:
        return typing.get_type_hints(target, localns=scope or None)
    except NameError:
        pass  # what is declared inside a function is known where the handler is registered
    try:
        visible = {**{event.__name__: event for event in events}, **_names_of_the_caller(), **scope}
        return typing.get_type_hints(target, localns=visible)
    except NameError as error:
        raise DeclarationError(
            f"{label}: an annotation is not known ({error}). Import its name at the top of the module, not only under"
            " TYPE_CHECKING: it decides what the handler gets"
        ) from None


def _names_of_the_caller() -> dict[str, Any]:
    """The local names of the function in which `on` was called: the first frame outside of this package."""
    frame: types.FrameType | None = inspect.currentframe()
    while frame is not None and frame.f_globals.get("__name__", "").split(".", 1)[0] == __name__.split(".", 1)[0]:
        frame = frame.f_back
    return {} if frame is None else dict(frame.f_locals)


def _filled(cell: Any) -> bool:
    try:
        return cell.cell_contents is not None
    except ValueError:
        return False


def _parameters(
    label: str, function: Function, hints: dict[str, Any], batches: bool
) -> tuple[Any, tuple[tuple[str, type], ...]]:
    parameters = list(inspect.signature(function).parameters.values())
    shown = "list[OrderPlaced]" if batches else "OrderPlaced"
    if not parameters:
        raise DeclarationError(f"{label} takes no event. Write: async def {label}(order: {shown}) -> None")
    for parameter in parameters:
        if parameter.kind in (parameter.VAR_POSITIONAL, parameter.VAR_KEYWORD):
            raise DeclarationError(f"{label}: *{parameter.name} cannot be filled; name each parameter and its type")
        if parameter.kind is (parameter.KEYWORD_ONLY if parameter is parameters[0] else parameter.POSITIONAL_ONLY):
            raise DeclarationError(
                f"{label}: the event is handed over by position and the rest by name; {parameter.name!r} cannot be."
                " Take off the * or the / between the parameters"
            )
        if parameter.name not in hints:
            raise DeclarationError(
                f"{label}: the parameter {parameter.name!r} has no annotation, which says what to hand over. Write:\n"
                f"    async def {label.rsplit('.', 1)[-1]}({parameter.name}: {shown}) -> None"
            )
    wants = tuple(
        (one.name, Deliveries if batches and hints[one.name] == list[Delivery] else hints[one.name])
        for one in parameters[1:]
        if one.default is inspect.Parameter.empty
    )
    for parameter_name, hint in wants:
        if batches and hint is Delivery:
            raise DeclarationError(
                f"{label} handles batches, so there is a delivery for each event. Write:"
                f" {parameter_name}: list[Delivery]"
            )
        if not isinstance(hint, type):
            raise DeclarationError(
                f"{label}: {parameter_name}: {hint!r} is no class, so nothing can be handed over for it"
            )
    return hints[parameters[0].name], wants


def _check_first(label: str, hint: Any, events: Sequence[type[Event]], batches: bool) -> None:
    takes_list = typing.get_origin(hint) in (list, Sequence)
    named = " | ".join(event.__name__ for event in events)
    if batches and not takes_list:
        raise DeclarationError(
            f"{label} handles batches, but its first parameter takes {hint!r}. Write: events: list[{named}]"
        )
    if not batches and (takes_list or typing.get_origin(hint) is tuple):
        raise DeclarationError(
            f"{label} is called with one event, but its first parameter takes {hint!r}. Write: event: {named}, or"
            " register it with on_batch"
        )
    accepted = _events_in(hint)
    if Event in accepted:
        return
    missing = [event.__name__ for event in events if not any(issubclass(event, one) for one in accepted)]
    if missing:
        raise DeclarationError(
            f"{label} is registered for {', '.join(missing)}, but its first parameter takes {hint!r}. Write:"
            f" {f'events: list[{named}]' if batches else f'event: {named}'}"
        )


def _events_in(hint: Any) -> tuple[type[Event], ...]:
    """The event classes an annotation names: alone, in a union, or in a list or sequence."""
    if isinstance(hint, type) and issubclass(hint, Event):
        return (hint,)
    origin = typing.get_origin(hint)
    if origin in (typing.Union, types.UnionType, list, tuple, Sequence, Awaitable, typing.Annotated):
        return tuple(event for one in typing.get_args(hint) for event in _events_in(one))
    return ()
