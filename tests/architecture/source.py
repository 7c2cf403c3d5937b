"""A folder of Python source, parsed: modules, and what each of them imports."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

PACKAGE = "tidings"


@dataclass(frozen=True)
class Import:
    """One import, wherever it stands: at the top, in a function, under TYPE_CHECKING or by `import_module`."""

    target: str
    """The full name of what is imported: `tidings.ports`, `sqlalchemy.ext.asyncio`."""
    line: int


@dataclass(frozen=True)
class Module:
    """A source file. `name` is without the package: `brokers.nats.feed`; an `__init__` is named as its folder."""

    name: str
    path: Path
    place: str
    """The path below the package's folder, with slashes."""
    text: str
    tree: ast.Module
    imports: tuple[Import, ...]

    def at(self, line: int) -> str:
        return f"{self.place}:{line}"


def read(root: Path) -> list[Module]:
    """All modules below `root`, which is the package's folder. Empty if there is none."""
    paths = sorted(root.rglob("*.py"))
    known = {_name(root, path) for path in paths}
    return [_parse(root, path, known) for path in paths]


def _name(root: Path, path: Path) -> str:
    parts = list(path.relative_to(root).with_suffix("").parts)
    if parts[-1] == "__init__":
        parts.pop()
    return ".".join(parts)


def _parse(root: Path, path: Path, known: set[str]) -> Module:
    text = path.read_text(encoding="utf-8")
    tree = ast.parse(text, str(path))
    name = _name(root, path)
    package = name if path.name == "__init__.py" else name.rpartition(".")[0]
    imports = tuple(_imports(tree, package, known))
    return Module(name, path, path.relative_to(root).as_posix(), text, tree, imports)


def _imports(tree: ast.Module, package: str, known: set[str]) -> Iterator[Import]:
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            for alias in node.names:
                yield Import(alias.name, node.lineno)
        elif isinstance(node, ast.ImportFrom):
            base = _absolute(node, package)
            for alias in node.names:
                # `from tidings.brokers import nats` imports a module, `from tidings.ports import Broker` a name of one.
                whole = f"{base}.{alias.name}"
                yield Import(whole if _inner(whole) in known else base, node.lineno)
        elif isinstance(node, ast.Call) and _called(node) in ("import_module", "__import__"):
            first = node.args[0] if node.args else None
            if isinstance(first, ast.Constant) and isinstance(first.value, str):
                yield Import(first.value, node.lineno)


def _absolute(node: ast.ImportFrom, package: str) -> str:
    if not node.level:
        return node.module or ""
    parts = [PACKAGE, *(part for part in package.split(".") if part)]
    parts = parts[: len(parts) - node.level + 1]
    return ".".join([*parts, node.module] if node.module else parts)


def _called(node: ast.Call) -> str:
    if isinstance(node.func, ast.Attribute):
        return node.func.attr
    return node.func.id if isinstance(node.func, ast.Name) else ""


def _inner(target: str) -> str | None:
    """The name inside the package, or None if `target` is not part of it."""
    if target == PACKAGE:
        return ""
    return target.removeprefix(PACKAGE + ".") if target.startswith(PACKAGE + ".") else None


def inner_imports(module: Module, known: set[str]) -> Iterator[tuple[str, int]]:
    """What a module imports of its own package: the name inside it, and the line."""
    for one in module.imports:
        name = _inner(one.target)
        if name is None:
            continue
        while name not in known and name:
            name = name.rpartition(".")[0]
        yield name, one.line


def outer_imports(module: Module) -> Iterator[tuple[str, int]]:
    """The top-level names of everything else that a module imports, the standard library included."""
    for one in module.imports:
        if _inner(one.target) is None:
            yield one.target.partition(".")[0], one.line
