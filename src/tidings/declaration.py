"""The rules for the fields of an event class, each with a message that shows what to write instead."""

from __future__ import annotations

import sys
import types
import typing
from collections.abc import Callable, Iterator
from datetime import datetime
from typing import Annotated, Any, get_args, get_origin

import msgspec
from msgspec import inspect

from tidings.errors import DeclarationError
from tidings.values import encode, first_difference

_KEY_TYPES = (inspect.StrType, inspect.IntType, inspect.UUIDType, inspect.EnumType, inspect.LiteralType)


def upcast_source(name: str, function: Callable[[Any], Any], scope: dict[str, Any]) -> Any:
    """The class that an upcast takes: the annotation of its one parameter."""
    try:
        hints = dict(getattr(function, "__annotations__", {}))
    except NameError as error:  # Python 3.14 evaluates them only now, when the newer class does not exist yet
        raise DeclarationError(
            f"{name}: an annotation of its upcast is not known yet ({error}). Put it into quotes, or begin the module"
            " with: from __future__ import annotations"
        ) from None
    hints.pop("return", None)
    if len(hints) != 1:
        raise DeclarationError(
            f"{name}: its upcast {getattr(function, '__name__', function)!r} must take one annotated parameter, the"
            f" older event. Write:\n    def from_v1(old: {name}V1) -> {name}: …"
        )
    (hint,) = hints.values()
    return _evaluated(name, "upcast", hint, {**getattr(function, "__globals__", {}), **scope})


def check_bases(name: str, bases: tuple[type, ...], events: type) -> None:
    """Refuse bases whose fields would not travel, because only event classes hand theirs on."""
    for base in bases:
        if isinstance(base, events) or not _own_fields(base):
            continue
        raise DeclarationError(
            f"{name}: {base.__name__} is no event class, so the fields it declares cannot become fields of {name};"
            f" put what {base.__name__} holds into a field: {base.__name__.lower()}: {base.__name__}"
        )


def _own_fields(base: type) -> bool:
    hints = [hint for one in base.__mro__ for hint in getattr(one, "__annotations__", {}).values()]
    return any("ClassVar" not in str(hint) for hint in hints) or bool(getattr(base, "__struct_fields__", ()))


def checked_annotations(name: str, namespace: dict[str, Any], scope: dict[str, Any]) -> dict[str, Any]:
    """The annotations of a class body, evaluated, with every time stamp demanding its zone."""
    annotations = _annotations(name, namespace)
    for field, value in namespace.items():
        if field.startswith("__") or field in annotations or callable(value):
            continue
        if not isinstance(value, (staticmethod, classmethod, property)):
            raise DeclarationError(
                f"{name}.{field} has no type, so it would not travel. Write:\n"
                f"    {field}: {type(value).__name__} = {value!r}\n"
                f"or, for what belongs to the class alone:\n    {field}: ClassVar[{type(value).__name__}] = {value!r}"
            )
    module = sys.modules.get(namespace.get("__module__", ""))
    known = {**(vars(module) if module else {}), **scope}
    return {field: _zoned(_evaluated(name, field, hint, known)) for field, hint in annotations.items()}


def _annotations(name: str, namespace: dict[str, Any]) -> dict[str, Any]:
    """The annotations of a class body. From Python 3.14 on a function makes them, and has to give way to them."""
    annotate = namespace.pop("__annotate_func__", None) or namespace.pop("__annotate__", None)
    if annotate is None or "__annotations__" in namespace:
        return dict(namespace.get("__annotations__", {}))
    try:
        return dict(annotate(1))  # 1 is annotationlib.Format.VALUE
    except NameError as error:
        raise DeclarationError(
            f"{name}: a type is not known here ({error}). Import it, or define it above {name}"
        ) from None


def check_fields(cls: Any, key: str | None) -> None:
    """Refuse what cannot be decoded strictly, and a key that is no field."""
    try:
        info = inspect.type_info(cls)
    except NameError as error:
        raise DeclarationError(f"{cls.__name__}: {error}. Import it, or define it above {cls.__name__}") from None
    except TypeError as error:
        raise DeclarationError(f"{cls.__name__}: {error}") from None
    assert isinstance(info, inspect.StructType)
    for field in info.fields:
        for found, path in _walk(field.type, field.name, set()):
            _check_type(cls.__name__, path, found)
        if field.default is not msgspec.NODEFAULT and field.default is not msgspec.UNSET:
            _check_default(cls, field)
    if key is None:
        return
    fields = {field.name: field for field in info.fields}
    if key not in fields:
        have = ", ".join(fields) or "none"
        raise DeclarationError(f"{cls.__name__}: key={key!r} is not one of its fields ({have})")
    if not _fits_a_key(fields[key].type):
        raise DeclarationError(
            f"{cls.__name__}: the key {key} must be text, a whole number, a UUID or an enum, and never None. Write:\n"
            f"    {key}: str"
        )


def check_once(label: str, event: Any, once: str) -> None:
    """Refuse a field by which events could not be told apart: all that lack it would count as one.

    Raises:
        DeclarationError: no field, one that may be missing or None, or one whose text is not always the same.
    """
    info = inspect.type_info(event)
    assert isinstance(info, inspect.StructType)
    fields = {field.name: field for field in info.fields}
    name = event.__name__
    if once not in fields:
        have = ", ".join(fields) or "none"
        raise DeclarationError(f"{label}: once={once!r} is no field of {name} (it has: {have})")
    if not _fits_a_key(fields[once].type):
        raise DeclarationError(
            f"{label}: once={once!r}: {name}.{once} must be text, a whole number, a UUID or an enum, and never None:"
            f" all events without it would count as one. Write in {name}:\n    {once}: str"
        )
    if not fields[once].required:
        raise DeclarationError(
            f"{label}: once={once!r}: {name}.{once} has a default, and all events that leave it out would count as one."
            f" Take the default off, or choose another field"
        )


def _fits_a_key(found: inspect.Type) -> bool:
    if isinstance(found, inspect.Metadata):
        found = found.type
    return isinstance(found, _KEY_TYPES) and not (isinstance(found, inspect.LiteralType) and None in found.values)


def _check_default(cls: Any, field: inspect.Field) -> None:
    where = f"{cls.__name__}.{field.name}: its default {field.default!r}"
    hint = typing.get_type_hints(cls, include_extras=True)[field.name]
    try:
        one: Any = msgspec.defstruct("Default", [("value", hint)])
        read = msgspec.json.decode(b'{"value":%b}' % encode(field.default), type=one).value
    except (msgspec.MsgspecError, TypeError, ValueError) as error:
        raise DeclarationError(f"{where} does not fit its type: {error}") from None
    if (changed := first_difference(field.default, read)) is not None:
        raise DeclarationError(f"{where} does not fit its type: its readers would get {changed[2]!r}")


def _evaluated(name: str, field: str, hint: Any, known: dict[str, Any]) -> Any:
    while isinstance(hint, str):  # quotes inside postponed annotations make it two turns
        try:
            hint = eval(hint, known)  # the program's own annotation, as typing.get_type_hints does
        except NameError as error:
            itself = f"; an event cannot hold itself: put what repeats into a msgspec.Struct above {name}"
            raise DeclarationError(
                f"{name}.{field}: the type {hint!r} is not known here ({error}). Import it, or define it above {name}"
                f"{itself if error.name == name else ''}"
            ) from None
        except Exception as error:
            raise DeclarationError(f"{name}.{field}: {hint!r} is no type ({error})") from None
    if field.startswith("_") and hint is not typing.ClassVar and get_origin(hint) is not typing.ClassVar:
        raise DeclarationError(f"{name}.{field}: the fields of an event are public; take off the underscore")
    return hint


def _zoned(hint: Any) -> Any:
    """`datetime` means a point in time: one without a zone is no such thing."""
    if hint is datetime:
        return Annotated[datetime, msgspec.Meta(tz=True)]
    origin, args = get_origin(hint), get_args(hint)
    if origin is None or not args or origin in (Annotated, typing.Literal):
        return hint
    inner = tuple(_zoned(one) for one in args)
    if inner == args:
        return hint
    if origin in (typing.Union, types.UnionType):
        return typing.Union[inner]  # noqa: UP007  # built from a tuple
    if origin in (typing.ClassVar, typing.Final):
        return origin[inner[0]]
    return origin[inner]


def _walk(found: inspect.Type, path: str, seen: set[int]) -> Iterator[tuple[inspect.Type, str]]:
    """Each type inside a field, with the path to it."""
    if isinstance(found, inspect.Metadata):
        found = found.type
    yield found, path
    if isinstance(found, (inspect.StructType, inspect.DataclassType, inspect.TypedDictType, inspect.NamedTupleType)):
        if id(found) in seen:  # what holds itself; two uses of a generic class are two
            return
        seen.add(id(found))
        for field in found.fields:
            yield from _walk(field.type, f"{path}.{field.name}", seen)
    for name in ("item_type", "key_type", "value_type"):
        if (inner := getattr(found, name, None)) is not None:
            yield from _walk(inner, path, seen)
    for name in ("item_types", "types"):
        for inner in getattr(found, name, ()):
            yield from _walk(inner, path, seen)


def _check_type(name: str, path: str, found: inspect.Type) -> None:
    field = path.rsplit(".", 1)[-1]
    if isinstance(found, (inspect.AnyType, inspect.RawType, inspect.CustomType)):
        raise DeclarationError(
            f"{name}.{path}: its type says nothing that could be checked (Any, object, a bare dict or list, or a class"
            f" without typed fields). Write what it holds, for example:\n    {field}: dict[str, int]"
        )
    if isinstance(found, inspect.DateTimeType) and found.tz is not True:
        raise DeclarationError(
            f"{name}.{path}: a time stamp without a zone is no point in time. Write:\n"
            f"    {field}: Annotated[datetime, msgspec.Meta(tz=True)]"
        )
