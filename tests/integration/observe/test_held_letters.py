"""How many dead letters are held, and for how long, on a real server: after redrive, discard, restart and a refusal."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Literal

import pytest

from tests.integration.nats.cluster import NatsCluster
from tests.integration.nats.server import NatsServer
from tests.unit.observe.shop import Placed
from tests.unit.observe.test_metrics import sample
from tidings import Dead, Service
from tidings.brokers.nats.names import DEAD_STREAM
from tidings.dead_letters import discard, list_letters, redrive
from tidings.delivery import Header
from tidings.observe import Observability
from tidings.sight import LetterLog, Lines

pytestmark = [pytest.mark.server, pytest.mark.proves("P7", broker="nats", store="none")]
WHERE = '{handler="handle",service="shop"}'
COUNT, AGE = f"tidings_dead_letters_held{WHERE}", f"tidings_dead_letters_oldest_seconds{WHERE}"
Order = Literal["key"] | None


@pytest.fixture(autouse=True)
def eager(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tidings.observe._looking.LETTERS_EVERY", 0.0)


@asynccontextmanager
async def shop(url: str, order: Order = None) -> AsyncIterator[tuple[Service, Observability]]:
    """A service whose events die unless they say otherwise, as a process of its own would run it."""
    service = Service("shop", broker=url, publishes=[Placed])

    @service.on(Placed, name="handle", idempotent=True, order=order)
    async def handle(event: Placed) -> None:
        if event.wanted != "done":
            raise Dead("no such shelf")

    sight = Observability(service, port=None, every=0.2)
    async with sight, service.running():
        yield service, sight


async def tells(sight: Observability, count: int, seconds: float = 30.0) -> None:
    async with asyncio.timeout(seconds):
        while sample(sight.metrics.text().decode()).get(COUNT) != count:  # noqa: ASYNC110  # metrics tell nobody
            await asyncio.sleep(0.1)


async def die(service: Service, *names: str) -> None:
    errors = await service.publish_many([Placed(order_id=name, wanted="dead") for name in names])
    assert errors == [None] * len(names)


@pytest.mark.parametrize("order", ["key", None])
async def test_P7_what_is_held_is_right_after_redrive_discard_and_restart(nats: NatsServer, order: Order) -> None:
    async with shop(nats.url, order) as (service, sight):
        await tells(sight, 0)
        assert sample(sight.metrics.text().decode())[AGE] == 0
        await die(service, "a", "b", "c")
        await tells(sight, 3)
        letters = await list_letters(service.active.broker)
        await discard(service.active.broker, letters[0])
        await tells(sight, 2)
        await redrive(service.active.broker, letters[1])
        await until_dead_again(service, 2)
        await asyncio.sleep(1.5)
        await tells(sight, 2)
    async with shop(nats.url, order) as (service, sight):
        await tells(sight, 2)
        age = sample(sight.metrics.text().decode())[AGE]
        assert age > 1, "the oldest died before the restart"
        for letter in await list_letters(service.active.broker):
            await discard(service.active.broker, letter)
        await tells(sight, 0)
        assert sample(sight.metrics.text().decode())[AGE] == 0
        assert not service.active.broker.trouble


async def until_dead_again(service: Service, wanted: int) -> None:
    """A redriven letter is one no more, and what it dies as is another."""
    async with asyncio.timeout(30):
        while True:
            letters = await list_letters(service.active.broker, state=None)
            if any(one.redriven_from for one in letters) and sum(one.state == "dead" for one in letters) == wanted:
                return
            await asyncio.sleep(0.1)


async def test_P7_each_process_of_a_handler_tells_the_same(nats: NatsServer) -> None:
    async with shop(nats.url) as (service, one), shop(nats.url) as (_, two):
        await die(service, *map(str, range(5)))
        await tells(one, 5)
        await tells(two, 5)
        await die(service, "more")
        await tells(two, 6)
        await tells(one, 6)


async def test_P7_more_letters_than_one_look_reads_are_counted_to_the_last(
    nats: NatsServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tidings.observe._held.MOST_LINES", 70)
    monkeypatch.setattr("tidings.brokers.nats.letters.BATCH", 30)
    async with shop(nats.url) as (service, sight):
        await die(service, *map(str, range(300)))
        await tells(sight, 300)
    async with shop(nats.url) as (service, sight):
        await tells(sight, 300)


async def test_P7_a_log_of_dead_letters_that_was_made_anew_is_counted_anew(nats: NatsServer) -> None:
    """Also where it has as many lines as the old one had."""
    async with shop(nats.url) as (service, sight):
        log = service.active.broker.letters("shop.handle", ordered=False)  # type: ignore[attr-defined]  # NatsBroker
        await die(service, "a", "b")
        await tells(sight, 2)
        first = await whole(log, 2)
        await delete(nats.url)
        async with shop(nats.url) as (other, _):  # whoever starts makes it
            await die(other, "c", "d")
            await tells(sight, 2)
        second = await whole(log, 2)
    assert [len(lines.headers) for lines in (first, second)] == [2, 2]
    assert second.anew
    assert not (ids_of(first) & ids_of(second))


async def whole(log: LetterLog, count: int) -> Lines:
    """What comes when nobody else reads, until there are so many."""
    found: list[Mapping[str, str]] = []
    anew = False
    async with asyncio.timeout(30):
        while True:
            lines = await log.more(100)
            assert lines is not None
            found += lines.headers
            anew |= lines.anew
            if len(found) >= count:
                return Lines(found, lines.whole, anew)
            await asyncio.sleep(0.3)


def ids_of(lines: Lines) -> set[str]:
    return {headers[Header.LETTER] for headers in lines.headers}


async def delete(url: str) -> None:
    from nats.aio.client import Client

    client = Client()
    await client.connect(url)
    await client.jetstream().delete_stream("tidings-dead")
    await client.close()


async def test_P7_at_a_cluster_it_is_right_also_when_the_server_is_gone_that_led_the_log(tmp_path: Path) -> None:
    cluster = NatsCluster(tmp_path / "cluster").start()
    try:
        async with shop(cluster.url) as (service, one), shop(cluster.url) as (_, two):
            await die(service, "a", "b")
            await tells(one, 2)
            await tells(two, 2)
            cluster.nodes[cluster.leader(DEAD_STREAM)].stop()
            await service.publish(Placed(order_id="c", wanted="dead"), timeout=60)
            await tells(one, 3, 90)
            await tells(two, 3, 90)
    finally:
        cluster.stop()


USER = """
authorization {{ users: [
  {{ user: "ops", password: "ops" }}
  {{ user: "shop", password: "shop", permissions {{ publish {{ deny: [{denied}] }} }} }}
] }}
"""


@pytest.mark.parametrize(
    "denied", ["$JS.API.CONSUMER.CREATE.tidings-dead.>", "$JS.API.CONSUMER.MSG.NEXT.tidings-dead.>"]
)
async def test_P7_where_it_may_not_be_read_that_is_said_once_and_the_service_stays_ready(
    tmp_path: Path, denied: str, caplog: pytest.LogCaptureFixture
) -> None:
    nats = NatsServer(tmp_path / "nats", extra=USER.format(denied=f'"{denied}"')).start()
    try:
        async with shop(f"nats://shop:shop@127.0.0.1:{nats.port}") as (service, sight):
            await die(service, "a")
            await until_dead(service)
            with caplog.at_level(logging.WARNING):
                await until_said(caplog)
                await asyncio.sleep(3)  # and not again
            sight.health.look()
            assert sight.ready().reasons == ()
            assert COUNT not in sample(sight.metrics.text().decode())
    finally:
        nats.stop()
    said = [one.getMessage() for one in caplog.records if "dead letters are held" in one.getMessage()]
    assert len(said) == 1
    assert "this user may not publish on $JS.API.CONSUMER." in said[0]
    assert "permissions violation" not in caplog.text.lower()


async def until_said(caplog: pytest.LogCaptureFixture) -> None:
    async with asyncio.timeout(60):
        while "dead letters are held" not in caplog.text:  # noqa: ASYNC110  # a log tells nobody
            await asyncio.sleep(0.1)


async def until_dead(service: Service) -> None:
    async with asyncio.timeout(30):
        while not await list_letters(service.active.broker):  # noqa: ASYNC110  # the log tells nobody
            await asyncio.sleep(0.1)
