"""The commands, put together. Each is imported when it is called: most of them need little."""

from __future__ import annotations

import os
import sys
import traceback
from collections.abc import Sequence

from cyclopts import App, CycloptsError, Parameter, UnknownCommandError, UnusedCliTokensError

from tidings import __version__
from tidings.cli.failures import MEANINGS, CommandError, Status, debugging, explain
from tidings.cli.output import fail

_STATUSES = "\n".join(f"- {int(status)}: {meaning}" for status, meaning in MEANINGS.items())

app = App(
    name="tidings",
    help="Events between microservices: none lost, none applied twice, each one traceable.",
    help_epilogue=f"Exit statuses:\n\n{_STATUSES}\n\nTIDINGS_DEBUG=1 shows the traceback of a failure.",
    help_format="markdown",
    version=__version__,
    default_parameter=Parameter(negative=""),
    result_action="return_value",
    print_error=False,
    exit_on_error=False,
    suppress_keyboard_interrupt=False,
)
dead = App(name="dead", help="What could not be handled: list, show, redrive, discard.")
db = App(name="db", help="The tables of a store: init, sql.")
outbox = App(name="outbox", help="Events that cannot be published as they stand: list, release, discard.")
observe = App(name="observe", help="What to watch services with: alerts, dashboards.")
_GROUPS = {"dead": dead, "db": db, "outbox": outbox, "observe": observe}

# The first line of a help stands in the list of commands, so it is here: the modules are imported when they are called.
_COMMANDS: dict[str, tuple[str, str]] = {
    "run:run": (
        "Run a service, or several processes of it.",
        "Until SIGTERM or Ctrl-C; it then finishes what runs, gives the rest back, and ends with 0.",
    ),
    "relay:relay": (
        "Publish what the outbox of a service holds.",
        "Until SIGTERM or Ctrl-C, and without its handlers. Of several relays one is at work at a time.",
    ),
    "up:up": (
        "Start, or join, the embedded server of a folder.",
        "It stays in the foreground and brings the server back when it dies. Ctrl-C leaves it; what is stored stays.",
    ),
    "publish:publish": (
        "Publish one event, or many from a file or a pipe.",
        "Each is checked by its class, and what became of it is said.",
    ),
    "tail:tail": (
        "Print the events of a stream or of a type.",
        "Oldest first, and without taking a position: nobody else sees a difference.",
    ),
    "control:pause": (
        "Pause a handler in all processes that run it.",
        "Those that start later begin paused. It finishes what runs and gives the rest back; its backlog waits.",
    ),
    "control:resume": ("Let a paused handler go on.", ""),
    "replay:replay": (
        "Give a handler its history again.",
        "In order, and to no other. With once= it repairs what is missing and repeats nothing.",
    ),
    "doctor:doctor": (
        "Say what is wrong with a broker.",
        "Whether it is reached, at which step not, and how it is set up. Nothing is changed.",
    ),
    "demo:demo": (
        "Three services, a real broker and a bad day.",
        "Messages are doubled, workers and the server are killed; the end counts what was applied.",
    ),
    "dead:list": ("List dead letters, grouped by what they died of.", ""),
    "dead:show": ("Show whole letters: story, headers, body and traceback.", ""),
    "dead:redrive": (
        "Give letters back to the handler that failed.",
        "And to no other. With a store each is applied at most once, however often it is redriven.",
    ),
    "dead:discard": ("Say that letters need nothing any more.", "They leave the list; their bytes stay in the log."),
    "db:init": (
        "Create the tables of a store, or bring them to the present version.",
        "Opening a store does so too; this is for a user of the database who may, before services start that may not.",
    ),
    "db:sql": (
        "Print the statements that make the tables.",
        "For people with migrations of their own. Nothing is connected to, and nothing changed.",
    ),
    "outbox:list": ("List events that are parked, because the broker refuses them for good.", ""),
    "outbox:release": ("Let the relay try parked events once more.", "After the broker was made to take them."),
    "outbox:discard": (
        "Give parked events up for good.",
        "They are never published, and the later ones of their keys leave.",
    ),
    "observe:alerts": (
        "Print the rules with which Prometheus alerts.",
        "tidings observe alerts > tidings-rules.yml, and name that file under rule_files.",
    ),
    "observe:dashboards": (
        "Write Grafana's dashboards into a folder.",
        "All services at a glance, and one in depth. Import them, or let Grafana provision that folder.",
    ),
}
for _place, _help in _COMMANDS.items():
    _module, _name = _place.split(":")
    _function = "list_" if _name == "list" else _name
    _GROUPS.get(_module, app).command(
        f"tidings.cli.{_module}:{_function}", name=_name, help="\n\n".join(filter(None, _help))
    )
for _group in _GROUPS.values():
    app.command(_group)


def main() -> None:
    """The entry point of the ``tidings`` script."""
    status = run(sys.argv[1:])
    sys.stdout.flush()
    sys.exit(status)


def run(arguments: Sequence[str]) -> int:
    """Run one command line and return its exit status; whatever fails is said in one line on stderr."""
    json = "--json" in arguments
    try:
        result = app(arguments)
    except CycloptsError as error:
        problem = str(error).rstrip(".")
        if isinstance(error, UnknownCommandError):  # which names some of the commands
            problem = f"{problem.partition(' Available commands:')[0]} Commands: {', '.join(_beside(arguments))}"
        if isinstance(error, UnusedCliTokensError) and arguments[0] == "publish":
            problem = "the data is one argument: put the JSON into single quotes"
        ends = "" if problem.endswith("?") else "."
        fail(f"{problem}{ends} tidings {_command(arguments)}--help shows what there is", Status.USAGE, json=json)
        return Status.USAGE
    except BrokenPipeError:
        # Whatever is flushed on the way out would raise again.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return Status.OUTPUT_CLOSED
    except (Exception, KeyboardInterrupt) as error:
        if debugging() and not isinstance(error, KeyboardInterrupt):
            traceback.print_exception(error)
        status, message = explain(error)
        fail(message, status, json=json)
        return status
    return result if isinstance(result, int) else Status.OK


def _beside(arguments: Sequence[str]) -> list[str]:
    """The commands that could have stood in the place of a word that is none."""
    if arguments[0] in _GROUPS:
        return [name for module, _, name in (place.partition(":") for place in _COMMANDS) if module == arguments[0]]
    return [name for module, _, name in (place.partition(":") for place in _COMMANDS) if module not in _GROUPS] + [
        *_GROUPS
    ]


def _command(arguments: Sequence[str]) -> str:
    """The command that was meant, as far as it was understood, to point at its help."""
    words = [word for word in arguments[:2] if not word.startswith("-")]
    if words and words[0] in _GROUPS and ":".join(words) in _COMMANDS:
        return f"{' '.join(words)} "
    return f"{words[0]} " if words and any(words[0] == place.partition(":")[0] for place in _COMMANDS) else ""


__all__ = ["CommandError", "app", "main", "run"]
