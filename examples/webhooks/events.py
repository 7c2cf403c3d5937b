"""What GitHub tells, as far as somebody here wants to know it. The key is the repository: its order is kept."""

from __future__ import annotations

from uuid import UUID

import msgspec

from tidings import Event


class Commit(msgspec.Struct, frozen=True, kw_only=True):
    id: str
    author: str


class Pushed(Event, type="github.pushed", version=1, key="repository"):
    delivery: UUID
    """GitHub's own id for this webhook. Sent again, it has the same one."""
    repository: str
    author: str
    ref: str
    commits: list[Commit]


class IssueChanged(Event, type="github.issue-changed", version=1, key="repository"):
    delivery: UUID
    repository: str
    author: str
    action: str
    number: int
    title: str


class IssueCommented(Event, type="github.issue-commented", version=1, key="repository"):
    delivery: UUID
    repository: str
    author: str
    action: str
    number: int


class PullRequestChanged(Event, type="github.pull-request-changed", version=1, key="repository"):
    delivery: UUID
    repository: str
    author: str
    action: str
    number: int
    title: str
    merged: bool


class StarChanged(Event, type="github.star-changed", version=1, key="repository"):
    delivery: UUID
    repository: str
    author: str
    action: str


class Unrecognized(Event, type="github.unrecognized", version=1):
    """What fits none of the above, whole. There is no key: nobody knows yet what it speaks of."""

    delivery: UUID
    name: str
    """What GitHub calls it: the header ``X-GitHub-Event``."""
    reason: str
    body: bytes
    """The payload as it came."""


Recognized = Pushed | IssueChanged | IssueCommented | PullRequestChanged | StarChanged
RECOGNIZED = (Pushed, IssueChanged, IssueCommented, PullRequestChanged, StarChanged)
