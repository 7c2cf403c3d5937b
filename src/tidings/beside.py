"""One handler of a service under another name: a position of its own beside the live one, for the same function."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractAsyncContextManager
from datetime import datetime

import msgspec

from tidings.delivery import Content
from tidings.event import Event
from tidings.handler import Handler
from tidings.ports import Observer, Plan
from tidings.running import Declared


class Beside:
    """What a service declares, of which one handler runs, as `name`. Its position begins with what was stored `since`.

    The plan has the handlers of the service too, so that their positions are not taken for orphans.
    """

    def __init__(self, service: Declared, handler: Handler, name: str, since: datetime) -> None:
        self._service = service
        self._handler = msgspec.structs.replace(handler, name=name, since=since)
        self.name = service.name
        self.version = service.version
        self.content: Content = service.content

    @property
    def handlers(self) -> Sequence[Handler]:
        return (self._handler,)

    @property
    def plan(self) -> Plan:
        plan = self._service.plan
        others = [msgspec.structs.replace(one, hosted=False) for one in plan.subscriptions]
        return msgspec.structs.replace(plan, subscriptions=(*others, self._handler.subscription))

    @property
    def published(self) -> Sequence[type[Event]]:
        return self._service.published

    @property
    def observers(self) -> Sequence[Observer]:
        return self._service.observers

    def enter(self) -> AbstractAsyncContextManager[object]:
        return self._service.enter()
