"""The way to the broker fails: everything on it is lost for a time, or its connections die without a word."""

from __future__ import annotations

import asyncio

from tidings.testing.conformance.policy import ONLY_WITH_A_STORE
from tidings.testing.conformance.stage import Stage


class Networks:
    """Part of the suite."""

    @ONLY_WITH_A_STORE
    async def test_P1_P10_complete_packet_loss_for_a_while_loses_nothing_and_doubles_nothing(
        self, stage: Stage
    ) -> None:
        """A process here goes on while one that is far away is cut off, and comes back, with its publisher."""
        network = stage.bench.network
        lost = stage.bench.size("seconds of loss", 30, 10)
        here, far = stage.service(), stage.service()
        position = stage.handle(here, order="key", worker="here")
        stage.handle(far, order="key", worker="far")
        async with (
            stage.running(here),
            stage.running(far, make=network.far_broker),
            await stage.load(make=network.far_broker) as load,
        ):
            await stage.bench.until(lambda: {"here", "far"} <= stage.workers(), "both have work")
            await network.lose()
            try:
                await asyncio.sleep(lost)
            finally:
                await network.mend()
            await load.more(100)
            since = len(stage.seen)
            await stage.bench.until(
                lambda: "far" in {one.worker for one in stage.seen[since:]}, "the far one has work again"
            )
            await load.stop()
            await stage.until_applied(position, load.ids)
        stage.judge(position, load.ids)
        stage.check_order(position)

    @ONLY_WITH_A_STORE
    async def test_P10_connections_that_died_without_a_word_are_noticed_and_replaced(self, stage: Stage) -> None:
        network = stage.bench.network
        service = stage.service()
        position = stage.handle(service, order="key")
        async with (
            stage.running(service, make=network.far_broker),
            await stage.load(make=network.far_broker) as load,
        ):
            await stage.until_seen(50)
            await network.strand()
            seen = len(stage.seen)
            await load.more(100)
            await stage.until_seen(seen + 50)
            await load.stop()
            await stage.until_applied(position, load.ids)
        stage.judge(position, load.ids)
        stage.check_order(position)
