"""Ports for the servers of tests. Each is one process's own until that ends, also while its server is stopped.

A server that is killed and started again finds its port taken where another run of the tests, or another of its
processes, was given it meanwhile. So whoever is given a port locks a byte of a file that all runs of this user share.
"""

from __future__ import annotations

import fcntl
import os
import secrets
import tempfile
from functools import cache
from pathlib import Path

from tidings.brokers.nats.embedded_probe import port_is_free

FIRST = 10_000
LAST = 19_999
"""Apart from those that embedded servers pick, and from those of outgoing connections."""

_ours = set[int]()


class NoPort(Exception):
    """There is none left."""


def free_port(following: int = 0) -> int:
    """A port for this process alone, with as many behind it."""
    for _ in range(300):
        port = FIRST + secrets.randbelow(LAST - FIRST - following)
        if all(_is_ours(port + more) for more in range(following + 1)):
            return port
    raise NoPort(f"there are no {following + 1} free ports in a row on 127.0.0.1 between {FIRST} and {LAST}")


def _is_ours(port: int) -> bool:
    if port in _ours or not _locked(port) or not port_is_free(port):
        return False
    _ours.add(port)
    return True


def _locked(port: int) -> bool:
    try:
        fcntl.lockf(_file(), fcntl.LOCK_EX | fcntl.LOCK_NB, 1, port)
    except (BlockingIOError, PermissionError):
        return False
    return True


@cache
def _file() -> int:
    """Open until the process ends: a process gives its locks up with the first copy of a file that it closes."""
    path = Path(tempfile.gettempdir()) / f"tidings-test-ports-{os.getuid()}"
    return os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
