"""The suite on a broker that runs already, for its adapter's author: all that needs no hand on the server.

``pytest -p tidings.testing.conformance.plugin --pyargs tidings.testing.conformance --broker URL``
"""

from __future__ import annotations

from typing import NoReturn

import msgspec
import pytest

from tidings.brokers import broker_from
from tidings.ports import Broker, Features
from tidings.testing.conformance.rig import Rig
from tidings.testing.conformance.suite import Conformance

_ALONE = (
    "each client of memory: has a memory of its own, and never sees what another one published. Write a Rig that gives"
    " clients of one MemoryBroker, as docs/howto/write-an-adapter.md does, or name a broker that runs"
)
_HANDS = "a URL is no hand on it: write a Rig"


class UrlRig:
    """Clients of a broker that somebody else has started."""

    def __init__(self, url: str) -> None:
        self.url = url

    @property
    def features(self) -> Features:
        """What the adapter claims, but that this rig can restart nothing."""
        return msgspec.structs.replace(broker_from(self.url).features, restart=False)

    async def broker(self) -> Broker:
        return broker_from(self.url)

    async def restart(self, away: float = 0.0) -> NoReturn:
        raise AssertionError("its features say that it cannot")

    async def close(self) -> None:
        """Nothing is this rig's."""


class TestBroker(Conformance):
    apart = {part: _HANDS for part in ("restart", "cluster", "network", "ack wait", "operator")}  # noqa: RUF012  # as its base says

    @pytest.fixture
    def rig(self, request: pytest.FixtureRequest) -> Rig:
        if (url := request.config.getoption("--broker")) is None:
            pytest.exit("say which broker is to be tested: --broker URL", returncode=pytest.ExitCode.USAGE_ERROR)
        if url.strip().lower().startswith("memory:"):
            pytest.exit(
                f"--broker memory: cannot be tested by its URL: {_ALONE}", returncode=pytest.ExitCode.USAGE_ERROR
            )
        return UrlRig(str(url))
