"""``tidings run``: one service in this process, or several processes of it."""

from __future__ import annotations

import asyncio
import logging
import os
import time
from collections.abc import Mapping
from typing import Annotated

from cyclopts import Parameter

from tidings.cli.failures import MADE_ROOM, CommandError, Status
from tidings.cli.garbage import settle_garbage
from tidings.cli.options import Json, configure_log, named
from tidings.cli.output import Out
from tidings.cli.signals import Stop
from tidings.cli.stuck import blocked_limit, end_now, until_stuck, watch_loop
from tidings.cli.target import find_service
from tidings.cli.workers import Link
from tidings.observe import PORT, Observability
from tidings.service import Service

log = logging.getLogger("tidings.service")


def run(
    target: Annotated[str, Parameter(help="module:service, imported from the current directory.")],
    /,
    *,
    workers: Annotated[int, Parameter(help="How many processes; a dead one is started again.")] = 1,
    broker: Annotated[str | None, Parameter(help="The broker, instead of the service's own or TIDINGS_BROKER.")] = None,
    store: Annotated[str | None, Parameter(help="The store, instead of the service's own or TIDINGS_STORE.")] = None,
    port: Annotated[
        int, Parameter(help="For /metrics and /health; 0 takes any that is free. Workers take the ports behind it.")
    ] = PORT,
    host: Annotated[str, Parameter(help="Where to listen for them. Whoever can reach it can read it.")] = "127.0.0.1",
    log_level: Annotated[str, Parameter(help="DEBUG tells of each batch as well.")] = "INFO",
    json: Json = False,
) -> int:
    """Run a service until SIGTERM or Ctrl-C; it then finishes what runs, gives the rest back, and ends with 0."""
    if workers < 1:
        raise CommandError(f"--workers {workers}: at least one", Status.USAGE)
    if not 0 <= port <= 65535 - workers:
        raise CommandError(f"--port {port}: between 0 and {65535 - workers}", Status.USAGE)
    link = Link.from_environment()
    stop = Stop(json=json, worker=link is not None)
    configure_log(json, log_level)
    if workers > 1:
        from tidings.cli.workers import supervise

        options = {"--broker": broker, "--store": store, "--log-level": log_level, "--json": json}
        return supervise(target, options, count=workers, port=port, host=host, stop=stop, out=Out(json))
    service = find_service(target)
    if link is not None:
        link.watch(stop.ask)
    return asyncio.run(
        _serve(service, broker, store, Observability(service, port=port, host=host), stop, Out(json), link)
    )


async def _serve(
    service: Service,
    broker: str | None,
    store: str | None,
    sight: Observability,
    stop: Stop,
    out: Out,
    link: Link | None,
) -> int:
    began = time.monotonic()
    loop, stopped = asyncio.get_running_loop(), asyncio.Event()
    starting = asyncio.current_task()
    assert starting is not None
    ready = False

    def asked() -> None:
        loop.call_soon_threadsafe(stopped.set if ready else starting.cancel)

    stop.bind(asked)
    status = int(Status.OK)
    try:
        async with sight, service.running(broker=broker, store=store):
            ready = True
            running = service.active
            if stop.asked:
                stopped.set()
            settle_garbage()
            sight.health.look()  # whoever reads the line may ask at once whether it is ready
            _say_ready(service, broker, store, sight, out, time.monotonic() - began)
            if link is not None:
                link.ready(sight.url)
                status = await _work(service, sight, stop, stopped)
            await stopped.wait()
    except asyncio.CancelledError:
        if ready or not stop.asked:
            raise
        return Status.INTERRUPTED
    if running.leftovers:
        log.warning("%d calls have not ended; the process ends without them", len(running.leftovers))
        end_now(status)
    return status


async def _work(service: Service, sight: Observability, stop: Stop, stopped: asyncio.Event) -> int:
    """As a worker, which is replaced when it is stuck: until it is asked to stop, or is to be replaced."""
    if (limit := blocked_limit(service)) is not None:
        watch_loop(sight.health, limit)
    waits = {asyncio.create_task(stopped.wait()), stuck := asyncio.create_task(until_stuck(service.active))}
    try:
        await asyncio.wait(waits, return_when=asyncio.FIRST_COMPLETED)
    finally:
        for one in waits:
            one.cancel()
        await asyncio.wait(waits)
    if stuck.cancelled():
        return Status.OK
    log.error("%s. This worker stops, for another to take its place", stuck.result())
    stop.ask()
    return MADE_ROOM


def _say_ready(
    service: Service, broker: str | None, store: str | None, sight: Observability, out: Out, seconds: float
) -> None:
    names = [handler.name for handler in service.handlers]
    where = named(broker, service._broker_spec, "TIDINGS_BROKER") or "embedded:"
    kept = named(store, service._store_spec, "TIDINGS_STORE")
    text = f"{service.name} is ready: broker {where}{f', store {kept}' if kept else ''}"
    text += f", handlers {', '.join(names) or 'none'}, metrics {sight.url}/metrics (pid {os.getpid()})"
    record: Mapping[str, object] = {"ready": service.name, "broker": where, "store": kept, "handlers": names}
    out.tell(text, **record, url=sight.url, pid=os.getpid(), seconds=round(seconds, 3))
