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

_KEY_TYPES = (inspect.StrType, inspect.IntType, inspect.UUIDType, inspect.EnumType, inspect.LiteralType)


def upcast_source(name: str, function: Callable[[Any], Any], scope: dict[str, Any]) -> Any:
    """The class that an upcast takes: the annotation of its one parameter."""
    hints = dict(getattr(function, "__annotations__", {}))
    hints.pop("return", None)
    if len(hints) != 1:
        raise DeclarationError(
            f"{name}: its upcast {getattr(function, '__name__', function)!r} must take one annotated parameter, the"
            f" older event. Write:\n    def from_v1(old: {name}V1) -> {name}: …"
        )
    (hint,) = hints.values()
    return _evaluated(name, "upcast", hint, {**getattr(function, "__globals__", {}), **scope})


def checked_annotations(name: str, namespace: dict[str, Any], scope: dict[str, Any]) -> dict[str, Any]:
    """The annotations of a class body, evaluated, with every time stamp demanding its zone."""
    annotations: dict[str, Any] = dict(namespace.get("__annotations__", {}))
    for field, value in namespace.items():
        if field.startswith("__") or field in annotations or callable(value):
            continue
        if not isinstance(value, (staticmethod, classmethod, property)):
            raise DeclarationError(
                f"{name}.{field} has no type, so it would not travel. Write:\n"
                f"    {field}: {type(value).__name__} = {value!r}"
            )
    module = sys.modules.get(namespace.get("__module__", ""))
    known = {**(vars(module) if module else {}), **scope}
    return {field: _zoned(_evaluated(name, field, hint, known)) for field, hint in annotations.items()}


def check_fields(cls: Any, key: str | None) -> None:
    """Refuse what cannot be decoded strictly, and a key that is no field."""
    try:
        info = inspect.type_info(cls)
    except (TypeError, NameError) as error:
        raise DeclarationError(f"{cls.__name__}: {error}") from None
    assert isinstance(info, inspect.StructType)
    for field in info.fields:
        for found, path in _walk(field.type, field.name, set()):
            _check_type(cls.__name__, path, found)
    if key is None:
        return
    fields = {field.name: field for field in info.fields}
    if key not in fields:
        have = ", ".join(fields) or "none"
        raise DeclarationError(f"{cls.__name__}: key={key!r} is not one of its fields ({have})")
    if not isinstance(fields[key].type, _KEY_TYPES):
        raise DeclarationError(
            f"{cls.__name__}: the key {key} must be text, a whole number or a UUID, and always there. Write:\n"
            f"    {key}: str"
        )


def _evaluated(name: str, field: str, hint: Any, known: dict[str, Any]) -> Any:
    if field.startswith("_"):
        raise DeclarationError(f"{name}.{field}: the fields of an event are public; take off the underscore")
    if not isinstance(hint, str):
        return hint
    try:
        return eval(hint, known)  # the program's own annotation, as typing.get_type_hints does
    except Exception as error:
        raise DeclarationError(
            f"{name}.{field}: the type {hint!r} is not known here ({error}). Import it, or define it above {name}"
        ) from None


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
    return origin[inner]


def _walk(found: inspect.Type, path: str, seen: set[type]) -> Iterator[tuple[inspect.Type, str]]:
    """Each type inside a field, with the path to it."""
    if isinstance(found, inspect.Metadata):
        found = found.type
    yield found, path
    if isinstance(found, (inspect.StructType, inspect.DataclassType, inspect.TypedDictType, inspect.NamedTupleType)):
        if found.cls in seen:
            return
        seen.add(found.cls)
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
