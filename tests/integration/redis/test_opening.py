"""What is checked when a store on Redis opens, on real servers that are set up badly."""

from __future__ import annotations

import logging
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest
import redis.asyncio

from tests.integration.redis.kit import NEW, Keys, apply, done, look, states
from tidings.errors import ConfigurationError, StoreUnavailable
from tidings.stores import store_from
from tidings.stores._redis_checks import _check_version
from tidings.stores.redis import RedisStore
from tools.services.ports import free_port
from tools.services.redis import Redis

Start = Callable[..., Redis]
KEEPS = ("appendonly yes", "appendfsync always")
CERTS = Path(__file__).parents[1] / "nats" / "certs"


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Start]:
    with ExitStack() as stack:
        yield lambda *settings: stack.enter_context(Redis(tmp_path / "server", *settings))


async def opened(url: str, key: Keys) -> None:
    """It opens and works."""
    store = store_from(url)
    await store.open()
    assert list(await apply(store, key("a"))) == [NEW]  # type: ignore[arg-type]  # the port, and the class behind it
    assert list(await states(store, key("a"))) == [done("a")]  # type: ignore[arg-type]  # as above
    await store.close()


async def refused(url: str, error: type[Exception], match: str) -> None:
    store = store_from(url)
    with pytest.raises(error, match=match) as caught:
        await store.open()
    assert "s3cret" not in str(caught.value)
    assert caught.value.__cause__ is None


@pytest.mark.parametrize("policy", ["allkeys-lru", "volatile-ttl"])
async def test_trap_125_a_redis_that_may_drop_keys_is_refused_unless_it_is_confirmed(
    start: Start, key: Keys, caplog: pytest.LogCaptureFixture, policy: str
) -> None:
    url = start(*KEEPS, "maxmemory 50mb", f"maxmemory-policy {policy}").url
    await refused(url, ConfigurationError, rf"{policy}.*maxmemory-policy noeviction.*unsafe=eviction")
    await opened(f"{url}?unsafe=eviction", key)
    assert "confirmed by unsafe=eviction" in caplog.text


async def test_an_eviction_policy_without_a_limit_never_acts_and_is_taken(
    start: Start, key: Keys, caplog: pytest.LogCaptureFixture
) -> None:
    await opened(start(*KEEPS, "maxmemory-policy allkeys-lru").url, key)
    assert "Redis" not in caplog.text


@pytest.mark.parametrize(
    ("settings", "says"),
    [
        (("appendonly no",), "appendonly no: its crash forgets every lease"),
        (("appendonly yes", "appendfsync everysec"), "everysec: a power cut"),
        (("appendonly yes", "appendfsync no"), "appendfsync no: a power cut"),
        (KEEPS, ""),
    ],
)
async def test_trap_126_what_a_crash_would_cost_is_said(
    start: Start, key: Keys, caplog: pytest.LogCaptureFixture, settings: tuple[str, ...], says: str
) -> None:
    await opened(start(*settings).url, key)
    warnings = [one.getMessage() for one in caplog.records if one.levelno >= logging.WARNING]
    assert len(warnings) == bool(says)
    assert says in "".join(warnings)


ALLOWED = "~tidings:* +ping +evalsha +eval +time +get +set +del +pexpire +persist"


async def test_a_user_may_have_no_more_rights_than_the_message_names(
    start: Start, key: Keys, caplog: pytest.LogCaptureFixture
) -> None:
    server = start(*KEEPS, f"user shop on >s3cret {ALLOWED} +info", "user default on nopass ~* +@all")
    await opened(server.url.replace("//", "//shop:s3cret@"), key)
    (warning,) = [one.getMessage() for one in caplog.records if one.levelno >= logging.WARNING]
    assert "does not tell its appendfsync" in warning, "CONFIG is denied"
    assert "s3cret" not in warning


async def test_where_info_is_denied_what_could_not_be_checked_is_said(
    start: Start, key: Keys, caplog: pytest.LogCaptureFixture
) -> None:
    server = start(*KEEPS, f"user shop on >s3cret {ALLOWED}", "user default on nopass ~* +@all")
    await opened(server.url.replace("//", "//shop:s3cret@"), key)
    assert "could not be checked: version 6.2 or newer" in caplog.text


@pytest.mark.parametrize("missing", ["+evalsha", "+set", "+persist", "+pexpire", "+del", "~tidings:*"])
async def test_a_right_that_is_missing_is_known_at_the_start(start: Start, missing: str) -> None:
    rights = ALLOWED.replace(missing, "")
    server = start(*KEEPS, f"user shop on >s3cret {rights} +info", "user default on nopass ~* +@all")
    await refused(server.url.replace("//", "//shop:s3cret@"), ConfigurationError, r"The user needs: ~tidings:\*")


async def test_a_wrong_password_is_named_without_showing_it(start: Start) -> None:
    server = start(*KEEPS)
    with look(server.url) as client:
        client.config_set("requirepass", "right")
    for login in ("//:s3cret@", "//bob:s3cret@", "//"):
        await refused(server.url.replace("//", login), ConfigurationError, "user or the password")


async def test_a_cluster_is_refused_with_the_reason(start: Start) -> None:
    await refused(
        start(*KEEPS, "cluster-enabled yes", f"cluster-port {free_port()}").url,
        ConfigurationError,
        "is a cluster, which runs no script",
    )


async def test_a_replica_is_no_place_for_claims(start: Start) -> None:
    server = start(*KEEPS, "replicaof 127.0.0.1 1")
    await refused(server.url, StoreUnavailable, "(?i)read only replica|master")


async def test_a_database_that_is_not_there_is_named(start: Start) -> None:
    await refused(start(*KEEPS).url.replace("/0", "/77"), ConfigurationError, "number of a database")


async def test_nobody_there_is_an_outage() -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        await refused(f"redis://:s3cret@127.0.0.1:{taken.getsockname()[1]}/0", StoreUnavailable, "127.0.0.1")


async def test_a_server_that_says_nothing_is_an_outage_after_the_time_limit() -> None:
    with socket.socket() as silent:
        silent.bind(("127.0.0.1", 0))
        silent.listen()
        url = f"redis://:s3cret@127.0.0.1:{silent.getsockname()[1]}/0?timeout=200ms"
        await refused(url, StoreUnavailable, r"(?i)did not answer|timeout")


async def test_tls_with_a_certificate_that_is_trusted(start: Start, key: Keys) -> None:
    server = start(*KEEPS)
    server.stop()
    port = free_port()
    tls = ("tls-auth-clients no", *(f"tls-{name}-file {CERTS / f'server.{kind}'}" for name, kind in _FILES))
    server.settings = (*KEEPS, f"tls-port {port}", *tls, f"tls-ca-cert-file {CERTS / 'ca.pem'}")
    server.start()
    await opened(f"rediss://127.0.0.1:{port}/0?tls_ca={CERTS / 'ca.pem'}", key)
    await refused(f"rediss://127.0.0.1:{port}/0", StoreUnavailable, "(?i)certificate")


_FILES = (("cert", "pem"), ("key", "key"))


@pytest.mark.parametrize("decode", [False, True])
async def test_a_live_client_is_used_and_never_closed(redis_url: str, key: Keys, decode: bool) -> None:
    client = redis.asyncio.Redis.from_url(redis_url, decode_responses=decode)
    store = store_from(client)
    assert isinstance(store, RedisStore)
    await store.open()
    await apply(store, key("a"))
    assert list(await states(store, key("a"))) == [done("a")]
    await store.close()
    assert await client.ping()
    await client.aclose()


@pytest.mark.parametrize("kind", [redis.Redis, redis.asyncio.RedisCluster])
def test_a_client_that_is_not_asyncio_or_speaks_to_a_cluster_is_refused(kind: Any) -> None:
    made: Any = type("Client", (kind,), {"__del__": lambda self: None})
    given = made.__new__(made)
    with pytest.raises(ConfigurationError, match=r"redis\.asyncio\.Redis"):
        store_from(given)


@pytest.mark.parametrize(
    ("url", "says"),
    [
        ("redis://:s3cret@host:port/0", "cannot be read"),
        ("redis://:s3cret/x@host:6379/0", "cannot be read|number of a database"),
        ("redis:s3cret", "cannot be read"),
        ("redis://:s3cret@host/shop", "number of a database"),
        ("redis://:s3cret@host/0?lese=1", "'lese', which is none. There are: lease"),
        ("redis://:s3cret@host/0?lease=soon", "a time such as"),
        ("redis://:s3cret@host/0?lease=0", "between 0.1 seconds"),
        ("redis://:s3cret@host/0?remember=0s", "at least a second"),
        ("redis://:s3cret@host/0?timeout=2h", "between 0.05 seconds"),
        ("redis://:s3cret@host/0?unsafe=all", "only unsafe=eviction"),
        ("rediss://:s3cret@host/0?tls_ca=/not/there", "no such file"),
        (f"redis://:s3cret@host/0?tls_ca={__file__}", "Write rediss://"),
        (f"rediss://:s3cret@host/0?tls_key={__file__}", "needs tls_cert"),
    ],
)
def test_a_url_that_cannot_be_read_says_what_to_write_and_shows_no_password(url: str, says: str) -> None:
    with pytest.raises(ConfigurationError, match=says) as caught:
        store_from(url)
    assert "s3cret" not in str(caught.value)
    assert caught.value.__cause__ is None


def test_an_old_version_is_refused() -> None:
    for version in ("6.2.0", "7.0.15", "8.4.0", "10.0.0"):
        _check_version("here", version)
    for version in ("6.0.16", "5.0.14", "2.8"):
        with pytest.raises(ConfigurationError, match=r"needs 6\.2 or newer"):
            _check_version("here", version)


def test_without_the_library_the_message_says_what_to_install() -> None:
    code = (
        "import sys; sys.modules['redis'] = None\n"
        "from tidings.stores import store_from\n"
        "try: store_from('redis://:s3cret@host/0')\n"
        "except Exception as error: print(type(error).__name__, error)"
    )
    done_ = subprocess.run([sys.executable, "-c", code], timeout=60, check=True, capture_output=True, text=True)
    assert done_.stdout.startswith("ConfigurationError")
    assert "pip install 'tidings[redis]'" in done_.stdout
