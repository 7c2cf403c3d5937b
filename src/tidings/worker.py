"""From the feed into lanes: back-pressure, order, pauses while the world is down, and the way out.

A lane is one task that works its events off one after the other. It takes whatever waits for it, up to a limit, and
never waits for more: at rest each event is handled at once, under load one batch carries many.
"""

from __future__ import annotations

import asyncio
import logging
from collections import deque
from collections.abc import Awaitable, Callable, Sequence
from datetime import timedelta
from functools import partial

from tidings.alone import Gate, handle_alone
from tidings.asides import Asides
from tidings.delivery import Delivery, Done, Release
from tidings.errors import BrokerUnavailable, WorldError
from tidings.handling import we_are_cancelled
from tidings.holding import Holding
from tidings.lane import Competing, Lane, Shared, emptied, oldest_in, waiting_in
from tidings.pipeline import Pipeline
from tidings.policy import describe
from tidings.ports import Backlog, Broker, Feed, Fenced, Observer, Subscription
from tidings.releasing import Releaser
from tidings.settling import Ended, went_wrong
from tidings.supervision import Supervisor, survive
from tidings.switch import Switch

log = logging.getLogger("tidings.worker")

FIRST_PAUSE = 0.05
LONGEST_PAUSE = 5.0
HALT_GRACE = 20.0
"""Seconds that the other lanes of a handler have to finish when it is stopped for a mistake of its own."""
LOOK = 0.05
"""Seconds between two looks whether the lanes of a handler that is paused have come to rest."""


class Worker:
    """Runs one handler in this process."""

    def __init__(
        self,
        subscription: Subscription,
        pipeline: Pipeline,
        broker: Broker,
        *,
        lanes: int,
        batch: int,
        observers: Sequence[Observer] = (),
        switch: Switch | None = None,
        before: Callable[[], Awaitable[None]] | None = None,
    ) -> None:
        self._before = before
        self._subscription = subscription
        self._pipeline = pipeline
        self._broker = broker
        self._batch = batch
        self._observers = observers
        shared: deque[Delivery] = deque()
        ordered = subscription.ordered
        self._lanes = [Lane(deque() if ordered else shared, ordered) for _ in range(lanes)]
        given = (self._lanes, pipeline.leaving.aside, pipeline.settler.counts.recalled)
        self._shared = Shared(*given) if ordered else None
        self._feed: Feed | None = None
        self._tasks = Supervisor()
        self._stopping = asyncio.Event()
        self._halting: asyncio.Task[None] | None = None
        self._switch = switch or Switch(None)
        self._turn = asyncio.Lock()
        """Pausing, going on and ending happen one after the other."""
        self.paused = ""
        """By whom it was paused and why; empty while it works. Set before the start, it begins paused."""
        pipeline.settler.judge = self._judge
        self._sink = self._shared or Competing(*given)
        self._asides = Asides(pipeline, self._lanes, self._shared)
        self._gate = Gate(lambda: self.busy)
        self._holding = pipeline.settler.holding
        self._began: tuple[Feed | None, int] = (None, -1)
        """Since when what others left is known."""

    @property
    def position(self) -> str:
        return self._subscription.position

    @property
    def trouble(self) -> str:
        """Why the handler cannot work: its store is down, or it was stopped. Empty while all is well."""
        if self._pipeline.broken:
            return f"stopped until a mended one starts: {self._pipeline.broken}"
        if self._switch.off:
            return f"paused itself: {self._switch.reason}; it tries single events and goes on once they succeed"
        return next((lane.trouble for lane in self._lanes if lane.trouble), "")

    @property
    def stuck(self) -> str:
        """Why only a new process can go on: calls of it do not end. Empty while none is needed."""
        return self._pipeline.leaving.stuck

    @property
    def left_behind(self) -> tuple[int, int]:
        """How many calls were left behind because they did not end: now, and in all."""
        return self._pipeline.leaving.living, self._pipeline.leaving.count

    @property
    def off(self) -> bool:
        """Its kill switch is off: too much of what it did failed."""
        return self._switch.off

    @property
    def failures(self) -> dict[str, str]:
        return self._tasks.failures

    @property
    def waiting(self) -> int:
        """How many deliveries are queued or held here."""
        return waiting_in(self._lanes)

    @property
    def oldest(self) -> float | None:
        """When the oldest event that is here, and not settled, was stored; Unix seconds."""
        return oldest_in(self._lanes)

    @property
    def overdue(self) -> float:
        """For how many seconds a call runs on although its time is over, the longest of those that do; or 0."""
        return self._pipeline.leaving.overdue

    @property
    def busy(self) -> int:
        """How many lanes are at work."""
        return sum(lane.busy for lane in self._lanes)

    async def start(self) -> None:
        """Let deliveries in, and start the lanes when all is known that they need: what `before` asks for."""
        if not self.paused:
            await self._listen()
        for number, lane in enumerate(self._lanes):
            self._tasks.spawn(f"{self.position} lane {number}", partial(self._run, lane))
        self._tasks.spawn(f"{self.position} newer code", self._pipeline.newer.run)
        if self._holding is not None and self._holding.blocks:
            self._tasks.spawn(f"{self.position} followers", Releaser(self.position, self._broker, self._holding).run)

    async def _listen(self) -> None:
        self._feed = self._pipeline.newer.feed = feed = await self._broker.subscribe(self._subscription, self._sink)
        if isinstance(feed, Fenced):
            self._pipeline.fence = feed.fence
        if self._before is not None:
            await self._before()

    async def pause(self, why: str) -> None:
        """Take no more, finish the events that run, and give the rest back: until `resume`, also in a new process."""
        async with self._turn:
            already, self.paused = self.paused, why
            if already or self._stopping.is_set():
                return
            log.warning("%s is paused: %s", self.position, why)
            self._pipeline.calls.stopping = True
            if self._feed is not None:
                await survive("the stop of a feed", self._feed.stop())
            if not self._subscription.ordered:
                await self._give_back(emptied(self._lanes))
            while self.busy and not self._stopping.is_set():  # noqa: ASYNC110  # a handler's time is limited
                await asyncio.sleep(LOOK)
            if not self._stopping.is_set():
                await self._asides.give_up()
                await self._pipeline.settler.settled()
                await self._give_back(emptied(self._lanes))
                self._pipeline.calls.stopping = False

    async def resume(self) -> None:
        """Go on after a pause.

        Raises:
            BrokerUnavailable: it cannot listen just now, and stays paused.
        """
        async with self._turn:
            if not self.paused or self._stopping.is_set():
                return
            if self._feed is not None:
                await survive("the close of a feed", self._feed.close())
            await self._listen()
            self.paused = ""
            log.warning("%s goes on after it was paused", self.position)
            self._wake_all()

    async def stop(self, grace: float) -> None:
        """Take no more, finish the events that run, give the rest back at once; after `grace` seconds give up.

        In order, the rest waits for the events that run: one of them may have to go back before what follows it.
        """
        if self._halting is None:
            await self._end(grace)
        else:
            await asyncio.wait({self._halting}, timeout=HALT_GRACE + grace)

    async def _end(self, grace: float) -> None:
        self._stopping.set()
        async with self._turn:
            await self._finish(grace)

    async def _finish(self, grace: float) -> None:
        self._pipeline.calls.stopping = True
        if self._feed is not None:
            await survive("the stop of a feed", self._feed.stop())
        self._wake_all()
        if not self._subscription.ordered:
            await self._give_back(emptied(self._lanes))
        names = [f"{self.position} lane {number}" for number in range(len(self._lanes))]
        if not await self._tasks.wait(*names, timeout=grace):
            log.warning("%s: a handler was still running after %.0f s; its event is given back", self.position, grace)
        await self._tasks.cancel()
        await self._asides.give_up()
        await self._pipeline.settler.settled()
        await self._give_back(emptied(self._lanes))
        if self._feed is not None:
            await survive("the close of a feed", self._feed.close())

    async def backlog(self) -> Backlog | None:
        """How far behind the position is, or None before the start."""
        return None if self._feed is None else await self._feed.backlog()

    async def keeps(self) -> timedelta | None:
        """How long the stream keeps its events; None is without end.

        Raises:
            BrokerUnavailable: the broker cannot be asked, or the worker has not begun.
        """
        if self._feed is None:
            raise BrokerUnavailable(f"{self.position} does not listen yet")
        return await self._feed.keeps()

    async def _run(self, lane: Lane) -> None:
        pause = 0.0
        while not (self._stopping.is_set() or we_are_cancelled()):  # which a handler may have kept to itself
            if self._gate.closed:
                await self._gate.opened()
                continue
            if self._holding is not None and (trouble := await self._take_over(self._holding)):
                lane.trouble = trouble
                await self._pause(LONGEST_PAUSE)
                continue
            taken = lane.take(self._allowed())
            if taken and self._shared is not None and (doubt := self._pipeline.fence()):
                lane.put_back(taken)
                lane.trouble = doubt
                await self._pause(FIRST_PAUSE)
                continue
            batch = [delivery for delivery in taken if not delivery.withdrawn]
            if not batch:
                lane.trouble = ""
                if not taken:  # behind what was withdrawn there may be more, and nobody wakes this lane for it
                    await lane.sleep(self._until_next(lane))
                continue
            suspect = self._pipeline.settler.counts.suspect(batch)
            if suspect is None:
                rest, lane.trouble = await self._process(lane, batch)
            elif not batch[suspect].counted:
                lane.put_back(batch)  # where they can be recalled meanwhile
                rest, lane.trouble = [], await self._look_at(batch)
            elif suspect:
                lane.put_back(batch[suspect:])
                rest, lane.trouble = await self._process(lane, batch[:suspect])
            else:
                lane.put_back(batch[1:])
                rest, lane.trouble = await self._process_alone(lane, batch[0])
            lane.put_back(rest)
            if self._pipeline.broken:
                self._halt()
            elif lane.trouble and not self._stopping.is_set():
                if not pause:
                    log.warning("%s waits: %s", self.position, lane.trouble)
                pause = min(max(pause * 2, FIRST_PAUSE), LONGEST_PAUSE)
                await self._pause(pause)
            else:
                pause = 0.0

    async def _take_over(self, holding: Holding) -> str:
        """Ask what others left of held keys whenever this process has begun to take; say why that cannot be known."""
        began = (self._feed, self._feed.tenure if self._feed is not None else 0)
        if began == self._began:
            return ""
        try:
            await holding.refresh()
        except WorldError as error:
            return describe(error)
        self._began = began
        return await self._take_over(holding)  # what began meanwhile asks again

    def _halt(self) -> None:
        """Stop this handler and no other: what it has goes back, and nothing more is taken."""
        self._stopping.set()
        if self._halting is None:
            log.error("%s is stopped, and its events wait for a mended one: %s", self.position, self._pipeline.broken)
            self._halting = asyncio.create_task(self._end(HALT_GRACE), name=f"tidings {self.position} halt")

    def _allowed(self) -> int:
        """How many events a lane may take up now."""
        return 0 if self.paused else self._switch.most(self._batch)

    def _until_next(self, lane: Lane) -> float | None:
        """Seconds until there may be something to do without anything arriving, or None."""
        due = lane.until_due()
        if self.paused or not self._switch.off or not (lane.queue or due is not None):
            return due
        return max(LOOK, self._switch.wait(), due or 0.0 if not lane.queue else 0.0)

    def _judge(self, ended: Ended) -> None:
        """Take in what became of a batch; the switch may go off, or on again.

        While it is on, each event counts once, however often it is tried: a few that are bad say nothing of the rest.
        In order every attempt counts, because those that follow do not get as far.
        """
        every = self._switch.off or self._subscription.ordered
        seen = ended if every else [one for one in ended if not one[0].failures]
        wrong = sum([went_wrong(decision) for _, decision in seen if type(decision) is not Done])
        if not self._switch.count(len(seen), wrong):
            return
        if self._switch.off:
            log.error("%s %s", self.position, self.trouble)
        else:
            log.warning("%s goes on: what it tried succeeded", self.position)
            self._wake_all()
        self._pipeline.calls.lenient = self._switch.off

    def _wake_all(self) -> None:
        for lane in self._lanes:
            lane.wake()

    async def _process(self, lane: Lane, batch: list[Delivery]) -> tuple[list[Delivery], str]:
        self._begin(lane, batch)
        try:
            return await self._pipeline.process(batch, lane.holds, more=bool(lane.queue) or lane.holds is None)
        except Exception:
            log.exception("%s: the pipeline failed over %d events; they were given back", self.position, len(batch))
            return [], ""
        finally:
            self._ended(lane)
            self._gate.left()

    def _begin(self, lane: Lane, batch: list[Delivery]) -> None:
        lane.busy, lane.batch = True, batch
        self._switch.probing = self._switch.off
        for observer in self._observers:
            try:
                observer.received(self.position, len(batch))
            except Exception:
                log.exception("observer %r failed; it changes nothing", observer)

    def _ended(self, lane: Lane) -> None:
        lane.busy = self._switch.probing = False
        lane.batch = ()
        self._sink.ended()

    async def _look_at(self, batch: Sequence[Delivery]) -> str:
        """Ask what others noted of suspects, which they may have given back alive; say why that cannot be known."""
        try:
            await self._pipeline.settler.counts.look_at(batch)
        except WorldError as error:
            return describe(error)
        return ""

    async def _process_alone(self, lane: Lane, suspect: Delivery) -> tuple[list[Delivery], str]:
        """Handle what may have killed its process before, while no other lane of this handler runs."""
        if lane.holds is not None:
            lane.put_back([suspect])  # in order it keeps its place until its turn has come
        async with self._gate.alone() as alone:
            batch = [suspect] if lane.holds is None else lane.take(1)
            if not alone and lane.holds is None:
                lane.queue.append(suspect)  # behind the healthy, which must not wait for it as well
                batch = []
            if not alone or self._stopping.is_set() or self._pipeline.settler.counts.suspect(batch) is None:
                return batch, "" if alone else "what runs beside a suspect does not come to an end"
            if self.paused:
                await self._give_back(batch)
                return [], ""
            self._begin(lane, batch)
            try:
                return await handle_alone(self._pipeline, batch[0], lane.holds, lane.queue)
            except Exception:
                log.exception("%s: the pipeline failed over a suspect; it was given back", self.position)
                return [], ""
            finally:
                self._ended(lane)

    async def _pause(self, seconds: float) -> None:
        """Wait even when events arrive, which may wake another lane: only a stop ends it early."""
        try:
            async with asyncio.timeout(seconds):
                await self._stopping.wait()
        except TimeoutError:
            pass

    async def _give_back(self, deliveries: Sequence[Delivery]) -> None:
        if deliveries:
            await self._pipeline.settler.counts.note_survivors(deliveries)
            await self._broker.settle([(delivery, Release()) for delivery in deliveries])
