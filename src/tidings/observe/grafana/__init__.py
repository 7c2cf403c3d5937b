"""Grafana's dashboards as data, made by ``tools/dashboards`` of the repository. Nothing makes them here."""

from __future__ import annotations

from collections.abc import Mapping
from importlib.resources import files
from pathlib import Path


def dashboards() -> Mapping[str, str]:
    """The JSON of each, by the name of its file."""
    found = (one for one in files(__name__).iterdir() if one.name.endswith(".json"))
    return {one.name: one.read_text(encoding="utf-8") for one in sorted(found, key=lambda one: one.name)}


def write(folder: Path) -> list[Path]:
    """Write them into a folder, which is made if it is missing; what has their names there is replaced."""
    folder.mkdir(parents=True, exist_ok=True)
    written = []
    for name, text in dashboards().items():
        path = folder / name
        path.write_text(text, encoding="utf-8")
        written.append(path)
    return written
