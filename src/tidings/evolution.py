"""Reading what was stored: which versions of a type a handler can read, and the way up to the newest."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping
from typing import Any, Final

import msgspec

from tidings.delivery import Envelope
from tidings.errors import DeclarationError, UndecodableEvent
from tidings.event import Event, set_stamp, spec_of

Decode = Callable[[bytes | msgspec.Raw], Event]


class Reader:
    """Decodes the events of some classes, older versions included, each brought up to the class that was asked for."""

    def __init__(self, events: Iterable[type[Event]]) -> None:
        self._by_type: dict[str, dict[str, Decode]] = {}
        self._names: dict[str, str] = {}
        for event in events:
            spec = spec_of(event)
            if spec.type in self._by_type:
                raise DeclarationError(
                    f"{self._names[spec.type]} and {event.__name__} are both {spec.type!r}: handle the newest version,"
                    " and give its class an upcast from the older one"
                )
            self._by_type[spec.type] = dict(_versions(event))
            self._names[spec.type] = event.__name__

    @property
    def decoders(self) -> Mapping[str, Mapping[str, Decode]]:
        """By type and version, what `read` makes an event with."""
        return self._by_type

    @property
    def types(self) -> tuple[str, ...]:
        return tuple(self._by_type)

    def read(self, envelope: Envelope) -> Event | None:
        """The event, or None where its type is none that was asked for.

        Raises:
            UndecodableEvent: an unknown version, data that does not fit, or an upcast that failed.
        """
        versions = self._by_type.get(envelope.type)
        if versions is None:
            return None
        decode = versions.get(envelope.version)
        if decode is None:
            raise UndecodableEvent(
                "unknown-version",
                f"{envelope.type} has version {envelope.version[:20]!r}; {self._names[envelope.type]} reads"
                f" {', '.join(sorted(versions))}. {_what_to_deploy(envelope.version, versions)}, then redrive",
            )
        try:
            event = decode(envelope.data)
        except UndecodableEvent:
            raise
        except KeyboardInterrupt:
            raise
        except BaseException as error:  # also what the program's own __post_init__ and _missing_ raise
            raise UndecodableEvent(
                "bad-data", f"the data of {envelope.type} {envelope.version} does not fit its class: {error}"
            ) from error
        set_stamp(event, envelope)
        return event


def _what_to_deploy(version: str, read: Iterable[str]) -> str:
    """Whether what came is older than all that is read, or newer."""
    number = _NUMBER.fullmatch(version)
    if number and int(number[1]) < min(int(one[1:]) for one in read):
        return "What is older needs an upcast: deploy a class that has one"
    return "Deploy the newer class"


_NUMBER: Final = re.compile(r"v([1-9]\d{0,8})", re.ASCII)

Step = tuple[Callable[[Any], Event], type[Event]]
"""An upcast, and the class that it makes."""


def _versions(event: type[Event]) -> Iterable[tuple[str, Decode]]:
    """Each version that can be read, with the way from its bytes to `event`."""
    spec, target = spec_of(event), event
    yield spec.wire_version, spec.decode
    steps: tuple[Step, ...] = ()
    while spec.upcast is not None and spec.upcast_from is not None:
        steps = ((spec.upcast, target), *steps)
        target = spec.upcast_from
        spec = spec_of(target)
        yield spec.wire_version, _chain(spec.type, spec.wire_version, spec.decode, steps)


def _chain(kind: str, version: str, decode: Decode, steps: tuple[Step, ...]) -> Decode:
    def decode_and_lift(data: bytes | msgspec.Raw) -> Event:
        event = decode(data)
        try:
            for step, target in steps:
                event = step(event)
                if not isinstance(event, target):
                    raise TypeError(f"the upcast returned {type(event).__name__}, not {target.__name__}")
        except KeyboardInterrupt:
            raise
        except BaseException as error:  # the program's own again: sys.exit in it ends no process
            raise UndecodableEvent(
                "upcast-failed", f"{kind} {version} could not be brought up to date: {type(error).__name__}: {error}"
            ) from error
        return event

    return decode_and_lift
