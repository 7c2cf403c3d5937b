"""Brokers by URL scheme."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tidings.brokers import broker_from, examine
from tidings.errors import ConfigurationError
from tidings.testing.memory import MemoryBroker


def test_a_scheme_finds_its_broker() -> None:
    assert broker_from("nats://localhost").features.name == "nats"
    assert broker_from("tls://localhost").features.name == "nats"
    assert broker_from("amqp://localhost").features.name == "rabbitmq"
    assert broker_from("amqps://localhost").features.name == "rabbitmq"
    assert broker_from("memory:").features.name == "memory"


def test_a_live_broker_passes_through() -> None:
    broker = MemoryBroker()
    assert broker_from(broker) is broker


@pytest.mark.parametrize("spec", ["http://x", "", "localhost:4222", "nats", "hunter2-and-more-of-a-password:"])
def test_an_unknown_scheme_is_refused_with_those_that_are_known(spec: str) -> None:
    with pytest.raises(ConfigurationError, match="nats://, tls://, embedded:") as refused:
        broker_from(spec)
    assert "hunter2" not in str(refused.value)


@pytest.mark.parametrize(
    ("spec", "meant"),
    [("kafak://x", "kafka://"), ("ampq://x", "amqp://"), ("NAT://x", "nats://"), ("embeded:", "embedded:")],
)
def test_a_misspelt_scheme_gets_the_one_that_was_meant(spec: str, meant: str) -> None:
    with pytest.raises(ConfigurationError, match=rf"Did you mean {meant}\?.*write, say, nats://.*kafka://.*amqp://"):
        broker_from(spec)


def test_no_brokers_library_is_imported_before_it_is_used() -> None:
    script = "import sys, tidings.brokers; print([m for m in ('nats', 'pamqp', 'tidings.testing') if m in sys.modules])"
    ran = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert ran.stdout.strip() == "[]"


MISSING = """
import asyncio, sys
sys.modules[sys.argv[2]] = None
from tidings.brokers import broker_from, examine
from tidings.errors import ConfigurationError
for ask in (broker_from, lambda url: asyncio.run(examine(url))):
    try:
        ask(sys.argv[1])
    except ConfigurationError as error:
        print(error)
"""


@pytest.mark.parametrize(
    ("url", "module", "extra"),
    [
        ("kafka://bob:s3cret@k:9092", "confluent_kafka", "kafka"),
        ("amqp://bob:s3cret@r", "pamqp", "rabbitmq"),
        ("amqps://bob:s3cret@r", "pamqp", "rabbitmq"),
    ],
)
def test_a_library_that_is_not_installed_is_named_with_the_way_to_get_it(url: str, module: str, extra: str) -> None:
    ran = subprocess.run([sys.executable, "-c", MISSING, url, module], capture_output=True, text=True, check=True)
    to_broker, to_doctor = ran.stdout.splitlines()
    assert to_broker == to_doctor
    assert to_broker.endswith(f"Install it: pip install 'tidings[{extra}]'")
    assert "s3cret" not in to_broker


@pytest.mark.parametrize(
    "words",
    [
        ["run", "shop_extra:shop", "--broker", "URL"],
        ["tail", "order", "--broker", "URL"],
        ["dead", "list", "--broker", "URL"],
        ["publish", "shop_extra:Placed", "{}", "--broker", "URL"],
        ["doctor", "URL"],
    ],
    ids=lambda words: words[0],
)
@pytest.mark.parametrize(("scheme", "module"), [("kafka", "confluent_kafka"), ("amqp", "pamqp")])
def test_every_command_says_in_one_line_how_to_get_the_library(
    tmp_path: Path, words: list[str], scheme: str, module: str
) -> None:
    (tmp_path / "shop_extra.py").write_text(
        "from tidings import Event, Service\n\n\nclass Placed(Event, type='order.placed', version=1): ...\n\n\n"
        "shop = Service('shop', publishes=[Placed])\n"
    )
    script = "import sys; sys.modules[sys.argv.pop(1)] = None; from tidings.cli.main import main; sys.exit(main())"
    arguments = [word.replace("URL", f"{scheme}://bob:s3cret@127.0.0.1:9") for word in words]
    ran = subprocess.run(
        [sys.executable, "-c", script, module, *arguments], capture_output=True, text=True, check=False, cwd=tmp_path
    )
    assert ran.returncode == 3
    assert len(ran.stderr.splitlines()) == 1
    assert "Install it: pip install 'tidings[" in ran.stderr
    assert "s3cret" not in ran.stderr


async def test_a_broker_that_brings_no_examination_along_is_not_examined() -> None:
    with pytest.raises(ConfigurationError, match="a broker of memory: cannot be examined"):
        await examine("memory:")


def test_another_package_enters_its_scheme(tmp_path: Path) -> None:
    about = tmp_path / "pigeon-1.0.dist-info"
    about.mkdir()
    (about / "METADATA").write_text("Metadata-Version: 2.1\nName: pigeon\nVersion: 1.0\n")
    (about / "entry_points.txt").write_text("[tidings.brokers]\npigeon = pigeon:Loft\nnats = pigeon:Loft\n")
    (tmp_path / "pigeon.py").write_text("class Loft:\n    def __init__(self, url):\n        self.url = url\n")
    script = """
from tidings.brokers import broker_from
print(broker_from("pigeon://roof").url, broker_from("nats://localhost").features.name)
try:
    broker_from("pigoen://roof")
except Exception as error:
    print("Did you mean pigeon://?" in str(error), "amqps://, pigeon:// and" in str(error))
"""
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(tmp_path), *sys.path])}
    ran = subprocess.run([sys.executable, "-c", script], env=environment, capture_output=True, text=True, check=True)
    assert ran.stdout.split() == ["pigeon://roof", "nats", "True", "True"]
