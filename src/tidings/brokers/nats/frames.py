"""Messages as bytes for the server, checked before they are sent.

The server closes the connection of whoever sends more than it takes, headers included, and with it everything else
that goes over this connection; the client library looks at the body alone (trap 51).
"""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

import msgspec

from tidings.brokers.nats.headers import MAX_HEADER_BYTES, plain, render
from tidings.brokers.nats.names import due_subject, stream_of, subject_of, wait_subject
from tidings.delivery import Header, Message, Route
from tidings.errors import EventTooLarge

FORGOTTEN_AFTER = "1h"
"""How long a note that was taken back is remembered as such."""

MARGIN = 1024
"""Bytes of the largest message that are left unused."""


class Frame(msgspec.Struct, gc=False):
    """A message ready to be sent, but for the subject that its answer comes on."""

    id: str
    key: str | None
    subject: bytes
    stream: str
    batches: bool
    """Its stream takes atomic batches."""
    head: bytes
    """The header block without its closing empty line, so that more can be added."""
    body: bytes

    @property
    def size(self) -> int:
        return len(self.head) + len(self.body) + len(self.subject) + 64

    def publish(self, reply: bytes = b"", extra: bytes = b"") -> bytes:
        head = len(self.head) + len(extra) + 2
        return b"HPUB %b %b %d %d\r\n%b%b\r\n%b\r\n" % (
            self.subject,
            reply,
            head,
            head + len(self.body),
            self.head,
            extra,
            self.body,
        )


def frame_of(message: Message, max_event: int, max_payload: int) -> Frame:
    """A message as bytes.

    Raises:
        EventTooLarge: the event, or the message with its headers, is larger than the server takes.
        InvalidEvent: a header or the type cannot travel.
    """
    stream = stream_of(message.route, message.stream)
    subject = subject_of(message)
    lines = [f"NATS/1.0\r\nNats-Msg-Id: {plain(message.id)}\r\nNats-Expected-Stream: {stream}\r\n"]
    if message.due is not None and message.route is Route.RETRY:
        due = datetime.fromtimestamp(message.due, UTC)
        if due > datetime.now(UTC):
            subject = wait_subject(message.position, message.id)
            lines.append(
                # Rounded up: a schedule that fires early would be given back and cost a round trip.
                f"Nats-Schedule: @at {_stamp(due + timedelta(milliseconds=1))}\r\n"
                f"Nats-Schedule-Target: {due_subject(message.position, message.key)}\r\n"
            )
        lines.append(f"{Header.DUE}: {_stamp(due)}\r\n")
    if message.route is Route.NOTE and not message.body:
        lines.append(f"Nats-TTL: {FORGOTTEN_AFTER}\r\n")
    head = "".join(lines).encode("ascii") + (render(message.headers) if message.headers else b"")
    _check_size(message, len(head), max_event, max_payload)
    batches = message.route is not Route.NOTE
    return Frame(message.id, message.key, subject.encode("ascii"), stream, batches, head, message.body)


def _stamp(moment: datetime) -> str:
    return moment.isoformat(timespec="microseconds").replace("+00:00", "Z")


def _check_size(message: Message, head: int, max_event: int, max_payload: int) -> None:
    size = len(message.body)
    if message.route is Route.EVENT and size > max_event:
        raise EventTooLarge(
            f"{message.type} {message.id} has {size:,} bytes; {max_event:,} may travel through this server. Store the"
            " large part elsewhere and publish where it stands, or raise max_payload in the server's configuration"
        )
    if head > MAX_HEADER_BYTES - MARGIN:
        raise EventTooLarge(f"the headers of {message.type} {message.id} have {head:,} bytes; the server stores 64 KiB")
    if size + head > max_payload - MARGIN:
        raise EventTooLarge(
            f"{message.type} {message.id} has {size + head:,} bytes with its headers; the server takes"
            f" {max_payload:,}: raise max_payload in its configuration, or publish less"
        )
