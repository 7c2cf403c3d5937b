"""Questions to the cluster, asked from the event loop, and whether it is there.

The client library heals its connections by itself, and says little while it does. So the cluster is asked from time to
time, and at once when a client reports that no broker can be reached.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any, Final, TypeVar

from confluent_kafka import Consumer, KafkaError, KafkaException, TopicPartition

from tidings.brokers.kafka.admin import ClusterMetadata
from tidings.brokers.kafka.away import IS_IT_UP, NO_ANSWER, REFUSED, Away
from tidings.brokers.kafka.clients import Clients, code_of, reason
from tidings.brokers.kafka.doors import knock, must_reach
from tidings.brokers.kafka.names import NOTE_TOPIC
from tidings.brokers.kafka.options import Options
from tidings.brokers.kafka.versions import must_assign
from tidings.errors import BrokerUnavailable, ConfigurationError, TidingsError

log = logging.getLogger("tidings.kafka")

LOOK: Final = 0.5
"""Seconds between two looks while there is trouble."""
LOOK_AGAIN: Final = 5.0
"""The same while all is well."""
PAUSE: Final = 0.1
PROBE: Final = 1.5
ASKED: Final = 5.0
"""Seconds that a question may take."""

T = TypeVar("T")

DENIED: Final = frozenset(
    {
        KafkaError.TOPIC_AUTHORIZATION_FAILED,
        KafkaError.GROUP_AUTHORIZATION_FAILED,
        KafkaError.CLUSTER_AUTHORIZATION_FAILED,
    }
)
_PASSING: Final = frozenset(
    {
        KafkaError.COORDINATOR_LOAD_IN_PROGRESS,
        KafkaError.COORDINATOR_NOT_AVAILABLE,
        KafkaError.LEADER_NOT_AVAILABLE,
        KafkaError.NOT_COORDINATOR,
        KafkaError.NOT_LEADER_FOR_PARTITION,
        KafkaError.UNKNOWN_TOPIC_OR_PART,
        KafkaError.UNKNOWN_LEADER_EPOCH,
        KafkaError.FENCED_LEADER_EPOCH,
        KafkaError._WAIT_COORD,
        KafkaError._TRANSPORT,
        KafkaError._ALL_BROKERS_DOWN,
        KafkaError._NOENT,
    }
)
"""What a cluster says of a topic that was just made, or while it has an election."""


class Link:
    """One cluster, as one process knows it."""

    def __init__(self, options: Options, name: str) -> None:
        self.options = options
        self.name = name
        self.trouble = ""
        """Why the cluster cannot be used just now; empty while it can."""
        self.reads = ThreadPoolExecutor(8, "tidings-kafka-read")
        self._asks = ThreadPoolExecutor(4, "tidings-kafka-ask")
        self._loop = asyncio.get_running_loop()
        self._wake = asyncio.Event()
        self._watching: asyncio.Task[None] | None = None
        self._away = Away(options.where)
        self.clients = Clients(options, name, self._heard)
        self.admin = self.clients.administrator()
        self._askers: dict[str, Consumer] = {}
        """Consumers that take nothing: for questions about a group, and of partitions."""
        self._barred = set[str]()
        """The groups that the user may not read."""
        self.partitions: dict[str, int] = {}
        """The topics that are known to exist, and into how many partitions they fall."""
        self.seen = set[str]()
        """Those that existed at any time, and were not found to be gone."""
        self.brokers: dict[int, tuple[str, int]] = {}
        """The brokers, as they say where they are."""

    async def start(self) -> None:
        """Reach the cluster.

        Raises:
            BrokerUnavailable: it cannot be reached in time, or sends its clients to where nobody is reached.
            ConfigurationError: its brokers are too old for what the options ask of them.
        """
        try:
            await self.refresh(self.options.connect_timeout)
        except BrokerUnavailable:
            if self._away.heard or all(await asyncio.gather(*(knock(*one) for one in self.options.servers))):
                raise
            self._away.silent()
            raise BrokerUnavailable(". ".join(self.away)) from None
        await must_reach(self.options.where, self.brokers)
        await must_assign(self.options, self.brokers)
        self._watching = asyncio.create_task(self._watch(), name="tidings-kafka-watch")

    async def close(self) -> None:
        watching, self._watching = self._watching, None
        if watching is not None:
            watching.cancel()
            await asyncio.gather(watching, return_exceptions=True)
        askers = list(self._askers.values())
        self._askers.clear()
        for asker in askers:
            try:
                await self.ask(asker.close)
            except TidingsError as error:
                log.debug("closing: %s", error)
        self.reads.shutdown(wait=False, cancel_futures=True)
        self._asks.shutdown(wait=False, cancel_futures=True)

    # ── questions ───────────────────────────────────────────────────────────────────────────────────────────────────

    async def refresh(self, timeout: float = ASKED) -> ClusterMetadata:
        """Ask which topics there are; asking makes none."""
        try:
            found = await self.ask(lambda: self._list(timeout), timeout + 1.0)
        except BrokerUnavailable as error:
            if self.trouble or self._away.heard:
                raise BrokerUnavailable(self.trouble or ". ".join(self.away)) from error
            raise
        self.brokers = {number: (str(one.host), int(one.port or 0)) for number, one in found.brokers.items()}
        known = {name: len(one.partitions) for name, one in found.topics.items() if one.error is None}
        self.partitions = known
        self.seen |= set(known)
        self._answered()
        return found

    async def _probe(self) -> None:
        """Ask for one topic: a cluster may have thousands."""
        if NOTE_TOPIC not in self.partitions:
            await self.refresh(PROBE)
            return
        await self.ask(lambda: self._list(PROBE, NOTE_TOPIC), PROBE + 1.0)
        self._answered()

    def _answered(self) -> None:
        self._away.answered()
        if not self._away.heard:
            self.trouble = ""

    def _list(self, timeout: float, topic: str | None = None) -> ClusterMetadata:
        try:
            return self.admin.list_topics(topic, timeout=timeout)
        finally:
            self.admin.poll(0)  # what it has to say of the brokers, it says to whoever polls

    async def ask(self, call: Callable[[], T], timeout: float = ASKED) -> T:
        """Call what blocks, on a thread.

        Raises:
            BrokerUnavailable: no answer in time, or one that says so.
        """
        try:
            async with asyncio.timeout(timeout):
                return await asyncio.get_running_loop().run_in_executor(self._asks, call)
        except (KafkaException, TimeoutError, RuntimeError) as error:
            raise self.meaning(error) from None

    def asker(self, group: str = "") -> Consumer:
        """A consumer to ask with, of a group that it is no member of.

        The administrator has questions about groups too. The library (2.16) ends the whole process when the answer to
        one comes after its coordinator went away.
        """
        if group not in self._askers:
            settings = self.options.reader() | ({"group.id": group} if group else {})
            self._askers[group] = self.clients.asker(settings)
        return self._askers[group]

    def committed(self, group: str, places: list[TopicPartition], timeout: float) -> list[TopicPartition]:
        """How far a group is. Blocks.

        That the user may not read the group is no answer to the library: it waits, and tells it the consumer, once.

        Raises:
            KafkaException: there is no answer in time.
            ConfigurationError: the user may not read the group.
        """
        asker = self.asker(group)
        try:
            found = asker.committed(places, timeout)
        except KafkaException:
            said = asker.poll(0)
            if said is not None and code_of(said.error()) in DENIED:
                self._barred.add(group)
            if group not in self._barred:
                raise
            raise ConfigurationError(
                f"the user at {self.options.where} may not read the group {group}. Grant it: kafka-acls.sh"
                f" --bootstrap-server … --add --allow-principal User:… --operation Read --group {group}"
            ) from None
        self._barred.discard(group)
        return found

    async def answers(
        self, ask: Callable[[], Mapping[Any, Future[T]]], timeout: float = ASKED, patience: float = ASKED
    ) -> list[T | Exception]:
        """What an administrator's requests come to, in their order; asked again while leaders are being chosen."""
        ends = time.monotonic() + patience
        while True:
            waiting: list[asyncio.Future[T]] = [asyncio.wrap_future(one) for one in ask().values()]
            await asyncio.wait(waiting, timeout=timeout)
            answers = [self._come_to(one) for one in waiting]
            passing = any(isinstance(one, Exception) and code_of(one) in _PASSING for one in answers)
            if not passing or time.monotonic() > ends:
                return answers
            await asyncio.sleep(PAUSE)

    def _come_to(self, waiting: asyncio.Future[Any]) -> Any:
        if not waiting.done():
            waiting.cancel()
            return self.meaning(TimeoutError())
        error = waiting.exception()
        if error is None:
            return waiting.result()
        return error if isinstance(error, KafkaException) else self.meaning(error)

    async def answer(self, ask: Callable[[], Mapping[Any, Future[T]]], timeout: float = ASKED) -> list[T]:
        """The same, where all have to succeed.

        Raises:
            BrokerUnavailable, ConfigurationError: one of them did not.
        """
        good: list[T] = []
        for one in await self.answers(ask, timeout):
            if isinstance(one, Exception):
                raise self.meaning(one) from None
            good.append(one)
        return good

    def meaning(self, error: BaseException | KafkaError) -> TidingsError:
        """An error of the library as one of ours."""
        if isinstance(error, TidingsError):
            return error
        if isinstance(error, TimeoutError):
            return self._no_answer()
        if code_of(error) in DENIED:
            return ConfigurationError(
                f"the user at {self.options.where} may not do this ({reason(error)}): grant it with kafka-acls"
            )
        if code_of(error) in NO_ANSWER:
            return self._no_answer()
        because = f" ({self.trouble})" if self.trouble else ""
        return BrokerUnavailable(f"{self.options.where}: {reason(error)}{because}")

    def _no_answer(self) -> BrokerUnavailable:
        return BrokerUnavailable(self.trouble or f"no answer from {self.options.where} in time. {IS_IT_UP}")

    # ── is it there? ────────────────────────────────────────────────────────────────────────────────────────────────

    @property
    def away(self) -> tuple[str, str]:
        """Why the cluster cannot be used, as far as the clients know, and what to do."""
        return self._away.why()

    def _heard(self, error: KafkaError) -> None:
        """A client reports something, on a thread of its own."""
        if self._away.hear(error):
            refused = error.code() in REFUSED
            try:
                self._loop.call_soon_threadsafe(self._lost if refused else self._wake.set)
            except RuntimeError:
                pass  # the loop has ended

    def _lost(self, otherwise: str = "") -> None:
        """The cluster is away, or lets us in no more; it is looked for until it is back."""
        told = self.trouble
        self.trouble = ". ".join(self.away) if self._away.heard else otherwise
        if not told and self._watching is not None:  # before that whoever opens is told, and after it nobody minds
            log.warning("%s", self.trouble)
        self._wake.set()

    async def _watch(self) -> None:
        while True:
            try:
                async with asyncio.timeout(LOOK if self.trouble else LOOK_AGAIN):
                    await self._wake.wait()
            except TimeoutError:
                pass
            self._wake.clear()
            was = self.trouble
            try:
                if was:
                    await self.clients.renew(self.ask)
                await self._probe()
                if was and not self.trouble:
                    log.info("%s can be reached again", self.options.where)
            except TidingsError as error:
                # A client may report what is long over; that the cluster does not answer either makes it true.
                self._lost(str(error))
                self._wake.clear()
                if was:
                    await asyncio.sleep(LOOK)
            except Exception:
                log.exception("looking for %s failed", self.options.where)
                await asyncio.sleep(LOOK_AGAIN)


def failed(answers: Sequence[object], allowed: frozenset[int]) -> Exception | None:
    """The first answer that is an error, and none of those that may be."""
    return next((one for one in answers if isinstance(one, Exception) and code_of(one) not in allowed), None)
