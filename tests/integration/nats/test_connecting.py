"""Getting in: users, tokens, nkeys, credentials and TLS, and one clear message for whatever is wrong."""

from __future__ import annotations

import asyncio
import contextlib
import json
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from pathlib import Path

import pytest

from tests.integration.nats.conftest import Connect, plan, position, until
from tests.integration.nats.jwt import Authority, nkey_user
from tests.integration.nats.server import NatsServer
from tidings.brokers.nats.broker import NatsBroker
from tidings.delivery import Route
from tidings.errors import BrokerUnavailable, ConfigurationError, MisuseError
from tools.services.ports import free_port

pytestmark = pytest.mark.server

Speak = Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]]
CERTS = Path(__file__).with_name("certs")
LASTS = 6.0
"""Seconds for which credentials are good that are to expire: to get in with them must not take longer."""
USER = 'authorization { user: "me", password: "hunter2" }'


@contextlib.contextmanager
def running(
    folder: Path, extra: str = "", jetstream: str | None = "", max_payload: str = "2MB"
) -> Iterator[NatsServer]:
    with NatsServer(folder, extra=extra, jetstream=jetstream, max_payload=max_payload) as server:
        yield server


def tls(more: str = "") -> str:
    files = f'cert_file: "{CERTS}/server.pem"\nkey_file: "{CERTS}/server.key"\nca_file: "{CERTS}/ca.pem"'
    return f"tls {{\n{files}\n{more}\n}}"


async def refused(url: str) -> str:
    """The message with which a server's or a URL's fault is told."""
    broker = NatsBroker(url)
    try:
        with pytest.raises(ConfigurationError) as error:
            await broker.open(plan(position()))
    finally:
        await broker.close()
    assert "hunter2" not in str(error.value)
    assert error.value.__suppress_context__ or error.value.__context__ is None
    return str(error.value)


async def test_a_user_with_the_right_password_gets_in(tmp_path: Path, connect: Connect) -> None:
    with running(tmp_path, USER) as server:
        rig = await connect(f"nats://me:hunter2@127.0.0.1:{server.port}")
        await rig.publish(b"in")
        assert (await rig.settled(1))[0].body == b"in"


async def test_a_wrong_password_is_named_without_showing_it(tmp_path: Path) -> None:
    with running(tmp_path, USER.replace("hunter2", "right")) as server:
        said = await refused(f"nats://me:hunter2@127.0.0.1:{server.port}")
        assert f"nats://127.0.0.1:{server.port} refused the user 'me' with the password given" in said
        assert "a connection without a user" in await refused(server.url)
        assert "refused the token" in await refused(f"nats://hunter2@127.0.0.1:{server.port}")


async def test_a_token_gets_in(tmp_path: Path, connect: Connect) -> None:
    with running(tmp_path, 'authorization { token: "s3cret!" }') as server:
        for url in (f"nats://s3cret%21@127.0.0.1:{server.port}", f"{server.url}?token=s3cret%21"):
            await connect(url)


async def test_an_nkey_gets_in(tmp_path: Path, connect: Connect) -> None:
    seed, wrong = tmp_path / "user.nk", tmp_path / "wrong.nk"
    nkey_user(wrong)
    with running(tmp_path / "s", f"authorization {{ users: [ {{ nkey: {nkey_user(seed)} }} ] }}") as server:
        await connect(f"{server.url}?nkey={seed}")
        assert f"refused the credentials of {wrong}" in await refused(f"{server.url}?nkey={wrong}")
        wrong.write_text("no seed at all")
        assert f"{wrong} holds no credentials that can be used" in await refused(f"{server.url}?nkey={wrong}")


async def test_trap_50_expired_credentials_are_replaced_without_a_restart(tmp_path: Path, connect: Connect) -> None:
    authority, creds = Authority(), tmp_path / "user.creds"
    with running(tmp_path / "s", authority.config) as server:
        authority.issue(creds, lives=LASTS)
        rig = await connect(f"{server.url}?creds={creds}")
        await rig.publish(b"before")
        await until(lambda: rig.broker.trouble != "")
        await until(lambda: "refused the credentials" in rig.broker.trouble)
        (error,) = await rig.broker.publish([rig.message(b"while")], timeout=0.3)
        assert isinstance(error, BrokerUnavailable)
        authority.issue(creds)
        await until(lambda: rig.broker.trouble == "")
        await rig.publish(b"after")
        assert [one.body for one in await rig.settled(2)][-1] == b"after"
        creds.write_text("rubbish")
        assert "holds no credentials that can be used" in await refused(f"{server.url}?creds={creds}")


async def test_tls_gets_in_and_its_faults_are_told(tmp_path: Path, connect: Connect) -> None:
    with running(tmp_path, tls()) as server:
        at = f"127.0.0.1:{server.port}"
        await connect(f"tls://{at}?tls_ca={CERTS}/ca.pem")
        await connect(f"nats://{at}?tls_ca={CERTS}/ca.pem")
        said = await refused(f"tls://{at}")
        assert "no TLS connection could be made" in said
        assert "tls_ca" in said
        assert "tls_name" in await refused(f"tls://{at}?tls_ca={CERTS}/ca.pem&tls_name=other.example")


async def test_a_server_may_ask_for_the_clients_certificate(tmp_path: Path, connect: Connect) -> None:
    with running(tmp_path, tls("verify: true")) as server:
        at = f"tls://127.0.0.1:{server.port}?tls_ca={CERTS}/ca.pem"
        await connect(f"{at}&tls_cert={CERTS}/client.pem&tls_key={CERTS}/client.key")
        broker = NatsBroker(f"{at}&connect_timeout=1s")
        with pytest.raises((ConfigurationError, BrokerUnavailable)):
            await broker.open(plan(position()))


async def test_tls_first_gets_in(tmp_path: Path, connect: Connect) -> None:
    with running(tmp_path, tls("handshake_first: true")) as server:
        await connect(f"tls://127.0.0.1:{server.port}?tls_ca={CERTS}/ca.pem&tls_first=1")


async def test_a_password_is_never_sent_where_tls_was_asked_for_and_is_not(tmp_path: Path) -> None:
    with running(tmp_path, USER) as server:
        assert "speaks no TLS" in await refused(f"tls://me:hunter2@127.0.0.1:{server.port}")


async def test_no_server_at_all_is_told_with_its_address() -> None:
    broker = NatsBroker("nats://me:hunter2@127.0.0.1:1?connect_timeout=3s")
    with pytest.raises(
        BrokerUnavailable, match=r"nothing listens on nats://127\.0\.0\.1:1\. Is the server running"
    ) as e:
        await broker.open(plan(position()))
    assert "hunter2" not in str(e.value)
    await broker.close()


async def test_a_server_that_comes_late_is_waited_for(tmp_path: Path, connect: Connect) -> None:
    server = NatsServer(tmp_path)

    async def come() -> None:
        await asyncio.sleep(0.7)
        await asyncio.to_thread(server.start)

    coming = asyncio.create_task(come())
    try:
        rig = await connect(server.url)
        await rig.publish(b"late")
    finally:
        await coming
        server.stop()


async def test_what_is_no_nats_server_is_told(tmp_path: Path) -> None:
    async def speak(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(b"HTTP/1.1 400 Bad Request\r\n\r\n")

    async with serving(speak) as port:
        broker = NatsBroker(f"nats://127.0.0.1:{port}?connect_timeout=3s")
        with pytest.raises(BrokerUnavailable, match=rf"nats://127\.0\.0\.1:{port} answered with"):
            await broker.open(plan(position()))


@pytest.mark.parametrize(("version", "said"), [("2.11.9", "2.12.0 or newer"), ("2.9.0-beta.1", "upgrade the server")])
async def test_trap_4_an_old_server_is_refused_with_the_remedy(version: str, said: str) -> None:
    async def speak(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        info = {"server_id": "x", "version": version, "headers": True, "jetstream": True, "max_payload": 1048576}
        writer.write(f"INFO {json.dumps(info)}\r\n".encode())
        while line := await reader.readline():
            if line.startswith(b"PING"):
                writer.write(b"PONG\r\n")

    async with serving(speak) as port:
        told = await refused(f"nats://127.0.0.1:{port}")
        assert said in told
        assert version in told


@contextlib.asynccontextmanager
async def serving(speak: Speak) -> AsyncIterator[int]:
    """Something else that listens, and speaks to whoever connects."""
    writers: list[asyncio.StreamWriter] = []

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writers.append(writer)
        await speak(reader, writer)
        writer.close()

    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    try:
        yield server.sockets[0].getsockname()[1]
    finally:
        server.close()
        for writer in writers:
            writer.transport.abort()
        await asyncio.sleep(0.01)


async def test_a_server_without_jetstream_is_refused_with_the_remedy(tmp_path: Path) -> None:
    with running(tmp_path, jetstream=None) as server:
        assert "runs without JetStream" in await refused(server.url)


async def test_a_leaf_node_without_jetstream_reaches_that_of_its_hub(tmp_path: Path, connect: Connect) -> None:
    inner = free_port()
    listens = f'leafnodes {{ listen: "127.0.0.1:{inner}" }}'
    joins = f'leafnodes {{ remotes: [ {{ url: "nats://127.0.0.1:{inner}" }} ] }}'
    with running(tmp_path / "hub", listens, jetstream="domain: hub"), running(tmp_path / "leaf", joins, None) as leaf:
        assert "name the domain" in await refused(leaf.url)
        rig = await connect(f"{leaf.url}?domain=hub")
        await rig.publish(b"in")
        assert (await rig.settled(1))[0].body == b"in"


async def test_an_account_without_jetstream_is_refused_with_the_remedy(tmp_path: Path) -> None:
    accounts = """accounts {
        A { users: [ {user: a, password: "hunter2"} ] }
        B { jetstream: enabled, users: [ {user: b, password: b} ] }
    }"""
    with running(tmp_path, accounts) as server:
        assert "JetStream is not enabled for this account" in await refused(f"nats://a:hunter2@127.0.0.1:{server.port}")


async def test_a_server_that_takes_small_messages_only_is_refused(tmp_path: Path) -> None:
    with running(tmp_path, max_payload="64KB") as server:
        assert "set max_payload to 1.2MB" in await refused(server.url)


async def test_the_largest_event_leaves_room_for_headers(tmp_path: Path, connect: Connect) -> None:
    with running(tmp_path, max_payload="1MB") as server:
        rig = await connect(server.url, subscribe=False)
        assert rig.broker.features.max_bytes == 1024 * 1024 - 64 * 1024


async def test_the_first_server_of_a_list_may_be_down(server: NatsServer, connect: Connect) -> None:
    await connect(f"nats://127.0.0.1:1,127.0.0.1:{server.port}")


async def test_P10_a_server_of_a_list_that_hangs_leaves_time_for_the_others(
    tmp_path: Path, server: NatsServer, connect: Connect, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("random.shuffle", lambda servers: None)  # the one that hangs comes first
    with running(tmp_path / "hangs") as hanging:
        hanging.pause()
        rig = await connect(f"nats://127.0.0.1:{hanging.port},127.0.0.1:{server.port}?connect_timeout=10s")
        await rig.publish(b"in")
        await rig.settled(1)


async def test_before_open_nothing_works_and_says_so() -> None:
    broker = NatsBroker("nats://127.0.0.1:1")
    with pytest.raises(MisuseError, match="open"):
        await broker.subscribe(position(), lambda delivery: None)
    with pytest.raises(MisuseError, match="open"):
        broker.read(Route.DEAD)
    assert broker.trouble == "not connected"
    await broker.close()
    await broker.close()
