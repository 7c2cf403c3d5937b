"""Brokers by URL scheme. Each has a folder of its own, imported only when it is used."""

from __future__ import annotations

from tidings.errors import ConfigurationError
from tidings.ports import Broker

_KNOWN = "nats://, tls:// and embedded:"
EXAMPLE_URL = "nats://user:password@host:4222"
"""For messages that ask for a broker: the rest of the package does not know what one is called."""


def broker_from(spec: str | Broker) -> Broker:
    """The broker that a URL names; a live one passes through.

    Raises:
        ConfigurationError: nothing is known under that scheme.
    """
    if not isinstance(spec, str):
        return spec
    scheme = spec.partition(":")[0].lower()
    if scheme in ("nats", "tls", "embedded"):
        from tidings.brokers.nats.broker import NatsBroker

        return NatsBroker(spec)
    raise ConfigurationError(f"no broker is known for {scheme + ':'!r}. Known are {_KNOWN}")
