"""What a URL says about a server: addresses, credentials, TLS, and the few numbers that may be set.

``nats://user:password@host:4222,other:4222?ack_wait=15s&tls_ca=/etc/ca.pem``. Passwords stay in here.
"""

from __future__ import annotations

import re
import ssl
from typing import Any
from urllib.parse import parse_qsl, unquote, urlsplit

import msgspec

from tidings.errors import ConfigurationError

DEFAULT_PORT = 4222

_TIME = re.compile(r"(\d+(?:\.\d+)?)(ms|s|m|h)?")
_UNITS = {"ms": 0.001, "s": 1.0, "m": 60.0, "h": 3600.0, "": 1.0}
_SUBJECT = re.compile(r"\$?[A-Za-z0-9_-]+(\.[A-Za-z0-9_-]+)*")

_KNOWN = {
    "ack_wait": "seconds until a delivery that is not kept alive is delivered again (15s)",
    "connect_timeout": "seconds until a first connection must stand (5s)",
    "creds": "path of a credentials file",
    "nkey": "path of a file with an nkey seed",
    "token": "an authentication token",
    "password_file": "path of a file with the password of the user in the URL",
    "token_file": "path of a file with an authentication token",
    "tls_ca": "path of the certificates to trust",
    "tls_cert": "path of the client's certificate",
    "tls_key": "path of the client's key",
    "tls_name": "the name on the server's certificate",
    "tls_first": "1 if TLS begins before the server speaks",
    "inbox": "first part of the subjects on which answers come (_INBOX)",
    "domain": "a JetStream domain",
    "prefix": "where the JetStream API stands, when it was imported under another name ($JS.API)",
    "replicas": "copies of each new stream and its positions in a cluster: 1, 3 or 5 (1)",
    "monitor": "the servers' monitoring port, which tidings doctor asks (8222)",
}


class Options(msgspec.Struct, frozen=True, kw_only=True):
    """A URL, taken apart. Its text shows no secret."""

    servers: tuple[tuple[str, int], ...]
    tls: bool = False
    user: str | None = None
    password: str | None = None
    token: str | None = None
    password_file: str | None = None
    token_file: str | None = None
    creds: str | None = None
    nkey: str | None = None
    tls_ca: str | None = None
    tls_cert: str | None = None
    tls_key: str | None = None
    tls_name: str | None = None
    tls_first: bool = False
    ack_wait: float = 15.0
    connect_timeout: float = 5.0
    inbox: str = "_INBOX"
    api: str = "$JS.API"
    replicas: int | None = None
    monitor: int = 8222

    @property
    def scheme(self) -> str:
        return "tls" if self.tls else "nats"

    @property
    def where(self) -> str:
        """The addresses, fit for a message."""
        return f"{self.scheme}://" + ",".join(f"{host}:{port}" for host, port in self.servers)

    def __repr__(self) -> str:
        return f"<Options {self.where}>"

    __str__ = __repr__

    def ssl_context(self) -> ssl.SSLContext | None:
        """How to speak TLS; None where nothing asks for it, though a server still may.

        Raises:
            ConfigurationError: a certificate or key cannot be read.
        """
        if not (self.tls or self.tls_ca or self.tls_cert):
            return None
        try:
            context = ssl.create_default_context(cafile=self.tls_ca)
            if self.tls_cert:
                context.load_cert_chain(self.tls_cert, self.tls_key)
        except (OSError, ssl.SSLError) as error:
            files = ", ".join(f for f in (self.tls_ca, self.tls_cert, self.tls_key) if f)
            raise ConfigurationError(f"the TLS files {files} cannot be used: {error.strerror or error}") from None
        return context


def parse(url: str) -> Options:
    """Take a ``nats://`` or ``tls://`` URL apart.

    Raises:
        ConfigurationError: it cannot be read; the message shows no password.
    """
    try:
        parts = urlsplit(url)
    except ValueError as error:
        raise ConfigurationError(
            f"the broker's URL cannot be read ({error}): write nats://user:password@host:4222"
        ) from None
    if parts.scheme not in ("nats", "tls") or parts.path not in ("", "/") or parts.fragment:
        raise ConfigurationError(
            "the broker's URL cannot be read: write nats://user:password@host:4222, other servers of the cluster behind"
            " a comma, and options behind a question mark. A password with special characters is percent-encoded"
        )
    login, _, hosts = parts.netloc.rpartition("@")
    settings: dict[str, Any] = {
        "servers": tuple(_address(host) for host in hosts.split(",")),
        "tls": parts.scheme == "tls",
    }
    if login:
        user, colon, password = login.partition(":")
        if colon:
            settings |= {"user": unquote(user), "password": unquote(password)}
        else:
            settings["token"] = unquote(user)
    for name, value in parse_qsl(parts.query, keep_blank_values=True):
        settings |= _setting(name, value)
    options = Options(**settings)
    if bool(options.tls_key) > bool(options.tls_cert):
        raise ConfigurationError("tls_key needs tls_cert beside it: the certificate that belongs to the key")
    if options.password_file and (options.password is not None or options.token is None):
        raise ConfigurationError(
            "password_file= is for the password of a user: write nats://user@host?password_file=/run/secrets/nats"
        )
    if options.password_file:  # what stands before the @ alone is a token, unless its password stands elsewhere
        options = msgspec.structs.replace(options, user=options.token, token=None)
    if options.token_file and (options.token or options.user):
        raise ConfigurationError("token_file= stands in the place of a token or a user in the URL: leave that out")
    return options


def _address(text: str) -> tuple[str, int]:
    host, colon, port = text.rpartition(":") if not text.endswith("]") else (text, "", "")
    if not colon:
        host, port = text, str(DEFAULT_PORT)
    host = host.strip("[]")
    if not host or not port.isdigit() or not 0 < int(port) < 65536:
        raise ConfigurationError(
            "the broker's URL names a server without host, or with a port that is none: nats://host:4222"
        )
    return host, int(port)


def _setting(name: str, value: str) -> dict[str, Any]:
    if name not in _KNOWN:
        known = "; ".join(f"{key}: {what}" for key, what in _KNOWN.items())
        raise ConfigurationError(f"the broker's URL has the option {name!r}, which is none. There are: {known}")
    if name in ("ack_wait", "connect_timeout"):
        return {name: _seconds(name, value)}
    if name == "replicas":
        if value not in ("1", "3", "5"):
            raise ConfigurationError(f"replicas={value!r}: a stream has 1, 3 or 5 copies")
        return {name: int(value)}
    if name == "monitor":
        if not value.isascii() or not value.isdigit() or not 0 < int(value) < 65536:
            raise ConfigurationError(f"monitor={value!r} is no port")
        return {name: int(value)}
    if name == "tls_first":
        return {name: value not in ("", "0", "false", "no")}
    if name in ("inbox", "domain", "prefix"):
        if not _SUBJECT.fullmatch(value):
            raise ConfigurationError(f"{name}={value!r} cannot be the beginning of a subject: words joined by dots")
        return {"inbox": value} if name == "inbox" else {"api": value if name == "prefix" else f"$JS.{value}.API"}
    return {name: value}


def _seconds(name: str, value: str) -> float:
    match = _TIME.fullmatch(value)
    seconds = float(match[1]) * _UNITS[match[2] or ""] if match else 0.0
    if not 0.2 <= seconds <= 3600:
        raise ConfigurationError(f"{name}={value!r}: a time such as 15s, 500ms or 2m, at least 200ms and at most 1h")
    return seconds
