"""What a broker understands: asked of itself, in the one question that every release answers.

The client library knows it as well, and keeps it to itself: where a broker lacks what a group needs, the library looks
for another coordinator without end and says nothing.
"""

from __future__ import annotations

import asyncio
import logging
import ssl
import struct
from collections.abc import Mapping
from typing import Any, Final

from tidings.brokers.kafka.options import Options
from tidings.errors import ConfigurationError

log = logging.getLogger("tidings.kafka")

WITHIN: Final = 3.0
MOST: Final = 64 * 1024
"""Bytes of an answer; what is longer is not one."""

_QUESTION: Final = struct.pack(">ihhih", 10, 18, 0, 1, -1)  # ApiVersions, in its first version, from nobody by name
_HEAD: Final = struct.Struct(">ihi")
_ROW: Final = struct.Struct(">hhh")

FETCH: Final = 1
LIST_OFFSETS: Final = 2
CREATE_TOPICS: Final = 19
CONSUMER_GROUP_HEARTBEAT: Final = 68

_NAMES: Final = "ssl.endpoint.identification.algorithm"
_TLS: Final = {"ssl.ca.location", "ssl.certificate.location", "ssl.key.location", "ssl.key.password", _NAMES}
"""The settings of TLS that are understood here."""

Understood = Mapping[int, tuple[int, int]]
"""The oldest and the newest version of each request."""


class CannotBeAsked(Exception):
    """Why a broker did not say what it understands."""


def assigns(understood: Understood) -> bool:
    """Whether it can say who of a group has what (`group.protocol=consumer`)."""
    return CONSUMER_GROUP_HEARTBEAT in understood


def counts_copies(understood: Understood) -> bool:
    """Whether it makes topics with as many copies as it thinks right."""
    return understood.get(CREATE_TOPICS, (0, 0))[1] >= 4


def release(understood: Understood) -> str:
    """Which releases understand just that, as far as it tells them apart."""
    if understood.get(FETCH, (0, 0))[0] >= 4:
        return "4.0 or newer"
    if understood.get(LIST_OFFSETS, (0, 0))[1] >= 7:
        return "3.x"
    return "2.4 to 2.8" if counts_copies(understood) else "older than 2.4"


async def ask(options: Options, host: str, port: int) -> Understood:
    """Ask one broker; it answers before anybody has signed in.

    Raises:
        CannotBeAsked: it does not answer, or how it is spoken to is known to the client library alone.
    """
    try:
        context = _context(options.administrator())
    except ConfigurationError as error:  # a file was there when the clients were made
        raise CannotBeAsked(str(error)) from None
    try:
        async with asyncio.timeout(WITHIN):
            reader, writer = await asyncio.open_connection(host, port, ssl=context)
            try:
                writer.write(_QUESTION)
                (length,) = struct.unpack(">i", await reader.readexactly(4))
                if not _HEAD.size <= length <= MOST:
                    raise CannotBeAsked(f"what {host}:{port} answers is not Kafka")
                return _read(await reader.readexactly(length), f"{host}:{port}")
            finally:
                writer.transport.abort()
    except TimeoutError:
        raise CannotBeAsked(f"{host}:{port} does not answer within {WITHIN:.0f} s") from None
    except (OSError, EOFError) as error:
        raise CannotBeAsked(f"{host}:{port}: {error}") from None


async def must_assign(options: Options, brokers: Mapping[int, tuple[str, int]]) -> None:
    """With ``group.protocol=consumer`` every broker has to be able to, because each may be a group's coordinator.

    Raises:
        ConfigurationError: one of them is too old.
    """
    if options.protocol != "consumer":
        return
    for number, (host, port) in sorted(brokers.items()):
        try:
            understood = await ask(options, host, port)
        except CannotBeAsked as error:
            log.warning(
                "whether broker %d can assign partitions (group.protocol=consumer) is not known: %s", number, error
            )
            continue
        if not assigns(understood):
            raise ConfigurationError(
                f"{options.where}: broker {number} (Kafka {release(understood)}) cannot say who of a group has what, so"
                " that with group.protocol=consumer nothing would be handed over. Leave that out, and the processes"
                " agree among themselves; or use brokers of Kafka 4.0 or newer"
            )


def _read(answer: bytes, where: str) -> Understood:
    number, error, count = _HEAD.unpack_from(answer)
    end = _HEAD.size + count * _ROW.size
    if number != 1 or error or not 0 < count <= 1000 or end > len(answer):
        raise CannotBeAsked(f"what {where} answers is not Kafka")
    return {api: (least, most) for api, least, most in _ROW.iter_unpack(answer[_HEAD.size : end])}


def _context(settings: Mapping[str, Any]) -> ssl.SSLContext | None:
    """How the library would speak TLS, or None where it would not."""
    if not str(settings.get("security.protocol", "")).lower().endswith("ssl"):
        return None
    if other := next((name for name in settings if name.startswith("ssl.") and name not in _TLS), ""):
        raise CannotBeAsked(f"what {other} means is known to the client library alone")
    try:
        context = ssl.create_default_context(cafile=settings.get("ssl.ca.location"))
        if certificate := settings.get("ssl.certificate.location"):
            key, password = settings.get("ssl.key.location"), settings.get("ssl.key.password")
            context.load_cert_chain(certificate, key, password)
    except OSError as error:
        raise CannotBeAsked(f"the TLS files cannot be used: {error.strerror or error}") from None
    looks = str(settings.get("enable.ssl.certificate.verification", "true")).lower() == "true"
    context.check_hostname = looks and str(settings.get(_NAMES, "https")).lower() == "https"
    context.verify_mode = ssl.CERT_REQUIRED if looks else ssl.CERT_NONE
    return context
