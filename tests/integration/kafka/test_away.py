"""A Kafka that goes away and comes back: what is logged, and in which words."""

from __future__ import annotations

import asyncio
import json
import logging
import os
import socket
import subprocess
import sys
import threading
from pathlib import Path

import pytest
from confluent_kafka import KafkaError

from tests.integration.kafka.conftest import Connect, Rig, plan, position, until
from tidings.brokers.kafka.broker import KafkaBroker
from tools.services.kafka import Kafka
from tools.services.ports import free_port

pytestmark = [pytest.mark.server, pytest.mark.proves(broker="kafka")]


def tidings(*words: str) -> tuple[int, list[str]]:
    """Its exit status and what it says on stderr."""
    env = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
    command = [sys.executable, "-m", "tidings.cli", *words]
    done = subprocess.run(command, capture_output=True, text=True, timeout=100, check=False, env=env)
    return done.returncode, done.stderr.splitlines()


@pytest.mark.parametrize("json_", [False, True], ids=["for people", "for programs"])
def test_a_command_says_in_one_line_that_nobody_listens_and_what_to_do(json_: bool) -> None:
    url = f"kafka://127.0.0.1:{free_port()}?connect_timeout=6s"
    status, lines = tidings("dead", "list", "--broker", url, *["--json"][: int(json_)])
    assert status == 4
    (line,) = lines
    told = json.loads(line)["error"] if json_ else line
    assert f"nothing listens on {url.partition('?')[0]}. Is the broker running" in told


def test_a_port_that_speaks_something_else_is_told_from_one_where_nobody_is() -> None:
    with socket.create_server(("127.0.0.1", 0)) as listening:
        threading.Thread(target=_greet, args=(listening,), daemon=True).start()
        url = f"kafka://127.0.0.1:{listening.getsockname()[1]}?connect_timeout=6s"
        status, (line,) = tidings("dead", "list", "--broker", url)
        listening.shutdown(socket.SHUT_RDWR)
    assert status == 4
    assert "is not Kafka. Does this port speak Kafka" in line


def test_a_port_that_takes_connections_and_says_nothing_is_told_from_one_where_nobody_is() -> None:
    with socket.create_server(("127.0.0.1", 0)) as listening:  # as HTTP: it waits for the end of a line
        url = f"kafka://127.0.0.1:{listening.getsockname()[1]}?connect_timeout=6s"
        status, (line,) = tidings("dead", "list", "--broker", url)
    assert status == 4
    assert "took the connection and did not answer. Does this port speak Kafka" in line


def _greet(listening: socket.socket) -> None:
    """What RabbitMQ answers to whoever does not speak its protocol."""
    try:
        while True:
            connection, _ = listening.accept()
            with connection:
                connection.recv(64)
                connection.sendall(b"AMQP\x00\x00\x09\x01")
    except OSError:
        pass  # the test is over


async def test_an_outage_is_one_warning_in_plain_words_and_its_end_is_none(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, "tidings.kafka")
    with Kafka(tmp_path / "server") as server:
        # However long it takes to come back, the group has not forgotten who is in it: that would be said as well.
        rig = Rig(KafkaBroker(f"{server.url}?join=10s&session_timeout=120s"), position())
        try:
            await rig.broker.open(plan(rig.subscription))
            await rig.subscribe()
            await asyncio.to_thread(server.stop)
            await until(lambda: rig.broker.trouble)
            where = server.url.partition("?")[0]
            await until(lambda: f"nothing listens on {where}. Is the broker running" in rig.broker.trouble)
            await asyncio.to_thread(server.start)
            await until(lambda: not rig.broker.trouble, 90)
            await rig.publish(rig.message(b"1"))
            await until(lambda: rig.got)
        finally:
            await rig.broker.close()
    said = [(one.levelname, one.getMessage()) for one in caplog.records if one.name == "tidings.kafka"]
    warnings = [text for level, text in said if level == "WARNING"]
    assert len(warnings) == 1, said
    assert where in warnings[0]
    assert "Is the broker running" in warnings[0]
    assert ("INFO", f"{where} can be reached again") in said


async def test_a_report_of_an_outage_that_is_over_is_no_outage(
    connect: Connect, caplog: pytest.LogCaptureFixture
) -> None:
    rig = await connect(subscribe=False)
    link = rig.broker._link
    assert link is not None
    asked: list[int] = []
    probe = link._probe

    async def counted() -> None:
        await probe()
        asked.append(1)

    link._probe = counted  # type: ignore[method-assign]
    # A client hands over what it has to say when it is asked for events, or closed: perhaps long after.
    link._heard(KafkaError(KafkaError._ALL_BROKERS_DOWN, "1/1 brokers are down"))
    assert rig.broker.trouble == ""
    await until(lambda: asked)
    assert rig.broker.trouble == ""
    assert not [one for one in caplog.records if one.name == "tidings.kafka"]
