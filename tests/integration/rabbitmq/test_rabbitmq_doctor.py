"""`tidings doctor` on servers that are set up wrongly on purpose: the first line says what, the status how bad."""

from __future__ import annotations

import asyncio
import json
import os
import subprocess
import sys
from typing import Any, cast

import pytest
from pamqp import commands

from tests.integration.rabbitmq.conftest import Connect
from tools.services.ports import free_port
from tools.services.rabbitmq import RabbitMQ

pytestmark = pytest.mark.server


def doctor(url: str, *more: str) -> tuple[int, list[str]]:
    """Its exit status and its lines."""
    command = [sys.executable, "-m", "tidings.cli", "doctor", url, *more]
    env = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False, env=env)
    return done.returncode, (done.stdout + done.stderr).splitlines()


def test_what_keeps_one_out_is_told_apart(rabbitmq_url: str) -> None:
    for url, status, said in (
        (f"amqp://127.0.0.1:{free_port()}", 4, "nothing listens"),
        ("amqp://no-such-host.invalid", 4, "cannot be reached"),
        (rabbitmq_url.replace(":tidings@", ":hunter2@"), 3, "refused the user"),
        (rabbitmq_url + "/nowhere", 3, "virtual host 'nowhere'"),
    ):
        found, lines = doctor(url)
        assert (found, said in lines[0]) == (status, True), lines
        assert "hunter2" not in "".join(lines)


def test_a_server_that_is_too_old_is_named_with_what_is_needed(server: RabbitMQ) -> None:
    """No older one is to be had: this one is made to say so of itself."""
    says = '[{<<"version">>, longstr, <<"3.9.29">>}]'
    server.control("eval", f"application:set_env(rabbit, server_properties, {says}).")
    status, lines = doctor(server.url)
    assert status == 3
    assert "runs RabbitMQ 3.9.29; Tidings needs 3.10 or newer" in lines[0]


async def test_a_server_that_is_full_and_queues_that_are_wrong_are_named(server: RabbitMQ, connect: Connect) -> None:
    status, lines = await asyncio.to_thread(doctor, server.url, "--json")
    assert (status, {json.loads(line)["level"] for line in lines}) == (0, {"fine"})
    rig = await connect(server.url, subscribe=False)
    status, lines = await asyncio.to_thread(doctor, server.url)
    assert status == 0
    assert "fine: 1 positions have all their queues" in lines
    position = rig.subscription.position
    assert rig.broker._inward is not None
    channel = await (await rig.broker._inward.ready(5)).channel(5)
    for queue in (position, f"{position}._retry"):
        await channel.call(commands.Queue.Delete(0, queue, False, False, False), 5)
    asked = cast(Any, {"x-queue-type": "classic"})
    await channel.call(commands.Queue.Declare(0, position, False, True, False, False, False, asked), 5)
    await asyncio.to_thread(server.control, "set_disk_free_limit", "1000GB")
    status, lines = await asyncio.to_thread(doctor, server.url)
    wrong = [line for line in lines if line.startswith("wrong:")]
    assert (status, len(wrong)) == (3, 3)
    assert any("takes no messages" in line for line in wrong)
    assert any("is another than Tidings needs" in line for line in wrong)
    assert any(f"{position}._retry" in line and "is gone" in line for line in wrong)
