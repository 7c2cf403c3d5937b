"""The embedded server with the real binary, real kills and real full disks."""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import nats
import pytest
from nats.errors import Error as NatsError
from nats.js import JetStreamContext

from tidings.brokers.nats import embedded, embedded_process
from tidings.brokers.nats.embedded import EmbeddedServer, embedded_server
from tidings.brokers.nats.embedded_folder import Folder, State
from tidings.brokers.nats.embedded_probe import Health, probe
from tidings.errors import BrokerUnavailable, ConfigurationError
from tools.services.freezing import freeze
from tools.services.ports import free_port

USER = """
import asyncio, sys
from tidings.brokers.nats.embedded import EmbeddedServer

async def use() -> None:
    print("imported", flush=True)
    server = EmbeddedServer(sys.argv[1])
    await server.start()
    print("started", server.pid, flush=True)
    watch = asyncio.create_task(server.watch(every=0.1))
    await asyncio.to_thread(sys.stdin.readline)
    watch.cancel()
    await server.stop()

asyncio.run(use())
"""
"""A process that uses the server until its standard input ends."""


def servers_of(folder: Path) -> list[int]:
    """The process ids of the servers that run on the folder, by looking at all processes."""
    settings = os.fsencode(folder / "nats-server.conf")
    found = []
    for process in Path("/proc").iterdir():
        if process.name.isdigit():
            with contextlib.suppress(OSError):
                if settings in (process / "cmdline").read_bytes().split(b"\0"):
                    found.append(int(process.name))
    return found


async def until(true: Any, seconds: float = 30.0) -> None:
    end = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < end
        await asyncio.sleep(0.01)


@pytest.fixture
def folder(tmp_path: Path) -> Iterator[Path]:
    """Where a server may run; none is left when the test is over."""
    path = tmp_path / "data"
    yield path
    for pid in servers_of(path):
        os.kill(pid, signal.SIGKILL)


@pytest.fixture
def users(folder: Path) -> Iterator[Any]:
    """Starts processes that use the server; they are killed when the test is over."""
    started: list[subprocess.Popen[str]] = []

    def use() -> subprocess.Popen[str]:
        process = subprocess.Popen(
            [sys.executable, "-c", USER, str(folder)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )
        started.append(process)
        return process

    yield use
    for process in started:
        process.kill()
        with process:
            pass


def said(process: subprocess.Popen[str]) -> str:
    assert process.stdout
    return process.stdout.readline().strip()


def leave(process: subprocess.Popen[str]) -> None:
    assert process.stdin
    process.stdin.write("\n")
    process.stdin.flush()
    assert process.wait(60) == 0


@contextlib.asynccontextmanager
async def connected(url: str) -> AsyncIterator[JetStreamContext]:
    client = await nats.connect(url, allow_reconnect=False, connect_timeout=20)
    try:
        yield client.jetstream(timeout=20)
    finally:
        await client.close()


async def stored(url: str) -> int:
    async with connected(url) as js:
        return (await js.stream_info("order")).state.messages


async def store(url: str, *bodies: bytes) -> None:
    async with connected(url) as js:
        await js.add_stream(name="order", subjects=["order.>"])
        for body in bodies:
            await js.publish("order.placed", body)


async def test_the_data_the_port_and_the_password_survive_a_stop(folder: Path) -> None:
    async with embedded_server(folder) as server:
        url = server.url
        await store(url, b"1", b"2")
        assert servers_of(folder) == [server.pid]
    assert servers_of(folder) == []
    async with embedded_server(folder) as server:
        assert server.url == url
        assert await stored(url) == 2


async def test_a_killed_server_comes_back_with_all_that_it_acknowledged(folder: Path) -> None:
    """trap 1: it acknowledges what is on the disk."""
    async with embedded_server(folder) as server:
        url = server.url
        await store(url, *(b"%d" % number for number in range(200)))
        killed = server.pid
        assert killed
        os.kill(killed, signal.SIGKILL)
        assert await server.ensure_running() == url
        assert server.pid != killed
        assert await stored(url) == 200


def fetched(url: str) -> bytes:
    with urllib.request.urlopen(url, timeout=30) as answer:
        return bytes(answer.read())


async def test_it_syncs_before_it_acknowledges_listens_on_loopback_alone_and_takes_large_payloads(folder: Path) -> None:
    """trap 1: without `sync_interval: always` what was acknowledged may not be on the disk for two minutes."""
    async with embedded_server(folder) as server:
        varz = json.loads(await asyncio.to_thread(fetched, f"{server.monitor_url}/varz"))
        assert varz["jetstream"]["config"]["sync_always"] is True
        assert varz["host"] == "127.0.0.1"
        for port in (varz["port"], varz["http_port"]):
            sockets = [
                line.split()
                for table in ("/proc/net/tcp", "/proc/net/tcp6")
                for line in Path(table).read_text().splitlines()[1:]
            ]
            listening = [fields[1] for fields in sockets if fields[1].endswith(f":{port:04X}") and fields[3] == "0A"]
            assert listening == [f"0100007F:{port:04X}"]
        async with connected(server.url) as js:
            await js.add_stream(name="order", subjects=["order.>"])
            await js.publish("order.placed", b"x" * 1_500_000)


def answer_to(url: str, password: str) -> str:
    """What the server answers, by hand: a refused connection of the client's would leak its socket."""
    login = json.dumps({"user": "tidings", "pass": password, "verbose": False})
    with socket.create_connection(("127.0.0.1", int(url.rsplit(":", 1)[1])), timeout=30) as connection:
        with connection.makefile("rw", newline="") as lines:
            lines.readline()
            lines.write(f"CONNECT {login}\r\nPING\r\n")
            lines.flush()
            return lines.readline()


async def test_secrets_stay_in_files_that_only_their_owner_can_read(
    folder: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG)
    async with embedded_server(folder) as server:
        password = (folder / "password").read_text().strip()
        assert password in server.url
        assert folder.stat().st_mode & 0o777 == 0o700
        for file in folder.iterdir():
            assert file.stat().st_mode & 0o077 == 0, file
        holding = {file.name for file in folder.iterdir() if file.is_file() and password in file.read_text()}
        assert holding == {"password", "nats-server.conf"}
        for shown in ("cmdline", "environ"):
            assert password.encode() not in Path(f"/proc/{server.pid}/{shown}").read_bytes()
        assert password not in repr(server)
        assert "Authorization Violation" in await asyncio.to_thread(answer_to, server.url, "0" * 48)
        assert await asyncio.to_thread(answer_to, server.url, password) == "PONG\r\n"
    assert password not in caplog.text


async def test_whoever_leaves_last_ends_the_server(folder: Path, users: Any) -> None:
    other = users()
    assert said(other) == "imported"
    started = said(other)
    async with embedded_server(folder) as first, embedded_server(folder) as second:
        assert started == f"started {first.pid}"
        assert first.url == second.url
        leave(other)
        assert first.pid
    assert servers_of(folder) == []


async def test_users_go_on_when_the_one_who_started_the_server_is_killed(folder: Path, users: Any) -> None:
    owner = users()
    said(owner), said(owner)
    async with embedded_server(folder) as server:
        await store(server.url, b"1")
        pid = server.pid
        owner.kill()
        owner.wait()
        await store(server.url, b"2")
        assert server.pid == pid
        os.kill(pid or 0, signal.SIGKILL)
        await server.ensure_running()
        assert await stored(server.url) == 2
    assert servers_of(folder) == []


async def test_ctrl_c_on_a_terminal_does_not_reach_the_server(folder: Path) -> None:
    async with embedded_server(folder) as server:
        assert server.pid
        assert os.getsid(server.pid) != os.getsid(0)
        assert Path(f"/proc/{server.pid}/fd/0").readlink() == Path("/dev/null")


async def test_of_eight_processes_at_once_one_starts_the_server_and_seven_join(folder: Path, users: Any) -> None:
    processes = [users() for _ in range(8)]
    started = {[said(process), said(process)][1] for process in processes}
    [pid] = servers_of(folder)
    assert started == {f"started {pid}"}
    for process in processes:
        process.kill()
        process.wait()
    assert servers_of(folder) == [pid]  # nobody was left to end it
    async with embedded_server(folder) as server:
        assert server.pid == pid
    assert servers_of(folder) == []


async def test_eight_watchers_of_a_killed_server_start_one(folder: Path, users: Any) -> None:
    processes = [users() for _ in range(3)]
    for process in processes:
        said(process), said(process)
    async with contextlib.AsyncExitStack() as stack:
        servers = [await stack.enter_async_context(embedded_server(folder)) for _ in range(5)]
        await store(servers[0].url, b"1")
        for _ in range(3):
            os.kill(servers[0].pid or 0, signal.SIGKILL)
            await asyncio.gather(*(server.ensure_running() for server in servers))
            assert servers_of(folder) == [servers[0].pid]
        assert await stored(servers[0].url) == 1


async def test_a_starter_killed_at_any_moment_never_leaves_two_servers(folder: Path, users: Any) -> None:
    running: list[int] = []
    for step in range(10):
        process = users()
        assert said(process) == "imported"
        if step == 9:
            assert said(process).startswith("started")
        time.sleep(step * 0.006)
        process.kill()
        process.wait()
        running = servers_of(folder)
        assert len(running) <= 1
        if step % 2 == 0:
            for pid in running:
                os.kill(pid, signal.SIGKILL)
    assert len(running) == 1
    async with embedded_server(folder) as server:
        assert servers_of(folder) == [server.pid] == running
    assert servers_of(folder) == []


async def test_a_stale_note_that_names_a_strangers_process_fools_nobody(folder: Path) -> None:
    async with embedded_server(folder) as server:
        port = server.url.rsplit(":", 1)[1]
    files = Folder(folder)
    state = files.state()
    assert state
    with subprocess.Popen(["sleep", "60"]) as stranger:
        try:
            note = State(
                instance=state.instance,
                port=state.port,
                monitor_port=state.monitor_port,
                version=state.version,
                url=state.url,
                pid=stranger.pid,
            )
            files.write_state(note)
            assert EmbeddedServer(folder).pid is None
            server = EmbeddedServer(folder)
            assert (await server.start()).endswith(port)
            files.write_state(note)  # and again while one runs
            await server.stop()
            await asyncio.sleep(0.2)
            assert stranger.poll() is None
        finally:
            stranger.kill()


async def test_another_server_on_the_noted_port_does_not_pass_for_ours(folder: Path) -> None:
    async with embedded_server(folder):
        state = Folder(folder).state()
        assert state
        assert (await probe(state))[0] is Health.READY
        other = State(instance="other", port=state.port, monitor_port=state.monitor_port, version="", url="")
        assert (await probe(other))[0] is Health.SILENT


async def test_nobodys_server_is_ended_by_those_who_leave_while_others_come(folder: Path) -> None:
    async def come_and_go(pause: float) -> None:
        for _ in range(12):
            server = EmbeddedServer(folder)
            url = await server.start()
            await asyncio.sleep(pause)
            password = url.split(":")[2].split("@")[0]
            assert await asyncio.to_thread(answer_to, url, password) == "PONG\r\n"
            await server.stop()
            await asyncio.sleep(pause)

    await asyncio.gather(come_and_go(0.0), come_and_go(0.003), come_and_go(0.011))
    assert servers_of(folder) == []


async def test_watching_brings_a_dead_server_back_to_a_client_that_reconnects(
    folder: Path, caplog: pytest.LogCaptureFixture
) -> None:
    async with embedded_server(folder) as server:
        await store(server.url)
        watch = asyncio.create_task(server.watch(every=0.05))
        client = await nats.connect(server.url, reconnect_time_wait=0.05, max_reconnect_attempts=-1)
        killed = server.pid
        os.kill(killed or 0, signal.SIGKILL)
        await until(lambda: server.pid not in (killed, None) and client.is_connected)
        await client.jetstream().publish("order.placed", b"1")
        await client.close()
        watch.cancel()
        await asyncio.gather(watch, return_exceptions=True)
        assert await stored(server.url) == 1


async def test_a_hanging_server_is_named_and_left_to_the_user(folder: Path) -> None:
    async with embedded_server(folder) as server:
        pid = server.pid
        server._ready_timeout = 1.0  # it is ready: now less will do
        assert pid
        freeze(pid)
        with pytest.raises(BrokerUnavailable, match=rf"not ready within 1 s.*kill {pid}"):
            await server.ensure_running()
        assert "was not ready" in str(server.problem)
        os.kill(pid or 0, signal.SIGCONT)
        server._ready_timeout = 60.0
        await server.ensure_running()
        assert server.pid == pid


def occupied() -> socket.socket:
    """A listener at a port that nobody else is given, also when it is closed."""
    taken = socket.create_server(("127.0.0.1", free_port()))
    taken.settimeout(30)
    return taken


async def test_a_port_in_use_is_named_with_the_remedy(folder: Path) -> None:
    with occupied() as taken:
        port = taken.getsockname()[1]
        with pytest.raises(ConfigurationError, match=rf"port {port} .*in use.*embedded:\?port={port + 1}"):
            await EmbeddedServer.from_url(f"embedded:{folder}?port={port}").start()
    assert servers_of(folder) == []
    async with embedded_server(folder, port=port) as server:
        assert server.url.endswith(f":{port}")


async def test_a_named_port_gives_way_to_nobody_and_moves_a_server_that_nobody_uses(folder: Path, users: Any) -> None:
    process = users()
    said(process), said(process)
    with occupied() as taken:
        port = taken.getsockname()[1]
    with pytest.raises(ConfigurationError, match=rf"in use on port \d+, and you asked for port {port}"):
        await EmbeddedServer(folder, port=port).start()
    process.kill()
    process.wait()
    [left] = servers_of(folder)
    async with embedded_server(folder, port=port) as server:
        assert server.url.endswith(f":{port}")
        assert servers_of(folder) == [server.pid] != [left]


async def test_a_port_taken_while_the_server_was_down_is_never_exchanged_under_its_clients(folder: Path) -> None:
    async with embedded_server(folder) as server:
        port = int(server.url.rsplit(":", 1)[1])
        os.kill(server.pid or 0, signal.SIGKILL)
        await until(lambda: server.pid is None)
        with socket.create_server(("127.0.0.1", port)):
            with pytest.raises(BrokerUnavailable, match=rf"its port {port} .* was taken by another program"):
                await server.ensure_running()
            with pytest.raises(BrokerUnavailable, match="was taken by another program"):
                await EmbeddedServer(folder).start()
        assert (await server.ensure_running()).endswith(f":{port}")
    with socket.create_server(("127.0.0.1", port)):
        async with embedded_server(folder) as server:  # nobody knows the old one any more
            assert not server.url.endswith(f":{port}")


async def test_a_file_in_place_of_the_folder_is_named(tmp_path: Path) -> None:
    (tmp_path / "data").write_text("")
    for path in (tmp_path / "data", tmp_path / "data" / "below"):
        with pytest.raises(ConfigurationError, match=f"{path} is, or lies below, a file"):
            await EmbeddedServer(path).start()


async def test_a_folder_that_cannot_be_made_is_named() -> None:
    """Not even root may make a folder in /sys."""
    with pytest.raises(ConfigurationError, match=r"cannot write to its folder /sys/tidings.*Make it writable"):
        await EmbeddedServer("/sys/tidings").start()


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A disk of 24 MB of its own; needs the right to mount one, which a container may lack."""
    disk = tmp_path / "disk"
    disk.mkdir()
    mount = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=24m", "tmpfs", disk], capture_output=True, text=True, check=False
    )
    if mount.returncode:
        pytest.skip(f"a small disk cannot be mounted here: {mount.stderr.strip()}")
    yield disk
    for pid in servers_of(disk / "data"):
        os.kill(pid, signal.SIGKILL)
    subprocess.run(["umount", "--lazy", disk], check=True)


async def test_a_read_only_data_folder_is_named(small_disk: Path) -> None:
    folder = small_disk / "data"
    async with embedded_server(folder):
        pass
    subprocess.run(["mount", "-o", "remount,ro", small_disk], check=True)
    with pytest.raises(ConfigurationError, match=f"cannot write to its folder {folder} .Read-only.*Make it writable"):
        await EmbeddedServer(folder).start()
    assert servers_of(folder) == []


def fill(disk: Path) -> Path:
    filler = disk / "filler"
    with pytest.raises(OSError, match="No space"), filler.open("wb", buffering=0) as file:
        while True:
            file.write(b"x" * 4096)
    return filler


async def test_a_full_disk_stops_the_start_and_says_so(small_disk: Path) -> None:
    filler = fill(small_disk)
    with pytest.raises(BrokerUnavailable, match=r"disk that holds .* is full.*Free some space"):
        await EmbeddedServer(small_disk / "data").start()
    os.truncate(filler, filler.stat().st_size - 64 * 1024)  # room for our files, not for events
    with pytest.raises(BrokerUnavailable, match=r"disk that holds .* is full.*Free some space"):
        await EmbeddedServer(small_disk / "data").start()
    assert servers_of(small_disk / "data") == []


async def test_a_disk_that_fills_up_is_reported_and_heals_when_there_is_room_again(
    small_disk: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """trap 20: after a write error a stream stays frozen until the server is restarted; the plain check stays green."""
    monkeypatch.setattr(embedded, "_THAW", 60.0)
    async with embedded_server(small_disk / "data") as server:
        await store(server.url, b"1")
        filler = fill(small_disk)
        async with connected(server.url) as js:
            with pytest.raises(NatsError):
                await js.publish("order.placed", b"x" * 100_000, timeout=0.5)
        frozen = server.pid
        with pytest.raises(BrokerUnavailable, match=r"disk that holds .* is full.*Free some space"):
            await server.ensure_running()
        assert "is full" in str(server.problem)
        filler.unlink()
        await server.ensure_running()
        assert str(server.problem) == "None"
        assert server.pid != frozen
        await store(server.url, b"2")
        assert await stored(server.url) == 2

        fill(small_disk)
        async with connected(server.url) as js:
            with pytest.raises(NatsError):
                await js.publish("order.placed", b"x" * 100_000, timeout=0.5)
        filler.unlink()
        with pytest.raises(BrokerUnavailable, match=r"no space left.*was restarted, which did not help"):
            await server.ensure_running()  # not in a circle


async def test_a_stream_that_cannot_be_read_back_stops_the_start_and_is_not_made_anew(folder: Path) -> None:
    """The server itself starts without it; a service would then declare it again, empty, and its events were lost."""
    async with embedded_server(folder) as server:
        await store(server.url, b"1")
    [note] = folder.glob("jetstream/*/streams/order/meta.inf")
    whole = note.read_bytes()
    note.write_bytes(whole[:-5])
    with pytest.raises(BrokerUnavailable, match=r"'\$G > order' could not be recovered.*Restore the folder"):
        await EmbeddedServer(folder).start()
    assert servers_of(folder) == []
    note.write_bytes(whole)
    async with embedded_server(folder) as server:
        assert await stored(server.url) == 1


async def test_a_folder_named_by_a_link_is_the_same_folder(folder: Path) -> None:
    link = folder.with_name("link")
    link.symlink_to(folder)
    first = EmbeddedServer(folder)
    url = await first.start()
    async with embedded_server(link) as server:
        assert server.url == url
        await first.stop()
    assert servers_of(folder) == []


async def most(server: EmbeddedServer) -> int:
    varz = json.loads(await asyncio.to_thread(fetched, f"{server.monitor_url}/varz"))
    return int(varz["jetstream"]["config"]["max_storage"])


async def test_what_is_stored_does_not_shrink_what_may_be_stored_after_a_restart(small_disk: Path) -> None:
    """The server's own limit is three quarters of what is free when it starts: less at each start."""
    async with embedded_server(small_disk / "data") as server:
        before = await most(server)
        await store(server.url, *[b"x" * 500_000] * 20)
    async with embedded_server(small_disk / "data") as server:
        assert await most(server) >= before


async def test_a_folder_removed_under_the_server_leaves_no_server_behind(folder: Path) -> None:
    server = EmbeddedServer(folder)
    await server.start()
    assert servers_of(folder)
    shutil.rmtree(folder)
    with pytest.raises(BrokerUnavailable, match="was removed"):
        await server.ensure_running()
    await server.stop()
    await until(lambda: servers_of(folder) == [])


async def test_a_cancelled_start_leaves_no_server_behind(folder: Path) -> None:
    for step in range(6):
        server = EmbeddedServer(folder)
        start = asyncio.create_task(server.start())
        await asyncio.sleep(step * 0.01)
        start.cancel()
        outcome = await asyncio.gather(start, return_exceptions=True)
        if isinstance(outcome[0], str):
            await server.stop()
        assert servers_of(folder) == []


async def test_a_server_is_ended_that_began_a_moment_ago(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Linux shows an empty command line for a moment after a program was started: seen on a machine with much to do."""
    looks = []

    def signalled(pid: int, number: signal.Signals, argument: Path) -> bool:
        looks.append(pid)
        return len(looks) > 3 and as_it_is(pid, number, argument)

    as_it_is = embedded_process._signal_if_named
    monkeypatch.setattr(embedded_process, "_signal_if_named", signalled)
    files = Folder(folder)
    files.prepare()
    process = embedded_process.ServerProcess(files)
    process.launch(port=None, named=False, password=None)
    await process.end()
    assert servers_of(folder) == []
