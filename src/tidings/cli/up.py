"""``tidings up``: the embedded server in the foreground."""

from __future__ import annotations

import asyncio
from importlib import import_module
from pathlib import Path
from typing import Annotated, Protocol, cast

from cyclopts import Parameter

from tidings.cli.options import Json
from tidings.cli.output import Out
from tidings.cli.signals import Stop


class EmbeddedServer(Protocol):
    """What `up` needs of the server that the default broker brings along."""

    @property
    def folder(self) -> Path: ...
    @property
    def url(self) -> str: ...
    @property
    def pid(self) -> int | None: ...
    async def start(self) -> str: ...
    async def watch(self) -> None: ...
    async def stop(self) -> None: ...


def up(
    *,
    folder: Annotated[str, Parameter(help="Where data, password and log live; made if missing.")] = ".tidings",
    port: Annotated[int | None, Parameter(help="To listen on; the last one, or any that is free.")] = None,
    show_url: Annotated[bool, Parameter(help="Print the URL with the password in it.")] = False,
    json: Json = False,
) -> int:
    """Start the server, or join the one that runs, and keep it running until Ctrl-C. What is stored stays."""
    from tidings.observe.logs import configure_logging

    configure_logging(json or None, level="WARNING")
    stop = Stop(json=json)
    module = import_module("tidings.brokers.nats.embedded")
    server = cast(EmbeddedServer, module.EmbeddedServer(folder, port=port))
    return asyncio.run(_keep(server, stop, Out(json), show_url))


async def _keep(server: EmbeddedServer, stop: Stop, out: Out, show_url: bool) -> int:
    loop, stopped = asyncio.get_running_loop(), asyncio.Event()
    stop.bind(lambda: loop.call_soon_threadsafe(stopped.set))
    await server.start()
    try:
        _tell(server, out, show_url)
        watching = asyncio.create_task(server.watch())
        asking = asyncio.create_task(stopped.wait())
        try:
            await _until_asked(server, watching, asking, out)
        finally:
            for task in (watching, asking):
                task.cancel()
            await asyncio.wait({watching, asking})
    finally:
        await server.stop()
    left = "it still runs, since other processes use it" if server.pid is not None else "it has ended"
    out.tell(f"left the server of {server.folder}: {left}; what is stored stays", left=str(server.folder))
    return 0


async def _until_asked(
    server: EmbeddedServer, watching: asyncio.Task[None], asking: asyncio.Task[bool], out: Out
) -> None:
    """Until the stop; a server that another one took the place of is told."""
    pid = server.pid
    while not asking.done():
        done, _ = await asyncio.wait({watching, asking}, timeout=1.0, return_when=asyncio.FIRST_COMPLETED)
        if watching in done:
            await watching  # it only ends by an error, which is told
            return
        if server.pid not in (None, pid):
            pid = server.pid
            out.tell(f"the server had died, and is back (pid {pid}); nothing stored is lost", restarted=True, pid=pid)


def _tell(server: EmbeddedServer, out: Out, show_url: bool) -> None:
    address = server.url.rpartition("@")[2]
    broker = f"embedded:{server.folder}"
    password = server.folder / "password"
    record = {"ready": address, "broker": broker, "password_file": str(password), "pid": server.pid}
    out.record(**record, **({"url": server.url} if show_url else {}))
    out.text(
        f"The server is ready on {address} (pid {server.pid}), its data in {server.folder}\n"
        f"  for processes of this machine:  TIDINGS_BROKER={broker}\n"
        + (
            f"  for any other client:           {server.url}\n"
            if show_url
            else f"  the password stands in:         {password}  (--show-url prints a URL with it)\n"
        )
        + "  Ctrl-C leaves it; whoever leaves last ends it"
    )
