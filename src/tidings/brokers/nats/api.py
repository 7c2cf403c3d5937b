"""Requests to the server's JetStream API, and what its errors mean."""

from __future__ import annotations

import asyncio
import time
from typing import Any, Final

import msgspec

from tidings.brokers.nats.connection import Connection
from tidings.brokers.nats.link import NoResponders
from tidings.errors import BrokerUnavailable, ConfigurationError, WorldError

PATIENCE: Final = 10.0
"""Seconds that "nobody answers" may last: an election or a restart looks the same as a missing stream (trap 16)."""
ELECTION: Final = 20.0
"""Seconds for which a cluster may have no leader after one was lost; it answers nothing meanwhile."""
_PAUSE: Final = 0.25

NO_CONSUMER: Final = 10014
NO_STREAM: Final = 10059
NO_MESSAGE: Final = 10037
CONSUMER_EXISTS: Final = frozenset({10105, 10148, 10013})
STREAM_EXISTS: Final = frozenset({10058})
OVERLAP: Final = 10065
NOT_FOR_ACCOUNT: Final = 10039
NOT_FOR_SERVER: Final = 10076
_NOT_NOW: Final = frozenset({10008, 10009, 10005, 10104})
"""No leader, starting up, offline: the same request may work in a moment."""

FULL: Final = frozenset({10077, 10023, 10047, 10002, 10028, 10122, 10123})
TOO_LARGE: Final = frozenset({10054, 10097})
TRANSIENT: Final = _NOT_NOW | {10158, 10167}
"""10158: the same id is being stored just now (trap 13); 10167: too many requests at once."""


class ApiError(WorldError):
    """The server understood a request and refused it."""

    def __init__(self, subject: str, error: dict[str, Any]) -> None:
        self.code: int = error.get("code", 0)
        self.err_code: int = error.get("err_code", 0)
        self.description: str = error.get("description", "")
        super().__init__(f"the server refused {subject}: {self.description} ({self.err_code})")


class Api:
    """The JetStream API over one connection."""

    def __init__(self, connection: Connection) -> None:
        self._connection = connection
        self.prefix = connection.options.api

    async def call(
        self, subject: str, body: object = None, *, timeout: float = 5.0, patience: float = PATIENCE
    ) -> dict[str, Any]:
        """Ask, and ask again while the server has no leader or nobody answers, for `patience` seconds at most.

        Raises:
            ApiError: the server refused.
            NoResponders: nobody answered for so long; without JetStream nobody ever does.
            BrokerUnavailable: no connection, no answer in time, or no leader for so long.
        """
        payload = b"" if body is None else msgspec.json.encode(body)
        end = time.monotonic() + patience
        while True:
            error: BrokerUnavailable
            try:
                link = await self._connection.ready(min(timeout, max(end - time.monotonic(), 0.1)))
                answer = msgspec.json.decode(await link.ask(f"{self.prefix}.{subject}", payload, timeout))
                if "error" not in answer:
                    return dict(answer)
                refusal = ApiError(subject, answer["error"])
                if refusal.err_code not in _NOT_NOW:
                    raise refusal
                error = BrokerUnavailable(str(refusal))
            except BrokerUnavailable as reason:
                error = reason
            if time.monotonic() + _PAUSE > end:
                raise error
            await asyncio.sleep(_PAUSE)

    async def _answers(self) -> None:
        """Wait for an answer: while a cluster elects its leader nobody gives one; where nobody listens, none comes."""
        end = time.monotonic() + ELECTION
        while True:
            try:
                await self.call("INFO", timeout=2.0, patience=3.0)
                return
            except NoResponders:
                raise
            except BrokerUnavailable:
                link = self._connection.link
                if link is not None and link.denied:
                    raise ConfigurationError(
                        f"this user may not ask JetStream at {self._connection.options.where}, or not hear its answers:"
                        f" the server said {link.denied}. Grant that subject to the user in the server's configuration"
                    ) from None
                if time.monotonic() > end:
                    raise

    async def check(self) -> None:
        """See that JetStream is there for us.

        Raises:
            ConfigurationError: it is not, with the remedy.
        """
        where = self._connection.options.where
        link = await self._connection.ready(self._connection.options.connect_timeout)
        try:
            await self._answers()
        except NoResponders:
            if not link.info.get("jetstream"):  # which by itself says nothing: another server of a cluster may have it
                raise ConfigurationError(
                    f"{where} runs without JetStream, so nothing would be stored: start it with -js, or add"
                    " `jetstream { store_dir: … }` to its configuration. If it is a leaf node, name the domain of the"
                    " server that has JetStream (?domain=…)"
                ) from None
            raise ConfigurationError(
                f"nobody answers on {self.prefix}.INFO at {where}: the account has no JetStream, this user may not"
                " publish there, or the API stands elsewhere (?prefix=… or ?domain=…)"
            ) from None
        except ApiError as error:
            if error.err_code in (NOT_FOR_ACCOUNT, NOT_FOR_SERVER):
                raise ConfigurationError(
                    f"JetStream is not enabled for this account at {where}: add `jetstream: enabled` to the account in"
                    " the server's configuration"
                ) from None
            raise
