"""The options that several commands share, each written once."""

from __future__ import annotations

import logging
import os
import sys
from pathlib import Path
from typing import Annotated, Final

from cyclopts import Parameter

from tidings.brokers import EXAMPLE_URLS
from tidings.cli.failures import CommandError, Status

Json = Annotated[bool, Parameter(name="--json", help="Print one JSON object a line, for programs.")]

BrokerUrl = Annotated[
    str | None,
    Parameter(
        name="--broker",
        help=f"The broker: {EXAMPLE_URLS}, or embedded:. Otherwise TIDINGS_BROKER, and on a terminal embedded:",
    ),
]

StoreUrl = Annotated[
    str | None, Parameter(name="--store", help="The store, such as sqlite:///shop.db. Otherwise TIDINGS_STORE.")
]

FOLDER: Final = ".tidings"
"""Where the embedded server of a folder keeps its data."""

CLI_SERVICE = "tidings-cli"
"""Under this name the command line speaks to a broker. It has no handlers, and so no positions."""


def broker_url(given: str | None) -> str:
    """The broker to use: as given, as TIDINGS_BROKER says, or on a terminal the embedded one of this folder.

    One end of a pipe on the terminal is enough. A folder without a server is more likely the wrong folder than one
    that wants an empty server.

    Raises:
        CommandError: nothing names one, and nobody sits in front of it, or this folder has none.
    """
    url = given or os.environ.get("TIDINGS_BROKER")
    if url:
        return url
    if not (sys.stdout.isatty() or sys.stdin.isatty()):
        raise CommandError(
            f"no broker is named. Name one by --broker or TIDINGS_BROKER: {EXAMPLE_URLS}; embedded: is the one of this"
            " folder, which tidings up starts",
            Status.CONFIGURATION,
        )
    if not Path(FOLDER).is_dir():
        raise CommandError(
            f"no broker is named, and {Path.cwd()} has no {FOLDER}, where the embedded one would stand. Go to the"
            f" folder in which tidings run or tidings up was started, or name a broker by --broker: {EXAMPLE_URLS}",
            Status.CONFIGURATION,
        )
    return "embedded:"


def store_url(given: str | None) -> str:
    """The store to use: as given, or as TIDINGS_STORE says.

    Raises:
        CommandError: nothing names one.
    """
    url = given or os.environ.get("TIDINGS_STORE")
    if not url:
        raise CommandError("no store is named. Write sqlite:///shop.db or set TIDINGS_STORE", Status.CONFIGURATION)
    return url


def public(spec: object) -> str:
    """A URL as it may be shown: without user, password, token and options. A live object is named by its class."""
    if not isinstance(spec, str):
        return type(spec).__name__
    address = spec.partition("?")[0]
    scheme, slashes, rest = address.partition("://")
    if not slashes:
        return address
    hosts, slash, path = rest.partition("/")
    return f"{scheme}://{hosts.rpartition('@')[2]}{slash}{path}"


def named(given: object, declared: object, variable: str) -> str:
    """What was chosen, as it may be shown."""
    chosen = given or declared or os.environ.get(variable)
    return public(chosen) if chosen else ""


def configure_log(json: bool, level: str) -> None:
    """How a command that stays logs.

    Raises:
        CommandError: there is no such level.
    """
    from tidings.observe.logs import configure_logging

    try:
        configure_logging(json or None, level=level.upper())
    except ValueError:
        raise CommandError(f"--log-level {level}: DEBUG, INFO, WARNING or ERROR", Status.USAGE) from None
    if level.upper() != "DEBUG":
        # Where the broker is stands in the ready line, and a start that fails is to say one thing only.
        logging.getLogger("tidings.embedded").setLevel(logging.WARNING)
