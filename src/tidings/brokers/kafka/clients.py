"""The library's clients that a process has of one cluster, and how they learn of a new password while they live."""

from __future__ import annotations

import asyncio
import logging
import re
import threading
from collections.abc import Callable
from functools import partial
from typing import Any, Final, Protocol, TypeVar
from weakref import WeakSet

from confluent_kafka import Consumer, KafkaError, KafkaException, Message, Producer

from tidings.brokers.kafka.admin import AdminClient
from tidings.brokers.kafka.options import FILES, Options
from tidings.errors import BrokerUnavailable, ConfigurationError

log = logging.getLogger("tidings.kafka")

T = TypeVar("T")

_FAILED: Final = re.compile(r"^Failed to create \w+ ?\w*: ")


class Ask(Protocol):
    """Calls what blocks, on a thread, and for a limited time."""

    async def __call__(self, call: Callable[[], T], /) -> T: ...


class _Asker(Consumer):
    """One that can be known of without being kept alive."""


class _Consumer(_Asker):
    """It lets nobody in while somebody polls, which is always: so whoever polls has to tell it."""

    news: tuple[str, str] | None = None

    def poll(self, timeout: float = -1) -> Message | None:
        self._listen()
        return super().poll(timeout)

    def consume(self, num_messages: int = 1, timeout: float = -1) -> list[Message]:
        self._listen()
        return super().consume(num_messages, timeout)

    def _listen(self) -> None:
        if self.news is not None:
            news, self.news = self.news, None
            self.set_sasl_credentials(*news)


class _Producer(Producer):
    """Likewise known of."""


def made(make: Callable[[dict[str, Any]], T], settings: dict[str, Any], where: str) -> T:
    """A client of librdkafka.

    Raises:
        ConfigurationError: it does not know a setting, or not its value; the message shows no password.
        BrokerUnavailable: there is no token to sign in with.
    """
    try:
        return make(settings)
    except KafkaException as error:
        if code_of(error) == KafkaError.SASL_AUTHENTICATION_FAILED:
            raise BrokerUnavailable(f"{where}: {reason(error)}: does oauth_cb return one, and in time?") from None
        raise ConfigurationError(f"a setting for {where} is refused: {_in_our_names(reason(error))}") from None
    except (ValueError, TypeError) as error:
        raise ConfigurationError(f"a setting for {where} is refused: {_in_our_names(reason(error))}") from None


def reason(error: BaseException | KafkaError) -> str:
    """What an error of the library says, in its own words."""
    if isinstance(error, KafkaException) and error.args and isinstance(error.args[0], KafkaError):
        error = error.args[0]
    return error.str() if isinstance(error, KafkaError) else str(error)


def _in_our_names(text: str) -> str:
    """What the library says of a setting, by the name that stands in the URL."""
    for option, setting in FILES.items():
        text = text.replace(setting, option)
    return _FAILED.sub("", text)


def code_of(error: BaseException | KafkaError | None) -> int:
    """The code of an error of the library; 0 where it has none."""
    if isinstance(error, KafkaException) and error.args:
        error = error.args[0]
    return error.code() if isinstance(error, KafkaError) else 0


class Clients:
    """Made on any thread; each says and hears what all of this process do."""

    def __init__(self, options: Options, name: str, heard: Callable[[KafkaError], None]) -> None:
        self._options = options
        self._given = {"client.id": name.replace(" ", "-"), "error_cb": heard}
        self._all: WeakSet[Any] = WeakSet()
        self._lock = threading.Lock()
        self._secret = ""

    def consumer(self, settings: dict[str, Any]) -> Consumer:
        """One that polls. Raises as `made`."""
        return self._make(_Consumer, settings)

    def asker(self, settings: dict[str, Any]) -> Consumer:
        """One that is only asked. Raises as `made`."""
        return self._make(_Asker, settings)

    def producer(self, settings: dict[str, Any]) -> Producer:
        """Raises as `made`."""
        return self._make(_Producer, settings)

    def administrator(self) -> AdminClient:
        """Raises as `made`."""
        return self._make(AdminClient, self._options.administrator())

    def _make(self, kind: Callable[[dict[str, Any]], T], settings: dict[str, Any]) -> T:
        client = made(kind, {**self._given, **settings}, self._options.where)
        with self._lock:
            self._all.add(client)
        return client

    async def renew(self, ask: Ask) -> None:
        """Tell all of them what the file of the password says now; `ask` calls what blocks.

        Raises:
            ConfigurationError: it cannot be read just now.
            BrokerUnavailable: it was not read in time.
        """
        if self._options.user is None or not self._options.password_file:
            return
        secret = await ask(self._options.secret)
        if secret == self._secret:
            return
        self._secret = secret
        with self._lock:
            clients = list(self._all)
        # Side by side: one that is being closed lets nobody in until it is, and the others are not to wait for it.
        await asyncio.gather(*(ask(partial(self._tell, client)) for client in clients), return_exceptions=True)
        log.info("the password for %s was read again", self._options.where)

    def _tell(self, client: AdminClient | Consumer | Producer) -> None:
        news = self._options.user or "", self._secret
        if isinstance(client, _Consumer):
            client.news = news
            return
        try:
            client.set_sasl_credentials(*news)
        except RuntimeError:
            pass  # it is closed
