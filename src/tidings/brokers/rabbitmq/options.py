"""What a URL says about a server: addresses, credentials, virtual host, TLS, and the few numbers that may be set.

``amqp://user:password@host:5672,other:5672/vhost?heartbeat=10s&tls_ca=/etc/ca.pem``. Passwords stay in here.
"""

from __future__ import annotations

import re
import ssl
from typing import Any, Final
from urllib.parse import parse_qsl, unquote, urlsplit

import msgspec

from tidings.brokers._address import address
from tidings.errors import ConfigurationError
from tidings.secret import read_secret

PORTS: Final = {"amqp": 5672, "amqps": 5671}
EXAMPLE: Final = "amqp://user:password@host:5672/vhost"

GUEST: Final = "guest"
"""The user, and the password, that servers come with: meant where the URL names none."""

_KNOWN: Final = {
    "heartbeat": "seconds after which a peer that says nothing counts as gone (10s)",
    "connect_timeout": "seconds until a first connection must stand (5s)",
    "password_file": "path of a file with the password of the user in the URL",
    "tls_ca": "path of the certificates to trust",
    "tls_cert": "path of the client's certificate",
    "tls_key": "path of the client's key",
    "tls_name": "the name on the server's certificate",
    "auth": "plain, or external: the client's certificate says who it is (plain)",
    "group_size": "on how many nodes of a cluster each new queue stands (the server's default)",
}
_SECONDS: Final = re.compile(r"(\d+)s?")
_MOST_SECONDS: Final = {"heartbeat": (2, 300), "connect_timeout": (1, 300)}


class Options(msgspec.Struct, frozen=True, kw_only=True):
    """A URL, taken apart. Its text shows no secret."""

    servers: tuple[tuple[str, int], ...]
    tls: bool = False
    user: str = GUEST
    named: bool = False
    """Whether the URL names the user."""
    password: str | None = None
    password_file: str | None = None
    vhost: str = "/"
    heartbeat: int = 10
    connect_timeout: float = 5.0
    tls_ca: str | None = None
    tls_cert: str | None = None
    tls_key: str | None = None
    tls_name: str | None = None
    external: bool = False
    group_size: int | None = None

    @property
    def scheme(self) -> str:
        return "amqps" if self.tls else "amqp"

    @property
    def where(self) -> str:
        """The addresses, fit for a message."""
        vhost = "" if self.vhost == "/" else f"/{self.vhost}"
        return f"{self.scheme}://" + ",".join(address(host, port) for host, port in self.servers) + vhost

    def __repr__(self) -> str:
        return f"<Options {self.where}>"

    __str__ = __repr__

    def secret(self) -> str:
        """The password, read anew where it stands in a file. Raises ConfigurationError."""
        if self.password_file is not None:
            return read_secret("password_file", self.password_file)
        return self.password if self.password is not None else GUEST

    def ssl_context(self) -> ssl.SSLContext | None:
        """How to speak TLS, or None.

        Raises:
            ConfigurationError: a certificate or key cannot be read.
        """
        if not self.tls:
            return None
        try:
            context = ssl.create_default_context(cafile=self.tls_ca)
        except OSError as error:
            why = "it holds no certificates" if isinstance(error, ssl.SSLError) else error.strerror
            raise ConfigurationError(f"tls_ca={self.tls_ca} cannot be used: {why}") from None
        if self.tls_cert:
            try:
                context.load_cert_chain(self.tls_cert, self.tls_key)
            except OSError as error:
                bad = isinstance(error, ssl.SSLError)
                why = "not PEM, or the key does not belong to the certificate" if bad else error.strerror
                key = f" with tls_key={self.tls_key}" if self.tls_key else ", in which its key stands, too,"
                raise ConfigurationError(f"tls_cert={self.tls_cert}{key} cannot be used: {why}") from None
        return context


def parse(url: str) -> Options:
    """Take an ``amqp://`` or ``amqps://`` URL apart.

    Raises:
        ConfigurationError: it cannot be read; the message shows no password.
    """
    try:
        parts = urlsplit(url)
    except ValueError as error:
        raise ConfigurationError(f"the broker's URL cannot be read ({error}): write {EXAMPLE}") from None
    if parts.scheme not in PORTS or parts.fragment or "/" in parts.path[1:]:
        raise ConfigurationError(
            f"the broker's URL cannot be read: write {EXAMPLE}, other servers of the cluster behind a comma, and"
            " options behind a question mark. Special characters in a password, and a / in the name of the virtual"
            " host, are percent-encoded"
        )
    login, _, hosts = parts.netloc.rpartition("@")
    settings: dict[str, Any] = {
        "servers": tuple(_address(host, PORTS[parts.scheme]) for host in hosts.split(",")),
        "tls": parts.scheme == "amqps",
    }
    if len(parts.path) > 1:
        settings["vhost"] = unquote(parts.path[1:])
    if login:
        user, colon, password = login.partition(":")
        settings |= {"user": unquote(user), "named": True}
        if colon:
            settings["password"] = unquote(password)
    for name, value in parse_qsl(parts.query, keep_blank_values=True):
        settings |= _setting(name, value)
    options = Options(**settings)
    _check(options)
    return options


def _check(options: Options) -> None:
    if options.external and options.tls and not options.tls_cert:
        raise ConfigurationError("auth=external needs tls_cert beside it: its name says who the client is")
    if options.tls_key and not options.tls_cert:
        raise ConfigurationError("tls_key needs tls_cert beside it: the certificate that belongs to the key")
    if not options.tls and (options.tls_ca or options.tls_cert or options.tls_name or options.external):
        raise ConfigurationError("certificates need TLS: write amqps:// in the place of amqp://")
    if options.password_file and options.password is not None:
        raise ConfigurationError("password_file= stands in the place of the password in the URL: leave that out")


def _address(text: str, default: int) -> tuple[str, int]:
    host, colon, port = text.rpartition(":") if not text.endswith("]") else (text, "", "")
    if not colon:
        host, port = text, str(default)
    host = host.strip("[]")
    if not host or not port.isdigit() or not 0 < int(port) < 65536:
        raise ConfigurationError(f"the broker's URL names a server without host, or a port that is none: {EXAMPLE}")
    return host, int(port)


def _setting(name: str, value: str) -> dict[str, Any]:
    if name not in _KNOWN:
        known = "; ".join(f"{key}: {what}" for key, what in _KNOWN.items())
        raise ConfigurationError(f"the broker's URL has the option {name!r}, which is none. There are: {known}")
    if name in _MOST_SECONDS:
        least, most = _MOST_SECONDS[name]
        found = _SECONDS.fullmatch(value)
        if found is None or not least <= int(found[1]) <= most:
            raise ConfigurationError(f"{name}={value!r}: whole seconds, such as 10s, from {least}s to {most}s")
        return {name: int(found[1])}
    if name == "auth":
        if value not in ("plain", "external"):
            raise ConfigurationError(f"auth={value!r}: it is plain or external")
        return {"external": value == "external"}
    if name == "group_size":
        if not value.isdigit() or not 1 <= int(value) <= 9:
            raise ConfigurationError(f"group_size={value!r}: a number of nodes, 1 to 9; odd ones make sense")
        return {name: int(value)}
    return {name: value}
