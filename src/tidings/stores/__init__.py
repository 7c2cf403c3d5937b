"""Stores by URL scheme. Each has a file of its own, imported only when it is used."""

from __future__ import annotations

from tidings.errors import ConfigurationError
from tidings.ports import Store


def store_from(spec: object) -> Store:
    """The store that a URL names, or that a live engine makes.

    Raises:
        ConfigurationError: nothing is known for it.
    """
    if isinstance(spec, str) and spec.startswith("sqlite"):
        from tidings.stores.sqlalchemy import SqlAlchemyStore

        return SqlAlchemyStore(spec)
    raise ConfigurationError("no store is known for this. Known is sqlite:///path")
