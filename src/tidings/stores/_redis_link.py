"""The way to Redis: what a URL says, a limit on every call, and its errors in words that show no secret."""

from __future__ import annotations

import asyncio
import re
import socket
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final, cast
from urllib.parse import SplitResult, parse_qsl, unquote, urlsplit

import msgspec
from redis import exceptions
from redis.asyncio import Redis
from redis.asyncio.retry import Retry
from redis.backoff import NoBackoff
from redis.credentials import CredentialProvider

from tidings.errors import ConfigurationError, StoreUnavailable, TidingsError
from tidings.secret import read_secret
from tidings.stores._redis_scripts import Script

DAY: Final = 86400.0
FOREVER: Final = float("inf")
CONNECTIONS: Final = 1024
"""More than lanes can use at once: a claim that finds none free would be an outage of our own making."""

_TIME = re.compile(r"(\d+(?:\.\d+)?)(ms|s|m|h|d)?")
_UNITS = {"ms": 0.001, "s": 1.0, "": 1.0, "m": 60.0, "h": 3600.0, "d": DAY}
_KNOWN = {
    "lease": "after how long without a renewal a key is free for others (15s)",
    "remember": "how long the id of an applied event is known, or forever; unless told, longer than its stream has it",
    "timeout": "how long one call may take (5s)",
    "unsafe": "eviction: work although this Redis may drop keys when its memory is full",
    "password_file": "path of a file with the password, read anew for each connection",
    "tls_ca": "path of the certificates to trust",
    "tls_cert": "path of the client's certificate",
    "tls_key": "path of the client's key",
}
_WRITE = "write redis://user:password@host:6379/0, or rediss:// for TLS, with special characters percent-encoded"


class Options(msgspec.Struct, frozen=True, kw_only=True):
    """What may be set. Times are in seconds."""

    lease: float = 15.0
    remember: float | None = None
    """None: as long as each key says."""
    timeout: float = 5.0
    allow_eviction: bool = False

    def __post_init__(self) -> None:
        if not 0.1 <= self.lease <= 3600:
            raise ConfigurationError(f"lease={self.lease:g}: between 0.1 seconds and an hour")
        if not 0.05 <= self.timeout <= 60:
            raise ConfigurationError(f"timeout={self.timeout:g}: between 0.05 seconds and a minute")
        if self.remember is not None and self.remember < 1:
            raise ConfigurationError(
                f"remember={self.remember:g}: at least a second, and longer than streams keep their events"
            )


def parse(url: str, options: Options) -> tuple[Redis, str, Options]:
    """The client that a URL describes, not connected yet, its address for messages, and the options with the URL's.

    Raises:
        ConfigurationError: it cannot be read; the message shows no password.
    """
    parts, port = _split(url)
    text: dict[str, Any] = {}
    files: dict[str, str] = {}
    password_file: str | None = None
    for name, value in parse_qsl(parts.query, keep_blank_values=True):
        if name not in _KNOWN:
            known = "; ".join(f"{one}: {what}" for one, what in _KNOWN.items())
            raise ConfigurationError(f"the URL of Redis has the option {name!r}, which is none. There are: {known}")
        if name == "unsafe":
            if value != "eviction":
                raise ConfigurationError(f"unsafe={value!r}: only unsafe=eviction can be confirmed")
            text["allow_eviction"] = True
        elif name == "password_file":
            password_file = value
        elif name.startswith("tls_"):
            if not Path(value).is_file():
                raise ConfigurationError(f"{name}={value}: there is no such file")
            files[name] = value
        else:
            text[name] = _seconds(name, value)
    options = Options(**{**msgspec.structs.asdict(options), **text})
    tls = parts.scheme.lower() == "rediss"
    if files and not tls:
        raise ConfigurationError("certificates are for TLS, and redis:// speaks none. Write rediss://")
    if ("tls_key" in files) and ("tls_cert" not in files):
        raise ConfigurationError("tls_key needs tls_cert beside it: the certificate that belongs to the key")
    if password_file is not None and parts.password:
        raise ConfigurationError(
            "password_file= stands in the place of the password in the URL of Redis: leave that out"
        )
    user = unquote(parts.username) if parts.username else None
    password: dict[str, Any] = {"username": user, "password": unquote(parts.password) if parts.password else None}
    if password_file is not None:
        password = {"credential_provider": FilePassword(user, password_file)}
    host = parts.hostname or "localhost"
    client = Redis(
        host=host,
        port=port,
        db=int(parts.path.strip("/") or 0),
        **password,
        socket_timeout=options.timeout,
        socket_connect_timeout=options.timeout,
        socket_keepalive=True,
        socket_keepalive_options=_keepalive(options.timeout),
        retry=Retry(NoBackoff(), 0),  # what may be tried again, and when, is the store's to say
        max_connections=CONNECTIONS,
        protocol=2,
        ssl=tls,
        ssl_ca_certs=files.get("tls_ca"),
        ssl_certfile=files.get("tls_cert"),
        ssl_keyfile=files.get("tls_key"),
    )
    return client, f"{host}:{port}", options


class FilePassword(CredentialProvider):
    """Reads the password for each connection that is made."""

    def __init__(self, user: str | None, path: str) -> None:
        read_secret("password_file", path)
        self._user, self._path = user, path

    def get_credentials(self) -> tuple[str] | tuple[str, str]:
        try:
            password = read_secret("password_file", self._path)
        except ConfigurationError as error:  # the client lets errors of its own through, and no others
            raise exceptions.AuthenticationError(str(error)) from None
        return (password,) if self._user is None else (self._user, password)


def _split(url: str) -> tuple[SplitResult, int]:
    try:
        parts = urlsplit(url)
        port = parts.port or 6379
    except ValueError:  # its text may hold a part of the password
        raise ConfigurationError(f"the URL of Redis cannot be read: {_WRITE}") from None
    if parts.scheme.lower() not in ("redis", "rediss") or parts.fragment or not parts.netloc:
        raise ConfigurationError(f"the URL of Redis cannot be read: {_WRITE}")
    if not re.fullmatch(r"/?\d{0,5}", parts.path):
        raise ConfigurationError(f"the path of a URL of Redis is the number of a database: {_WRITE}")
    return parts, port


def _seconds(name: str, value: str) -> float:
    if name == "remember" and value == "forever":
        return FOREVER
    match = _TIME.fullmatch(value)
    if match is None:
        raise ConfigurationError(f"{name}={value!r}: a time such as 500ms, 15s, 10m, 12h or 8d")
    return float(match[1]) * _UNITS[match[2] or ""]


def _keepalive(timeout: float) -> dict[int, int]:
    """A peer that is gone without a word is noticed on an idle connection as well."""
    wanted = {"TCP_KEEPIDLE": 30, "TCP_KEEPINTVL": 5, "TCP_KEEPCNT": 3, "TCP_USER_TIMEOUT": int(timeout * 1000)}
    return {getattr(socket, name): value for name, value in wanted.items() if hasattr(socket, name)}


class Link:
    """A client and how long one call may take. A live client's own retries are harmless: scripts may be run again."""

    def __init__(self, client: Redis, where: str, timeout: float, *, owned: bool) -> None:
        self.client = client
        self.where = where
        self.starting = True
        """Until the store is open, what a person has to change is said to that person; later it is an outage."""
        self._timeout = timeout
        self._owned = owned

    async def run(self, script: Script, keys: Sequence[bytes], args: Sequence[bytes | str | int]) -> Any:
        """Run a script: one round trip, or two where Redis does not know it yet.

        Raises:
            StoreUnavailable: no answer, or a refusal. What it did is not known.
            ConfigurationError: before the store is open, this user may not.
        """
        try:
            return await self.command("EVALSHA", script.sha, len(keys), *keys, *args)
        except exceptions.NoScriptError:
            pass  # after a restart, or the first time
        try:
            return await self.command("EVAL", script.text, len(keys), *keys, *args)
        except exceptions.NoScriptError as error:
            raise self.refusal(error) from None

    async def command(self, *words: bytes | str | int) -> Any:
        """One command; its answer comes as bytes, whatever the client decodes otherwise.

        Raises:
            StoreUnavailable, ConfigurationError: as above.
            NoScriptError: only by that name can the caller help.
        """
        try:
            async with asyncio.timeout(self._timeout):
                try:
                    return await self._execute(words)
                except (exceptions.BusyLoadingError, exceptions.AuthenticationError):
                    raise
                except exceptions.ConnectionError:  # it had been idle, and the server closed it or was started anew
                    return await self._execute(words)
                except exceptions.ReadOnlyError:  # another is the primary by now, and the address may lead to it
                    await self.client.connection_pool.disconnect(inuse_connections=False)
                    return await self._execute(words)
        except TimeoutError:
            raise StoreUnavailable(f"Redis at {self.where} did not answer within {self._timeout:g} s") from None
        except exceptions.NoScriptError:
            raise
        except (exceptions.RedisError, OSError) as error:
            raise self.refusal(error) from None

    async def _execute(self, words: Sequence[bytes | str | int]) -> Any:
        return await cast(Any, self.client).execute_command(*words, NEVER_DECODE=True)

    def refusal(self, error: Exception) -> TidingsError:
        """What an error of the client's means."""
        text = " ".join(str(error).split())[:300] or type(error).__name__
        remedy = ""
        if isinstance(error, exceptions.AuthenticationError | exceptions.AuthorizationError) or "NOAUTH" in text:
            remedy = "The user or the password in its URL, or in its password_file, is not right"
        elif isinstance(error, exceptions.NoPermissionError) or "NOPERM" in text or "can't run this command" in text:
            remedy = (
                "The user needs: ~tidings:* +ping +select +evalsha +eval +time +get +set +del +pexpire +persist, and"
                " +info +config|get for the checks at start"
            )
        elif "DB index is out of range" in text:
            remedy = "The path of its URL is the number of a database that it has not"
        if not remedy:
            return StoreUnavailable(f"Redis at {self.where}: {text}")
        kind = ConfigurationError if self.starting else StoreUnavailable
        return kind(f"Redis at {self.where} refuses: {text}. {remedy}")

    async def close(self) -> None:
        """Let the connections go, if they are ours."""
        if not self._owned:
            return
        try:
            async with asyncio.timeout(self._timeout):
                await self.client.aclose()
        except (TimeoutError, exceptions.RedisError, OSError):
            pass  # they end with the process at the latest
