"""Brokers by URL scheme. Each has a folder of its own, imported only when it is used.

Another package adds its own as an entry point of the group ``tidings.brokers``: the scheme, and ``module:Class``, which
is called with the URL.
"""

from __future__ import annotations

from collections.abc import Sequence
from difflib import get_close_matches
from importlib import import_module
from importlib.metadata import entry_points
from importlib.util import find_spec
from types import ModuleType
from typing import Final, cast

from tidings.errors import ConfigurationError
from tidings.findings import Finding
from tidings.ports import Broker

_SCHEMES: Final = {
    "nats": "tidings.brokers.nats.broker:NatsBroker",
    "tls": "tidings.brokers.nats.broker:NatsBroker",
    "embedded": "tidings.brokers.nats.broker:NatsBroker",
    "kafka": "tidings.brokers.kafka.broker:KafkaBroker",
    "amqp": "tidings.brokers.rabbitmq.broker:RabbitBroker",
    "amqps": "tidings.brokers.rabbitmq.broker:RabbitBroker",
    # For tests: it lives in one process, and forgets everything with it.
    "memory": "tidings.testing.memory:MemoryBroker",
}
_LIBRARIES: Final = {
    "confluent_kafka": "Kafka needs confluent-kafka. Install it: pip install 'tidings[kafka]'",
    "pamqp": "RabbitMQ needs pamqp. Install it: pip install 'tidings[rabbitmq]'",
}
"""What is installed only by those who want its broker."""
OTHERS: Final = "tidings.brokers"
"""The group of entry points in which other packages enter theirs."""
_ALONE: Final = ("embedded", "memory")
"""Schemes without an address."""
_SHOWN: Final = [f"{scheme}:" if scheme in _ALONE else f"{scheme}://" for scheme in _SCHEMES]
EXAMPLE_URLS: Final = "nats://user:password@host:4222, kafka://host:9092 or amqp://user:password@host:5672"
"""For messages that ask for a broker: the rest of the package does not know what one is called."""


def broker_from(spec: str | Broker) -> Broker:
    """The broker that a URL names; a live one passes through.

    Raises:
        ConfigurationError: nothing is known under that scheme, its library is not installed, or the URL cannot be read.
    """
    if not isinstance(spec, str):
        return spec
    scheme, module, name = _found(spec)
    made = getattr(_imported(module), name)
    return cast(Broker, made() if scheme == "memory" else made(spec.strip()))


async def examine(url: str) -> Sequence[Finding]:
    """What is wrong with the broker that a URL names, as far as it can be seen from here.

    Raises:
        ConfigurationError: as `broker_from`, or nobody can examine that kind.
    """
    scheme, module, _ = _found(url)
    package = module.rpartition(".")[0]
    if not package or find_spec(f"{package}.doctor") is None:
        raise ConfigurationError(f"a broker of {scheme}: cannot be examined: it brings no examination along")
    doctor = _imported(f"{package}.doctor")
    return cast(Sequence[Finding], await doctor.examine(url.strip()))


def _imported(module: str) -> ModuleType:
    try:
        return import_module(module)
    except ModuleNotFoundError as error:
        need = _LIBRARIES.get((error.name or "").partition(".")[0])
        if need is None:
            raise
        raise ConfigurationError(f"a broker on {need}") from None


def _found(url: str) -> tuple[str, str, str]:
    """The scheme of a URL, and the module and the name of what it stands for."""
    scheme, colon, _ = url.strip().partition(":")
    where = _SCHEMES.get(scheme.lower()) or _of_another_package(scheme.lower()) if colon else None
    if where is None:
        # What stands where a scheme should may be anything, a password too: it is not repeated.
        shown = repr(scheme + ":") if colon and scheme.isalnum() and len(scheme) <= 16 else "what was given"
        others = sorted(one.name for one in entry_points(group=OTHERS) if one.name not in _SCHEMES)
        known = ", ".join([*_SHOWN[:-1], *(f"{name}://" for name in others)])
        near = get_close_matches(scheme.lower(), [*_SCHEMES, *others], 1) if colon else []
        meant = f" Did you mean {near[0]}:{'' if near[0] in _ALONE else '//'}?" if near else ""
        raise ConfigurationError(
            f"no broker is known for {shown}.{meant} Known are {known} and, for tests, {_SHOWN[-1]}; write, say,"
            f" {EXAMPLE_URLS}"
        )
    module, _, name = where.partition(":")
    return scheme.lower(), module, name


def _of_another_package(scheme: str) -> str | None:
    return next((one.value for one in entry_points(group=OTHERS) if one.name == scheme), None)
