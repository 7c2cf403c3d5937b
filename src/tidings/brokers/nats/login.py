"""With what a connection signs in: asked for anew at each attempt, so that what expired can be replaced meanwhile."""

from __future__ import annotations

import base64
import binascii
import inspect
import re
import time
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import msgspec

from tidings.brokers.nats.options import Options
from tidings.errors import BrokerUnavailable, ConfigurationError
from tidings.secret import read_secret

Credentials = str | tuple[str, str]
"""A token, or a user with the password."""

Login = Callable[[], Credentials | Awaitable[Credentials]]
"""Asked before each attempt to connect."""

_JWT = re.compile(r"-----BEGIN NATS USER JWT-----\s+(\S+)\s")


async def credentials(options: Options, login: Login | None) -> dict[str, Any]:
    """The arguments by which the client authenticates itself.

    Raises:
        ConfigurationError: a file is not there or cannot be used, or `login` gives what are no credentials.
        BrokerUnavailable: `login` failed.
    """
    return _read(options) if login is None else await _asked(login)


def _read(options: Options) -> dict[str, Any]:
    for name, path in (("creds", options.creds), ("nkey", options.nkey)):
        if path is not None and not Path(path).is_file():
            raise ConfigurationError(f"{name}={path}: there is no such file. It holds what this service signs in with")
    password, token = options.password, options.token
    if options.password_file is not None:
        password = read_secret("password_file", options.password_file)
    if options.token_file is not None:
        token = read_secret("token_file", options.token_file)
    return {
        "user": options.user,
        "password": password,
        "token": token,
        "user_credentials": options.creds,
        "nkeys_seed": options.nkey,
    }


async def _asked(login: Login) -> dict[str, Any]:
    try:
        found = login()
        if inspect.isawaitable(found):
            found = await found
    except Exception as error:  # what it says may hold a secret
        raise BrokerUnavailable(f"login=, which gives the credentials, raised {type(error).__name__}") from error
    if isinstance(found, str) and found:
        return {"token": found}
    if isinstance(found, tuple) and len(found) == 2 and all(isinstance(one, str) for one in found):
        return {"user": found[0], "password": found[1]}
    raise ConfigurationError(
        f"login= is to return a token as text, or a user and a password as a pair, and not {type(found).__name__}"
    )


def who(options: Options, login: Login | None) -> str:
    """Who was refused, without a secret."""
    if login is not None:
        return "what login= returned"
    if options.creds:
        return f"the credentials of {options.creds}{_since_when(options.creds)}"
    if options.nkey:
        return f"the credentials of {options.nkey}"
    if options.token_file:
        return f"the token of {options.token_file}"
    if options.token:
        return "the token"
    if options.password_file:
        return f"the user {options.user!r} with the password of {options.password_file}"
    return f"the user {options.user!r} with the password given" if options.user else "a connection without a user"


def remedy(options: Options, login: Login | None) -> str:
    """What is to be done about it."""
    if login is not None:
        return "it is asked again at each attempt"
    if file := options.creds or options.nkey or options.token_file or options.password_file:
        return f"replace what {file} holds, which is read anew at each attempt"
    return "correct them in the broker's URL (nats://user:password@host, special characters percent-encoded)"


def _since_when(path: str) -> str:
    """What a credentials file says of its own end."""
    expires = expiry(path)
    if expires is None or (ago := time.time() - expires) < 0:
        return ""
    return f", which expired {_duration(ago)} ago"


def expiry(path: str) -> float | None:
    """When the token of a credentials file expires, in Unix seconds; None where it does not, or cannot be read."""
    try:
        found = _JWT.search(Path(path).read_text(encoding="utf-8"))
        if found is None:
            return None
        payload = found[1].split(".")[1]
        claims = msgspec.json.decode(base64.urlsafe_b64decode(payload + "=" * (-len(payload) % 4)), type=_Claims)
    except (OSError, ValueError, IndexError, binascii.Error, msgspec.MsgspecError):
        return None
    return claims.exp


class _Claims(msgspec.Struct):
    exp: float | None = None


def _duration(seconds: float) -> str:
    if seconds < 600:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 36000 else f"{seconds / 3600:.0f} h"
