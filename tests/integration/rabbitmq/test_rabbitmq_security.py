"""TLS and signing in at a real RabbitMQ: what works, and what is said where it does not."""

from __future__ import annotations

import asyncio
import re
import ssl
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Final

import pytest

from tests.integration.rabbitmq.conftest import Connect, plan, position, until
from tests.integration.rabbitmq.test_rabbitmq_doctor import doctor
from tidings.brokers import examine
from tidings.brokers.rabbitmq.broker import RabbitBroker
from tidings.delivery import Route
from tidings.errors import BrokerUnavailable, ConfigurationError, TidingsError
from tidings.findings import Finding
from tools.services.ports import free_port
from tools.services.rabbitmq import RabbitMQ

pytestmark = [pytest.mark.server, pytest.mark.proves(broker="rabbitmq")]

CERTS: Final = Path(__file__).parents[1] / "nats" / "certs"
CANARY: Final = "s3cret-canary"
CLIENT: Final = "tidings-test-client"
"""The name on the client's certificate."""
TRUSTS: Final = f"tls_ca={CERTS / 'ca.pem'}"
SHOWS: Final = f"tls_cert={CERTS / 'client.pem'}&tls_key={CERTS / 'client.key'}"
NOT_LIVE: Final = r"^(?!tidings-live\.)"
"""Everything but the queues by which processes hear each other."""
FILES: Final = {"cacertfile": "ca.pem", "certfile": "server.pem", "keyfile": "server.key"}


class SecureRabbit(RabbitMQ):
    """It speaks TLS at a second port, demands certificates there, and takes the name on them for the user's."""

    def __init__(self, folder: Path) -> None:
        self.tls_port = free_port()
        super().__init__(
            folder,
            f"listeners.ssl.1 = 127.0.0.1:{self.tls_port}",
            *(f"ssl_options.{name} = {CERTS / file}" for name, file in FILES.items()),
            "ssl_options.verify = verify_peer",
            "ssl_options.fail_if_no_peer_cert = true",
            "ssl_cert_login_from = common_name",
            *(f"auth_mechanisms.{number} = {name}" for number, name in enumerate(("PLAIN", "EXTERNAL"), 1)),
        )

    def prepare(self) -> None:
        super().prepare()
        (self.folder / "enabled_plugins").write_text("[rabbitmq_auth_mechanism_ssl].\n")

    def amqps(self, login: str = "tidings:tidings@", query: str = f"{TRUSTS}&{SHOWS}") -> str:
        return f"amqps://{login}127.0.0.1:{self.tls_port}?connect_timeout=8s&{query}"

    def admit(self, name: str, *permissions: str) -> None:
        """A user with rights to configure, to write and to read what matches."""
        self.control("add_user", name, CANARY)
        self.control("set_permissions", name, *permissions)


@pytest.fixture(scope="module")
def secure(tmp_path_factory: pytest.TempPathFactory) -> Iterator[SecureRabbit]:
    with SecureRabbit(tmp_path_factory.mktemp("secure")) as server:
        server.admit(CLIENT, ".*", ".*", ".*")
        yield server


async def said(url: str) -> str:
    """What a start says that fails, and that says so at once."""
    broker = RabbitBroker(url)
    try:
        with pytest.raises(ConfigurationError) as raised:
            await broker.open(plan(position()))
        assert CANARY not in str(raised.value)
        return str(raised.value)
    finally:
        await broker.close()


@pytest.mark.parametrize("how", ["a password", "the certificate"])
async def test_a_user_over_tls_publishes_and_handles(secure: SecureRabbit, connect: Connect, how: str) -> None:
    external = secure.amqps("", f"{TRUSTS}&{SHOWS}&auth=external")
    rig = await connect(secure.amqps(query=f"{TRUSTS}&{SHOWS}&tls_name=localhost") if how == "a password" else external)
    await rig.publish(b"1" * 500_000)
    assert len((await rig.settled(1))[0].body) == 500_000
    assert rig.broker.trouble == ""


@pytest.mark.parametrize(
    ("query", "why", "remedy"),
    [
        (SHOWS, "certificate", "?tls_ca="),
        (f"tls_ca={CERTS / 'client.pem'}&{SHOWS}", "certificate", "?tls_ca="),
        (f"{TRUSTS}&{SHOWS}&tls_name=elsewhere.example", "elsewhere.example", "tls_name="),
        (f"tls_ca=/no/such/file&{SHOWS}", "/no/such/file", "tls_ca"),
        (f"tls_ca={CERTS / 'client.key'}&{SHOWS}", "no certificates", "tls_ca"),
        (f"{TRUSTS}&tls_cert={CERTS / 'client.pem'}&tls_key={CERTS / 'server.key'}", "server.key", "belong"),
    ],
    ids=[
        "nobody vouches for the server",
        "somebody else is trusted",
        "another name",
        "no such file",
        "no certificates in the file",
        "another key",
    ],
)
async def test_what_is_wrong_with_the_certificates_is_said_with_the_option(
    secure: SecureRabbit, query: str, why: str, remedy: str
) -> None:
    message = await said(secure.amqps(query=query))
    assert why in message
    assert remedy in message


async def test_a_certificate_that_the_server_demands_and_does_not_get_is_named(secure: SecureRabbit) -> None:
    """What it says of that may be lost: it closes the connection in the same moment."""
    broker = RabbitBroker(secure.amqps(query=TRUSTS).replace("connect_timeout=8s", "connect_timeout=3s"))
    try:
        with pytest.raises(TidingsError, match="tls_cert="):
            await broker.open(plan(position()))
    finally:
        await broker.close()


async def test_what_may_have_been_a_demand_for_a_certificate_is_said() -> None:
    """A server that closes as soon as TLS stands, and whose last words are lost."""
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    context.load_cert_chain(CERTS / "server.pem", CERTS / "server.key")

    async def close(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.transport.abort()

    async with await asyncio.start_server(close, "127.0.0.1", 0, ssl=context) as server:
        where = f"amqps://127.0.0.1:{server.sockets[0].getsockname()[1]}?connect_timeout=3s&{TRUSTS}"
        for query, said in (("", True), (f"&{SHOWS}", False)):
            broker = RabbitBroker(where + query)
            with pytest.raises(BrokerUnavailable) as raised:
                await broker.open(plan(position()))
            await broker.close()
            assert ("tls_cert=" in str(raised.value)) == said


async def test_tls_at_the_wrong_port_is_told_from_wrong_certificates(secure: SecureRabbit) -> None:
    message = await said(f"amqps://127.0.0.1:{secure.port}?connect_timeout=8s&{TRUSTS}")
    assert "speaks no TLS" in message
    assert "amqp://" in message
    message = await said(f"amqp://127.0.0.1:{secure.tls_port}?connect_timeout=8s")
    assert "amqps://" in message


async def test_who_may_not_in_is_said_without_the_password(secure: SecureRabbit) -> None:
    message = await said(secure.amqps(f"tidings:wrong-{CANARY}@"))
    assert "refused the user 'tidings'" in message
    secure.control("eval", "application:set_env(rabbit, auth_mechanisms, ['PLAIN']).")
    try:
        message = await said(secure.amqps("", f"{TRUSTS}&{SHOWS}&auth=external"))
    finally:
        secure.control("eval", "application:set_env(rabbit, auth_mechanisms, ['PLAIN', 'EXTERNAL']).")
    assert "rabbitmq_auth_mechanism_ssl" in message
    secure.control("clear_permissions", CLIENT)
    try:
        message = await said(secure.amqps("", f"{TRUSTS}&{SHOWS}&auth=external"))
    finally:
        secure.control("set_permissions", CLIENT, ".*", ".*", ".*")
    assert "the user of the client's certificate" in message
    assert "virtual host '/'" in message
    other = f"{TRUSTS}&tls_cert={CERTS / 'server.pem'}&tls_key={CERTS / 'server.key'}&auth=external"
    assert "no user of the name on the client's certificate" in await said(secure.amqps("", other))


async def test_the_doctor_names_the_step_that_fails(secure: SecureRabbit) -> None:
    for url, status, what in (
        (secure.amqps(), 0, "takes messages"),
        (secure.amqps().replace("127.0.0.1", "no-such-host.invalid"), 4, "not known"),
        (secure.amqps().replace(str(secure.tls_port), str(free_port())), 4, "nothing listens"),
        (secure.amqps(query=SHOWS), 3, "no TLS connection"),
        (secure.amqps(query=TRUSTS), (3, 4), "tls_cert="),
        (secure.amqps(f"tidings:{CANARY}@"), 3, "refused the user"),
    ):
        found, lines = await asyncio.to_thread(doctor, url)
        assert found in (status if isinstance(status, tuple) else (status,)), lines
        assert what in (lines[-1] if status == 0 else lines[0]), lines
        assert CANARY not in "".join(lines)


@pytest.mark.parametrize(
    ("name", "permissions", "wrong"),
    [
        ("maker", (".*", "^$", ".*"), "publish"),
        ("writer", ("^$", ".*", ".*"), "make"),
        ("blind", (".*", ".*", "^$"), "read"),
        ("narrow", ("^(order|tidings-.*|stock[.].*)$", ".*", ".*"), ""),
    ],
)
async def test_the_doctor_names_what_a_user_may_not_and_makes_nothing(
    secure: SecureRabbit, connect: Connect, name: str, permissions: tuple[str, ...], wrong: str
) -> None:
    secure.admit(name, *permissions)
    await connect(secure.amqps(), subscribe=False)  # so that there is something to read
    before = sorted(secure.control("list_queues", "name").splitlines())
    found: list[Finding] = list(await examine(secure.amqps(f"{name}:{CANARY}@")))
    named = [one for one in found if one.level == "wrong"]
    if wrong:
        assert [f"may not {wrong}" in one.what for one in named] == [True]
        assert "rabbitmqctl set_permissions" in named[0].remedy
    else:
        assert not named
        assert any("may not make" in one.what for one in found if one.level == "warning"), "of another service"
    assert sorted(secure.control("list_queues", "name").splitlines()) == before


async def test_the_doctor_makes_nothing_where_nobody_has_been(secure: SecureRabbit) -> None:
    secure.control("add_vhost", "empty")
    secure.control("set_permissions", "-p", "empty", "tidings", ".*", ".*", ".*")
    url = secure.amqps().replace("?", "/empty?")
    assert {one.level for one in await examine(url)} == {"fine"}
    assert secure.control("list_queues", "-q", "-p", "empty", "--no-table-headers", "name").split() == []


async def test_a_start_and_a_publish_say_what_the_user_may_not(secure: SecureRabbit, connect: Connect) -> None:
    here = position()
    await connect(secure.amqps(), here, subscribe=False)
    for name, permissions in (("reads", (".*", "^$", ".*")), ("writes", (".*", ".*", "^$"))):
        secure.admit(name, *permissions)
        broker = RabbitBroker(secure.amqps(f"{name}:{CANARY}@"))
        with pytest.raises(ConfigurationError, match="rabbitmqctl set_permissions"):
            await broker.open(plan(here))
        await broker.close()
    secure.admit("elsewhere", ".*", f"^(?!{here.stream}$)", ".*")
    rig = await connect(secure.amqps(f"elsewhere:{CANARY}@"), here, subscribe=False)
    (error,) = await rig.broker.publish([rig.message()], timeout=30)
    assert isinstance(error, ConfigurationError)
    assert f"'{here.stream}'" in str(error)
    assert "rabbitmqctl set_permissions" in str(error)


@pytest.mark.parametrize("ordered", [False, True])
async def test_the_rights_that_the_guide_names_are_enough(
    secure: SecureRabbit, connect: Connect, ordered: bool
) -> None:
    here = position(ordered=ordered)
    service, stream = here.position.partition(".")[0], here.stream
    make, write = (right.replace("order", stream).replace("stock", service) for right in guide())
    secure.admit(service, make, write, make)
    rig = await connect(secure.amqps(f"{service}:{CANARY}@"), here)
    await rig.publish(b"1", b"2")
    await rig.settled(2)
    letter = rig.message(b"dead", route=Route.DEAD, position=here.position)
    assert await rig.broker.publish([rig.copy(), rig.copy(due=time.time() + 0.5), letter], timeout=30) == [None] * 3
    await rig.settled(4)
    assert [one.body async for one in rig.broker.read(Route.DEAD)][-1] == b"dead"
    assert not [one for one in await examine(secure.amqps(f"{service}:{CANARY}@")) if one.level == "wrong"]


@pytest.mark.parametrize("permissions", [(NOT_LIVE, ".*", ".*"), (".*", "^(?!tidings-live$)", ".*")])
async def test_P10_an_ordered_handler_whose_processes_may_not_hear_each_other_says_so(
    secure: SecureRabbit, connect: Connect, permissions: tuple[str, ...]
) -> None:
    here = position(ordered=True)
    secure.admit(here.stream, *permissions)
    rig = await connect(secure.amqps(f"{here.stream}:{CANARY}@"), here)
    await until(lambda: "may not hear each other" in rig.broker.trouble)
    assert "rabbitmqctl set_permissions" in rig.broker.trouble
    secure.control("set_permissions", here.stream, ".*", ".*", ".*")
    await until(lambda: rig.broker.trouble == "", 30)
    await rig.publish(b"1")
    await rig.settled(1)


def guide() -> tuple[str, str]:
    """The rights to configure, and to read, and that to write."""
    page = (Path(__file__).parents[3] / "docs" / "howto" / "use-rabbitmq.md").read_text()
    make, write = (re.search(rf"^\| {right} \| `(.*)` \|$", page, re.MULTILINE) for right in ("configure", "write"))
    assert make
    assert write
    return make[1].replace("\\|", "|"), write[1].replace("\\|", "|")
