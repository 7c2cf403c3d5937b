"""The rules. Each is a function over a package's folder that returns what breaks it, one line for each place."""

from __future__ import annotations

import ast
import re
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

from tests.architecture import layers
from tests.architecture.source import inner_imports, outer_imports, read

Rule = Callable[[Path], list[str]]


# ---- arrows ------------------------------------------------------------------------------------------------------


def arrows_point_one_way(root: Path) -> list[str]:
    """A module imports its own layer and those before it; adapters import the lowest layers and their own unit."""
    modules = read(root)
    known = {module.name for module in modules}
    found = []
    for module in modules:
        if _head(module.name) not in layers.ADAPTERS and _rank(module.name) is None:
            found.append(f"{module.place}: stands in no layer; enter it in tests/architecture/layers.py")
            continue
        for target, line in inner_imports(module, known):
            if why := _refused(module.name, target):
                found.append(f"{module.at(line)}: {module.name or 'the root'} imports {target or 'the root'}: {why}")
    return found


def _head(name: str) -> str:
    return name.partition(".")[0]


def _rank(name: str) -> int | None:
    return next((rank for rank, names in enumerate(layers.LAYERS) if _head(name) in names), None)


def _unit(name: str) -> str:
    """What an adapter may freely import from: `brokers.nats`, `stores.redis`, `outbox`."""
    head, _, rest = name.partition(".")
    return head if head in layers.SHARED_FOLDERS or not rest else f"{head}.{_head(rest)}"


def _refused(importer: str, target: str) -> str:
    """Why `importer` may not import `target`; empty if it may."""
    head, target_head = _head(importer), _head(target)
    if head in layers.ADAPTERS:
        shared = target.startswith(f"{head}._") or (importer in layers.REGISTRIES and target_head == importer)
        if shared or _unit(importer) == _unit(target):
            return ""
        allowed = layers.ADAPTERS[head]
        return "" if target_head in allowed else f"{head} may import {', '.join(allowed)} and its own unit"
    if target_head in layers.ADAPTERS:
        return "" if head in layers.ADAPTER_USERS else "the core knows adapters only through ports"
    rank, target_rank = _rank(importer), _rank(target)
    if rank is None or target_rank is None or target_rank <= rank:
        return ""
    return "the arrow points the other way"


def no_import_cycles(root: Path) -> list[str]:
    """No module reaches itself by imports, those for type checking and those inside functions included."""
    modules = read(root)
    known = {module.name for module in modules}
    graph = {module.name: {target for target, _ in inner_imports(module, known)} - {module.name} for module in modules}
    found, reported = [], set[frozenset[str]]()
    for start in sorted(graph):
        path = _way_back(graph, start)
        if path and frozenset(path) not in reported:
            reported.add(frozenset(path))
            found.append("import cycle: " + " -> ".join(name or "the root" for name in [*path, start]))
    return found


def _way_back(graph: dict[str, set[str]], start: str) -> list[str]:
    """The shortest way from `start` to itself; empty if there is none."""
    ways = [[start]]
    seen: set[str] = set()
    for way in ways:
        for target in sorted(graph.get(way[-1], ())):
            if target == start:
                return way
            if target not in seen:
                seen.add(target)
                ways.append([*way, target])
    return []


def libraries_stay_in_their_place(root: Path) -> list[str]:
    """A library from outside is imported only by the modules that exist for its sake."""
    found = []
    for module in read(root):
        for library, line in outer_imports(module):
            if library in sys.stdlib_module_names:
                continue
            places = layers.THIRD_PARTY.get(library)
            if places is None:
                found.append(f"{module.at(line)}: {library} is not in the table of libraries")
            elif not any(place == "*" or _inside(module.name, place) for place in places):
                found.append(f"{module.at(line)}: only {', '.join(places)} may import {library}")
    return found


def _inside(name: str, place: str) -> bool:
    return name == place or name.startswith(place if place.endswith("._") else place + ".")


# ---- names -------------------------------------------------------------------------------------------------------

_WORDS = re.compile(r"[A-Z]+(?![a-z])|[A-Z]?[a-z]+")


def no_broker_is_named_outside_its_folder(root: Path) -> list[str]:
    """Identifiers and strings of the code are free of brokers' names; comments and docstrings may have them."""
    found = []
    for module in read(root):
        places = layers.MAY_NAME_BROKERS.items()
        most, kinds = next((rest for place, rest in places if module.place.startswith(place)), (0, ()))
        mentions = 0
        for line, words, kind in _spoken(module.tree):
            for broker, home in layers.BROKER_NAMES.items():
                if module.place.startswith(home) or not any(word.startswith(broker) for word in words):
                    continue
                mentions += 1
                if kind not in kinds:
                    found.append(f"{module.at(line)}: the {kind} names {broker}, which only {home} may")
        if kinds and mentions > most:
            found.append(f"{module.place}: names brokers {mentions} times, {most} are allowed")
    return found


def _spoken(tree: ast.Module) -> Iterator[tuple[int, list[str], str]]:
    """Every identifier and string of the code, as its words in lower case. Docstrings are left out."""
    docstrings = {
        id(node.value) for node in ast.walk(tree) if isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant)
    }
    for node in ast.walk(tree):
        line = getattr(node, "lineno", 0)
        if isinstance(node, ast.Constant) and isinstance(node.value, str | bytes):
            if id(node) not in docstrings:
                text = node.value if isinstance(node.value, str) else node.value.decode("latin-1")
                yield line, _words(text), "string"
        else:
            yield line, [word for name in _identifiers(node) for word in _words(name)], "identifier"


def _words(text: str) -> list[str]:
    return [word.lower() for word in _WORDS.findall(text)]


def _identifiers(node: ast.AST) -> list[str]:
    match node:
        case ast.Name(id=name) | ast.Attribute(attr=name) | ast.arg(arg=name) | ast.keyword(arg=str(name)):
            return [name]
        case ast.FunctionDef(name=name) | ast.AsyncFunctionDef(name=name) | ast.ClassDef(name=name):
            return [name]
        case ast.alias(name=name, asname=other):
            return [name, other or ""]
        case ast.ImportFrom(module=str(name)) | ast.ExceptHandler(name=str(name)):
            return [name]
        case _:
            return []


def public_names_are_few_and_listed(root: Path) -> list[str]:
    """`__all__` of the package is a plain list of at most 30 names, and just what the package exports."""
    module = next((module for module in read(root) if module.name == ""), None)
    if module is None:
        return []
    listed = _listed(module.tree)
    bound = set(_bound(module.tree.body))
    public = {name for name in bound if not name.startswith("_")}
    if listed is None:
        return [f"{module.place}: exports {', '.join(sorted(public))} and has no __all__"] if public else []
    found = [f"{module.place}: __all__ has {name}, which is not there" for name in sorted(set(listed) - bound)]
    found += [f"{module.place}: exports {name}, which __all__ does not have" for name in sorted(public - set(listed))]
    found += [
        f"{module.place}: __all__ has {name} twice" for name in sorted({n for n in listed if listed.count(n) > 1})
    ]
    if len(listed) > layers.MOST_PUBLIC_NAMES:
        found.append(f"{module.place}: {len(listed)} public names, {layers.MOST_PUBLIC_NAMES} are allowed")
    return found


def _listed(tree: ast.Module) -> list[str] | None:
    for node in tree.body:
        targets = (
            node.targets if isinstance(node, ast.Assign) else [node.target] if isinstance(node, ast.AnnAssign) else []
        )
        if any(isinstance(target, ast.Name) and target.id == "__all__" for target in targets):
            value = node.value if isinstance(node, ast.Assign | ast.AnnAssign) else None
            return [str(name) for name in ast.literal_eval(value)] if value is not None else []
    return None


def _bound(body: list[ast.stmt]) -> Iterator[str]:
    """The names that statements at the top of a module bind, under `if` (TYPE_CHECKING) and `try` too."""
    for node in body:
        match node:
            case ast.ImportFrom(module="__future__"):
                pass
            case ast.Import(names=names):
                yield from (alias.asname or alias.name.partition(".")[0] for alias in names)
            case ast.ImportFrom(names=names):
                # TYPE_CHECKING itself is how a name gets here, not one of the names.
                yield from (alias.asname or alias.name for alias in names if alias.name != "TYPE_CHECKING")
            case ast.FunctionDef(name=name) | ast.AsyncFunctionDef(name=name) | ast.ClassDef(name=name):
                yield name
            case ast.Assign(targets=targets):
                yield from (target.id for target in targets if isinstance(target, ast.Name))
            case ast.AnnAssign(target=ast.Name(id=name)):
                yield name
            case ast.If(body=inner, orelse=other) | ast.Try(body=inner, orelse=other):
                yield from _bound([*inner, *other])
            case _:
                pass


# ---- sizes -------------------------------------------------------------------------------------------------------


def files_are_short(root: Path) -> list[str]:
    """A file has one subject: `pipeline.py` under 300 lines, any other under 400."""
    found = []
    for module in read(root):
        most = layers.MOST_LINES.get(module.place, layers.MOST_LINES[""])
        lines = len(module.text.splitlines())
        if lines > most:
            found.append(f"{module.place}: {lines} lines, {most} are allowed")
    return found


def functions_fit_a_screen(root: Path) -> list[str]:
    """A function has at most 60 lines, its docstring not counted."""
    found = []
    for module in read(root):
        for node in ast.walk(module.tree):
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
                lines = _length(node)
                if lines > layers.MOST_FUNCTION_LINES:
                    most = layers.MOST_FUNCTION_LINES
                    found.append(f"{module.at(node.lineno)}: {node.name} has {lines} lines, {most} are allowed")
    return found


def _length(node: ast.FunctionDef | ast.AsyncFunctionDef) -> int:
    lines = (node.end_lineno or node.lineno) - node.lineno + 1
    if ast.get_docstring(node) is not None:
        lines -= (node.body[0].end_lineno or 0) - node.body[0].lineno + 1
    return lines


# ---- tasks and cancellation --------------------------------------------------------------------------------------


def no_wait_for(root: Path) -> list[str]:
    """`asyncio.timeout` instead: up to Python 3.11 `asyncio.wait_for` swallows cancellation."""
    found = []
    for module in read(root):
        for node in ast.walk(module.tree):
            attribute = isinstance(node, ast.Attribute) and node.attr == "wait_for" and _is_asyncio(node.value)
            imported = isinstance(node, ast.ImportFrom) and (node.module or "").partition(".")[0] == "asyncio"
            if attribute or (imported and any(alias.name == "wait_for" for alias in _aliases(node))):
                found.append(f"{module.at(getattr(node, 'lineno', 0))}: asyncio.wait_for; use asyncio.timeout")
    return found


def _aliases(node: ast.AST) -> list[ast.alias]:
    return node.names if isinstance(node, ast.ImportFrom) else []


def _is_asyncio(node: ast.expr) -> bool:
    """asyncio, asyncio.tasks, or a short name for it. A condition variable's own wait_for is another thing."""
    if isinstance(node, ast.Attribute):
        return _is_asyncio(node.value)
    return isinstance(node, ast.Name) and node.id in ("asyncio", "aio")


def nothing_swallows_cancellation(root: Path) -> list[str]:
    """Who catches everything (`except:`, `except BaseException`, `suppress(BaseException)`) raises it again.

    Or hands it to a future, which raises it where it is awaited.
    """
    found = []
    for module in read(root):
        for node in ast.walk(module.tree):
            if isinstance(node, ast.ExceptHandler) and _catches_all(node.type) and not _raises(node.body):
                found.append(f"{module.at(node.lineno)}: catches BaseException and does not raise it again")
            elif isinstance(node, ast.Call) and _name_of(node.func) == "suppress" and any(map(_catches_all, node.args)):
                found.append(f"{module.at(node.lineno)}: suppresses BaseException")
    return found


def _catches_all(node: ast.expr | None) -> bool:
    if isinstance(node, ast.Tuple):
        return any(_catches_all(one) for one in node.elts)
    return node is None or _name_of(node) == "BaseException"


def _raises(body: list[ast.stmt]) -> bool:
    """Whether some statement raises, or sets a future's exception; not in a function that is only defined here."""
    waiting: list[ast.AST] = list(body)
    while waiting:
        node = waiting.pop()
        if isinstance(node, ast.Raise):
            return True
        if isinstance(node, ast.Call) and _name_of(node.func) == "set_exception":
            return True
        if not isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda | ast.ClassDef):
            waiting.extend(ast.iter_child_nodes(node))
    return False


def _name_of(node: ast.expr) -> str:
    if isinstance(node, ast.Attribute):
        return node.attr
    return node.id if isinstance(node, ast.Name) else ""


_STARTERS = ("create_task", "ensure_future", "run_coroutine_threadsafe")


def tasks_are_kept(root: Path) -> list[str]:
    """The result of `create_task` is kept, or belongs to a task group: nothing is fired and forgotten."""
    found = []
    for module in read(root):
        groups = {
            item.optional_vars.id
            for node in ast.walk(module.tree)
            if isinstance(node, ast.AsyncWith)
            for item in node.items
            if isinstance(item.optional_vars, ast.Name)
            and isinstance(item.context_expr, ast.Call)
            and _name_of(item.context_expr.func) == "TaskGroup"
        }
        for node in ast.walk(module.tree):
            call = _dropped(node)
            if not isinstance(call, ast.Call) or _name_of(call.func) not in _STARTERS:
                continue
            owner = call.func.value if isinstance(call.func, ast.Attribute) else None
            if not (isinstance(owner, ast.Name) and owner.id in groups):
                found.append(f"{module.at(call.lineno)}: the task of {_name_of(call.func)} is not kept")
    return found


def _dropped(node: ast.AST) -> ast.expr | None:
    """An expression whose value nobody keeps: a statement of its own, a lambda's, or one assigned to `_`."""
    match node:
        case ast.Expr(value=value) | ast.Lambda(body=value):
            return value
        case ast.Assign(targets=[ast.Name(id="_")], value=value):
            return value
        case _:
            return None


RULES: tuple[Rule, ...] = (
    arrows_point_one_way,
    no_import_cycles,
    libraries_stay_in_their_place,
    no_broker_is_named_outside_its_folder,
    public_names_are_few_and_listed,
    files_are_short,
    functions_fit_a_screen,
    no_wait_for,
    nothing_swallows_cancellation,
    tasks_are_kept,
)
