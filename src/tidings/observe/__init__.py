"""Sight: log lines, metrics and health of a service.

::

    async with Observability(stock, port=9464), stock.running():
        ...

Log lines for every outcome but done are written by each service anyway, through stdlib logging.
"""

from __future__ import annotations

import asyncio
import json
import os
import sys
from contextlib import AsyncExitStack
from types import TracebackType
from typing import TYPE_CHECKING, Final, Self

from tidings.observe._watched import WatchedService
from tidings.supervision import Supervisor

if TYPE_CHECKING:
    from tidings.observe.health import Health, Report
    from tidings.observe.metrics import Metrics
    from tidings.observe.server import Answer
    from tidings.observe.traces import Traces

PORT: Final = 9464
EVERY: Final = 3.0
"""Seconds between two looks at what only the loop, the broker and the store can tell."""


class Observability:
    """Metrics and health of a service on one HTTP port, and a watchdog over its event loop.

    Enter it before the service runs, and on the loop that it runs on: liveness answers while the service still starts.
    ``/metrics``, ``/health/live`` and ``/health/ready`` are served from a thread, so that a blocked loop can be told.

    * `port`: 0 takes any that is free; None serves nothing, for those who mount `metrics.text()`, `live()` and
      `ready()` in an application of their own.
    * `host`: loopback unless told otherwise. Whoever can reach it can read it.
    * `live_after`: seconds without a beat of the loop after which it is not live any more.
    * `blocked_after`: seconds after which the stack of a blocked loop is logged.

    Raises:
        ConfigurationError: on entry, the port is taken or cannot be used.
    """

    def __init__(
        self,
        service: WatchedService,
        *,
        port: int | None = PORT,
        host: str = "127.0.0.1",
        live_after: float = 5.0,
        blocked_after: float = 2.0,
        every: float = EVERY,
    ) -> None:
        # What is imported here is heavy, and nobody needs it who only wants log lines.
        from tidings.observe._figures import Now
        from tidings.observe._looking import Looks
        from tidings.observe._progress import Progress
        from tidings.observe.health import Health
        from tidings.observe.metrics import Metrics
        from tidings.observe.server import Server

        self._service, self._every, self._blocked_after = service, every, blocked_after
        progress = Progress()
        self.health: Health = Health(service, live_after=live_after, stuck=lambda: progress.troubles)
        self.metrics: Metrics = Metrics(
            service.name,
            lambda: service.handlers,
            version=service.version,
            tidings_version=getattr(sys.modules.get("tidings"), "__version__", ""),
            now=Now(self.health.lag, lambda: self.live().ok, lambda: self.ready().ok),
        )
        self._looks = Looks(service, self.metrics, progress)
        pages = {"/metrics": self._metrics, "/health/live": self._live, "/health/ready": self._ready}
        self._server = None if port is None else Server(pages, host=host, port=port)
        self._tasks = Supervisor()
        self._stack = AsyncExitStack()

    @property
    def url(self) -> str:
        """Where it is served, such as ``http://127.0.0.1:9464``; empty where it is not."""
        return "" if self._server is None else self._server.url

    def live(self) -> Report:
        """Whether the process should go on; may be asked on any thread."""
        return self.health.live()

    def ready(self) -> Report:
        """Whether it does its work just now; may be asked on any thread."""
        return self.health.ready()

    async def __aenter__(self) -> Self:
        from tidings.observe.health import Watchdog

        async with AsyncExitStack() as stack:
            if self._server is not None:
                self._server.start()
                stack.push_async_callback(asyncio.to_thread, self._server.stop)
            self.metrics.prepare()
            self._service.observers.append(self.metrics)
            stack.callback(self._service.observers.remove, self.metrics)
            stack.push_async_callback(self._tasks.cancel)
            self._tasks.spawn(f"{self._service.name} heartbeat", self.health.beat)
            self._tasks.spawn(f"{self._service.name} figures", self._figures)
            watchdog = Watchdog(self.health, blocked_after=self._blocked_after)
            watchdog.start()
            stack.callback(watchdog.stop)
            self._stack = stack.pop_all()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None
    ) -> None:
        self.health.stopped()
        await self._stack.aclose()

    # ── what only the loop can tell ─────────────────────────────────────────────────────────────────────────────────

    async def _figures(self) -> None:
        while True:
            await self.look()
            await asyncio.sleep(self._every)

    async def look(self) -> None:
        """Read backlog, lanes, outbox and streams now, for the next scrape. Runs by itself every few seconds."""
        await self._looks.look()

    # ── pages, on threads of the server ─────────────────────────────────────────────────────────────────────────────

    def _metrics(self) -> Answer:
        from tidings.observe.metrics import CONTENT_TYPE
        from tidings.observe.server import Answer

        return Answer(200, CONTENT_TYPE, self.metrics.text())

    def _live(self) -> Answer:
        return _page(self.live())

    def _ready(self) -> Answer:
        return _page(self.ready())


def traces_for(service: str, system: str) -> Traces | None:
    """What traces a service, where the application has set up an SDK of OpenTelemetry. Elsewhere it costs nothing.

    `system` is the name of the broker.
    """
    if "opentelemetry.trace" not in sys.modules and not os.environ.get("OTEL_PYTHON_TRACER_PROVIDER"):
        return None  # nobody can have set one up
    from opentelemetry import trace

    if isinstance(trace.get_tracer_provider(), trace.ProxyTracerProvider | trace.NoOpTracerProvider):
        return None
    from tidings.observe.traces import Traces

    return Traces(service, system, getattr(sys.modules.get("tidings"), "__version__", ""))


def _page(report: Report) -> Answer:
    from tidings.observe.server import Answer

    body = {"status": report.status, "service": report.service, "phase": report.phase, "reasons": report.reasons}
    return Answer(200 if report.ok else 503, "application/json", json.dumps(body).encode() + b"\n")
