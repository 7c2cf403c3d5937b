"""What is said of a cluster that is not there: in our words, and with what to do about it.

The client library counts brokers (`0/2 brokers are down`), among them addresses of its own making, and names sockets.
"""

from __future__ import annotations

import re
import time
from typing import Final

from confluent_kafka import KafkaError

IS_IT_UP: Final = "Is the broker running, and is the address right?"
IS_IT_KAFKA: Final = "Does this port speak Kafka, and with TLS or without? tls=1 in the URL says with."
DOES_IT_ASK: Final = f"{IS_IT_KAFKA} If it demands a user: kafka://user:password@host:9092. Or does it hang?"

REFUSED: Final = frozenset({KafkaError._AUTHENTICATION, KafkaError._SSL})
REFUSED_FOR: Final = 3.0
"""Seconds for which it counts that somebody was not let in, whoever else is: clients try again once a second."""
NO_ANSWER: Final = frozenset({KafkaError._TRANSPORT, KafkaError._TIMED_OUT, KafkaError._ALL_BROKERS_DOWN})
"""What a question comes to that nobody answers; why is told elsewhere."""

_SLIP: Final = re.compile(r"/\d+: .*not valid in current SASL state")
"""How it ends when the library (2.16) signs in twice at once, with a fresh token: it connects again, and is in. Who
asks nobody for a user says so as well, at the first contact already."""
_TOLD: Final = re.compile(r"^(?:\w+://)?(\S+:\d+)/(\d+): ")
"""Who a report is about, where the cluster itself named the broker, with its number."""
_SOCKET: Final = re.compile(r"^\S+: (?:Connect to \S+ failed: )?|\s*\(after \d+ms in state .*\)$")


class Away:
    """What the clients of one process report of the brokers that they cannot use."""

    def __init__(self, where: str) -> None:
        self._where = where
        self._said: tuple[int, str] | None = None
        self._down = False
        self._answered = False
        self._refused = -REFUSED_FOR

    def hear(self, error: KafkaError) -> bool:
        """A report of a client, on any thread; whether it says that none of the brokers can be used."""
        code = error.code()
        if _SLIP.search(error.str()):
            return False
        if code in _TELLING:
            self._said = code, error.str()
        self._down |= code in _ALL
        if code in REFUSED:
            self._refused = time.monotonic()
        return code in _ALL

    def answered(self) -> None:
        """The cluster has answered: it is where we thought, and what was reported before is over.

        Not so that it lets none of our other clients in: they may say so between two answers to this one.
        """
        self._answered = True
        if time.monotonic() - self._refused > REFUSED_FOR:
            self._said, self._down = None, False

    @property
    def heard(self) -> bool:
        return self._down or self._said is not None

    def silent(self) -> None:
        """Somebody takes connections there, and nothing was heard of it: to the library that is no error for long."""
        self._down = True

    def why(self) -> tuple[str, str]:
        """What is wrong, and what to do."""
        if self._said is not None:
            elsewhere = None if self._answered else _TOLD.match(self._said[1])
            if elsewhere:
                return sent_astray(self._where, elsewhere[1], elsewhere[2], self._said[1])
            return explained(*self._said, self._where)
        if not self._down:
            return f"no answer from {self._where} in time", IS_IT_UP
        if self._answered:
            return f"the connection to {self._where} was lost", IS_IT_UP
        return f"{self._where} took the connection and did not answer", DOES_IT_ASK


def sent_astray(where: str, address: str, number: str, said: str) -> tuple[str, str]:
    """What it means that the first broker answered, and the one that it named does not."""
    what = f"{where} is there, but broker {number} tells its clients to come to {address}, and from here: "
    return what + _SOCKET.sub("", said).rstrip(". "), (
        f"Set advertised.listeners of broker {number} to an address that is reached from here."
    )


def explained(code: int, said: str, where: str) -> tuple[str, str]:
    """What a report of a client means, and what to do."""
    if code == KafkaError._BAD_MSG:
        return f"what {where} answers is not Kafka", IS_IT_KAFKA
    if "Connection refused" in said:
        return f"nothing listens on {where}", IS_IT_UP
    text = _SOCKET.sub("", said)  # without the address: sasl_ssl:// says nothing about what went wrong
    what = f"{where} cannot be reached: {text}".rstrip(".:? ")
    if code == KafkaError._RESOLVE:
        return what, (
            "Is the address right? Its name must be known on this machine, also where a broker tells it to its clients"
            " (advertised.listeners)."
        )
    text = text.lower()
    if "certificate verify failed" in text:
        return f"the certificate that {where} shows is not trusted", (
            "Look at tls_ca= of the URL, the file with the certificates to trust, and at whether the certificate is of"
            " the name in the URL."
        )
    if text.rstrip().endswith("supported mechanisms:"):
        return f"{where} asks nobody for a user", "Leave user, password and mechanism= out of the URL."
    if "authentication" in text or "sasl" in text:
        return what, "Look at the user, the password and mechanism= of the URL, and at what the listener demands."
    if "ssl" in said.lower() or "certificate" in text:
        return what, (
            "Look at tls= and tls_ca= of the URL, at tls_cert= and tls_key= if it demands a certificate of its clients,"
            " and whether this listener speaks TLS."
        )
    return what, DOES_IT_ASK if "disconnected" in text else IS_IT_UP


_TELLING: Final = frozenset(
    {
        KafkaError._AUTHENTICATION,
        KafkaError._SSL,
        KafkaError._RESOLVE,
        KafkaError._TRANSPORT,
        KafkaError._BAD_MSG,
    }
)
_ALL: Final = REFUSED | {KafkaError._ALL_BROKERS_DOWN}
