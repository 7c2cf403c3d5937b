"""Finding what a user named as ``module:service``, and saying what is there instead when it is not."""

from __future__ import annotations

import difflib
import importlib
import linecache
import pkgutil
import re
import sys
import traceback
from collections.abc import Iterable
from pathlib import Path
from types import ModuleType
from typing import Final

from tidings.cli.failures import CommandError, Status, one_line
from tidings.errors import TidingsError
from tidings.event import Event
from tidings.service import Service

_MODULE: Final = re.compile(r"[^\W\d]\w*(\.[^\W\d]\w*)*")
MOST_NAMES: Final = 8
_OURS: Final = str(Path(__file__).parents[1])


def find_service(target: str) -> Service:
    """The service that ``module:service`` names; the module's name is enough where it holds one service.

    Raises:
        CommandError: it is not there, or its module cannot be imported.
    """
    module, name = load(target)
    services = {key: value for key, value in vars(module).items() if isinstance(value, Service)}
    if not name:
        if len(services) == 1:
            return next(iter(services.values()))
        wanted = "which one is meant" if services else "no service stands in it"
        raise _wrong(f"{target}: {wanted}. Write {target}:service; {_there(services, 'services')}")
    found = attribute(module, name, services, "services")
    if not isinstance(found, Service):
        raise _wrong(f"{target} is {_kind(found)}, not a Service; {_there(services, 'services')}")
    return found


def find_events(target: str) -> list[type[Event]]:
    """The event classes that a module holds, that a service declares, or the one that was named."""
    module, name = load(target)
    events = {key: value for key, value in vars(module).items() if _is_event(value)}
    if not name:
        if not events:
            raise _wrong(f"{target}: no event class stands in it. Write the module that defines them")
        return list(events.values())
    found = attribute(module, name, events, "events")
    if isinstance(found, Service):
        return list(dict.fromkeys([*found.published, *(one for each in found.handlers for one in each.events)]))
    if not (isinstance(found, type) and issubclass(found, Event)):
        raise _wrong(f"{target} is {_kind(found)}, neither an event class nor a Service; {_there(events, 'events')}")
    return [found]


def load(target: str) -> tuple[ModuleType, str]:
    """Import the module of ``module:name`` from the current directory, or else from where Python looks."""
    module, _, name = target.partition(":")
    if not _MODULE.fullmatch(module):
        better = module.removesuffix(".py").strip("./").replace("/", ".")
        hint = f"{better}:{name or 'service'}" if _MODULE.fullmatch(better) else "shop.stock:stock"
        raise _wrong(f"{target!r} names no module. Write module:name with dots, such as {hint}", Status.USAGE)
    here = str(Path.cwd())
    if here not in sys.path:
        sys.path.insert(0, here)
    try:
        return importlib.import_module(module), name
    except ModuleNotFoundError as error:
        if error.name is not None and (module == error.name or module.startswith(error.name + ".")):
            raise _wrong(_no_module(module, error.name, here)) from None
        raise _wrong(_user_line(error)) from error
    except SystemExit as error:
        raise _wrong(f"importing {module} ended the program with sys.exit({error.code!r})") from error
    except Exception as error:
        raise _wrong(_user_line(error)) from error


def attribute(module: ModuleType, name: str, there: Iterable[str], what: str) -> object:
    """The attribute of a module, dots allowed; near names are suggested when it is not there."""
    found: object = module
    for part in name.split("."):
        if not hasattr(found, part):
            near = difflib.get_close_matches(part, [*there, *(n for n in vars(module) if not n.startswith("_"))], 1)
            hint = f" Did you mean {module.__name__}:{near[0]}?" if near else ""
            listed = _there(there, what)
            raise _wrong(f"{module.__name__} has no {name!r}.{hint} {listed[:1].upper()}{listed[1:]}")
        found = getattr(found, part)
    return found


def _is_event(value: object) -> bool:
    return isinstance(value, type) and issubclass(value, Event) and value is not Event


def _wrong(message: str, status: Status = Status.CONFIGURATION) -> CommandError:
    return CommandError(message, status)


def _there(names: Iterable[str], what: str) -> str:
    listed = ", ".join(sorted(names))
    return f"{what} there: {listed}" if listed else f"there are no {what} in this module"


def _kind(found: object) -> str:
    return f"the class {found.__name__}" if isinstance(found, type) else f"of type {type(found).__name__}"


def _no_module(module: str, missing: str, here: str) -> str:
    """Which part is missing, and which names would be near."""
    parent, _, last = missing.rpartition(".")
    if last == "py":
        return f"a module is named without .py. Write {parent}:name"
    if parent and not hasattr(sys.modules.get(parent), "__path__"):
        return f"{parent} is a module, and no package. Did you mean {parent}:{last}?"
    paths = list(getattr(sys.modules.get(parent), "__path__", [])) if parent else [here]
    names = [one.name for one in pkgutil.iter_modules(paths) if not one.name.startswith("_")]
    if not parent:  # folders without __init__.py are packages too
        names += {one.parent.name for one in Path(here).glob("*/*.py")} - set(names)
    near = difflib.get_close_matches(last, names, 1)
    hint = ""
    if near:
        better = f"{parent}.{near[0]}" if parent else near[0]
        hint = f" Did you mean {better}{module[len(missing) :]}?"
    elif names:
        more = f" and {len(names) - MOST_NAMES} more" if len(names) > MOST_NAMES else ""
        hint = f" There: {', '.join(sorted(names)[:MOST_NAMES])}{more}."
    where = f"in the package {parent}" if parent else f"in {here}, from where the command was started"
    return f"there is no module {missing!r} {where}.{hint}"


def _user_line(error: Exception) -> str:
    """An error of the user's module: the last of its own lines, not ours and not the library's that it called."""
    text = one_line(str(error))
    kind = "" if isinstance(error, TidingsError) else f"{type(error).__name__}: "
    if isinstance(error, SyntaxError) and error.filename and error.lineno:
        return f"{_short(error.filename)}:{error.lineno}: {kind}{error.msg}: {(error.text or '').strip()}"
    frames = traceback.extract_tb(error.__traceback__)
    own = [one for one in frames if _is_users(one.filename)]
    if not own or own[-1].lineno is None:
        return f"{kind}{text}"
    last = own[-1]
    code = last.line or linecache.getline(last.filename, last.lineno or 0).strip()
    return f"{_short(last.filename)}:{last.lineno}: {kind}{text} (the line: {code})"


def _is_users(filename: str) -> bool:
    """Written by the user: none of Tidings, of Python, or of what is installed."""
    if filename.startswith(("<", _OURS)):
        return False
    return "site-packages" not in filename and not filename.startswith((sys.base_prefix + "/lib", sys.prefix + "/lib"))


def _short(filename: str) -> str:
    path = Path(filename)
    return str(path.relative_to(Path.cwd())) if path.is_relative_to(Path.cwd()) else str(path)
