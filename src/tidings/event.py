"""Events: immutable, typed facts, and the rules that hold where their class is written.

::

    class OrderPlaced(Event, type="order.placed", version=1, key="order_id"):
        order_id: str
        quantity: int
        placed_at: datetime

The class keywords are taken out by a metaclass of our own, since msgspec refuses keywords it does not know.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Callable
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any, ClassVar, Self, TypeAlias, cast, dataclass_transform

import msgspec
import uuid_utils

from tidings.declaration import check_bases, check_fields, checked_annotations, upcast_source
from tidings.errors import DeclarationError, InvalidEvent
from tidings.values import MAX_DEPTH, check_key, encode, first_difference, holds_nul, key_text, nests_deeper

TYPE_PATTERN = re.compile(r"[a-z][a-z0-9-]{0,62}(\.[a-z][a-z0-9-]*)+")
MAX_TYPE_LENGTH = 200
_RESERVED_STREAMS = "tidings-"


class Stamp(msgspec.Struct, frozen=True):
    """What an event gets when it is made: its id (a UUIDv7) and the time."""

    id: str
    time: datetime | None
    """None only where an event was received without one."""


EventClass: TypeAlias = "type[Event]"


class EventSpec(msgspec.Struct, frozen=True, kw_only=True):
    """What an event class declares; it stands at ``OrderPlaced.__tidings__``."""

    type: str
    version: int
    key: str | None
    optional: bool
    stream: str
    decode: Callable[[bytes | msgspec.Raw], Event]
    upcast: Callable[[Any], Event] | None
    """Makes this version from an earlier one, `upcast_from`."""
    upcast_from: EventClass | None

    @property
    def wire_version(self) -> str:
        return f"v{self.version}"


class _Slot:
    """Room for the stamp beside the fields: it is neither compared, nor printed, nor encoded."""

    __slots__ = ("_stamp",)
    _stamp: Any


class EventMeta(msgspec.StructMeta):
    """Reads ``type=``, ``version=``, ``key=`` and ``optional=``, and checks them and the fields."""

    if TYPE_CHECKING:
        __tidings__: EventSpec

    def __new__(
        mcs,
        name: str,
        bases: tuple[type, ...],
        namespace: dict[str, Any],
        *,
        type: str | None = None,
        version: int | None = None,
        key: str | None = None,
        optional: bool = False,
        upcast: Callable[[Any], Any] | None = None,
        **options: Any,
    ) -> EventMeta:
        if namespace.get("__module__") == __name__:
            return super().__new__(mcs, name, bases, namespace, **options)
        if options:
            known = "type=, version=, key=, upcast= and optional="
            raise DeclarationError(f"{name}: an event class takes {known}, not {', '.join(sorted(options))}=")
        kind, number, key = _checked_header(name, type, version, key, _base_event(bases))
        check_bases(name, bases, mcs)
        scope = sys._getframe(1).f_locals
        namespace["__annotations__"] = checked_annotations(name, namespace, scope)
        cls: EventMeta = super().__new__(mcs, name, bases, namespace, frozen=True, kw_only=True)
        check_fields(cls, key)
        cls.__tidings__ = EventSpec(
            type=kind,
            version=number,
            key=key,
            optional=optional,
            stream=kind.split(".", 1)[0],
            decode=msgspec.json.Decoder(cls).decode,
            upcast=upcast,
            upcast_from=None if upcast is None else _older(name, kind, number, upcast_source(name, upcast, scope)),
        )
        return cls

    if not TYPE_CHECKING:  # so that type checkers see the fields, and not this signature

        def __call__(cls, *args, **fields):
            """Make an event: its values are checked here, so that what cannot be read is never sent."""
            event = super().__call__(*args, **fields)
            _check_values(event, spec_of(cls))
            _set_stamp(event, Stamp(str(uuid_utils.uuid7()), datetime.now(UTC)))
            return event


@dataclass_transform(kw_only_default=True, frozen_default=True, field_specifiers=(msgspec.field,))
class Event(msgspec.Struct, _Slot, metaclass=EventMeta, frozen=True, kw_only=True):
    """The base of all events. Subclass it with ``type=``, ``version=`` and, to keep an order, ``key=``.

    * ``type``: lower case words joined by dots; the part before the first dot is the stream (``order.placed``).
    * ``version``: a whole number from 1. A new version gets a class of its own.
    * ``upcast``: the function that makes this version from an earlier one: its parameter's annotation says which.
    * ``key``: the name of the field whose events keep their order.
    * ``optional``: publishing it where nobody listens is no error (only RabbitMQ can tell).

    Fields are keyword-only and typed: ``Any``, ``object``, a bare ``dict`` or ``list`` and naive time stamps are
    refused. Values are checked when an event is made. Copies and pickles keep the id, since they are the same fact;
    ``msgspec.structs.replace`` makes another event. Events are equal when their fields are.

    Raises:
        DeclarationError: where the class is written wrongly; the message shows the right line.
        InvalidEvent: where an event is made with values that its class does not allow.
        TypeError: where a field is missing or unknown, or given by position.
    """

    __tidings__: ClassVar[EventSpec]

    def __copy__(self) -> Self:
        rebuild, parts = self.__reduce__()
        return cast("Self", rebuild(*parts))

    def __reduce__(self) -> tuple[Callable[..., Event], tuple[Any, ...]]:
        stamp = stamp_of(self)
        fields = {name: getattr(self, name) for name in self.__struct_fields__}
        return _restored, (type(self), fields, stamp.id, stamp.time)

    if TYPE_CHECKING:  # what the metaclass takes, where type checkers look for it

        def __init_subclass__(
            cls,
            *,
            type: str,
            version: int,
            key: str | None = None,
            optional: bool = False,
            upcast: Callable[[Any], Any] | None = None,
        ) -> None: ...


_set_stamp = _Slot.__dict__["_stamp"].__set__


def _restored(cls: type[Event], fields: dict[str, Any], id: str, time: datetime | None) -> Event:
    """An event as it was copied or pickled, with the id it had."""
    event: Event = msgspec.StructMeta.__call__(cls, **fields)  # nothing to check: it was an event before
    _set_stamp(event, Stamp(id, time))
    return event


def stamp_of(event: Event) -> Stamp:
    """The id and time of an event: given when it was made, or those it travelled with when it was received."""
    try:
        stamp: Stamp = event._stamp
    except AttributeError:  # made by msgspec itself: by `replace`, or decoded outside a service
        _check_values(event, spec_of(event))
        stamp = Stamp(str(uuid_utils.uuid7()), datetime.now(UTC))
        _set_stamp(event, stamp)
    return stamp


def event_id(event: Event) -> str:
    """The id of an event, under which it is published, de-duplicated and traced."""
    return stamp_of(event).id


set_stamp: Callable[[Event, object], None] = _set_stamp
"""Gives a decoded event the id and time that it travelled with: anything with `id` and `time`."""


def spec_of(event: Event | type[Event]) -> EventSpec:
    """What the class of an event declares."""
    try:
        return event.__tidings__
    except AttributeError:
        name = event.__name__ if isinstance(event, type) else type(event).__name__
        raise DeclarationError(
            f'{name} is no event class. Write: class {name}(Event, type="order.placed", version=1): …'
        ) from None


def key_of(event: Event) -> str | None:
    """The key of an event as text, or None where its class names no key."""
    name = event.__tidings__.key
    return None if name is None else key_text(getattr(event, name))


def encode_data(event: Event) -> bytes:
    """The event's own JSON. Decimals travel as text, so that no digit is lost."""
    return encode(event)


def _base_event(bases: tuple[type, ...]) -> type[Event] | None:
    """The event class that this one builds on, if it does."""
    return next((cast("type[Event]", base) for base in bases if hasattr(base, "__tidings__")), None)


def _checked_header(
    name: str, kind: object, version: object, key: object, base: type[Event] | None
) -> tuple[str, int, str | None]:
    """Type, version and key as they were written. Nothing of them is inherited: each class says its own."""
    parent = "Event" if base is None else base.__name__
    base_key = None if base is None else base.__tidings__.key
    example = f'class {name}({parent}, type="order.placed", version=1, key="{base_key or "order_id"}"):'
    inherits = "" if base is None else f". It has the fields of {parent}, and nothing else of its declaration"
    if kind is None:
        raise DeclarationError(
            f"{name} does not say its type, under which it travels{inherits}. Write, for example:\n    {example}"
        )
    if not isinstance(kind, str) or not TYPE_PATTERN.fullmatch(kind) or len(kind) > MAX_TYPE_LENGTH:
        raise DeclarationError(
            f"{name}: type={kind!r} is not a stream and a name: lower case letters, digits and hyphens, joined by dots,"
            f" each part beginning with a letter, at most {MAX_TYPE_LENGTH} characters. Write, for example:\n"
            f"    {example}"
        )
    if kind.startswith(_RESERVED_STREAMS):
        raise DeclarationError(f"{name}: streams that begin with {_RESERVED_STREAMS!r} are Tidings' own; not {kind!r}")
    example = example.replace("order.placed", kind)
    if version is None:
        raise DeclarationError(
            f"{name} does not say its version, by which readers tell its shape{inherits}. Write:\n    {example}"
        )
    if not isinstance(version, int) or isinstance(version, bool) or version < 1:
        raise DeclarationError(f"{name}: version={version!r}; a version is a whole number from 1. Write: version=1")
    if key is not None and not isinstance(key, str):
        raise DeclarationError(f'{name}: key={key!r}; it is the name of a field. Write: key="order_id"')
    if key is None and base_key is not None:
        raise DeclarationError(
            f"{name} does not say its key; {parent}, on which it builds, keeps its order by {base_key!r}. Write:\n"
            f"    {example.replace('version=1', f'version={version}')}"
        )
    return kind, version, key


def _older(name: str, kind: str, version: int, source: Any) -> type[Event]:
    spec = getattr(source, "__tidings__", None)
    if spec is not None and spec.type == kind and spec.version < version:
        older: type[Event] = source
        return older
    problem = f"{name}: its upcast must take an earlier version of {kind!r}, not {getattr(source, '__name__', source)}"
    if spec is not None:
        problem += f", which is {spec.type!r} in version {spec.version}"
    if version == 1:
        raise DeclarationError(f"{problem}. Version 1 has no earlier one: take off upcast=, or raise version=")
    raise DeclarationError(f"{problem}. Write:\n    def from_v{version - 1}(old: {name}V{version - 1}) -> {name}: …")


def _check_values(event: Event, spec: EventSpec) -> None:
    """Whatever leaves must be readable, and be the same when it was read."""
    name = type(event).__name__
    try:
        data = encode(event)
        read = spec.decode(data)
        changed = None if read == event else first_difference(event, read)
    except (msgspec.MsgspecError, TypeError, ValueError, OverflowError, RecursionError) as error:
        raise InvalidEvent(f"{name}: {_plain(error)}") from None
    if changed is not None:
        path, given, other = changed
        raise InvalidEvent(
            f"{name}.{path} = {_shown(given)}: its readers would get {_shown(other)}. Give it what its type says"
        )
    if holds_nul(data):
        raise InvalidEvent(f"{name}: a text holds the character U+0000, which PostgreSQL cannot store; remove it")
    if nests_deeper(data, MAX_DEPTH - 1):
        raise InvalidEvent(f"{name}: its lists and objects nest deeper than {MAX_DEPTH - 1}, which no reader takes")
    if spec.key is not None:
        check_key(key_text(getattr(event, spec.key)), f"{name}.{spec.key}")


def _shown(value: object) -> str:
    text = repr(value)
    return text if len(text) <= 60 else text[:59] + "…"


def _plain(error: BaseException) -> str:
    text = str(error)
    if "timezone component" in text:
        return text + ". Give it a zone, for example datetime.now(UTC)"
    if isinstance(error, UnicodeEncodeError):
        return "a text holds half of a surrogate pair, which is no character; remove it"
    if isinstance(error, RecursionError):
        return f"its lists and objects nest deeper than {MAX_DEPTH - 1}, which no reader takes"
    return text
