"""Servers that the URL does not name, and of which the others of their cluster tell: tried too when a link is lost."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest

from tests.integration.nats.conftest import until
from tests.integration.nats.server import NatsServer
from tests.integration.nats.test_connecting import CERTS, tls
from tidings.brokers.nats.connection import Connection
from tidings.brokers.nats.options import parse
from tools.services.ports import free_port

pytestmark = pytest.mark.server


class Elsewhere(NatsServer):
    """A server at an address that stands on no certificate."""

    host = "127.0.0.2"


class Pair:
    """A server that the URL names by its name, and one elsewhere that it tells of by number."""

    def __init__(self, folder: Path) -> None:
        self._folder, self._inner = folder, free_port()
        self.named = self._joined(NatsServer(folder / "named", jetstream=None), self._inner)
        self.told = self.another()

    @property
    def url(self) -> str:
        return f"tls://localhost:{self.named.port}?tls_ca={CERTS}/ca.pem"

    def another(self) -> NatsServer:
        """A server that joins, with a port of its own."""
        server = Elsewhere(self._folder / f"told-{free_port()}", jetstream=None)
        return self._joined(server, free_port(), f'"nats://127.0.0.1:{self._inner}"')

    def _joined(self, server: NatsServer, inner: int, routes: str = "") -> NatsServer:
        cluster = f'cluster {{ name: tests, listen: "127.0.0.1:{inner}", routes: [{routes}] }}'
        server.configure(jetstream=None, extra=f"server_name: {server.folder.name}\n{tls()}\n{cluster}")
        return server


@pytest.fixture
def pair(tmp_path: Path) -> Iterator[Pair]:
    made = Pair(tmp_path)
    try:
        made.named.start()
        made.told.start()
        yield made
    finally:
        made.named.stop()
        made.told.stop()


@pytest.fixture
async def connection(pair: Pair) -> AsyncIterator[Connection]:
    made = Connection(parse(pair.url), "tests")
    await made.start()
    await until(lambda: knows(made, pair.told))
    yield made
    await made.close()


def knows(connection: Connection, server: NatsServer) -> bool:
    link = connection.link
    return link is not None and (server.host, server.port) in link.told


async def test_P10_a_server_that_a_cluster_tells_of_by_number_is_reached_over_tls(
    pair: Pair, connection: Connection
) -> None:
    lost = connection.link
    pair.named.stop()
    await until(lambda: connection.link not in (None, lost))
    assert connection.trouble == ""
    assert connection.link is not None
    assert connection.link.info["server_name"] == pair.told.folder.name
    await connection.link.round_trip(5.0)


async def test_an_address_that_the_cluster_does_not_tell_any_more_is_not_tried_for_ever(
    pair: Pair, connection: Connection
) -> None:
    gone, link = pair.told, connection.link
    assert link is not None
    link.abandon("cut")
    await until(lambda: connection.link is not link and knows(connection, gone))
    assert (gone.host, gone.port) in connection._servers
    gone.stop()
    pair.told = pair.another().start()
    await until(lambda: knows(connection, pair.told) and not knows(connection, gone))
    lost = connection.link
    pair.named.stop()
    await until(lambda: connection.link not in (None, lost))
    tried = connection._servers
    assert (gone.host, gone.port) not in tried
    assert (pair.told.host, pair.told.port) in tried
    assert ("localhost", pair.named.port) in tried
