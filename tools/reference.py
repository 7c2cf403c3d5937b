"""Writes into docs/reference what the code says of itself: the help, the metrics, options and their defaults, errors.

Such a part stands between ``<!-- from the code: name -->`` and ``<!-- end -->``. `make reference` writes them all anew;
a test sees that this would change nothing.
"""

from __future__ import annotations

import contextlib
import inspect
import io
import json
import re
import sys
from collections.abc import Callable, Iterable, Sequence
from functools import partial
from pathlib import Path

from rich.console import Console

from tidings import Retry, Service, errors
from tidings.brokers.nats import options
from tidings.cli import main as cli
from tidings.cli.failures import MEANINGS
from tidings.observe._figures import Figures, Lanes
from tidings.observe._held import Held
from tidings.observe.grafana import dashboards
from tidings.observe.metrics import Metrics
from tidings.ports import Backlog
from tidings.stores import _redis_link
from tidings.stores.sqlalchemy import SqlAlchemyStore
from tools import conformance

FOLDER = Path(__file__).parents[1] / "docs" / "reference"
PART = re.compile(r"(<!-- from the code: (?P<name>[a-z -]+) -->\n).*?(<!-- end -->)", re.DOTALL)
WIDTH = 100
UNITS = {
    "short": "numbers",
    "s": "seconds",
    "reqps": "a second",
    "percentunit": "percent",
    "bytes": "bytes",
    "bool": "0 or 1",
}


def help_of(command: str) -> str:
    """What ``tidings … --help`` prints on a terminal of 100 columns, without the exit statuses."""
    printed = io.StringIO()
    console = Console(file=printed, width=WIDTH, color_system=None, force_terminal=False)
    cli.app.help_print([*command.split()], console=console)
    text = printed.getvalue().partition("Exit statuses:")[0]
    return _fenced("\n".join(line.rstrip() for line in text.strip().splitlines()))


def statuses() -> str:
    return _table(("status", "when"), [(f"`{int(status)}`", meaning) for status, meaning in MEANINGS.items()])


def all_metrics() -> Metrics:
    """Metrics that know of everything that there may be."""
    made = Metrics("stock", list)
    backlog = Backlog(pending=0, in_flight=0)
    made.figures = Figures(
        connected=True,
        lanes={"stock.reserve": Lanes(0, 0, backlog)},
        outbox=(0, 0.0, 0),
        reconnects=0,
        full={"order": 0.0},
        keeps={"stock.reserve": 0.0},
        held={"stock.reserve": Held(0, None)},
    )
    return made


def metrics() -> str:
    """Each metric with its type and labels, as the registry has them."""
    made = all_metrics()
    rows: list[Sequence[str]] = []
    for one in made.counters_and_times():
        name = one._name + ("_total" if one._type == "counter" else "")
        rows.append((f"`{name}`", str(one._type), _codes(one._labelnames), one._documentation))
    for family in made.registry.collect():
        known = family.samples and not any(f"`{sample.name}`" in row[0] for sample in family.samples for row in rows)
        if family.type in ("counter", "gauge", "info") and known and family.name.startswith("tidings_"):
            sample = family.samples[0]
            labels = [name for name in sample.labels if sample.labels]
            rows.append((f"`{sample.name}`", family.type, _codes(labels), family.documentation))
    return _table(("metric", "type", "labels", "says"), rows)


def boards() -> str:
    """Each panel of each dashboard with what it shows, as the JSON says it."""
    parts = []
    for name, text in dashboards().items():
        board = json.loads(text)
        parts.append(f"\n## {board['title']}\n\n`{name}`. {board['description']}\n")
        rows: list[Sequence[str]] = []
        for panel in board["panels"]:
            if panel["type"] == "row":
                rows.append((f"**{panel['title']}**", "", ""))
            else:
                unit = UNITS[panel["fieldConfig"]["defaults"]["unit"]]
                rows.append((panel["title"], panel["description"], unit))
        parts.append(_table(("panel", "shows", "in"), rows).removesuffix("\n"))
    return "".join(parts) + "\n"


def url_options() -> str:
    """The options of a broker's URL; the default stands in brackets at the end of what the code says."""
    return _known_options(options._KNOWN)


def redis_options() -> str:
    return _known_options(_redis_link._KNOWN)


def _known_options(known: dict[str, str]) -> str:
    rows = []
    for name, text in known.items():
        meaning, _, default = text.removesuffix(")").rpartition(" (") if text.endswith(")") else (text, "", "")
        rows.append((f"`{name}`", meaning, f"`{default}`" if default else ""))
    return _table(("option", "says", "default"), rows)


def handler_options() -> str:
    return _options(Service.on, _bullets(Service.on.__doc__ or ""))


def service_options() -> str:
    return _options(Service.__init__, _bullets(Service.__doc__ or ""))


def retry_options() -> str:
    return _options(Retry, {})


def store_options() -> str:
    doc = inspect.getdoc(SqlAlchemyStore) or ""
    found = dict(re.findall(r"^    (\w+): (.+(?:\n        .+)*)", doc, re.MULTILINE))
    return _options(SqlAlchemyStore.__init__, {name: " ".join(text.split()) for name, text in found.items()})


def error_tree() -> str:
    tree = re.search(r"::\n\n(.*?)\n\n[A-Z]", errors.__doc__ or "", re.DOTALL)
    assert tree
    return _fenced(inspect.cleandoc(tree[1]))


def parts() -> dict[str, Callable[[], str]]:
    groups = {"dead": cli.dead, "db": cli.db, "outbox": cli.outbox, "observe": cli.observe}
    commands = [name for name in cli.app if not name.startswith("-") and name not in groups]
    commands += [f"{group} {name}" for group, app in groups.items() for name in app if not name.startswith("-")]
    return {
        **{f"help {command}": partial(help_of, command) for command in commands},
        "statuses": statuses,
        "metrics": metrics,
        "dashboards": boards,
        "url options": url_options,
        "handler options": handler_options,
        "service options": service_options,
        "retry options": retry_options,
        "store options": store_options,
        "redis options": redis_options,
        "errors": error_tree,
        "conformance": lambda: "\n" + conformance.table(conformance.load()) + "\n",
    }


def filled(page: str) -> str:
    """A page with its parts as the code says them now."""
    known = parts()
    return PART.sub(lambda found: f"{found[1]}{known[found['name']]()}{found[3]}", page)


def _options(function: Callable[..., object], said: dict[str, str]) -> str:
    rows = []
    for name, parameter in inspect.signature(function).parameters.items():
        if name in ("self", "target") or parameter.kind is inspect.Parameter.VAR_POSITIONAL:
            continue
        required = parameter.default is inspect.Parameter.empty
        default = "" if required else f"`{parameter.default!r}`"
        rows.append([f"`{name}`", default, *([said[name]] if said else [])])
    return _table(("option", "default", *(["says"] if said else [])), rows)


def _bullets(doc: str) -> dict[str, str]:
    found = re.findall(r"^ *\* `(\w+)`: (.+(?:\n {6,}[^* ].+)*)", doc, re.MULTILINE)
    return {name: " ".join(text.replace("``", "`").split()) for name, text in found}


def _codes(names: Iterable[str]) -> str:
    return ", ".join(f"`{name}`" for name in names)


def _table(heading: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    lines = [heading, ["---"] * len(heading), *rows]
    return (
        "\n"
        + "".join(f"| {' | '.join(cell.replace('|', chr(92) + '|') for cell in line)} |\n" for line in lines)
        + "\n"
    )


def _fenced(text: str) -> str:
    return f"\n```text\n{text}\n```\n\n"


def main() -> int:
    for page in sorted(FOLDER.glob("*.md")):
        text = page.read_text(encoding="utf-8")
        if (new := filled(text)) != text:
            page.write_text(new, encoding="utf-8")
            print(f"written: {page.relative_to(FOLDER.parents[1])}")
    return 0


if __name__ == "__main__":
    with contextlib.suppress(BrokenPipeError):
        sys.exit(main())
