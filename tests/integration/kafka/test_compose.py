"""The Kafka of compose.yaml, as far as it can be had without Docker: its settings, on a real broker."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from tidings.brokers import examine
from tools.services.kafka import Kafka

pytestmark = pytest.mark.server

COMPOSE = Path(__file__).resolve().parents[3] / "compose.yaml"


def settings() -> dict[str, str]:
    """What the image makes of its variables."""
    found = re.findall(r'^ +KAFKA_([A-Z_]+): "(.*)"$', COMPOSE.read_text(encoding="utf-8"), re.MULTILINE)
    return {name.lower().replace("_", "."): value for name, value in found}


class Composed(Kafka):
    """Its ports and its folder are the test's; there is no network in which it is called kafka."""

    def properties(self) -> dict[str, str]:
        places = {
            "kafka:": "localhost:",
            "//:": "//127.0.0.1:",
            ":9092": f":{self.port}",
            ":19092": f":{self.far_port}",
            ":9093": f":{self.controller_port}",
        }
        found = settings()
        for written, here in places.items():
            found = {name: re.sub(rf"{written}(?![0-9])", here, value) for name, value in found.items()}
        return {**found, "log.dirs": str(self.folder / "data")}


async def test_the_settings_of_compose_make_a_node_that_the_doctor_finds_nothing_wrong_with(tmp_path: Path) -> None:
    with Composed(tmp_path / "server") as server:
        found = await examine(f"kafka://localhost:{server.port}")
    assert {one.level for one in found} == {"fine"}, found
    assert f"localhost:{server.port}" in " ".join(one.what for one in found)
