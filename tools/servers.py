"""Before the tests run: can every server that they need be had? Names each that cannot, and why.

nats-server comes with the requirements. The others are Debian's packages: where this runs as root on such a system,
what is missing is installed (programs only; nothing is started or enabled). Elsewhere their names are printed, or a URL
in the environment takes their place. The tests start the servers themselves, on loopback.

    python -m tools.servers [--no-install]
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Callable

from tools.services.kafka import Kafka, jars
from tools.services.mariadb import MariaDB
from tools.services.pgbouncer import PgBouncer
from tools.services.postgres import Postgres
from tools.services.program import CannotBeHad, Program, find
from tools.services.prometheus import Prometheus
from tools.services.rabbitmq import RabbitMQ
from tools.services.redis import Redis

STARTS_WITHIN = 30.0
"""Seconds in which a server's program must say its version."""

INSTALLS_WITHIN = 600.0

PROGRAMS: tuple[type[Program], ...] = (Postgres, PgBouncer, MariaDB, Redis, Kafka, RabbitMQ, Prometheus)
TOOLS = (("mvn", "maven"),)
"""What else has to be here: programs, and their packages."""


def nats_server() -> str:
    from tidings.brokers.nats.embedded_binary import verified_binary

    return _version(str(verified_binary())).removeprefix("nats-server:").strip()


def rabbitmq() -> str:
    # Its programs start a server to say it, or a daemon that listens everywhere; but its folder is named after it.
    home = find(RabbitMQ.program, RabbitMQ.package).resolve().parents[1]
    found = [
        one.name for one in (home, *home.glob("lib/rabbitmq/lib/*"), *home.glob("lib/*")) if "_server-" in one.name
    ]
    return f"RabbitMQ {found[0].partition('-')[2] if found else 'of an unknown version'}"


def _version(program: str) -> str:
    answer = subprocess.run(
        [program, "--version"],
        capture_output=True,
        text=True,
        timeout=STARTS_WITHIN,
        stdin=subprocess.DEVNULL,
        check=True,
    )
    return answer.stdout.strip().splitlines()[0]


def _version_of(kind: type[Program]) -> Callable[[], str]:
    return lambda: _version(str(find(kind.program, kind.package)))


SERVERS: dict[str, Callable[[], str]] = {
    "nats-server": nats_server,
    **{kind.name: _version_of(kind) for kind in PROGRAMS if kind is not RabbitMQ},
    RabbitMQ.name: rabbitmq,
    "Kafka's jars": lambda: f"gathered by Maven in {jars()}",
}
"""What `make test` needs, and how to find out its version; whatever that raises is why it cannot be had."""


def missing() -> list[str]:
    """The packages of the programs that are not here."""
    packages: list[str] = []
    for program, package in (*((kind.program, kind.package) for kind in PROGRAMS), *TOOLS):
        try:
            find(program, package)
        except CannotBeHad:
            packages += package.split()
    return packages


def install(packages: list[str]) -> None:
    """Install Debian's packages, where that can be done without asking anybody. Failures show in the versions later."""
    if os.geteuid() != 0 or shutil.which("apt-get") is None:
        return
    print(f"installing {' '.join(packages)} (programs only; nothing is started) ...", flush=True)
    # RUNLEVEL=1 keeps the packages' own scripts from starting servers.
    quiet = {**os.environ, "DEBIAN_FRONTEND": "noninteractive", "RUNLEVEL": "1"}
    for command in (["update", "-q"], ["install", "-q", "-y", "--no-install-recommends", *packages]):
        done = subprocess.run(
            ["apt-get", *command], env=quiet, capture_output=True, text=True, timeout=INSTALLS_WITHIN, check=False
        )
        if done.returncode:
            print(f"apt-get {command[0]}: {(done.stderr or done.stdout).strip()[-500:]}", file=sys.stderr, flush=True)


def main(arguments: list[str]) -> int:
    if "--no-install" not in arguments and (packages := missing()):
        install(packages)
    unavailable = 0
    for name, version in SERVERS.items():
        try:
            print(f"have {name} {version()}", flush=True)
        except Exception as reason:
            unavailable += 1
            print(f"cannot be had: {name}: {str(reason) or type(reason).__name__}", file=sys.stderr, flush=True)
    return 1 if unavailable else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
