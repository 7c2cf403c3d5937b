"""``tidings doctor``: what is wrong with a broker, in plain words, the worst first."""

from __future__ import annotations

import asyncio
from typing import Annotated, Final

from cyclopts import Parameter

from tidings.brokers import examine
from tidings.cli.failures import CommandError, Status
from tidings.cli.options import BrokerUrl, Json, broker_url
from tidings.cli.output import Out
from tidings.findings import LEVELS

_STATUS: Final = {"down": Status.WORLD, "wrong": Status.CONFIGURATION}


def doctor(
    url: Annotated[str | None, Parameter(help="The broker; --broker is the same. Otherwise TIDINGS_BROKER.")] = None,
    /,
    *,
    broker: BrokerUrl = None,
    json: Json = False,
) -> int:
    """Examine a broker and change nothing: is it reached, at which step not, and how is it set up."""
    if url and broker:
        raise CommandError("name one broker, as the argument or with --broker", Status.USAGE)
    found = sorted(asyncio.run(examine(broker_url(url or broker))), key=lambda one: LEVELS.index(one.level))
    out = Out(json)
    for one in found:
        out.tell(f"{one.level}: {one.what}", level=one.level, what=one.what, remedy=one.remedy)
        if one.remedy:
            out.text(f"  {one.remedy}")
    return _STATUS.get(found[0].level, Status.OK) if found else Status.OK
