"""``tidings observe``: what comes with the package to watch services with. Nothing is connected to."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

from cyclopts import Parameter

from tidings.cli.failures import CommandError, Status
from tidings.observe.alerts import RUNBOOKS, rules
from tidings.observe.grafana import write


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


def dashboards(
    *, out: Annotated[Path, Parameter(help="Where to write them; made if missing. Files of their names are replaced.")]
) -> int:
    """Write the JSON of the dashboards into a folder."""
    try:
        written = write(out)
    except OSError as error:
        raise CommandError(
            f"--out {out}: {error.strerror or error}. Name a folder that can be written", Status.CONFIGURATION
        ) from None
    for path in written:
        sys.stdout.write(f"{path}\n")
    return Status.OK
