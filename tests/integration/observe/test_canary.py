"""No secret appears, and what strangers send forges no line: in logs at DEBUG, pages, errors, letters and spans."""

from __future__ import annotations

import asyncio
import io
import json
import logging
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from urllib.parse import urlsplit

import pytest

from tests.integration.nats.server import NatsServer
from tests.integration.observe.test_zombies import get
from tests.spans import Spans, shown, spans
from tests.unit.observe.shop import Placed
from tidings import Retry, Service, TidingsError
from tidings.dead_letters import Letter, fold
from tidings.delivery import Message
from tidings.envelope import envelope_of, to_structured
from tidings.observe import Observability
from tidings.observe.logs import configure_logging

__all__ = ["spans"]
pytestmark = pytest.mark.server
CANARY = "c4n4ry-0f-the-broker"
STORE_CANARY = "c4n4ry-0f-the-store"
LOGIN = f'authorization {{ user: "shop", password: "{CANARY}" }}'
FORGED = '{"message": "forged"}'
NASTY = f"1\n{FORGED}\r\x1b[2J"


@pytest.fixture
def lines() -> Iterator[io.StringIO]:
    """All that is logged, as machines read it, at the level that tells most."""
    root, stream = logging.getLogger(), io.StringIO()
    handlers, level = root.handlers[:], root.level
    configure_logging(json=True, level="DEBUG", stream=stream)
    yield stream
    root.handlers[:] = handlers
    root.setLevel(level)


def shop(store: str = "") -> Service:
    service = Service("shop", publishes=[Placed], store=store or None)

    @service.on(Placed, name="handle", idempotent=True, order=None, retry=Retry(attempts=2, first=0.01))
    async def handle(event: Placed) -> None:
        raise RuntimeError(f"{event.wanted} cannot be had")

    return service


async def test_P7_P14_no_secret_of_a_url_appears_anywhere(
    lines: io.StringIO, spans: Spans, tmp_path: Path, postgres_url: str
) -> None:
    nats = NatsServer(tmp_path / "nats", extra=LOGIN).start()
    url = f"nats://shop:{CANARY}@127.0.0.1:{nats.port}"
    said: list[str] = []
    try:
        service = shop()
        sight = Observability(service, port=0)
        async with sight, service.running(broker=url):
            said.append(repr(service.active.broker))
            await service.publish(Placed(order_id="1", wanted="tea"))
            letters = await letters_of(service, 1)
            said += [letter.reason + letter.traceback + str(letter.headers) + str(letter.body) for letter in letters]
            said += await asyncio.to_thread(pages, sight.url)
            nats.stop()
            with suppress(TidingsError):
                await service.publish(Placed(order_id="2"), timeout=1)
            await asyncio.sleep(1.0)
            said += await asyncio.to_thread(pages, sight.url)
        for wrong in (url, url.replace("127.0.0.1", "nowhere.invalid"), url.replace(CANARY, f"{CANARY}-wrong")):
            if "wrong" in wrong:
                nats.start()
            said.append(await error_of(shop(), f"{wrong}?connect_timeout=1s"))
    finally:
        nats.stop()
    address = urlsplit(postgres_url)
    for store in (
        f"postgresql://{address.username}:{STORE_CANARY}@{address.hostname}:{address.port}/nowhere",
        f"postgresql+asyncpg://{address.username}:{STORE_CANARY}@{address.hostname}:{address.port}/nowhere",
        f"redis://:{STORE_CANARY}@127.0.0.1:1/0",
    ):
        said.append(await error_of(shop(store), "memory:"))
    said += [lines.getvalue(), *map(shown, spans.all())]
    assert len(lines.getvalue().splitlines()) > 5
    assert len(spans.all()) > 2
    assert all(said), "each of them says something"
    assert [text for text in said if "c4n4ry" in text] == []


async def letters_of(service: Service, count: int) -> list[Letter]:
    async with asyncio.timeout(30):
        while True:
            found = await fold(service.active.broker, bodies=True)
            if len(found.letters) >= count:
                return list(found.letters.values())
            await asyncio.sleep(0.05)


def pages(url: str) -> list[str]:
    return [get(f"{url}{page}")[1] for page in ("/metrics", "/health/live", "/health/ready", "/nowhere")]


async def error_of(service: Service, broker: str) -> str:
    try:
        async with asyncio.timeout(30):
            async with service.running(broker=broker):
                raise AssertionError("it runs, and should not")
    except TidingsError as error:
        return f"{type(error).__name__}: {error!r} {error} {error.__cause__!r} {error.__context__!r}"


async def test_what_strangers_send_forges_no_line_and_makes_no_series(
    lines: io.StringIO, spans: Spans, tmp_path: Path
) -> None:
    nats = NatsServer(tmp_path / "nats").start()
    try:
        service = shop()
        sight = Observability(service, port=0)
        async with sight, service.running(broker=nats.url):
            body = to_structured(envelope_of(Placed(order_id="1", wanted=NASTY), "elsewhere"))
            assert NASTY.encode() not in body
            strange = body.replace(b'"id":"', b'"id":"forged\\n\\u001b[2J')
            sent = [
                Message(id="1", stream="order", type="order.placed", key="1", body=body),
                Message(id="2", stream="order", type="order.placed", key="1", body=strange),
                Message(id="3", stream="order", type="order.placed", key="1", body=f"{NASTY}\x00".encode()),
            ]
            assert await service.active.broker.publish(sent, timeout=5) == [None] * 3
            await letters_of(service, 3)
            metrics = (await asyncio.to_thread(pages, sight.url))[0]
    finally:
        nats.stop()
    for line in lines.getvalue().splitlines():
        record = json.loads(line)
        assert record["message"] != "forged"
        assert record["level"]
    assert "\x1b" not in lines.getvalue()
    assert "forged" not in metrics
    for span in spans.all():
        values = [value for value in (span.attributes or {}).values() if isinstance(value, str)]
        assert all(value.isprintable() for value in values), shown(span)
