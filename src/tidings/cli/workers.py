"""Several processes of one service under one parent: started, watched, started again, and stopped together."""

from __future__ import annotations

import asyncio
import logging
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Hashable, Mapping
from concurrent.futures import ThreadPoolExecutor
from typing import Final

import msgspec

from tidings.cli.failures import MADE_ROOM, Status
from tidings.cli.output import Out
from tidings.cli.signals import Stop
from tidings.observe.merging import Merged
from tidings.observe.metrics import CONTENT_TYPE
from tidings.observe.server import Answer, Server

log = logging.getLogger("tidings.workers")

_VARIABLE: Final = "TIDINGS_WORKER_FD"
FIRST_PAUSE: Final = 0.5
LONGEST_PAUSE: Final = 15.0
STEADY: Final = 30.0
"""Seconds after which a worker counts as steady, and the next pause begins small again."""
STOP_TIMEOUT: Final = 30.0
START_TIMEOUT: Final = 60.0
"""Seconds that a worker has to become ready which takes the place of another one."""
PROBE_TIMEOUT: Final = 2.0
_STOPPED: Final = (Status.OK, Status.INTERRUPTED, MADE_ROOM, -signal.SIGTERM)
"""How a worker ends that was asked to: with grace, or while it was still starting."""


class Link:
    """A worker's line to its parent: it says when it is ready, and its end says that the parent is gone."""

    def __init__(self, descriptor: int) -> None:
        self._socket = socket.socket(fileno=descriptor)
        self._socket.set_inheritable(False)

    @classmethod
    def from_environment(cls) -> Link | None:
        """The line that the parent left, if this is a worker; processes that it starts are none."""
        found = os.environ.pop(_VARIABLE, "")
        return cls(int(found)) if found.isdigit() else None

    def ready(self, url: str) -> None:
        """Tell the parent where the worker can be asked for its health."""
        try:
            self._socket.sendall(url.encode() + b"\n")
        except OSError:
            pass  # the parent is gone, which `watch` tells

    def watch(self, gone: Callable[[], object]) -> None:
        """Call `gone`, on another thread, when the parent has died."""

        def wait() -> None:
            try:
                while self._socket.recv(64):
                    pass
            except OSError:
                pass
            gone()

        threading.Thread(target=wait, name="tidings parent watch", daemon=True).start()


class Slot:
    """One place for a worker, and who stands in it now."""

    def __init__(self, number: int) -> None:
        self.number = number
        self.process: subprocess.Popen[bytes] | None = None
        self.url = ""
        """Where its health can be asked, once it said that it is ready."""
        self.was_ready = asyncio.Event()
        self.replacing = False
        """Its next end is meant, and no failure."""
        self._awaited: asyncio.Future[bool] | None = None

    @property
    def alive(self) -> bool:
        return self.process is not None and self.process.poll() is None

    @property
    def life(self) -> Hashable:
        """Which of the workers that have stood here it is."""
        return self.number, None if self.process is None else self.process.pid

    def started(self, *, well: bool) -> None:
        """A worker is ready, or has ended before it was."""
        if self._awaited is not None and not self._awaited.done():
            self._awaited.set_result(well)

    async def next_start(self, timeout: float) -> bool:
        """Wait until a worker in it is ready; False when it ends before, or is not in time."""
        self._awaited = asyncio.get_running_loop().create_future()
        try:
            async with asyncio.timeout(timeout):
                return await self._awaited
        except TimeoutError:
            return False

    def send(self, number: signal.Signals) -> None:
        if self.process is not None and self.alive:
            self.process.send_signal(number)


class Parent:
    """Keeps workers running until it is asked to stop, or until one cannot even start.

    The first starts alone: what is wrong with the program is then told once, and streams are made by one.
    """

    def __init__(
        self, target: str, options: Mapping[str, object], *, count: int, port: int, host: str, out: Out
    ) -> None:
        self._target, self._options, self._port, self._host, self._out = target, options, port, host, out
        self.slots = [Slot(number) for number in range(count)]
        self._stopping = asyncio.Event()
        self._asked_anew = asyncio.Event()
        self._status = int(Status.OK)
        self._merged = Merged()

    def stop(self) -> None:
        self._stopping.set()

    def restart(self) -> None:
        """Replace the workers one after the other; once more, if that is under way."""
        self._asked_anew.set()

    def kill(self) -> None:
        for slot in self.slots:
            slot.send(signal.SIGKILL)

    async def run(self) -> int:
        """Until asked to stop; returns the exit status."""
        async with asyncio.TaskGroup() as group:
            beside = [group.create_task(self._tell_ready()), group.create_task(self._replace_all())]
            for slot in self.slots:
                group.create_task(self._keep(slot))
            await self._stopping.wait()
            for one in beside:
                one.cancel()
            await self._end()
        return self._status

    async def _tell_ready(self) -> None:
        for slot in self.slots:
            await slot.was_ready.wait()
        pids = [slot.process.pid for slot in self.slots if slot.process is not None]
        text = f"{len(pids)} workers are ready (pids {', '.join(map(str, pids))})"
        self._out.tell(text, ready=self._target, workers=pids, pid=os.getpid())

    async def _keep(self, slot: Slot) -> None:
        if slot.number:
            await self._unless_stopped(self.slots[0].was_ready)
        pause = FIRST_PAUSE
        while not self._stopping.is_set():
            began = time.monotonic()
            status, ready = await self._live(slot)
            if self._stopping.is_set():
                self._status = self._status or (Status.OK if status in _STOPPED else Status.FAILED)
                return
            if status > 0 and not slot.was_ready.is_set():
                self._status = status  # it said why; started again it would say so again
                self._stopping.set()
                return
            if slot.replacing:
                slot.replacing = False
                continue
            if not ready:
                slot.started(well=False)
            pause = FIRST_PAUSE if time.monotonic() - began > STEADY else pause
            log.warning("worker %d %s; it is started again in %.1f s", slot.number, _ended(status), pause)
            await self._unless_stopped(asyncio.Event(), timeout=pause)
            pause = min(pause * 2, LONGEST_PAUSE)

    async def _live(self, slot: Slot) -> tuple[int, bool]:
        """One life of a worker: its exit status, negative for the signal that killed it, and whether it was ready."""
        ours, theirs = socket.socketpair()
        ours.setblocking(False)
        with ours:
            with theirs:
                slot.process = self._spawn(slot, theirs)
            listening = asyncio.create_task(self._listen(slot, ours))
            try:
                while (status := slot.process.poll()) is None:
                    # Its end of the line closes when it dies, so this wakes at once; the timeout is for strange cases.
                    await asyncio.wait({listening}, timeout=1.0 if not listening.done() else 0.05)
                    await asyncio.sleep(0.01)
                return status, bool(slot.url)
            finally:
                slot.url = ""
                listening.cancel()
                await asyncio.wait({listening})

    def _spawn(self, slot: Slot, line: socket.socket) -> subprocess.Popen[bytes]:
        port = str(self._port + 1 + slot.number if self._port else 0)
        arguments = ["run", self._target, "--port", port, "--host", self._host, *_as_arguments(self._options)]
        # Ctrl-C reaches the whole group of the terminal, also a worker that is still importing: it must not mind. Nor
        # the terminal's end, at which the parent stops it.
        before = {one: signal.signal(one, signal.SIG_IGN) for one in (signal.SIGINT, signal.SIGHUP)}
        try:
            return subprocess.Popen(
                [sys.executable, "-m", "tidings.cli", *arguments],
                pass_fds=(line.fileno(),),
                env={**os.environ, _VARIABLE: str(line.fileno())},
            )
        finally:
            for one, handler in before.items():
                signal.signal(one, handler)

    async def _listen(self, slot: Slot, ours: socket.socket) -> None:
        """Until the worker's end of the line closes."""
        loop = asyncio.get_running_loop()
        while said := await loop.sock_recv(ours, 1024):
            slot.url = said.decode().strip()
            slot.was_ready.set()
            slot.started(well=True)

    # ── one after the other ─────────────────────────────────────────────────────────────────────────────────────────

    async def _replace_all(self) -> None:
        while True:
            await self._asked_anew.wait()
            self._asked_anew.clear()
            log.info("the %d workers are replaced, one after the other", len(self.slots))
            for slot in self.slots:
                if not await self._replace(slot):
                    log.error(
                        "worker %d, which was to be replaced, does not start; the others stay as they are. Mend what it"
                        " says, then ask again",
                        slot.number,
                    )
                    break
            else:
                pids = [slot.process.pid for slot in self.slots if slot.process is not None]
                text = f"{len(pids)} workers were replaced (pids {', '.join(map(str, pids))})"
                self._out.tell(text, replaced=self._target, workers=pids, pid=os.getpid())

    async def _replace(self, slot: Slot) -> bool:
        """Stop a worker with grace, and wait until the next one in its place is ready; whether it is."""
        old = slot.process
        if old is None or not slot.alive or not slot.url:  # one is on its way, perhaps with what was there before
            if not await slot.next_start(START_TIMEOUT):
                return False
            old = slot.process
        assert old is not None
        slot.replacing = True
        slot.send(signal.SIGTERM)
        overdue = asyncio.get_running_loop().call_later(STOP_TIMEOUT, old.kill)
        try:
            return await slot.next_start(STOP_TIMEOUT + START_TIMEOUT)
        finally:
            overdue.cancel()

    async def _unless_stopped(self, event: asyncio.Event, timeout: float | None = None) -> None:
        """Wait for an event, a time, or the stop, whichever comes first."""
        waits = {asyncio.create_task(event.wait()), asyncio.create_task(self._stopping.wait())}
        try:
            await asyncio.wait(waits, timeout=timeout, return_when=asyncio.FIRST_COMPLETED)
        finally:
            for one in waits:
                one.cancel()
            await asyncio.wait(waits)

    async def _end(self) -> None:
        """Ask all, wait for all, kill the rest."""
        for slot in self.slots:
            slot.send(signal.SIGTERM)
        end = time.monotonic() + STOP_TIMEOUT
        while any(slot.alive for slot in self.slots) and time.monotonic() < end:  # noqa: ASYNC110  # processes
            await asyncio.sleep(0.05)
        self.kill()

    # ── health of all of them, on the parent's port ─────────────────────────────────────────────────────────────────

    def pages(self) -> dict[str, Callable[[], Answer]]:
        return {
            "/metrics": self._metrics,
            "/health/live": lambda: self._health("/health/live"),
            "/health/ready": lambda: self._health("/health/ready"),
        }

    def _metrics(self) -> Answer:
        """The sum of what the workers say; one that does not answer now is in it with what it had counted before."""
        alive = [slot for slot in self.slots if slot.alive]
        urls = {slot.life: slot.url for slot in alive if slot.url}
        with ThreadPoolExecutor(max(1, len(urls))) as pool:
            texts = {life: text for life, text in zip(urls, pool.map(_text_of, urls.values()), strict=True) if text}
        count = "# HELP tidings_workers_alive Workers that run\n# TYPE tidings_workers_alive gauge\n"
        count += f"tidings_workers_alive {len(alive)}\n"
        page = self._merged.page(lambda: {slot.life for slot in self.slots if slot.alive}, texts)
        return Answer(200, CONTENT_TYPE, page + count.encode())

    def _health(self, page: str) -> Answer:
        """Live while every worker that answers is; one that is being started again is the parent's business."""
        reasons = [reason for slot in self.slots for reason in _asked(slot, page)]
        body = {"status": "failing" if reasons else "ok", "workers": len(self.slots), "reasons": reasons}
        return Answer(503 if reasons else 200, "application/json", msgspec.json.encode(body) + b"\n")


def supervise(
    target: str, options: Mapping[str, object], *, count: int, port: int, host: str, stop: Stop, out: Out
) -> int:
    """Run `count` workers until asked to stop; returns the exit status."""

    async def main() -> int:
        parent = Parent(target, options, count=count, port=port, host=host, out=out)
        server = Server(parent.pages(), host=host, port=port)
        server.start()
        loop = asyncio.get_running_loop()
        stop.bind(lambda: loop.call_soon_threadsafe(parent.stop), last=parent.kill)
        stop.on_hangup(lambda: loop.call_soon_threadsafe(parent.restart))
        try:
            return await parent.run()
        finally:
            await asyncio.to_thread(server.stop)

    return asyncio.run(main())


def _text_of(url: str) -> str:
    """What a worker serves as its metrics; nothing where it does not answer."""
    from urllib.request import urlopen

    try:
        with urlopen(f"{url}/metrics", timeout=PROBE_TIMEOUT) as answer:
            return str(answer.read().decode())
    except OSError as error:
        log.debug("%s does not answer: %s", url, error)
        return ""


def _asked(slot: Slot, page: str) -> list[str]:
    """What is wrong with a worker, as it says itself; runs on a thread of the server."""
    from urllib.error import HTTPError
    from urllib.request import urlopen

    name = f"worker {slot.number}"
    if not slot.url:
        return [] if page == "/health/live" else [f"{name} is starting"]
    try:
        with urlopen(slot.url + page, timeout=PROBE_TIMEOUT):
            return []
    except HTTPError as error:
        with error:
            found = msgspec.json.decode(error.read())
        return [f"{name}: {reason}" for reason in found.get("reasons", ["not well"])]
    except OSError as error:
        return [f"{name} does not answer: {error}"]


def _as_arguments(options: Mapping[str, object]) -> list[str]:
    given = [(name, value) for name, value in options.items() if value not in (None, False)]
    return [part for name, value in given for part in ([name] if value is True else [name, str(value)])]


def _ended(status: int) -> str:
    if status < 0:
        return f"was killed by {signal.Signals(-status).name}"
    if status == MADE_ROOM:
        return "made room for another"
    return f"ended with status {status}"
