"""Credentials that expire, or are replaced, while a service works: it signs in with the new ones, and loses nothing."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import signal
import sqlite3
from collections import Counter, defaultdict
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
import sqlalchemy as sa
from sqlalchemy.ext.asyncio import AsyncConnection

from tests.integration.nats.conftest import Connect, Rig, plan, position, until
from tests.integration.nats.jwt import Authority
from tests.integration.nats.server import NatsServer
from tests.integration.nats.test_connecting import LASTS, running
from tests.integration.shop import Placed
from tidings import Service
from tidings.brokers.nats.broker import NatsBroker
from tidings.brokers.nats.login import Login
from tidings.errors import BrokerUnavailable

pytestmark = [pytest.mark.server, pytest.mark.proves("P10", broker="nats")]

KEYS = 10


async def renew(authority: Authority, creds: Path) -> None:
    """As an agent beside the service does, in good time."""
    while True:
        authority.issue(creds, lives=4)
        await asyncio.sleep(0.05)


@pytest.mark.proves("P4", "P10", broker="nats", store="sqlite")
async def test_P4_P10_credentials_that_expire_under_load_are_renewed_from_their_file_and_nothing_is_lost(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    authority, creds, own = Authority(), tmp_path / "user.creds", tmp_path / "front.creds"
    authority.issue(own)
    database = tmp_path / "shop.db"
    with contextlib.closing(sqlite3.connect(database)) as connection:
        connection.execute("CREATE TABLE ledger (handler TEXT, key TEXT, number INTEGER)")
    with running(tmp_path / "s", authority.config) as server:
        stock = Service("stock", store=f"sqlite:///{database}", publishes=[Placed])
        insert = sa.text("INSERT INTO ledger VALUES (:h, :k, :n)")

        @stock.on(Placed)
        async def in_order(event: Placed, db: AsyncConnection) -> None:
            await db.execute(insert, {"h": "in order", "k": event.order_id, "n": event.number})

        @stock.on(Placed, order=None)
        async def in_no_order(event: Placed, db: AsyncConnection) -> None:
            await db.execute(insert, {"h": "in no order", "k": event.order_id, "n": event.number})

        front = Service("front", broker=NatsBroker(f"{server.url}?creds={own}"), publishes=[Placed])
        events: list[Placed] = []
        authority.issue(creds, lives=4)
        agent = asyncio.create_task(renew(authority, creds))
        async with stock.running(broker=NatsBroker(f"{server.url}?creds={creds}&ack_wait=2s")), front.running():
            while caplog.text.count("the server said: user authentication expired") < 6:  # of two connections each time
                few = [
                    Placed(order_id=f"k{number % KEYS}", number=number)
                    for number in range(len(events), len(events) + 5)
                ]
                assert not any(await front.publish_many(few))
                events += few
                await asyncio.sleep(0.05)
                assert len(events) < 5000

            def rows() -> list[tuple[str, str, int]]:
                with contextlib.closing(sqlite3.connect(database)) as connection:
                    return connection.execute("SELECT * FROM ledger ORDER BY rowid").fetchall()

            await until(lambda: len(rows()) >= 2 * len(events), 30)
            await asyncio.sleep(0.5)
            await until(lambda: not stock.active.broker.trouble)
        agent.cancel()
    by: dict[tuple[str, str], list[int]] = defaultdict(list)
    for handler, key, number in rows():
        by[handler, key].append(number)
    for name in (f"k{number}" for number in range(KEYS)):
        wanted = [event.number for event in events if event.order_id == name]
        assert by["in order", name] == wanted, "once, and in order"
        assert sorted(by["in no order", name]) == wanted
    assert "SEED" not in caplog.text


async def test_P10_renewed_credentials_that_are_bad_too_are_said_aloud_and_tried_with_pauses_until_they_are_good(
    tmp_path: Path, connect: Connect, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tidings.brokers._healing.SAY_AGAIN", 2.0)
    authority, stranger, creds = Authority(), Authority(), tmp_path / "user.creds"
    with running(tmp_path / "s", authority.config) as server, caplog.at_level(logging.WARNING, "tidings.nats"):
        authority.issue(creds, lives=LASTS)
        rig = await connect(f"{server.url}?creds={creds}")
        await rig.publish(b"before")
        await until(lambda: f"refused the credentials of {creds}, which expired" in rig.broker.trouble)
        stranger.issue(creds)  # somebody else's: no better
        await until(lambda: "which expired" not in rig.broker.trouble)
        assert f"refused the credentials of {creds}: replace what {creds} holds" in rig.broker.trouble
        before = server.log.count("authentication error") + server.log.count("Authorization Violation")
        await asyncio.sleep(5.0)
        tries = server.log.count("authentication error") + server.log.count("Authorization Violation") - before
        print(f"\n{tries} lines of refusals in 5 s")
        assert tries <= 40, "it tries again, with pauses"

        def refusals() -> Counter[str]:
            texts = (one.getMessage() for one in caplog.records)
            return Counter(text for text in texts if f"refused the credentials of {creds}: replace" in text)

        # Each of its two connections says so, and again while nothing changes.
        await until(lambda: len(refusals()) == 2 and min(refusals().values()) >= 2)
        creds.write_text("rubbish")
        await until(lambda: "holds no credentials that can be used" in rig.broker.trouble)
        creds.unlink()
        await until(lambda: "there is no such file" in rig.broker.trouble)
        (error,) = await rig.broker.publish([rig.message(b"while")], timeout=0.3)
        assert isinstance(error, BrokerUnavailable)
        authority.issue(creds)
        await until(lambda: rig.broker.trouble == "")
        await rig.publish(b"after")
        assert [one.body for one in await rig.settled(2)][-1] == b"after"
    said = [one for one in caplog.records if str(creds) in one.getMessage()]
    assert {one.levelno for one in said} == {logging.ERROR}
    assert len(refusals()) == 2
    assert "SEED" not in caplog.text
    assert "eyJ" not in caplog.text, "no token either"


class Users:
    """A server with one user, whose password can be changed while it runs."""

    def __init__(self, server: NatsServer) -> None:
        self._server = server

    def set(self, extra: str) -> None:
        self._server.configure(extra=extra)
        assert self._server._process is not None
        self._server._process.send_signal(signal.SIGHUP)


@contextlib.asynccontextmanager
async def rigged(server: NatsServer, url: str, login: Login | None = None) -> AsyncIterator[Rig]:
    broker = NatsBroker(url, login=login)
    rig = Rig(broker, position())
    await broker.open(plan(rig.subscription))
    await rig.subscribe()
    yield rig
    await broker.close()


USER = 'authorization {{ user: "me", password: "{}" }}'
TOKEN = 'authorization {{ token: "{}" }}'


@pytest.mark.parametrize("how", ["password_file", "token_file", "login", "login of a coroutine"])
async def test_P10_a_password_or_token_that_is_changed_is_read_again_from_its_source(
    tmp_path: Path, how: str, caplog: pytest.LogCaptureFixture
) -> None:
    secret, template = tmp_path / "secret", TOKEN if how == "token_file" else USER
    secret.write_text("first-hunter2\n")

    def login() -> tuple[str, str]:
        return "me", secret.read_text().strip()

    async def login_slowly() -> tuple[str, str]:
        await asyncio.sleep(0.01)
        return login()

    with running(tmp_path / "s", template.format("first-hunter2")) as server:
        at = f"127.0.0.1:{server.port}"
        urls = {
            "password_file": f"nats://me@{at}?password_file={secret}",
            "token_file": f"{server.url}?token_file={secret}",
        }
        asked: dict[str, Login] = {"login": login, "login of a coroutine": login_slowly}
        async with rigged(server, urls.get(how, server.url), asked.get(how)) as rig:
            await rig.publish(b"before")
            await rig.settled(1)
            Users(server).set(template.format("second-hunter2"))
            await until(lambda: "refused" in rig.broker.trouble)
            assert "hunter2" not in rig.broker.trouble
            secret.write_text("second-hunter2\n")
            await until(lambda: rig.broker.trouble == "")
            await rig.publish(b"after")
            assert [one.body for one in await rig.settled(2)][-1] == b"after"
    assert "hunter2" not in caplog.text
