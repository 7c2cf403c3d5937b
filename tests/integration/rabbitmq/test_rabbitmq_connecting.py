"""Getting in, and one clear message for whatever is wrong."""

from __future__ import annotations

import socket

import pytest

from tests.integration.rabbitmq.conftest import Connect, plan, position
from tests.stranger import speaking
from tidings.brokers import broker_from
from tidings.brokers.rabbitmq.broker import RabbitBroker, check_version
from tidings.delivery import Route
from tidings.errors import BrokerUnavailable, ConfigurationError, MisuseError
from tools.services.ports import free_port

pytestmark = [pytest.mark.server, pytest.mark.proves(broker="rabbitmq")]


async def failed(url: str, kind: type[Exception]) -> str:
    broker = RabbitBroker(url)
    try:
        with pytest.raises(kind) as error:
            await broker.open(plan(position()))
    finally:
        await broker.close()
    assert "hunter2" not in str(error.value)
    return str(error.value)


async def test_a_wrong_password_is_named_without_showing_it(rabbitmq_url: str) -> None:
    url = rabbitmq_url.replace("tidings:tidings", "tidings:hunter2")
    assert "refused the user 'tidings'" in await failed(url, ConfigurationError)


async def test_a_virtual_host_that_is_not_there_is_named(rabbitmq_url: str) -> None:
    assert "virtual host 'nowhere'" in await failed(rabbitmq_url + "/nowhere", ConfigurationError)


async def test_a_server_that_is_not_there_is_named_within_the_time() -> None:
    said = await failed(f"amqp://me:hunter2@127.0.0.1:{free_port()}?connect_timeout=3s", BrokerUnavailable)
    assert "nothing listens on amqp://127.0.0.1:" in said


@pytest.mark.parametrize("words", [b"HTTP/1.1 400 Bad Request\r\n\r\n", b"AMQP\x03\x01\x00\x00", b"\xff" * 64, b""])
async def test_something_else_that_answers_is_no_rabbitmq(words: bytes) -> None:
    async with speaking(words) as port:
        said = await failed(f"amqp://127.0.0.1:{port}?connect_timeout=3s", BrokerUnavailable)
    assert f"amqp://127.0.0.1:{port}" in said
    assert "what is no RabbitMQ's greeting" in said or "Does RabbitMQ listen at this port?" in said, said


async def test_who_takes_the_connection_and_says_nothing_is_there_and_may_be_another_server() -> None:
    with socket.create_server(("127.0.0.1", 0)) as listening:  # as HTTP: it waits for the end of a line
        port = listening.getsockname()[1]
        said = await failed(f"amqp://127.0.0.1:{port}?connect_timeout=3s", BrokerUnavailable)
    assert f"amqp://127.0.0.1:{port}: it took the connection and says nothing" in said
    assert "Does RabbitMQ listen at this port?" in said
    assert "15672" in said
    assert "Is the server running" not in said


async def test_a_login_that_nobody_wrote_is_told_from_one_that_is_wrong(rabbitmq_url: str) -> None:
    host = rabbitmq_url.rpartition("@")[2]
    said = await failed(f"amqp://{host}", ConfigurationError)
    assert "refused the user 'guest', as the URL names none: write amqp://user:password@host" in said
    said = await failed(f"amqp://tidings@{host}", ConfigurationError)
    assert "refused the user 'tidings', and the URL names no password" in said
    said = await failed(f"amqp://tidings:hunter2@{host}", ConfigurationError)
    assert "the URL names no" not in said


async def test_an_address_with_colons_is_shown_as_it_has_to_be_written() -> None:
    port = free_port()
    said = await failed(f"amqp://[::1]:{port}?connect_timeout=3s", BrokerUnavailable)
    assert f"amqp://[::1]:{port}" in said


async def test_the_scheme_finds_it(rabbitmq_url: str) -> None:
    assert broker_from(rabbitmq_url).features.name == "rabbitmq"
    assert not broker_from(rabbitmq_url).features.history


async def test_the_first_of_several_servers_may_be_away(rabbitmq_url: str, connect: Connect) -> None:
    host = rabbitmq_url.rpartition("@")[2]
    for order in (f"127.0.0.1:{free_port()},{host}", f"{host},127.0.0.1:{free_port()}"):
        rig = await connect(rabbitmq_url.replace(host, order))
        await rig.publish(b"in")
        assert (await rig.settled(1))[0].body == b"in"


async def test_before_it_is_open_it_says_so() -> None:
    broker = RabbitBroker("amqp://127.0.0.1")
    with pytest.raises(MisuseError, match="not open"):
        broker.read(Route.DEAD)
    with pytest.raises(MisuseError, match="not open"):
        await broker.positions("s")
    assert broker.trouble == "not connected"


async def test_a_log_of_events_is_refused_with_the_reason(rabbitmq_url: str, connect: Connect) -> None:
    rig = await connect(rabbitmq_url, subscribe=False)
    with pytest.raises(ConfigurationError, match="keeps no history"):
        rig.broker.read(Route.EVENT, rig.stream)


def test_an_old_server_is_refused_with_what_is_needed() -> None:
    for version in ("3.8.9", "3.9.29", "", "2"):
        with pytest.raises(ConfigurationError, match=r"needs 3\.10 or newer"):
            check_version(version, "amqp://host")
    for version in ("3.10.0", "3.13.7", "4.0.5", "4.3.0-rc.1"):
        check_version(version, "amqp://host")
