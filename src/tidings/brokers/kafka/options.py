"""What a URL says about a cluster: addresses, credentials, TLS, the few numbers of ours, and any setting of librdkafka.

``kafka://user:password@host:9092,other:9092?tls=1&mechanism=SCRAM-SHA-512&linger.ms=5``. A name with a dot is a setting
of librdkafka, and is handed on as it stands. Passwords stay in here.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from ipaddress import ip_address
from pathlib import Path
from typing import Any, Final
from urllib.parse import parse_qsl, unquote, urlsplit

import msgspec

from tidings.brokers._address import address
from tidings.errors import ConfigurationError
from tidings.secret import read_secret

DEFAULT_PORT: Final = 9092
EXAMPLE: Final = "kafka://user:password@host:9092"

_KNOWN: Final = {
    "partitions": "how many a new topic gets (8)",
    "replication": "copies of each new topic (the cluster's default)",
    "connect_timeout": "seconds until the cluster must have answered (5s)",
    "join": "seconds that a start waits for its part of the group's partitions (0)",
    "session_timeout": "seconds until the partitions of a process that died go to others (10s)",
    "tls": "1 for TLS",
    "tls_ca": "path of the certificates to trust",
    "tls_cert": "path of the client's certificate",
    "tls_key": "path of the client's key",
    "mechanism": "how to sign in: PLAIN, SCRAM-SHA-256, SCRAM-SHA-512 or OAUTHBEARER (PLAIN)",
    "password_file": "path of a file with the password of the user in the URL",
    "unsafe": "what of the unsafe is meant: a list of the words that refusals name",
}
FILES: Final = {"tls_ca": "ssl.ca.location", "tls_cert": "ssl.certificate.location", "tls_key": "ssl.key.location"}
"""The options that are paths, each with its name in the library."""
_MECHANISMS: Final = ("PLAIN", "SCRAM-SHA-256", "SCRAM-SHA-512", "OAUTHBEARER")
_TIME = re.compile(r"(\d+(?:\.\d+)?)(ms|s|m|h)?")
_UNITS: Final = {"ms": 0.001, "s": 1.0, "m": 60.0, "h": 3600.0, "": 1.0}

_OURS: Final = {
    "bootstrap.servers": "write the addresses into the URL",
    "group.id": "it is the position's name",
    "client.id": "it names the service",
    "enable.partition.eof": "readers of logs depend on it",
    "transactional.id": "Tidings needs no transactions of Kafka: once= applies each event once",
    "go.batch.consumer": "it is of another client",
    "security.protocol": "tls=1 and mechanism= say it, so that a password in the open is noticed",
    "sasl.mechanism": "write mechanism= into the URL",
    "sasl.mechanisms": "write mechanism= into the URL",
    "sasl.username": "write the user into the URL",
    "sasl.password": "write it into the URL, or password_file=",
}
"""Settings that are not anybody's to make, and why."""

_UNSAFE: Final[Mapping[str, tuple[str, frozenset[str], str]]] = {
    "acks": ("acks", frozenset({"-1", "all"}), "what one broker has stored is lost with it, although publish returned"),
    "request.required.acks": ("acks", frozenset({"-1", "all"}), "what one broker has stored is lost with it"),
    "enable.idempotence": (
        "idempotence",
        frozenset({"true"}),
        "retries store events twice and out of order",
    ),
    "enable.auto.commit": (
        "auto-commit",
        frozenset({"false"}),
        "a position moves on while its handler still runs: what the process had when it dies is lost",
    ),
    "enable.auto.offset.store": ("auto-commit", frozenset({"false"}), "a position moves on before its handler has run"),
    "auto.offset.reset": (
        "latest",
        frozenset({"earliest", "smallest", "beginning"}),
        "a position that the cluster has forgotten skips all that is stored",
    ),
    "enable.ssl.certificate.verification": ("tls", frozenset({"true"}), "anybody may stand in for the brokers"),
    "ssl.endpoint.identification.algorithm": (
        "tls",
        frozenset({"https"}),
        "who has any certificate may stand in for the brokers",
    ),
    "partitioner": (
        "partitioner",
        frozenset({"murmur2", "murmur2_random", "consistent", "consistent_random", "fnv1a", "fnv1a_random"}),
        "events of one key fall into any partition, and their order is lost",
    ),
    "allow.auto.create.topics": ("auto-create", frozenset({"false"}), "a wrong name makes a topic that nobody reads"),
    "isolation.level": (
        "uncommitted",
        frozenset({"read_committed"}),
        "what a foreign producer has taken back is handled",
    ),
}
"""Settings that can lose or double events: the word that confirms them, what is safe, and what comes of the rest."""


class Options(msgspec.Struct, frozen=True, kw_only=True):
    """A URL, taken apart. Its text shows no secret."""

    servers: tuple[tuple[str, int], ...]
    partitions: int | None = None
    """Of a new topic; None where the URL does not say: then they are not compared with those of one that is there."""
    replication: int = -1
    connect_timeout: float = 5.0
    session_timeout: float = 10.0
    join: float = 0.0
    tls: bool = False
    tls_ca: str | None = None
    tls_cert: str | None = None
    tls_key: str | None = None
    mechanism: str = ""
    user: str | None = None
    password: str | None = None
    password_file: str | None = None
    unsafe: tuple[str, ...] = ()
    more: Mapping[str, Any] = {}
    """Settings of librdkafka."""

    @property
    def where(self) -> str:
        """The addresses, fit for a message."""
        return "kafka://" + ",".join(address(host, port) for host, port in self.servers)

    def __repr__(self) -> str:
        return f"<Options {self.where}>"

    __str__ = __repr__

    @property
    def protocol(self) -> str:
        """How groups are kept together: by the clients (classic), or by the brokers (consumer)."""
        return str(self.more.get("group.protocol", "classic")).lower()

    def secret(self) -> str:
        """The password as it is now.

        Raises:
            ConfigurationError: its file cannot be read.
        """
        return (read_secret("password_file", self.password_file) if self.password_file else self.password) or ""

    def common(self) -> dict[str, Any]:
        """What every client of the cluster is told.

        Raises:
            ConfigurationError: a file that the URL names cannot be read.
        """
        settings: dict[str, Any] = {
            "bootstrap.servers": ",".join(address(host, port) for host, port in self.servers),
            "allow.auto.create.topics": False,
            "socket.keepalive.enable": True,
            "socket.nagle.disable": True,
            "socket.timeout.ms": 6000,
            "socket.connection.setup.timeout.ms": 5000,
            "reconnect.backoff.ms": 100,
            "reconnect.backoff.max.ms": 1000,
            "topic.metadata.refresh.interval.ms": 30_000,
            "log_level": 2,  # errors come by the callback, and every lost connection as a line
        }
        secure = self.tls or bool(self.tls_ca or self.tls_cert)
        if self.mechanism:
            settings["sasl.mechanism"] = self.mechanism
        if self.user is not None:
            settings |= {"sasl.username": self.user, "sasl.password": self.secret()}
        protocol = ("SASL_" if self.mechanism else "") + ("SSL" if secure else "PLAINTEXT")
        settings["security.protocol"] = protocol
        for option, setting in FILES.items():
            if path := getattr(self, option):
                _must_read(option, path)
                settings[setting] = path
        return settings

    def administrator(self) -> dict[str, Any]:
        """What asks about the cluster: it signs in as the others do, and passes over what is of no use to it."""
        return {**self.common(), **self.more}

    def producer(self) -> dict[str, Any]:
        """What stores events: by every broker that is to have a copy, once, in order."""
        return {
            **self.common(),
            "acks": "all",
            "enable.idempotence": True,
            "partitioner": "murmur2_random",
            "compression.type": "lz4",
            "linger.ms": 0,
            "message.timeout.ms": 30_000,
            "request.timeout.ms": 6000,
            "queue.buffering.max.kbytes": 64 * 1024,
            "topic.metadata.propagation.max.ms": 3000,
            **self.more,
        }

    def consumer(self, group: str) -> dict[str, Any]:
        """What takes events of a position."""
        settings = {
            **self.common(),
            "group.id": group,
            "enable.auto.commit": False,
            "enable.auto.offset.store": False,
            "auto.offset.reset": "earliest",
            "isolation.level": "read_committed",
            "queued.max.messages.kbytes": 8 * 1024,
            # Of what is compressed: a small part of a partition may be a hundred times as much in memory.
            "fetch.message.max.bytes": 32 * 1024,
            "fetch.wait.max.ms": 200,
            "fetch.error.backoff.ms": 100,
            "fetch.queue.backoff.ms": 100,
        }
        if self.protocol == "classic":
            session = int(self.session_timeout * 1000)
            settings |= {
                "partition.assignment.strategy": "cooperative-sticky",
                "session.timeout.ms": session,
                "heartbeat.interval.ms": max(100, min(1000, session // 10)),
            }
        return settings | dict(self.more)

    def reader(self) -> dict[str, Any]:
        """What reads logs and asks for offsets: a member of no group."""
        settings = self.consumer("tidings-reader")
        for name in ("partition.assignment.strategy", "session.timeout.ms", "heartbeat.interval.ms", "group.protocol"):
            settings.pop(name, None)
        return settings | {"fetch.wait.max.ms": 100}


def parse(url: str, options: Mapping[str, Any] | None = None) -> Options:
    """Take a ``kafka://`` URL apart; `options` are settings of librdkafka beside those that stand in it.

    Raises:
        ConfigurationError: it cannot be read, or is unsafe and not confirmed; the message shows no password.
    """
    try:
        parts = urlsplit(url)
    except ValueError as error:
        raise ConfigurationError(f"the broker's URL cannot be read ({error}): write {EXAMPLE}") from None
    if parts.scheme != "kafka" or parts.path not in ("", "/") or parts.fragment:
        raise ConfigurationError(
            f"the broker's URL cannot be read: write {EXAMPLE}, other brokers of the cluster behind a comma, and"
            " options behind a question mark. A password with special characters is percent-encoded"
        )
    login, _, hosts = parts.netloc.rpartition("@")
    settings: dict[str, Any] = {"servers": tuple(_address(host) for host in hosts.split(","))}
    if login:
        user, _, password = login.partition(":")
        settings |= {"user": unquote(user), "password": unquote(password) or None}
    more: dict[str, Any] = {}
    for name, value in parse_qsl(parts.query, keep_blank_values=True):
        if "." in name or name in ("acks", "partitioner"):
            more[name] = value
        else:
            settings |= _setting(name, value)
    found = Options(**settings, more=more | dict(options or {}))
    if found.user is not None and not found.mechanism:
        found = msgspec.structs.replace(found, mechanism="PLAIN")
    _check(found)
    return found


def _check(options: Options) -> None:
    if bool(options.tls_key) > bool(options.tls_cert):
        raise ConfigurationError("tls_key needs tls_cert beside it: the certificate that belongs to the key")
    if options.password_file and (options.password is not None or options.user is None):
        raise ConfigurationError(
            "password_file= is for the password of a user: write kafka://user@host?password_file=/run/secrets/kafka"
        )
    _check_login(options)
    strategy = options.more.get("partition.assignment.strategy", "cooperative-sticky")
    if strategy != "cooperative-sticky":
        raise ConfigurationError(
            f"partition.assignment.strategy={strategy}: such a group stops altogether whenever a process comes or goes."
            " Tidings takes cooperative-sticky, or group.protocol=consumer, where the brokers assign"
        )
    secure = options.tls or options.tls_ca or options.tls_cert
    open_words = {"PLAIN": "password", "OAUTHBEARER": "token"}.get(options.mechanism)
    if open_words and not secure and not all(_is_here(host) for host, _ in options.servers):
        what = f"the {open_words} would travel in the open ({options.mechanism} without TLS): add tls=1"
        _refuse(options, options.mechanism.lower(), what)
    _check_tokens(options)
    for name, value in options.more.items():
        if name in _OURS:
            raise ConfigurationError(f"{name} cannot be set: {_OURS[name]}")
        if name in _UNSAFE:
            word, safe, what = _UNSAFE[name]
            if str(value).lower() not in safe:
                _refuse(options, word, f"{name}={value}: {what}")


def _check_login(options: Options) -> None:
    """The library says of what is missing which of its own settings it misses, and of a token nothing at all."""
    if options.mechanism in ("PLAIN", "SCRAM-SHA-256", "SCRAM-SHA-512"):
        lacking = "password" if options.user else "user"
        if not options.user or not (options.password or options.password_file):
            raise ConfigurationError(
                f"the broker's URL names no {lacking}, and {options.mechanism} takes user and password: write"
                f" {EXAMPLE}, or kafka://user@host:9092?password_file=/run/secrets/kafka"
            )


def _check_tokens(options: Options) -> None:
    makes = ("sasl.oauthbearer.", "enable.sasl.oauthbearer.")
    if options.mechanism == "OAUTHBEARER" and not any(
        name == "oauth_cb" or name.startswith(makes) for name in options.more
    ):
        raise ConfigurationError(
            "mechanism=OAUTHBEARER takes something that makes tokens: a function, KafkaBroker(…, options={'oauth_cb':"
            " …}), or the library itself, sasl.oauthbearer.method=oidc with what belongs to it"
        )


def _must_read(option: str, path: str) -> None:
    if option == "tls_ca" and (Path(path).is_dir() or path == "probe"):
        return  # to the library, a folder of certificates, or wherever this system has them
    try:
        with Path(path).open("rb"):
            pass
    except OSError as error:
        raise ConfigurationError(f"{option}={path}: {error.strerror}") from None


def _refuse(options: Options, word: str, what: str) -> None:
    if word not in options.unsafe:
        raise ConfigurationError(f"{what}. If that is meant, say so: unsafe={','.join([*options.unsafe, word])}")


def _is_here(host: str) -> bool:
    if host == "localhost":
        return True
    try:
        return ip_address(host).is_loopback
    except ValueError:
        return False


def _address(text: str) -> tuple[str, int]:
    host, colon, port = text.rpartition(":") if not text.endswith("]") else (text, "", "")
    if not colon:
        host, port = text, str(DEFAULT_PORT)
    host = host.strip("[]")
    if not host or not port.isdigit() or not 0 < int(port) < 65536:
        raise ConfigurationError(
            "the broker's URL names a server without host, or with a port that is none: kafka://host:9092"
        )
    return host, int(port)


def _setting(name: str, value: str) -> dict[str, Any]:
    if name not in _KNOWN:
        known = "; ".join(f"{key}: {what}" for key, what in _KNOWN.items())
        raise ConfigurationError(
            f"the broker's URL has the option {name!r}, which is none. There are: {known}; and every setting of"
            " librdkafka, by its name with dots"
        )
    if name in ("connect_timeout", "session_timeout", "join"):
        return {name: _seconds(name, value)}
    if name in ("partitions", "replication"):
        if not value.isascii() or not value.isdigit() or not 0 < int(value) <= 10_000:
            raise ConfigurationError(f"{name}={value!r}: a number, 1 at least")
        return {name: int(value)}
    if name == "tls":
        return {name: value not in ("", "0", "false", "no")}
    if name == "mechanism":
        if value.upper() not in _MECHANISMS:
            raise ConfigurationError(f"mechanism={value!r} is none of {', '.join(_MECHANISMS)}")
        return {name: value.upper()}
    if name == "unsafe":
        return {name: tuple(word for word in value.split(",") if word)}
    return {name: value}


def _seconds(name: str, value: str) -> float:
    match = _TIME.fullmatch(value)
    seconds = float(match[1]) * _UNITS[match[2] or ""] if match else 0.0
    if not 0.2 <= seconds <= 3600:
        raise ConfigurationError(f"{name}={value!r}: a time such as 15s, 500ms or 2m, at least 200ms and at most 1h")
    return seconds
