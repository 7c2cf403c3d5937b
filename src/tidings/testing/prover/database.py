"""The database of a proof: a file for each life, and one path that leads to the file of the life that runs.

A crash leaves what is in the files in that moment: the database and its log, with what was never committed. They are
copied, and the next life opens the copy, as a fresh process would. What the abandoned life still holds open is another
file, so whatever becomes of its connections changes nothing.
"""

from __future__ import annotations

import os
import shutil
import sqlite3
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from typing import Any

Setup = str | Callable[[Path], None]
State = str | Callable[[Path], object]


class Database:
    """The files below one folder; `path` is the same for all lives."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._number = 0
        self.path = folder / "proof.db"

    @property
    def _file(self) -> Path:
        return self._folder / f"life-{self._number}" / "proof.db"

    @property
    def url(self) -> str:
        """Of the file itself: an abandoned life that opens it again finds its own."""
        return f"sqlite:///{self._file}"

    def begin(self, setup: Setup) -> None:
        """Start a round, with nothing in it but what the set-up makes."""
        self._next()
        with closing(sqlite3.connect(self._file)) as connection:
            connection.execute("PRAGMA journal_mode=WAL")
            if isinstance(setup, str):
                connection.executescript(setup)
            connection.commit()
        if not isinstance(setup, str):
            setup(self.path)

    def crash(self) -> None:
        """Keep what is in the files now, for the next life."""
        old = self._file
        self._next()
        for end in ("", "-wal"):  # the database first: a page that is in both counts as it is in the log
            source = old.with_name(old.name + end)
            if source.exists():
                shutil.copyfile(source, self._file.with_name(self._file.name + end))

    def let_time_pass(self) -> None:
        """What a lease or a hold keeps from the others for some seconds is free: they have passed."""
        with closing(sqlite3.connect(self._file)) as connection:
            if connection.execute("SELECT 1 FROM sqlite_master WHERE name = 'tidings_relay'").fetchone():
                connection.execute("UPDATE tidings_relay SET owner = '', expires_at = 0")
                connection.execute("UPDATE tidings_outbox SET retry_at = 0 WHERE NOT parked")
                connection.commit()

    def read(self, state: State) -> Any:
        if not isinstance(state, str):
            return state(self.path)
        with closing(sqlite3.connect(self._file)) as connection:
            return connection.execute(state).fetchall()

    def forget(self) -> None:
        """Remove the files of a round."""
        for folder in self._folder.glob("life-*"):
            shutil.rmtree(folder, ignore_errors=True)

    def _next(self) -> None:
        self._number += 1
        self._file.parent.mkdir(parents=True)
        link = self._folder / "proof.new"
        link.unlink(missing_ok=True)
        link.symlink_to(self._file)
        os.replace(link, self.path)
