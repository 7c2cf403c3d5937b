"""Processes that tests stop: they stand when the test goes on."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from tools.drill_kit import until
from tools.services.freezing import freeze, freeze_all, members, stands

ECHO = """
import socket, threading
door = socket.create_server(("127.0.0.1", 0))
print(door.getsockname()[1], flush=True)
def serve(one):
    while data := one.recv(100):
        one.sendall(data)
while True:
    threading.Thread(target=serve, args=(door.accept()[0],), daemon=True).start()
"""
FORKS = """
import os, time
for _ in range(3):
    if os.fork() == 0:
        break
print(flush=True)
while True:
    time.sleep(0.0001)
"""


@contextmanager
def running(program: str) -> Iterator[subprocess.Popen[bytes]]:
    with subprocess.Popen([sys.executable, "-c", program], stdout=subprocess.PIPE, start_new_session=True) as process:
        try:
            yield process
        finally:
            os.killpg(process.pid, signal.SIGKILL)


def test_a_process_that_was_frozen_answers_nothing_that_is_asked_afterwards() -> None:
    """`kill` alone does not do: one time in four there was still an answer on a machine with other work."""
    with running(ECHO) as server:
        assert server.stdout is not None
        with socket.create_connection(("127.0.0.1", int(server.stdout.readline())), 20) as client:
            client.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            client.sendall(b"a")
            assert client.recv(1) == b"a"
            freeze(server.pid)
            client.settimeout(0.2)
            client.sendall(b"b")
            with pytest.raises(TimeoutError):
                client.recv(1)
            assert stands(server.pid)


def test_all_processes_of_a_group_are_frozen_and_one_that_is_over_is_waited_for_by_nobody() -> None:
    with running(FORKS) as group:
        assert group.stdout is not None
        for _ in range(4):
            group.stdout.readline()
        freeze_all(lambda: members(group.pid))
        found = members(group.pid)
        assert len(found) == 4
        assert all(map(stands, found))
    assert until(lambda: not members(group.pid), 20)
    freeze(group.pid)
