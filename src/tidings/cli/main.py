"""The commands, put together. Each is imported when it is called: most of them need little."""

from __future__ import annotations

import os
import sys
import traceback
from collections.abc import Sequence

from cyclopts import App, CycloptsError, Parameter

from tidings import __version__
from tidings.cli.failures import MEANINGS, CommandError, Status, debugging, explain
from tidings.cli.output import fail

_STATUSES = "\n\n".join(f"{int(status)}: {meaning}" for status, meaning in MEANINGS.items())

app = App(
    name="tidings",
    help="Events between microservices: none lost, none applied twice, each one traceable.",
    help_epilogue=f"Exit statuses\n\n{_STATUSES}\n\nTIDINGS_DEBUG=1 shows the traceback of a failure.",
    version=__version__,
    default_parameter=Parameter(negative=""),
    result_action="return_value",
    print_error=False,
    exit_on_error=False,
    suppress_keyboard_interrupt=False,
)
app.command("tidings.cli.run:run", name="run", help="Run a service, or several processes of it.")
app.command("tidings.cli.up:up", name="up", help="Start, or join, the embedded server of a folder.")
app.command("tidings.cli.publish:publish", name="publish", help="Publish one event, or many from a file or a pipe.")
app.command("tidings.cli.tail:tail", name="tail", help="Print the events of a stream or of a type.")
app.command("tidings.cli.demo:demo", name="demo", help="Three services, a real broker and a bad day.")

dead = App(name="dead", help="What could not be handled: list, show, redrive, discard.")
dead.command("tidings.cli.dead:list_", name="list", help="List dead letters, grouped by what they died of.")
dead.command("tidings.cli.dead:show", name="show", help="Show whole letters: story, body and traceback.")
dead.command("tidings.cli.dead:redrive", name="redrive", help="Give letters back to the handler that failed.")
dead.command("tidings.cli.dead:discard", name="discard", help="Say that letters need nothing any more.")
app.command(dead)


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
        fail(f"{error}. tidings {_command(arguments)}--help shows what there is", Status.USAGE, json=json)
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


def _command(arguments: Sequence[str]) -> str:
    """The words before the first argument of a command, to point at its help."""
    known: dict[str, tuple[str, ...]] = {"dead": ("list", "show", "redrive", "discard")}
    first = arguments[0] if arguments else ""
    if first not in ("run", "up", "publish", "tail", "demo", "dead"):
        return ""
    second = arguments[1] if len(arguments) > 1 and arguments[1] in known.get(first, ()) else ""
    return f"{first} {second} ".replace("  ", " ")


__all__ = ["CommandError", "app", "main", "run"]
