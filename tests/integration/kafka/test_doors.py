"""A Kafka that tells its clients an address where nobody reaches it: said at once, with what to set."""

from __future__ import annotations

import logging
from pathlib import Path

import pytest

from tests.integration.kafka.conftest import plan, position
from tidings.brokers.kafka.broker import KafkaBroker
from tidings.brokers.kafka.doors import must_reach
from tidings.errors import BrokerUnavailable
from tools.services.kafka import Kafka
from tools.services.ports import free_port

pytestmark = [pytest.mark.server, pytest.mark.proves(broker="kafka")]


@pytest.mark.parametrize(
    ("advertised", "why"), [("badhost:9092", "'badhost' is not known"), ("127.0.0.1:1", "nobody answers at")]
)
async def test_whoever_starts_hears_which_address_leads_nowhere(tmp_path: Path, advertised: str, why: str) -> None:
    # Without a look at it the library says, after ten seconds, that no controller could be found to make topics.
    server = Kafka(tmp_path / "server")
    server.far_advertised = advertised
    with server:
        broker = KafkaBroker(f"kafka://127.0.0.1:{server.far_port}")
        with pytest.raises(BrokerUnavailable, match=rf"is there, but .*{advertised}, and from here\b.*") as caught:
            await broker.open(plan(position()))
        await broker.close()
    told = str(caught.value)
    assert "advertised.listeners" in told
    assert "nothing listens" not in told
    # One question in fifty is asked when the library has left the URL's address already: then it tells the reason.
    assert why in told or "Failed to resolve" in told or "Connection refused" in told


async def test_one_broker_of_several_that_is_not_reached_is_a_warning(
    kafka: Kafka, caplog: pytest.LogCaptureFixture
) -> None:
    here = "127.0.0.1", int(kafka.url.rpartition(":")[2].partition("?")[0])
    with caplog.at_level(logging.WARNING, "tidings.kafka"):
        await must_reach("kafka://there:9092", {1: here, 2: ("127.0.0.1", free_port())})
    (line,) = [one.getMessage() for one in caplog.records]
    assert "broker 2 tells its clients to come to 127.0.0.1:" in line
    assert "advertised.listeners of broker 2" in line
