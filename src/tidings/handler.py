"""A handler as it was registered: which events, which rules, and what it wants besides the event."""

from __future__ import annotations

import inspect
import re
import types
import typing
from collections.abc import Awaitable, Callable, Iterator, Sequence
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
    _check_returned(label, hints.get("return"), batches)
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


def _check_returned(label: str, hint: Any, batches: bool) -> None:
    wrong = next((one for one in _members(hint) if not _may_be_returned(one)), None)
    if wrong is None:
        return
    may = "None, or a list with one entry for each event" if batches else "None, an event, or a list of events"
    name = getattr(wrong, "__name__", repr(wrong))
    raise DeclarationError(
        f"{label} is annotated to return {name}, which is never an event, so each of its events would become a dead"
        f" letter. A handler {'of batches ' if batches else ''}returns {may}. Write: -> None"
    )


def _members(hint: Any) -> tuple[Any, ...]:
    """What an annotation says may be returned, taken apart: the members of unions, lists and awaitables."""
    origin = typing.get_origin(hint)
    if origin is typing.Annotated:
        return _members(typing.get_args(hint)[0])
    if origin in (typing.Union, types.UnionType):
        return tuple(member for one in typing.get_args(hint) for member in _members(one))
    if not isinstance(origin, type):
        return (hint,)
    inner: tuple[Any, ...] = ()
    if _may_be_returned(origin):  # of a coroutine the last one is what it returns
        args = typing.get_args(hint)[-1:] if issubclass(origin, Awaitable) else typing.get_args(hint)
        inner = tuple(member for one in args for member in _members(one))
    return (origin, *inner)


def _may_be_returned(hint: Any) -> bool:
    """Whether a value of this kind may be None, an event or several. What is no plain class may be anything."""
    if not isinstance(hint, type) or hint in (types.NoneType, Any):
        return True
    if issubclass(hint, (Event, list, tuple, Awaitable)):
        return True
    if inspect.isabstract(hint) or getattr(hint, "_is_protocol", False):
        return True
    return issubclass(Event, hint) or issubclass(list, hint) or any(issubclass(one, hint) for one in _all_events())


def _all_events(base: type[Event] = Event) -> Iterator[type[Event]]:
    for event in base.__subclasses__():
        yield event
        yield from _all_events(event)


def _events_in(hint: Any) -> tuple[type[Event], ...]:
    """The event classes an annotation names: alone, in a union, or in a list or sequence."""
    if isinstance(hint, type) and issubclass(hint, Event):
        return (hint,)
    origin = typing.get_origin(hint)
    if origin in (typing.Union, types.UnionType, list, tuple, Sequence, Awaitable, typing.Annotated):
        return tuple(event for one in typing.get_args(hint) for event in _events_in(one))
    return ()
