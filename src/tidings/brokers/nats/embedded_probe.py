"""What can be learned about an embedded server from outside: does it answer, is it well, and what did it log."""

from __future__ import annotations

import asyncio
import contextlib
import re
import secrets
import socket
from collections.abc import Sequence
from enum import Enum
from pathlib import Path
from typing import Final

import msgspec

from tidings.brokers.nats.embedded_folder import Folder, State, disk_full, explain_os_error
from tidings.errors import BrokerUnavailable, ConfigurationError, TidingsError

HOST: Final = "127.0.0.1"
_ANSWER: Final = 1.0
"""Seconds that a loopback answer may take."""
_LOWEST, _HIGHEST = 20_000, 32_000
_SECRETS: Final = re.compile(r"(?<=://)[^\s/@]+@|\b[0-9a-f]{48}\b")


class Health(Enum):
    READY = "ready"
    SILENT = "silent"
    """It does not answer, or not yet: it may be starting."""
    FROZEN = "frozen"
    """It answers, but a stream could not be written and stays closed until the server is restarted."""
    DAMAGED = "damaged"
    """It answers, but a stream on the disk is not there; for a moment also while one is made or removed."""


class _Info(msgspec.Struct):
    server_name: str = ""


class _Check(msgspec.Struct):
    error: str = ""


async def probe(state: State) -> tuple[Health, str]:
    """Ask the server of `state` how it is, and why; another one on the same port does not pass for it."""
    try:
        async with asyncio.timeout(_ANSWER):
            info = await _greeting(state.port)
            if info.server_name != state.instance:
                return Health.SILENT, ""
            # The whole check: the one for JetStream alone stays green while a full disk keeps a stream from storing,
            # and when a stream could not be read back, which would then be made anew, empty.
            healthy, body = await _get(state.monitor_port, "/healthz")
    except (OSError, EOFError, TimeoutError, ValueError, msgspec.DecodeError):
        return Health.SILENT, ""
    if healthy:
        return Health.READY, ""
    if "write error" in body:
        return Health.FROZEN, body
    return (Health.DAMAGED, body) if "could not be recovered" in body else (Health.SILENT, body)


async def _greeting(port: int) -> _Info:
    reader, writer = await asyncio.open_connection(HOST, port)
    try:
        line = await reader.readline()
    finally:
        await _close(writer)
    if not line.startswith(b"INFO "):
        raise ValueError("not a NATS server")
    return msgspec.json.decode(line[5:], type=_Info)


async def _get(port: int, path: str) -> tuple[bool, str]:
    """Whether the answer is good, and the error that it gives."""
    reader, writer = await asyncio.open_connection(HOST, port)
    try:
        writer.write(f"GET {path} HTTP/1.0\r\nHost: {HOST}\r\n\r\n".encode())
        answer = await reader.read(64 * 1024)
        while answer and (more := await reader.read(64 * 1024)):
            answer = (answer + more)[: 1024 * 1024]
    finally:
        await _close(writer)
    head, _, body = answer.partition(b"\r\n\r\n")
    error = msgspec.json.decode(body, type=_Check).error
    return head.startswith((b"HTTP/1.0 200", b"HTTP/1.1 200")), error


async def _close(writer: asyncio.StreamWriter) -> None:
    writer.close()
    with contextlib.suppress(OSError):
        await writer.wait_closed()


def port_is_free(port: int) -> bool:
    """Whether a server could listen there.

    Raises:
        ConfigurationError: this user may not listen on that port.
    """
    with socket.socket(socket.AF_INET, socket.SOCK_STREAM) as probe_socket:
        probe_socket.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe_socket.bind((HOST, port))
        except PermissionError:
            raise ConfigurationError(
                f"this user may not listen on port {port}. Name one above 1023: embedded:?port=4222"
            ) from None
        except OSError:
            return False
    return True


def free_port(avoid: Sequence[int] = ()) -> int:
    """A free port that the kernel does not hand out by itself.

    While the server is down, its clients keep connecting to its port. Were it one of the ports that the kernel picks
    for outgoing connections, such an attempt could pick the very port it wants to reach, connect to itself and hold
    the port against the server that comes back.
    """
    low, high = kernels_ports()
    ports = [port for port in range(_LOWEST, _HIGHEST) if not low <= port <= high]
    ports = ports or list(range(_LOWEST, _HIGHEST))
    for _ in range(200):
        port = secrets.choice(ports)
        if port not in avoid and port_is_free(port):
            return port
    raise BrokerUnavailable(f"no free port between {_LOWEST} and {_HIGHEST} on {HOST}. Name one: embedded:?port=4222")


def kernels_ports() -> tuple[int, int]:
    """The first and the last of the ports that outgoing connections get."""
    try:
        low, high = Path("/proc/sys/net/ipv4/ip_local_port_range").read_text("ascii").split()
        return int(low), int(high)
    except (OSError, ValueError):
        return 49_152, 65_535


def port_taken(port: int, folder: Path, *, named: bool) -> TidingsError:
    if named:
        return ConfigurationError(
            f"port {port} on {HOST} is in use by another program. Name another (embedded:?port={port + 1}), leave the"
            f" port out to have a free one chosen, or end that program"
        )
    return BrokerUnavailable(
        f"the embedded server of {folder} is down, and its port {port} on {HOST} was taken by another program. End that"
        f" program, or stop all processes that use the folder: at the next start they get another port"
    )


def log_size(folder: Folder) -> int:
    try:
        return folder.log_file.stat().st_size
    except OSError:
        return 0


def log_tail(folder: Folder, since: int = 0, lines: int = 4) -> str:
    """The last lines that the server wrote, those of trouble before others, without anything secret."""
    text = _read(folder.stderr_file, 0) + _read(folder.log_file, since)
    every = [line.strip() for line in text.splitlines() if line.strip()]
    trouble = [line for line in every if "[FTL]" in line or "[ERR]" in line or "[INF]" not in line]
    trouble = [line for line in trouble if "Plaintext passwords" not in line]
    return _SECRETS.sub("***", " | ".join((trouble or every)[-lines:]))


def _read(path: Path, since: int) -> str:
    try:
        with path.open("rb") as file:
            size = file.seek(0, 2)
            start = since if since <= size else 0  # it was rotated meanwhile
            file.seek(max(start, size - 16 * 1024))
            return file.read().decode("utf-8", "replace") + "\n"
    except OSError:
        return ""


def why_it_ended(folder: Folder, since: int) -> TidingsError:
    """The error for a server that ended while it was starting, from what it logged."""
    tail = log_tail(folder, since)
    if "no space left on device" in tail:
        return disk_full(folder.path)
    if "read-only file system" in tail or "permission denied" in tail:
        kind = PermissionError(13, tail)
        return explain_os_error(kind, folder.path)
    return BrokerUnavailable(
        f"the embedded server of {folder.path} ended while it was starting: {tail or 'it logged nothing'}."
        f" Its whole log is {folder.log_file}"
    )
