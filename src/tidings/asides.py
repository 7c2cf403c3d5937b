"""The events of a handler that wait in its lanes until their call has ended, which its lane did not wait for."""

from __future__ import annotations

import time
from collections.abc import Sequence

from tidings.delivery import DeadLettered, Delivery
from tidings.lane import Lane, Shared
from tidings.pipeline import Pipeline


class Asides:
    """Of one worker."""

    def __init__(self, pipeline: Pipeline, lanes: Sequence[Lane], shared: Shared | None) -> None:
        self._pipeline, self._lanes, self._shared = pipeline, lanes, shared
        pipeline.leaving.back = self._go_on

    def _go_on(self, delivery: Delivery) -> None:
        """Its call has ended."""
        if self._shared is None:
            self._lanes[0].go_on(delivery)
        else:
            self._shared.lane(delivery).go_on(delivery)
            self._shared.ended()

    async def give_up(self) -> None:
        """Wait for no call any more. In order its event is among those that are given back, unless it dies of this."""
        ended = self._pipeline.leaving.give_up()
        if self._shared is not None:
            ended = [one for one in ended if isinstance(one[1], DeadLettered)]
            for lane in self._lanes:
                lane.forget([delivery for delivery, _ in ended])
        if ended:
            await self._pipeline.settler.settle(ended, None, time.monotonic())
