"""Are all types of the public API written down? What users and authors of adapters see must not be left to inference.

basedpyright judges every module whose name has no underscore; this asks only about what is public: the names that the
packages below list, whole modules that adapters are written against, and whatever the types of those refer to.
"""

from __future__ import annotations

import importlib
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

PACKAGE = "tidings"
LISTED = ("tidings", "tidings.testing")
"""Packages whose `__all__` is public."""
WHOLE = ("tidings.delivery", "tidings.errors", "tidings.ports")
"""Modules that are public as they stand."""
TAKES_AT_MOST = 300.0
"""Seconds for the check."""


def public_names() -> set[str]:
    """The full names of what is public, where it is exported and where it is defined."""
    names = set(WHOLE)
    for package in LISTED:
        module = importlib.import_module(package)
        for name in module.__all__:
            value = getattr(module, name)
            names.add(f"{package}.{name}")
            if getattr(value, "__module__", "").partition(".")[0] == PACKAGE and hasattr(value, "__qualname__"):
                names.add(f"{value.__module__}.{value.__qualname__}")
    return names


def verified() -> list[dict[str, Any]]:
    """Every symbol of the package, as basedpyright sees it."""
    # It looks for the package with the python that PATH finds first, whatever it is told.
    programs = str(Path(sys.executable).parent)
    done = subprocess.run(
        ["basedpyright", "--ignoreexternal", "--outputjson", "--verifytypes", PACKAGE],
        env={**os.environ, "PATH": programs + os.pathsep + os.environ.get("PATH", "")},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=TAKES_AT_MOST,
        check=False,
    )
    try:
        symbols: list[dict[str, Any]] = json.loads(done.stdout)["typeCompleteness"]["symbols"]
    except (ValueError, KeyError):
        raise SystemExit(f"basedpyright gave no report:\n{done.stdout}{done.stderr}") from None
    return symbols


def incomplete(symbols: list[dict[str, Any]]) -> Iterator[str]:
    """A line for everything that is missing."""
    for symbol in symbols:
        for found in symbol["diagnostics"]:
            if found["severity"] == "error":
                start = found.get("range", {}).get("start", {})
                place = f"{found['file']}:{start['line'] + 1}: " if found["file"] and start else ""
                message = " ".join(found["message"].replace("\xa0", " ").split())
                yield f"{place}{symbol['name']}: {message}"


def main() -> int:
    names = public_names()
    inside = tuple(f"{name}." for name in names)
    public = [one for one in verified() if one["name"] in names or one["name"].startswith(inside)]
    known = sum(one["isTypeKnown"] and not one["isTypeAmbiguous"] for one in public)
    for line in incomplete(public):
        print(line)
    print(f"public API: the types of {known} of {len(public)} symbols are written down")
    return 0 if public and known == len(public) else 1


if __name__ == "__main__":
    sys.exit(main())
