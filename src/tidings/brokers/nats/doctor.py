"""What is wrong with NATS servers, as far as it can be seen from here: step by step, and each with its remedy."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import Any, Final

import msgspec

from tidings.brokers.nats.api import Api
from tidings.brokers.nats.broker import ADVISED, OLDEST, ROOM_FOR_HEADERS, version_of
from tidings.brokers.nats.connection import Connection
from tidings.brokers.nats.link import Link
from tidings.brokers.nats.options import Options, parse
from tidings.delivery import MAX_EVENT_BYTES
from tidings.errors import ConfigurationError, TidingsError
from tidings.findings import Finding

PATIENCE: Final = 3.0
MOST: Final = 1 << 20
"""Bytes of an answer that are read."""
NANOSECONDS: Final = 1e9

LOSSES: Final = (
    ((2, 12, 3), "loses messages where servers join a cluster while others are cut off or killed"),
    (ADVISED, "may lose a consumer, or a stream, in rare cases"),
)
"""Before which version what is known to be lost."""


async def examine(url: str) -> Sequence[Finding]:
    """Look at each server of the URL; nothing is changed.

    Raises:
        ConfigurationError: the URL cannot be read.
    """
    if url.startswith("embedded:"):
        return [Finding("fine", "embedded: starts a server of its own, of a known version, which syncs each message")]
    options = parse(url)
    found: list[Finding] = []
    for server in options.servers:
        one = msgspec.structs.replace(options, servers=(server,), connect_timeout=PATIENCE)
        connection = Connection(one, "tidings doctor")
        try:
            found += await _server(await connection.start(), connection, one)
        except TidingsError as error:
            found.append(Finding("wrong" if isinstance(error, ConfigurationError) else "down", str(error)))
        finally:
            await connection.close()
    return found


async def _server(link: Link, connection: Connection, options: Options) -> list[Finding]:
    version = str(link.info.get("version", ""))
    found = [*_version(version, options.where), *_payload(int(link.info.get("max_payload", MOST)), options.where)]
    try:
        await Api(connection).check()
    except ConfigurationError as error:
        return [*found, Finding("wrong", str(error))]
    found += await _synced(str(link.info.get("server_id", "")), options)
    return found or [Finding("fine", f"{options.where} runs nats-server {version}, and keeps what it confirms")]


def _version(version: str, where: str) -> list[Finding]:
    numbers = version_of(version)
    if numbers < OLDEST:
        what = f"{where} runs nats-server {version or 'of an unknown version'}: Tidings does not start with it"
        return [Finding("wrong", what, f"Upgrade it to {_dotted(ADVISED)} or newer; it reads the old data.")]
    losses = [what for fixed, what in LOSSES if numbers < fixed]
    if not losses:
        return []
    what = f"{where} runs nats-server {version}, which {'; '.join(losses)}"
    return [Finding("warning", what, f"Upgrade it to {_dotted(ADVISED)} or newer.")]


def _payload(most: int, where: str) -> list[Finding]:
    if most >= MAX_EVENT_BYTES + ROOM_FOR_HEADERS:
        return []
    too_small = most < 2 * ROOM_FOR_HEADERS
    what = f"{where} takes messages of {most:,} bytes, " + (
        "which is too little for dead letters and their headers"
        if too_small
        else f"so that events may have {most - ROOM_FOR_HEADERS:,}, and not {MAX_EVENT_BYTES:,}"
    )
    return [Finding("wrong" if too_small else "warning", what, "Set max_payload: 1.2MB in its configuration.")]


# ── what is confirmed, and when it is on the disk ───────────────────────────────────────────────────────────────────


async def _synced(server: str, options: Options) -> list[Finding]:
    """Whether each message is on the disk before it is confirmed. A server says so at its monitoring port alone."""
    ((host, _),) = options.servers
    try:
        told = await _ask(host, options.monitor)
        config = told["jetstream"]["config"]
        if told["server_id"] != server:
            raise ValueError(f"another server answers at {host}:{options.monitor}")
    except (OSError, TimeoutError, ValueError, LookupError, TypeError) as error:
        why = str(error) or type(error).__name__
        return [
            Finding(
                "warning",
                f"whether {options.where} has a message on its disk before it confirms it cannot be seen: its"
                f" monitoring port does not tell ({host}:{options.monitor}: {why})",
                "Look for `sync_interval: always` in the jetstream block of its configuration. With `http: 8222` there,"
                " and ?monitor=8222 here, it is seen.",
            )
        ]
    if config.get("sync_always"):
        return []
    seconds = config.get("sync_interval", 120 * NANOSECONDS) / NANOSECONDS
    return [
        Finding(
            "warning",
            f"{options.where} confirms messages up to {seconds:.0f} s before they are on its disk (sync_interval): a"
            " machine that crashes loses them",
            "Set `sync_interval: always` in the jetstream block of its configuration.",
        )
    ]


async def _ask(host: str, port: int) -> dict[str, Any]:
    """What a server tells of itself over HTTP.

    Raises:
        OSError, TimeoutError, ValueError: nobody answers there, or not so.
    """
    async with asyncio.timeout(PATIENCE):
        reader, writer = await asyncio.open_connection(host, port)
        try:
            writer.write(f"GET /varz HTTP/1.0\r\nHost: {host}\r\n\r\n".encode())
            answer = bytearray()
            while len(answer) < MOST and (more := await reader.read(65536)):
                answer += more
        finally:
            writer.close()
    head, _, body = bytes(answer).partition(b"\r\n\r\n")
    if b" 200 " not in head.partition(b"\r\n")[0]:
        raise ValueError("what answers there is no monitoring port")
    found: dict[str, Any] = msgspec.json.decode(body)
    return found


def _dotted(numbers: Sequence[int]) -> str:
    return ".".join(map(str, numbers))
