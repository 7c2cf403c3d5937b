"""Every error Tidings raises, in one tree with three branches: who has to act decides the branch.

::

    TidingsError
    ├── EventError                the event is bad: trying again cannot help
    │   ├── InvalidEvent          made with values that its class does not allow
    │   ├── EventTooLarge         larger than what may travel
    │   ├── Dead                  raised by a handler: this event cannot be handled, keep it as a dead letter
    │   ├── FailedEvents          raised by a batch handler: these of its events failed, and each with what
    │   └── UndecodableEvent      bytes that are not what a handler can read (`.code` says why)
    ├── WorldError                the world is down: the same thing may work later
    │   ├── BrokerUnavailable     no connection, no answer in time, no leader
    │   ├── NotStored             the broker refused to store an event, or nothing stores it
    │   ├── StoreUnavailable      the database or Redis does not answer
    │   ├── RetryAfter            raised by a handler: not now, try this event again after so many seconds
    │   └── Contention            a lock, a deadlock, a serialization failure: no failure of the event
    └── ProgramError              the program is wrong: somebody has to change code or settings
        ├── DeclarationError      an event class or a handler is written wrongly
        ├── ConfigurationError    a URL, a setting, a server's set-up
        └── MisuseError           a call that is not allowed where it stands
            └── TransactionEnded  a handler ended the transaction that its store lent it: the handler is stopped

A message says what happened, to what, and what to do. It never holds a secret.
"""

from __future__ import annotations

from collections.abc import Iterable
from datetime import timedelta


class TidingsError(Exception):
    """The root: catch it to catch whatever Tidings raises on purpose."""


class EventError(TidingsError):
    """The event is bad. Trying again cannot help, so it is never retried."""


class InvalidEvent(EventError):
    """An event was made with values that its class does not allow."""


class EventTooLarge(EventError):
    """An event, with its envelope and headers, is larger than what may travel."""


class Dead(EventError):
    """Raise it in a handler to say that this event cannot be handled: it becomes a dead letter at once."""


class FailedEvents(EventError):
    """Raise it in a batch handler to say which of its events failed, and with what.

    ``raise FailedEvents((order, Dead("no such product")) for order in orders if order.sku not in catalogue)``

    What the call did is rolled back, and the handler is called again with the others, all of them together. Each of
    these comes to the end that its error brings it: an error such as `Dead` a dead letter, `RetryAfter` and any other
    another attempt. Whoever raises something else leaves it to Tidings to find out whose fault it was, by halves.

    Args:
        pairs: an event of the handler's list, the very object, and the exception. What is not in the list is passed
            over; one that names nothing of it is a mistake, and like any other error.
    """

    def __init__(self, pairs: Iterable[tuple[object, Exception]]) -> None:
        self.pairs: list[tuple[object, Exception]] = list(pairs)
        first = f": {type(self.pairs[0][1]).__name__}: {self.pairs[0][1]}" if self.pairs else ""
        super().__init__(f"{len(self.pairs)} events failed{first}")

    def __reduce__(self) -> tuple[type[FailedEvents], tuple[list[tuple[object, Exception]]]]:
        return type(self), (self.pairs,)


class UndecodableEvent(EventError):
    """Bytes that are no event this handler can read.

    `code` is one of a closed set, fit for a metric's label: ``empty``, ``too-large``, ``too-deep``, ``not-json``,
    ``not-an-envelope``, ``bad-attribute``, ``unknown-version``, ``bad-data``, ``upcast-failed``.
    """

    def __init__(self, code: str, message: str) -> None:
        super().__init__(message)
        self.code = code

    def __reduce__(self) -> tuple[type[UndecodableEvent], tuple[str, str]]:
        return type(self), (self.code, str(self))


class WorldError(TidingsError):
    """Something outside is down. The same thing may work later."""


class BrokerUnavailable(WorldError):
    """The broker cannot be reached, does not answer in time, or has no leader just now."""


class NotStored(WorldError):
    """The broker did not store an event: it refused, it is full, or no stream takes it."""


class StoreUnavailable(WorldError):
    """The store behind ``once`` does not answer. Nothing was applied and nothing is acknowledged."""


class Contention(WorldError):
    """A lock, a deadlock or a serialization failure in the store: no failure of the event, and not counted as one."""


class RetryAfter(WorldError):
    """Raise it in a handler to say when an event is worth another attempt: ``raise RetryAfter(30, "rate limited")``.

    It is a failure like others: it counts as an attempt, and after the last one the event is a dead letter. It comes
    again after `seconds` (or a timedelta), never sooner, with up to a fifth added at random; `first` and `most` of
    `Retry` do not matter then.
    """

    def __init__(self, seconds: float | timedelta, reason: str = "") -> None:
        self.seconds: float = seconds.total_seconds() if isinstance(seconds, timedelta) else float(seconds)
        self.reason = reason
        if not 0 <= self.seconds < float("inf"):
            raise ValueError(f"RetryAfter({seconds!r}): a number of seconds, at least 0")
        super().__init__(f"{reason or 'asked for another attempt'} (again after {self.seconds:g} s)")

    def __reduce__(self) -> tuple[type[RetryAfter], tuple[float, str]]:
        return type(self), (self.seconds, self.reason)


class ProgramError(TidingsError):
    """The program is wrong. It is raised where the mistake can be seen, at the latest when a service starts."""


class DeclarationError(ProgramError):
    """An event class or a handler is written wrongly. The message shows the right line."""


class ConfigurationError(ProgramError):
    """A URL, a setting or a server's set-up cannot work as it stands."""


class MisuseError(ProgramError):
    """A call that is not allowed where it stands, such as a bare ``publish`` inside a handler."""


class TransactionEnded(MisuseError):
    """A handler ended, or tried to end, the transaction that its store lent it.

    That transaction holds the keys of other events too, so nothing the handler does can be relied upon: it is stopped,
    and what it had in hand is given back, until a mended one starts. Other handlers go on.
    """
