"""``tidings observe``: what comes with the package to watch services with. Nothing is connected to."""

from __future__ import annotations

import sys
from typing import Annotated

from cyclopts import Parameter

from tidings.cli.failures import Status
from tidings.observe.alerts import RUNBOOKS, rules


def alerts(
    *,
    windows: Annotated[
        float, Parameter(help="Every window, delay and age times this: 0.05 for a drill, in which minutes are seconds.")
    ] = 1.0,
    runbooks: Annotated[
        str, Parameter(help="What the link to the page of each alert begins with: where you keep docs/runbooks.")
    ] = RUNBOOKS,
) -> int:
    """Print the rules as YAML."""
    sys.stdout.write(rules(windows=windows, runbooks=runbooks))
    return Status.OK
