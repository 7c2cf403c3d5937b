"""From GitHub's payloads to events: only the fields that are needed, strictly typed."""

from __future__ import annotations

from collections.abc import Callable
from uuid import UUID

import msgspec

from examples.webhooks.events import (
    Commit,
    IssueChanged,
    IssueCommented,
    PullRequestChanged,
    Pushed,
    Recognized,
    StarChanged,
    Unrecognized,
)
from tidings import InvalidEvent


class _Repository(msgspec.Struct):
    full_name: str


class _User(msgspec.Struct):
    login: str


class _Author(msgspec.Struct):
    name: str
    username: str | None = None


class _Commit(msgspec.Struct):
    id: str
    author: _Author


class _Issue(msgspec.Struct):
    number: int
    title: str
    merged: bool = False


class _Payload(msgspec.Struct):
    """What all of them have."""

    repository: _Repository
    sender: _User


class _Push(_Payload):
    ref: str
    commits: list[_Commit]


class _WithAction(_Payload):
    action: str


class _OfIssue(_WithAction):
    issue: _Issue


class _OfPullRequest(_WithAction):
    pull_request: _Issue


def _pushed(delivery: UUID, body: bytes) -> Recognized:
    found = msgspec.json.decode(body, type=_Push)
    commits = [Commit(id=one.id, author=one.author.username or one.author.name) for one in found.commits]
    return Pushed(
        delivery=delivery,
        repository=found.repository.full_name,
        author=found.sender.login,
        ref=found.ref,
        commits=commits,
    )


def _issue(delivery: UUID, body: bytes) -> Recognized:
    found = msgspec.json.decode(body, type=_OfIssue)
    return IssueChanged(
        delivery=delivery,
        repository=found.repository.full_name,
        author=found.sender.login,
        action=found.action,
        number=found.issue.number,
        title=found.issue.title,
    )


def _comment(delivery: UUID, body: bytes) -> Recognized:
    found = msgspec.json.decode(body, type=_OfIssue)
    return IssueCommented(
        delivery=delivery,
        repository=found.repository.full_name,
        author=found.sender.login,
        action=found.action,
        number=found.issue.number,
    )


def _pull_request(delivery: UUID, body: bytes) -> Recognized:
    found = msgspec.json.decode(body, type=_OfPullRequest)
    return PullRequestChanged(
        delivery=delivery,
        repository=found.repository.full_name,
        author=found.sender.login,
        action=found.action,
        number=found.pull_request.number,
        title=found.pull_request.title,
        merged=found.pull_request.merged,
    )


def _star(delivery: UUID, body: bytes) -> Recognized:
    found = msgspec.json.decode(body, type=_WithAction)
    return StarChanged(
        delivery=delivery,
        repository=found.repository.full_name,
        author=found.sender.login,
        action=found.action,
    )


_READERS: dict[str, Callable[[UUID, bytes], Recognized]] = {
    "push": _pushed,
    "issues": _issue,
    "issue_comment": _comment,
    "pull_request": _pull_request,
    "star": _star,
}


def recognize(name: str, delivery: UUID, body: bytes) -> Recognized | Unrecognized:
    """The event that a payload is, or the payload itself with the reason why it is none. Never raises."""
    try:
        reader = _READERS.get(name)
        if reader is not None:
            return reader(delivery, body)
        reason = "there is no event for it"
    except (msgspec.MsgspecError, InvalidEvent, ValueError, RecursionError) as error:
        reason = str(error)
    return Unrecognized(delivery=delivery, name=name, reason=printable(reason), body=body)


def printable(text: str) -> str:
    """Text from outside, short and on one line."""
    return "".join(one if one.isprintable() else "?" for one in text[:300])
