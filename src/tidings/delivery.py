"""What moves: messages on their way out, deliveries on their way in, and what becomes of them.

A leaf: it imports nothing of Tidings but the errors' names. Everything here is plain data.
"""

from __future__ import annotations

import enum
from collections.abc import Mapping
from datetime import datetime
from typing import TYPE_CHECKING, Annotated, ClassVar, Final, Literal, TypeAlias
from urllib.parse import unquote

import msgspec

if TYPE_CHECKING:
    from collections.abc import Sequence

MAX_EVENT_BYTES = 1024 * 1024
"""What an event may weigh with its envelope, in bytes. Brokers leave room above it for the headers of copies."""

MAX_KEY_LENGTH = 256
"""How long a key may be, in characters."""

PARTITIONS = 64
"""Into how many partitions the keys of a stream fall: fixed when the stream is made."""

Content: TypeAlias = Literal["structured", "binary"]
"""The two modes in which an event travels: all in one JSON object, or its attributes as headers."""

NO_HEADERS: Mapping[str, str] = {}


class Header:
    """The names of the headers that Tidings writes; values are printable ASCII, percent-encoded where they are not."""

    ID: ClassVar = "tidings-id"
    KEY: ClassVar = "tidings-key"
    ORIGIN: ClassVar = "tidings-origin"
    """Where the first copy of a message stood, `Delivery.origin` as text."""
    HANDLER: ClassVar = "tidings-handler"
    TYPE: ClassVar = "tidings-type"
    STREAM: ClassVar = "tidings-stream"
    FAILURES: ClassVar = "tidings-failures"
    FIRST_FAILURE: ClassVar = "tidings-first-failure"
    LAST_FAILURE: ClassVar = "tidings-last-failure"
    REASON: ClassVar = "tidings-reason"
    ERROR: ClassVar = "tidings-error"
    TRACEBACK: ClassVar = "tidings-traceback"
    SERVICE_VERSION: ClassVar = "tidings-service-version"
    DUE: ClassVar = "tidings-due"
    """Not before this time: RFC 3339 with zone."""
    LETTER: ClassVar = "tidings-letter"
    """The id of a dead letter: of itself, of the one a marker speaks of, or of the one a redriven copy was."""
    REDRIVE: ClassVar = "tidings-redrive"
    """Which redrive of that letter it is: 1 for the first."""
    REDRIVEN_FROM: ClassVar = "tidings-redriven-from"
    """The id of the dead letter whose redriven copy died again."""
    PLACE: ClassVar = "tidings-place"
    """The place of a letter, or of its redriven copy, among those of its key that wait behind the first: from 1."""
    BEHIND: ClassVar = "tidings-behind"
    """The id of the letter that those of its key wait behind."""
    LEFT_OUT: ClassVar = "tidings-left-out"
    """Names of the publisher's headers that were too large for the copy."""
    MARKER: ClassVar = "tidings-marker"
    BY: ClassVar = "tidings-by"
    """Who did it: ``user@host``."""
    AT: ClassVar = "tidings-at"
    """When it was done, RFC 3339 with zone."""
    CHOICE: ClassVar = "tidings-choice"
    """How the letters were chosen of which this is one."""
    NOTE: ClassVar = "tidings-note"
    """The name of a note, `Message.key` of it."""
    REPLAY: ClassVar = "tidings-replay"
    """The id of the replay that a copy belongs to."""
    SCOPE: ClassVar = "tidings-scope"
    """Within this scope a copy is applied once, whatever was applied outside of it."""
    PART: ClassVar = "tidings-part"
    """``2/3``: the second of three parts of a letter too large for one message."""


class Route(enum.Enum):
    """Which of the roads a message takes."""

    EVENT = "event"
    RETRY = "retry"
    DEAD = "dead"
    NOTE = "note"
    """What the processes of a handler tell each other, and what they have to remember: see `notes`."""


class Message(msgspec.Struct, frozen=True, kw_only=True):
    """Bytes on their way to a broker.

    `id` is the broker's key for de-duplication: storing the same id again counts as success. `stream` and `type` are
    those of the event, also for copies on the retry route and for dead letters, where `position` names the handler.
    `due` (retry route only, Unix seconds) is the moment before which the copy must not be delivered.
    """

    id: str
    stream: str
    type: str
    body: bytes
    key: str | None = None
    headers: Mapping[str, str] = NO_HEADERS
    route: Route = Route.EVENT
    position: str = ""
    due: float | None = None


class Envelope(
    msgspec.Struct,
    frozen=True,
    kw_only=True,
    gc=False,
    rename={
        "key": "subject",
        "correlation_id": "correlationid",
        "causation_id": "causationid",
        "content_type": "datacontenttype",
    },
):
    """The CloudEvents 1.0 attributes that an event travels with, in the order in which they stand on the wire."""

    specversion: Literal["1.0"] = "1.0"
    id: Annotated[str, msgspec.Meta(min_length=1, max_length=256)]
    source: Annotated[str, msgspec.Meta(min_length=1, max_length=2048)]
    type: Annotated[str, msgspec.Meta(min_length=1, max_length=256)]
    version: str
    """``v1``, ``v2`` and so on."""
    time: Annotated[datetime, msgspec.Meta(tz=True)] | None = None
    key: Annotated[str, msgspec.Meta(min_length=1, max_length=MAX_KEY_LENGTH)] | None = None
    correlation_id: Annotated[str, msgspec.Meta(max_length=256)] | None = None
    causation_id: Annotated[str, msgspec.Meta(max_length=256)] | None = None
    traceparent: str | None = None
    tracestate: str | None = None
    content_type: str | None = None
    data: msgspec.Raw = msgspec.Raw()
    """The event's own JSON, not decoded yet."""


class Delivery(msgspec.Struct, eq=False, weakref=True):
    """One attempt to bring one message to one handler.

    An adapter fills the first block and keeps to itself what `token` means. A handler that asks for its `Delivery` by
    annotation may read all of it, and change nothing by doing so.
    """

    body: bytes
    stream: str
    origin: tuple[str | int, ...]
    """Where the message stands at the broker, such as ``("order", 1234)``: the same for each delivery of it."""
    token: object
    headers: Mapping[str, str] = NO_HEADERS
    slot: int | None = None
    """The partition of its key, where the broker tells it before decoding; deliveries of one key share a slot."""
    delivered: int = 1
    """How often the broker says it has delivered this message; it counts crashes and hand-backs too."""
    route: Route = Route.EVENT

    failures: int = 0
    """How often the handler has failed on it before, as Tidings counts: in the headers of the retry copy."""
    stored: float = 0.0
    """When the broker stored this message, Unix seconds; 0 where it does not say."""
    arrived: float = 0.0
    """When it came into this process, Unix seconds; 0 for what was read from a log."""
    first_failed: float = 0.0
    """When it first failed, in Unix seconds."""
    counted: bool = False
    """What the notes of its handler say of its failures was looked up."""
    envelope: Envelope | None = None
    """Set once the bytes were read."""
    withdrawn: bool = False
    """Its part of the position went to another process, or is about to: it must not be begun here any more."""

    @property
    def attempt(self) -> int:
        """1 for the first time that the handler sees the event, then one more for each failure."""
        return self.failures + 1

    @property
    def scope(self) -> str:
        """The replay within which it is applied once more; empty for all that is applied once and for all."""
        return self.headers.get(Header.SCOPE, "") if self.route is Route.RETRY else ""

    @property
    def event_id(self) -> str:
        """The event's id, or what stands in for it when the bytes could not be read."""
        return self.envelope.id if self.envelope else unquote(self.headers.get(Header.ID, "")) or self.origin_text

    @property
    def key(self) -> str | None:
        """The business key, percent-decoded where it stands in a header only."""
        if self.envelope:
            return self.envelope.key
        known = self.headers.get(Header.KEY)
        return None if known is None else unquote(known)

    @property
    def correlation_id(self) -> str:
        """The id that all events of one story share: the first event's."""
        return (self.envelope.correlation_id or self.envelope.id) if self.envelope else ""

    @property
    def causation_id(self) -> str:
        """The id of the event that caused this one, or nothing."""
        return (self.envelope.causation_id or "") if self.envelope else ""

    @property
    def origin_text(self) -> str:
        return "@".join(map(str, self.origin))

    def __repr__(self) -> str:
        return f"<Delivery {self.origin_text} attempt={self.attempt} delivered={self.delivered} {self.route.value}>"


class Done(msgspec.Struct, frozen=True):
    """The event took effect now, or is none of this handler's business (`skipped`)."""

    kind: ClassVar[str] = "done"
    skipped: bool = False


DONE: Final = Done()
SKIPPED: Final = Done(skipped=True)


class Duplicate(msgspec.Struct, frozen=True):
    """The event took effect earlier. `of` is the id of the event that did, when it was another one."""

    kind: ClassVar[str] = "duplicate"
    of: str = ""


class Retried(msgspec.Struct, frozen=True):
    """To be handled again, not sooner than `after` seconds from now. `counted` is off for what is no failure."""

    kind: ClassVar[str] = "retry"
    after: float
    reason: str
    counted: bool = True
    error: BaseException | None = None


class DeadLettered(msgspec.Struct, frozen=True):
    """Cannot be handled: a copy is kept for a person to look at. `code` is fit for a metric's label."""

    kind: ClassVar[str] = "dead"
    reason: str
    code: str = "failed"
    error: BaseException | None = None


class Unsettled(msgspec.Struct, frozen=True):
    """The broker could not be told. It will deliver again, and ``once`` makes that harmless."""

    kind: ClassVar[str] = "unsettled"
    wanted: Done | Duplicate | Retried | DeadLettered
    reason: str


UNTIL_IT_ENDS: Final = float("inf")
"""`Retried.after` of an event whose call has not ended yet, which it waits for in its process."""

Decision: TypeAlias = Done | Duplicate | Retried | DeadLettered
Outcome: TypeAlias = Decision | Unsettled


class Ack(msgspec.Struct, frozen=True):
    """Tell the broker that a message needs no further delivery."""


class Release(msgspec.Struct, frozen=True):
    """Give a message back: to be delivered again to this position, not sooner than `after` seconds from now."""

    after: float = 0.0


Verdict: TypeAlias = Ack | Release

ACK = Ack()


def deliveries_repr(deliveries: Sequence[Delivery], most: int = 3) -> str:
    """A few origins for a log line, never all of a batch."""
    shown = ", ".join(delivery.origin_text for delivery in deliveries[:most])
    return shown if len(deliveries) <= most else f"{shown} and {len(deliveries) - most} more"
