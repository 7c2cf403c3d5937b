"""``tidings demo``: the shop of the repository, with three services, a real broker and a bad day."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Annotated, Final

from cyclopts import Parameter

from tidings.cli.failures import CommandError, Status
from tidings.cli.options import Json
from tidings.cli.output import Out

_MODULE: Final = "examples.shop"
FAST: Final = 500
"""Orders of a short demo."""


def demo(
    *,
    orders: Annotated[int | None, Parameter(help="How many orders to publish.")] = None,
    fast: Annotated[bool, Parameter(help=f"A short one: {FAST} orders.")] = False,
    broker: Annotated[str, Parameter(help="URL of a broker that runs already. Otherwise the demo has its own.")] = "",
    json: Json = False,
) -> int:
    """Publish orders while messages are doubled and workers and the server are killed; then count what was applied."""
    root = _root()
    number = orders if orders is not None else FAST if fast else None
    command = [sys.executable, "-m", _MODULE, *([] if number is None else ["--orders", str(number)])]
    command += ["--broker", broker] if broker else []
    if json:
        return _as_json(command, root)
    os.chdir(root)
    # In the place of this process, so that signals and the exit status are the demo's own.
    os.execv(sys.executable, command)


def _as_json(command: list[str], root: Path) -> int:
    """Its lines as they come, and its last line, the count, as an object of its own."""
    out, last = Out(json=True), ""
    with subprocess.Popen(command, cwd=root, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        for line in process.stdout:
            if last:
                out.record(line=last)
            last = line.strip() or last
    found = [pair.partition("=") for pair in last.split() if "=" in pair]
    out.record(**{name: int(value) for name, _, value in found if value.isdigit()})
    return process.returncode


def _root() -> Path:
    """The folder in which the examples stand: here, or the repository that this package was installed from."""
    for root in (Path.cwd(), Path(__file__).parents[3]):
        if (root / "examples" / "shop" / "__main__.py").is_file():
            return root
    raise CommandError(
        "the demo stands in the repository of Tidings, in examples/shop, and is not part of the installed package."
        " Clone the repository and write: make demo",
        Status.CONFIGURATION,
    )
