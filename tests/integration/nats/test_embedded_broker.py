"""The broker on `embedded:`: it starts the server, brings it back, and leaves it."""

from __future__ import annotations

import os
import signal
from pathlib import Path

import pytest

from tests.integration.nats.conftest import Connect, plan, position, until
from tidings.brokers import broker_from
from tidings.brokers.nats.broker import NatsBroker
from tidings.delivery import Route
from tidings.errors import ConfigurationError

pytestmark = pytest.mark.server


async def test_P10_a_killed_embedded_server_is_brought_back_and_all_goes_on(tmp_path: Path, connect: Connect) -> None:
    rig = await connect(f"embedded:{tmp_path / 'data'}")
    await rig.publish(b"before")
    await rig.settled(1)
    server = rig.broker._server
    assert server is not None
    assert server.pid is not None
    os.kill(server.pid, signal.SIGKILL)
    await until(lambda: rig.broker.trouble != "")
    await until(lambda: rig.broker.trouble == "", 20)
    await rig.publish(b"after", timeout=10)
    await until(lambda: b"after" in rig.bodies, 20)


async def test_two_brokers_share_one_server_and_the_last_one_ends_it(tmp_path: Path) -> None:
    url = f"embedded:{tmp_path / 'data'}"
    one, two = broker_from(url), broker_from(url)
    assert isinstance(one, NatsBroker)
    assert isinstance(two, NatsBroker)
    await one.open(plan(position()))
    await two.open(plan(position()))
    pid = one._server.pid if one._server else None
    assert pid is not None
    await one.close()
    assert [letter async for letter in two.read(Route.DEAD)] == []
    await two.close()
    with pytest.raises(ProcessLookupError):
        os.kill(pid, 0)


async def test_a_broker_that_could_not_open_leaves_no_server_behind(tmp_path: Path) -> None:
    url = f"embedded:{tmp_path / 'data'}"
    first, second = NatsBroker(url), NatsBroker(url)
    await first.open(plan(position()))
    await first.close()
    with pytest.raises(ConfigurationError, match="is new, and"):
        await second.open(plan(position("stock.other")))
    assert second._server is not None
    assert second._server.pid is None
    await second.close()


async def test_a_broker_may_be_opened_again(tmp_path: Path) -> None:
    broker = NatsBroker(f"embedded:{tmp_path / 'data'}")
    for _ in range(2):
        await broker.open(plan(position()))
        await broker.open(plan(position("billing.pay")))
        await broker.close()
        assert broker.trouble == "", "somebody else has it open still"
        await broker.close()
        assert broker.trouble == "not connected"
