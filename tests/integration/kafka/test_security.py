"""Signing in to a real Kafka over TLS: what works, and what is said where it does not."""

from __future__ import annotations

import asyncio
import base64
import json
import time
from collections.abc import AsyncIterator, Iterator, Mapping
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, Final

import pytest
from confluent_kafka.admin import (  # type: ignore[attr-defined]  # they are there
    AdminClient,
    ScramCredentialInfo,
    ScramMechanism,
    UserScramCredentialUpsertion,
)

from tests.integration.kafka.conftest import Rig, plan, position, until
from tidings.brokers import examine
from tidings.brokers.kafka.broker import KafkaBroker
from tidings.errors import BrokerUnavailable
from tools.services.kafka import Kafka
from tools.services.ports import free_port

pytestmark = [pytest.mark.server, pytest.mark.proves(broker="kafka")]

CERTS: Final = Path(__file__).parents[1] / "nats" / "certs"
CANARY: Final = "s3cret-canary"
TRUSTS: Final = f"tls_ca={CERTS / 'ca.pem'}"
SHOWS: Final = f"tls_cert={CERTS / 'client.pem'}&tls_key={CERTS / 'client.key'}"
LASTS: Final = 6.0
"""Seconds for which a token of the tests is good, and a connection that was made with it."""


class SecureKafka(Kafka):
    """Clients speak TLS, and sign in by a password, a token or a certificate; the node itself has a listener apart."""

    def __init__(self, folder: Path) -> None:
        super().__init__(folder)
        self.mutual_port = free_port()

    def prepare(self) -> None:
        (self.folder / "server.pem").write_text((CERTS / "server.key").read_text() + (CERTS / "server.pem").read_text())
        self.configure()
        users = [f"SCRAM-SHA-{bits}=[name=shop,password={CANARY}]" for bits in (256, 512)]
        scram = [word for user in users for word in ("--add-scram", user)]
        file = str(self.folder / "server.properties")
        self.run(*self._java("kafka.tools.StorageTool", "format", "-t", self.cluster_id, "-c", file, *scram))

    def properties(self) -> dict[str, str]:
        given = super().properties()
        near, scram = "listener.name.near.", _module("scram.Scram")
        mutual = f",MUTUAL://127.0.0.1:{self.mutual_port}"
        keys = {"ssl.keystore.type": "PEM", "ssl.keystore.location": str(self.folder / "server.pem")}
        trust = {"ssl.truststore.type": "PEM", "ssl.truststore.location": str(CERTS / "ca.pem")}
        return given | {
            "listeners": given["listeners"] + mutual,
            "advertised.listeners": given["advertised.listeners"] + mutual,
            "inter.broker.listener.name": "FAR",
            "listener.security.protocol.map": "NEAR:SASL_SSL,FAR:PLAINTEXT,CONTROLLER:PLAINTEXT,MUTUAL:SSL",
            near + "sasl.enabled.mechanisms": "PLAIN,SCRAM-SHA-256,SCRAM-SHA-512,OAUTHBEARER",
            near + "plain.sasl.jaas.config": _module("plain.Plain", f'user_shop="{CANARY}"'),
            near + "scram-sha-256.sasl.jaas.config": scram,
            near + "scram-sha-512.sasl.jaas.config": scram,
            near + "oauthbearer.sasl.jaas.config": _module(
                "oauthbearer.OAuthBearer", 'unsecuredLoginStringClaim_sub="x"'
            ),
            near + "oauthbearer.connections.max.reauth.ms": str(int(LASTS * 1000)),
            **{near + name: value for name, value in keys.items()},
            **{f"listener.name.mutual.{name}": value for name, value in {**keys, **trust}.items()},
            "listener.name.mutual.ssl.client.auth": "required",
        }

    def ready(self) -> bool:
        return self._answers(self.far_port)


def _module(name: str, *words: str) -> str:
    return " ".join((f"org.apache.kafka.common.security.{name}LoginModule", "required", *words)) + ";"


@pytest.fixture(scope="module")
def secure(tmp_path_factory: pytest.TempPathFactory) -> Iterator[SecureKafka]:
    with SecureKafka(tmp_path_factory.mktemp("secure")) as server:
        yield server


@asynccontextmanager
async def working(url: str, options: Mapping[str, Any] | None = None) -> AsyncIterator[Rig]:
    """A process that has published and was handed an event."""
    rig = Rig(KafkaBroker(url, options=options), position())
    try:
        await rig.broker.open(plan(rig.subscription))
        await rig.subscribe()
        await rig.publish(rig.message(b"1"))
        await until(lambda: rig.got)
        assert rig.broker.trouble == ""
        yield rig
    finally:
        await rig.broker.close()


@pytest.mark.parametrize("mechanism", ["PLAIN", "SCRAM-SHA-256", "SCRAM-SHA-512"])
async def test_a_user_with_a_password_over_tls_publishes_and_handles(
    secure: SecureKafka, tmp_path: Path, mechanism: str
) -> None:
    file = tmp_path / "password"
    file.write_text(CANARY + "\n")
    url = f"kafka://shop@{secure.address}?mechanism={mechanism}&{TRUSTS}&password_file={file}&join=10s"
    async with working(url):
        pass


async def test_a_client_with_a_certificate_publishes_and_handles(secure: SecureKafka) -> None:
    async with working(f"kafka://127.0.0.1:{secure.mutual_port}?{TRUSTS}&{SHOWS}&join=10s"):
        pass


async def test_a_token_that_the_library_makes_is_enough(secure: SecureKafka) -> None:
    token = "enable.sasl.oauthbearer.unsecure.jwt=true&sasl.oauthbearer.config=principal=shop"
    async with working(f"kafka://{secure.address}?mechanism=OAUTHBEARER&{TRUSTS}&join=10s&{token}"):
        pass


async def test_P10_tokens_of_a_callback_are_renewed_for_all_that_is_connected(secure: SecureKafka) -> None:
    made: list[float] = []

    def token(config: str) -> tuple[str, float]:
        made.append(time.time())
        until = made[-1] + LASTS
        claims = {"sub": "shop", "iat": made[-1], "exp": until}
        parts = [base64.urlsafe_b64encode(json.dumps(one).encode()).rstrip(b"=") for one in ({"alg": "none"}, claims)]
        return b".".join((*parts, b"")).decode(), until

    url = f"kafka://{secure.address}?mechanism=OAUTHBEARER&{TRUSTS}&join=10s"
    async with working(url, {"oauth_cb": token}) as rig:
        service = rig.subscription.position.partition(".")[0]
        ends = time.monotonic() + 3 * LASTS
        for number in range(2, 1000):
            await rig.publish(rig.message(b"%d" % number))
            await until(lambda: len(set(rig.bodies)) >= number)  # noqa: B023  # it is waited for at once
            assert await rig.broker.positions(service)
            if time.monotonic() > ends:
                break
            await asyncio.sleep(0.5)
        assert max(made) - min(made) > LASTS
        await asyncio.to_thread(secure.stop)
        await asyncio.to_thread(secure.start)
        (error,) = await rig.broker.publish([rig.message(b"last")], timeout=20)
        assert error is None
        await until(lambda: b"last" in rig.bodies, 90)
        assert await rig.broker.positions(service)
        await until(lambda: rig.broker.trouble == "")


def set_password(server: SecureKafka, password: str) -> None:
    """Give the user another one, by the listener that asks for none."""
    admin = AdminClient({"bootstrap.servers": f"127.0.0.1:{server.far_port}"})
    how = ScramCredentialInfo(ScramMechanism.SCRAM_SHA_256, 4096)
    changed = admin.alter_user_scram_credentials([UserScramCredentialUpsertion("shop", how, password.encode())])
    for one in changed.values():
        one.result(30)


async def test_P10_a_password_that_was_replaced_is_read_again_by_all_that_is_connected(
    secure: SecureKafka, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    file = tmp_path / "password"
    file.write_text(CANARY)
    url = f"kafka://shop@{secure.address}?mechanism=SCRAM-SHA-256&{TRUSTS}&password_file={file}&join=10s"
    try:
        async with working(url) as rig:
            service = rig.subscription.position.partition(".")[0]
            assert await rig.broker.positions(service)
            await asyncio.to_thread(set_password, secure, f"new-{CANARY}")
            await asyncio.to_thread(secure.stop)  # who is connected stays; who has to connect again does not get in
            await asyncio.to_thread(secure.start)
            await until(lambda: "uthentication" in rig.broker.trouble)
            file.write_text(f"new-{CANARY}")
            await until(lambda: rig.broker.trouble == "")
            (error,) = await rig.broker.publish([rig.message(b"last")], timeout=20)
            assert error is None
            await until(lambda: b"last" in rig.bodies)
            assert await rig.broker.positions(service)
    finally:
        await asyncio.to_thread(set_password, secure, CANARY)
    assert CANARY not in caplog.text


@pytest.mark.parametrize(
    ("login", "query", "why"),
    [
        (f"shop:wrong-{CANARY}@", TRUSTS, "(?i)authentication"),
        (f"shop:wrong-{CANARY}@", f"{TRUSTS}&mechanism=SCRAM-SHA-256", "(?i)authentication"),
        (f"shop:{CANARY}@", "tls=1", "(?i)certificate"),
        (f"shop:{CANARY}@", f"tls_ca={CERTS / 'client.pem'}", "(?i)certificate"),
    ],
    ids=["a wrong password", "a wrong password that is not sent", "nobody is trusted", "somebody else is trusted"],
)
async def test_why_it_cannot_be_reached_is_said_without_the_password(
    secure: SecureKafka, login: str, query: str, why: str
) -> None:
    url = f"kafka://{login}{secure.address}?{query}&connect_timeout=6s"
    broker = KafkaBroker(url)
    try:
        with pytest.raises(BrokerUnavailable, match=why) as raised:
            await broker.open(plan(position()))
        assert CANARY not in str(raised.value)
    finally:
        await broker.close()
    found = await examine(url)
    assert found[0].level == "down"
    assert CANARY not in repr(found)
    assert found[0].remedy.startswith("Look at ")


async def test_a_certificate_that_is_demanded_and_not_shown_is_named(secure: SecureKafka) -> None:
    (found,) = await examine(f"kafka://127.0.0.1:{secure.mutual_port}?{TRUSTS}&connect_timeout=6s")
    assert found.level == "down"
    assert "tls_cert=" in found.remedy


async def test_the_doctor_asks_over_tls_how_old_a_broker_is(secure: SecureKafka) -> None:
    for url in (
        f"kafka://shop:{CANARY}@{secure.address}?{TRUSTS}",
        f"kafka://127.0.0.1:{secure.mutual_port}?{TRUSTS}&{SHOWS}",
    ):
        found = [(one.level, one.what) for one in await examine(url)]
        assert ("fine", "broker 1 understands what Kafka 4.0 or newer does") in found
