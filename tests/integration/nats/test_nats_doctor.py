"""`tidings doctor` on nats-servers that are set up wrongly on purpose: the first line says what, the status how bad."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest

from tests.integration.kafka.test_doctor import doctor
from tests.integration.nats.server import NatsServer
from tidings.brokers import examine
from tidings.brokers.nats.connection import Connection
from tidings.brokers.nats.options import parse
from tools.services.ports import free_port

pytestmark = pytest.mark.server


@contextlib.contextmanager
def running(
    folder: Path, *, jetstream: str | None = "sync_interval: always", **more: str
) -> Iterator[tuple[NatsServer, str]]:
    """A server with a monitoring port, and the URL that names both."""
    monitor = free_port()
    server = NatsServer(folder, jetstream=jetstream, extra=f'http: "127.0.0.1:{monitor}"', **more).start()
    try:
        yield server, f"{server.url}?monitor={monitor}"
    finally:
        server.stop()


def test_a_server_without_jetstream_is_named_in_the_first_line(tmp_path: Path) -> None:
    with running(tmp_path, jetstream=None) as (_, url):
        status, lines = doctor(url)
    assert status == 3
    assert lines[0].startswith("wrong:")
    assert "without JetStream" in lines[0]
    assert "-js" in lines[0]


def test_nobody_at_the_port_is_told(tmp_path: Path) -> None:
    status, lines = doctor(f"nats://127.0.0.1:{free_port()}")
    assert (status, lines[0].split(":")[0]) == (4, "down")


async def test_a_port_that_is_not_for_clients_is_told_apart_from_a_server_that_is_down(tmp_path: Path) -> None:
    with running(tmp_path) as (_, url):
        (found,) = await examine(f"nats://127.0.0.1:{url.rpartition('=')[2]}")
    assert found.level == "down"
    assert "says nothing" in found.what
    assert "8222" in found.what
    assert "tls_first=1" in found.what


@pytest.mark.parametrize(
    ("permissions", "subject"),
    [('publish: "order.>", subscribe: "_INBOX.>"', "$js.api.info"), ('publish: ">", subscribe: "order.>"', "_inbox.")],
)
async def test_a_user_who_may_not_ask_jetstream_is_wrong_and_the_subject_is_named(
    tmp_path: Path, permissions: str, subject: str
) -> None:
    users = f"authorization {{ users: [ {{user: a, password: b, permissions: {{ {permissions} }} }} ] }}"
    server = NatsServer(tmp_path / "granted", extra=users).start()
    try:
        async with asyncio.timeout(40):
            (*_, found) = await examine(f"nats://a:b@127.0.0.1:{server.port}")
    finally:
        server.stop()
    assert found.level == "wrong"
    assert subject in found.what


async def test_a_server_that_takes_no_more_connections_is_told_in_its_own_words(tmp_path: Path) -> None:
    server = NatsServer(tmp_path / "full", extra="max_connections: 1").start()
    other = Connection(parse(server.url), "other")
    try:
        await other.start()
        # Of fifty resets one throws away what was said before, where nobody can find it.
        told = [found.what for _ in range(3) for found in await examine(server.url)]
    finally:
        await other.close()
        server.stop()
    assert any("maximum connections exceeded" in what for what in told)


@pytest.mark.parametrize(("setting", "seconds"), [("", "120 s"), ("sync_interval: 30s", "30 s")])
async def test_a_server_that_confirms_before_it_writes_is_a_warning(tmp_path: Path, setting: str, seconds: str) -> None:
    with running(tmp_path, jetstream=setting) as (_, url):
        (found,) = await examine(url)
    assert found.level == "warning"
    assert seconds in found.what
    assert "sync_interval: always" in found.remedy


async def test_a_server_that_is_set_up_well_is_fine(tmp_path: Path) -> None:
    with running(tmp_path) as (_, url):
        (found,) = await examine(url)
    assert found.level == "fine"


async def test_what_cannot_be_seen_is_not_called_fine(tmp_path: Path) -> None:
    with running(tmp_path / "one") as (server, _), running(tmp_path / "other") as (_, other):
        (unseen,) = await examine(f"{server.url}?monitor={free_port()}")
        (strange,) = await examine(f"{server.url}?{other.partition('?')[2]}")
    assert [unseen.level, strange.level] == ["warning", "warning"]
    assert "cannot be seen" in unseen.what
    assert "another server answers" in strange.what


async def test_messages_that_have_no_room_are_told(tmp_path: Path) -> None:
    with running(tmp_path, max_payload="100KB") as (_, url):
        (found,) = await examine(url)
    assert found.level == "wrong"
    assert "max_payload" in found.remedy


@pytest.mark.parametrize(
    ("version", "level", "said"),
    [
        ("2.11.9", "wrong", "does not start with it"),
        ("2.12.1", "warning", "servers join a cluster"),
        ("2.14.5", "warning", "may lose a consumer"),
        ("2.15.1", "fine", "keeps what it confirms"),
    ],
)
async def test_trap_4_a_version_with_known_losses_is_named(tmp_path: Path, version: str, level: str, said: str) -> None:
    """The version that the server says of itself is changed on the way."""
    with running(tmp_path) as (server, url):
        async with saying(server.port, version) as port:
            found = await examine(url.replace(str(server.port), str(port), 1))
    (told,) = [one for one in found if said in one.what]
    assert told.level == level
    assert version in told.what
    assert level == "fine" or "2.14.6" in told.remedy


@contextlib.asynccontextmanager
async def saying(port: int, version: str) -> AsyncIterator[int]:
    """The way to a server, on which it says another version of itself."""
    tasks: set[asyncio.Task[None]] = set()

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        there, back = await asyncio.open_connection("127.0.0.1", port)
        info = await there.readline()
        before, mark, rest = info.partition(b'"version":"')
        writer.write(before + mark + version.encode() + b'"' + rest.partition(b'"')[2])
        for source, sink in ((reader, back), (there, writer)):
            task = asyncio.create_task(_pass_on(source, sink))
            tasks.add(task)

    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    try:
        yield server.sockets[0].getsockname()[1]
    finally:
        server.close()
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


async def _pass_on(source: asyncio.StreamReader, sink: asyncio.StreamWriter) -> None:
    try:
        while some := await source.read(65536):
            sink.write(some)
    finally:
        sink.close()
