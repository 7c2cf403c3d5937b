"""``tidings relay``: publish what a service's outbox holds, without its handlers."""

from __future__ import annotations

import asyncio
import os
from typing import Annotated

from cyclopts import Parameter

from tidings.cli.failures import Status
from tidings.cli.options import Json, configure_log, named
from tidings.cli.output import Out
from tidings.cli.signals import Stop
from tidings.cli.target import find_service
from tidings.service import Service


def relay(
    target: Annotated[str, Parameter(help="module:service, imported from the current directory.")],
    /,
    *,
    broker: Annotated[str | None, Parameter(help="The broker, instead of the service's own or TIDINGS_BROKER.")] = None,
    store: Annotated[str | None, Parameter(help="The store, instead of the service's own or TIDINGS_STORE.")] = None,
    log_level: Annotated[str, Parameter(help="DEBUG tells more.")] = "INFO",
    json: Json = False,
) -> int:
    """Publish what the outbox of a service holds, until SIGTERM or Ctrl-C. Its handlers do not run here."""
    stop = Stop(json=json, worker=False)
    configure_log(json, log_level)
    return asyncio.run(_serve(find_service(target), broker, store, stop, Out(json)))


async def _serve(service: Service, broker: str | None, store: str | None, stop: Stop, out: Out) -> int:
    loop, stopped = asyncio.get_running_loop(), asyncio.Event()
    starting = asyncio.current_task()
    assert starting is not None
    ready = False

    def asked() -> None:
        loop.call_soon_threadsafe(stopped.set if ready else starting.cancel)

    stop.bind(asked)
    try:
        async with service.relaying(broker=broker, store=store):
            ready = True
            if stop.asked:
                stopped.set()
            where = named(broker, service._broker_spec, "TIDINGS_BROKER") or "embedded:"
            kept = named(store, service._store_spec, "TIDINGS_STORE")
            text = f"the relay of {service.name} is ready: broker {where}, store {kept} (pid {os.getpid()})"
            out.tell(text, ready=service.name, broker=where, store=kept, pid=os.getpid())
            await stopped.wait()
    except asyncio.CancelledError:
        if ready or not stop.asked:
            raise
        return Status.INTERRUPTED
    return Status.OK
