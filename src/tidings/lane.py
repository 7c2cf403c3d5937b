"""A lane: one queue, and the keys that are held in it. A worker has one or several, each with a task of its own."""

from __future__ import annotations

import asyncio
import time
from collections import deque
from collections.abc import Callable, Collection, Container, Iterator, Sequence

from tidings.delivery import Delivery
from tidings.order import Holds


class Lane:
    """A queue and the keys that are held in it."""

    def __init__(self, queue: deque[Delivery], ordered: bool) -> None:
        self.queue = queue
        self.holds = Holds(self.wake) if ordered else None
        self.busy = False
        self.batch: Sequence[Delivery] = ()
        """What is being worked off."""
        self.trouble = ""
        self._wake: asyncio.Future[None] | None = None

    def take(self, most: int) -> list[Delivery]:
        """Whatever waits, up to a limit; what was held and is due comes first."""
        queue = self.queue
        if self.holds:
            queue.extendleft(reversed(list(self.holds.release(asyncio.get_running_loop().time()))))
        if most < len(queue):
            return [queue.popleft() for _ in range(most)]
        taken = list(queue)
        queue.clear()
        return taken

    def forget(self, gone: Container[Delivery]) -> None:
        """Take out what another process has now."""
        self.queue = deque(delivery for delivery in self.queue if delivery not in gone)
        if self.holds:
            self.holds.forget(gone)

    def go_on(self, delivery: Delivery) -> None:
        """An event that waited until its call had ended is to be looked at again."""
        if self.holds is not None and delivery.key is not None:
            self.holds.go_on(delivery.key, delivery, asyncio.get_running_loop().time())
        else:
            self.queue.appendleft(delivery)
        self.wake()

    def put_back(self, deliveries: Sequence[Delivery]) -> None:
        self.queue.extendleft(reversed(deliveries))

    def wake(self) -> bool:
        """Wake the lane if it sleeps."""
        if self._wake is None or self._wake.done():
            return False
        self._wake.set_result(None)
        return True

    async def sleep(self, seconds: float | None) -> None:
        """Until woken, or for so long."""
        self._wake = asyncio.get_running_loop().create_future()
        try:
            async with asyncio.timeout(seconds):
                await self._wake
        except TimeoutError:
            pass
        finally:
            self._wake = None

    def until_due(self) -> float | None:
        """Seconds until a held key may go on, or None."""
        due = self.holds.next_due() if self.holds else None
        return None if due is None else max(0.0, due - asyncio.get_running_loop().time())


def waiting_in(lanes: Sequence[Lane]) -> int:
    """How many deliveries are queued or held, in queues that lanes may share."""
    queues = {id(lane.queue): len(lane.queue) for lane in lanes}
    return sum(queues.values()) + sum(len(lane.holds) for lane in lanes if lane.holds)


def emptied(lanes: Sequence[Lane]) -> list[Delivery]:
    """Take out everything that is not begun, in order: what is held came before what is queued."""
    rest: list[Delivery] = []
    for lane in lanes:
        rest += [*(lane.holds.clear() if lane.holds else ()), *lane.queue]
        lane.queue.clear()
    return rest


def oldest_in(lanes: Sequence[Lane]) -> float | None:
    """When the broker stored the oldest event that is here, queued, held or at work; Unix seconds."""

    def times() -> Iterator[float]:
        for lane in lanes:
            held = lane.holds.deliveries() if lane.holds else ()
            for some in (lane.batch, lane.queue, held):
                yield from (one.stored or one.arrived for one in some)

    return min((moment for moment in times() if moment), default=None)


def _have_arrived(deliveries: Sequence[Delivery]) -> None:
    """Note when, where it is not known already."""
    now = time.time()
    for delivery in deliveries:
        if not delivery.arrived:
            delivery.arrived = now


class Shared:
    """The lanes of an ordered position: takes deliveries in, and gives up what another process is to have.

    A key has one lane, chosen by its partition; whatever has no key shares the first.
    """

    def __init__(
        self,
        lanes: Sequence[Lane],
        aside: Container[Delivery],
        recalled: Callable[[Collection[Delivery]], object] = lambda gone: None,
    ) -> None:
        self._lanes = lanes
        self._aside = aside
        """What waits until its call has ended: as long it is at work, and holds its key."""
        self._recalled = recalled
        """Is told what this process had and did not die of."""
        self._waiting = 0
        self._ended = asyncio.Event()

    def __call__(self, delivery: Delivery, /) -> None:
        delivery.arrived = time.time()
        lane = self.lane(delivery)
        lane.queue.append(delivery)
        lane.wake()

    def take(self, deliveries: Sequence[Delivery], /) -> None:
        """What came together, in its order; see `ports.Sink`."""
        lanes, many = self._lanes, len(self._lanes)
        _have_arrived(deliveries)
        if many == 1:
            lanes[0].queue.extend(deliveries)
        else:
            for delivery in deliveries:
                lanes[(delivery.slot or 0) % many].queue.append(delivery)
        for lane in lanes:
            if lane.queue:
                lane.wake()

    def lane(self, delivery: Delivery) -> Lane:
        """The lane of its key."""
        return self._lanes[(delivery.slot or 0) % len(self._lanes)]

    async def give_up(self, deliveries: Sequence[Delivery], patience: float) -> Sequence[Delivery]:
        """See `ports.Recalls`."""
        gone = set(deliveries)
        self._recalled(gone)
        self._waiting += 1
        try:
            async with asyncio.timeout(None if patience == float("inf") else patience):
                while True:
                    begun = {delivery for delivery in gone if delivery in self._aside}
                    self._forget(gone - begun)
                    if not self._at_work(gone):
                        return ()
                    self._ended.clear()
                    await self._ended.wait()
        except TimeoutError:
            return self._at_work(gone)
        finally:
            self._waiting -= 1

    def _forget(self, gone: set[Delivery]) -> None:
        for lane in self._lanes:
            lane.forget(gone)

    def _at_work(self, gone: set[Delivery]) -> list[Delivery]:
        running = [delivery for lane in self._lanes for delivery in lane.batch if delivery in gone]
        return running + [delivery for delivery in gone if delivery in self._aside]

    def ended(self) -> None:
        """A lane has come to the end of a batch, or a call that was set aside to its own."""
        if self._waiting:
            self._ended.set()


class Competing(Shared):
    """The lanes of a position without order: they have one queue, and the first that sleeps takes from it."""

    def __call__(self, delivery: Delivery, /) -> None:
        self.take((delivery,))

    def take(self, deliveries: Sequence[Delivery], /) -> None:
        _have_arrived(deliveries)
        self._lanes[0].queue.extend(deliveries)
        left = len(deliveries)
        for lane in self._lanes:
            if left and lane.wake():
                left -= 1

    def _forget(self, gone: set[Delivery]) -> None:
        queue = self._lanes[0].queue
        kept = [delivery for delivery in queue if delivery not in gone]
        queue.clear()
        queue.extend(kept)
