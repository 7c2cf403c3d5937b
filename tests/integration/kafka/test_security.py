"""Signing in to a real Kafka over TLS: what works, and what is said where it does not."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.integration.kafka.conftest import Rig, plan, position, until
from tidings.brokers.kafka.broker import KafkaBroker
from tidings.errors import BrokerUnavailable
from tools.services.kafka import Kafka

pytestmark = [pytest.mark.server, pytest.mark.proves(broker="kafka")]

CERTS = Path(__file__).parents[1] / "nats" / "certs"
CANARY = "s3cret-canary"
JAAS = "org.apache.kafka.common.security.{}LoginModule required"


class SecureKafka(Kafka):
    """Clients sign in and speak TLS; the node itself uses its other listener."""

    def prepare(self) -> None:
        (self.folder / "server.pem").write_text((CERTS / "server.key").read_text() + (CERTS / "server.pem").read_text())
        self.configure()
        scram = f"SCRAM-SHA-512=[name=shop,password={CANARY}]"
        file = str(self.folder / "server.properties")
        tool = ("kafka.tools.StorageTool", "format", "-t", self.cluster_id, "-c", file, "--add-scram", scram)
        self.run(*self._java(*tool))

    def properties(self) -> dict[str, str]:
        plain = JAAS.format("plain.Plain") + f' user_shop="{CANARY}";'
        return super().properties() | {
            "inter.broker.listener.name": "FAR",
            "listener.security.protocol.map": "NEAR:SASL_SSL,FAR:PLAINTEXT,CONTROLLER:PLAINTEXT",
            "listener.name.near.sasl.enabled.mechanisms": "PLAIN,SCRAM-SHA-512",
            "listener.name.near.plain.sasl.jaas.config": plain,
            "listener.name.near.scram-sha-512.sasl.jaas.config": JAAS.format("scram.Scram") + ";",
            "listener.name.near.ssl.keystore.type": "PEM",
            "listener.name.near.ssl.keystore.location": str(self.folder / "server.pem"),
        }

    def ready(self) -> bool:
        return self._answers(self.far_port)


@pytest.fixture(scope="module")
def secure(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Kafka]:
    with SecureKafka(tmp_path_factory.mktemp("secure")) as server:
        yield server


@pytest.mark.parametrize("mechanism", ["PLAIN", "SCRAM-SHA-512"])
async def test_a_user_with_a_password_over_tls_publishes_and_handles(
    secure: Kafka, tmp_path: Path, mechanism: str
) -> None:
    file = tmp_path / "password"
    file.write_text(CANARY + "\n")
    url = f"kafka://shop@{secure.address}?mechanism={mechanism}&tls_ca={CERTS / 'ca.pem'}&password_file={file}&join=3s"
    rig = Rig(KafkaBroker(url), position())
    try:
        await rig.broker.open(plan(rig.subscription))
        await rig.subscribe()
        await rig.publish(rig.message(b"1"))
        await until(lambda: rig.got)
        assert rig.broker.trouble == ""
    finally:
        await rig.broker.close()


@pytest.mark.parametrize(
    ("login", "query", "why"),
    [
        (f"shop:wrong-{CANARY}@", f"tls_ca={CERTS / 'ca.pem'}", "(?i)authentication"),
        (f"shop:{CANARY}@", "tls=1", "(?i)certificate|ssl"),
    ],
    ids=["a wrong password", "a certificate that nobody vouches for"],
)
async def test_why_it_cannot_be_reached_is_said_without_the_password(
    secure: Kafka, login: str, query: str, why: str
) -> None:
    broker = KafkaBroker(f"kafka://{login}{secure.address}?{query}&connect_timeout=3s")
    try:
        with pytest.raises(BrokerUnavailable, match=why) as raised:
            await broker.open(plan(position()))
        assert CANARY not in str(raised.value)
    finally:
        await broker.close()
