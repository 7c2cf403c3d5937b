"""A database password that stands in a file (``?password_file=``): read anew for each connection."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Final
from urllib.parse import parse_qsl, urlencode, urlsplit, urlunsplit

import sqlalchemy as sa
from sqlalchemy import event
from sqlalchemy.ext.asyncio import AsyncEngine, create_async_engine

from tidings.errors import ConfigurationError, StoreUnavailable
from tidings.secret import read_secret

OPTION: Final = "password_file"

TWICE: Final = f"a store's URL with {OPTION}= is to have no password of its own: write postgresql://user@host/name?…"


def password_of(path: str) -> Callable[[], str]:
    """What gives the password whenever somebody connects. While a service runs, a file that is gone is an outage.

    Raises:
        ConfigurationError: now, the file cannot be read.
    """
    read_secret(OPTION, path)

    def read() -> str:
        try:
            return read_secret(OPTION, path)
        except ConfigurationError as error:
            raise StoreUnavailable(str(error)) from None

    return read


def split_text(url: str) -> tuple[str, str | None]:
    """A URL without the option, and the file that it named.

    Raises:
        ConfigurationError: it has a password as well.
    """
    if OPTION not in url:
        return url, None
    parts = urlsplit(url)
    query = parse_qsl(parts.query, keep_blank_values=True)
    path = next((value for name, value in query if name == OPTION), None)
    if path is not None and parts.password is not None:
        raise ConfigurationError(TWICE)
    kept = urlencode([(name, value) for name, value in query if name != OPTION])
    return urlunsplit(parts._replace(query=kept)), path


def async_engine(url: sa.URL, **options: Any) -> AsyncEngine:
    """As `create_async_engine`, but for the option."""
    url, path = _split(url)
    engine = create_async_engine(url, **options)
    _sign_in(engine.sync_engine, path)
    return engine


def sync_engine(url: sa.URL, **options: Any) -> sa.Engine:
    """As `sqlalchemy.create_engine`, but for the option."""
    url, path = _split(url)
    engine = sa.create_engine(url, **options)
    _sign_in(engine, path)
    return engine


def connect_arguments(url: sa.URL) -> dict[str, Any]:
    """With what SQLAlchemy would call the driver."""
    url, path = _split(url)
    arguments: dict[str, Any] = dict(url.get_dialect()().create_connect_args(url)[1])
    return arguments if path is None else {**arguments, "password": password_of(path)()}


def _split(url: sa.URL) -> tuple[sa.URL, str | None]:
    path = url.query.get(OPTION)
    if path is None:
        return url, None
    if url.password is not None:
        raise ConfigurationError(TWICE)
    return url.difference_update_query([OPTION]), path if isinstance(path, str) else path[-1]


def _sign_in(engine: sa.Engine, path: str | None) -> None:
    if path is None:
        return
    password = password_of(path)

    def connect(dialect: object, record: object, arguments: object, named: dict[str, Any]) -> None:
        named["password"] = password()

    event.listen(engine, "do_connect", connect)
