"""What a bad day does, under load: kills, stops, garbage, a full disk. A ledger tells what was lost or twice."""

from __future__ import annotations

import json
import os
import signal
import sqlite3
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path

from examples.shop import ledger
from examples.shop.trouble import BROKEN
from tools.drill_kit import ROOT, Case, Kit, Process, Seen, distinct, plain, until
from tools.drill_shop import HANDLER, Shop, backlog, send_raw
from tools.services.freezing import freeze

ORDERS = 600
OUTAGE = 10.0
"""Seconds for which the server is stopped."""
DEMO = {"stock": "stock.reserve", "payments": "payments.take", "orders": "orders.close"}


def end(shop: Shop, stored: set[str], worker: Process, *, dead: int = 0, said: str = "") -> Seen:
    """Judge, stop everything with SIGTERM, and see that nothing died that should not have."""
    tally = shop.judge(stored)
    letters = shop.dead()
    status = worker.end()
    up = shop.up.end()
    wrong = []
    if len(stored) != ORDERS:
        wrong.append(f"only {len(stored)} of {ORDERS} orders were stored in the end")
    if len(letters) != dead:
        wrong.append(f"{len(letters)} dead letters instead of {dead}")
    if up:
        wrong.append(f"tidings up ended with status {up}")
    message = said or "\n".join(distinct([*worker.complaints, *shop.up.complaints]))
    return Seen(message, status, tally.lost, tally.twice, "; ".join(wrong))


def server_killed(kit: Kit) -> Seen:
    """SIGKILL of the server, twice."""
    shop = Shop(kit)
    worker, load = shop.worker(), shop.load(ORDERS)
    for reached in (100, 350):
        shop.wait_applied(reached)
        if killed := shop.server_pid:
            os.kill(killed, signal.SIGKILL)
    return end(shop, load.finish(), worker)


def server_stopped(kit: Kit) -> Seen:
    """The server hangs for ten seconds: its sockets stay open, and it answers nothing."""
    shop = Shop(kit)
    worker, load = shop.worker(), shop.load(ORDERS)
    shop.wait_applied(100)
    pid = shop.server_pid
    assert pid is not None
    freeze(pid)
    time.sleep(OUTAGE)
    os.kill(pid, signal.SIGCONT)
    return end(shop, load.finish(), worker)


def worker_killed(kit: Kit) -> Seen:
    """SIGKILL of the worker that is active, twice; another stands by."""
    shop = Shop(kit)
    workers, load = [shop.worker(), shop.worker()], shop.load(ORDERS)
    for reached in (100, 350):
        shop.wait_applied(reached)
        active = last_worker(shop.database)
        killed = next(one for one in workers if one.pid == active)
        killed.end(signal.SIGKILL)
        workers.remove(killed)
        workers.append(shop.worker())
    stored = load.finish()
    workers[0].end()
    said = f"(nothing: two workers were killed, pid {workers[-1].pid} went on)"
    return end(shop, stored, workers[-1], said=said)


def last_worker(database: Path) -> int:
    """The process that wrote the newest row."""
    connection = sqlite3.connect(f"file:{database}?mode=ro", uri=True, timeout=10)
    try:
        return int(connection.execute("SELECT worker FROM ledger ORDER BY rowid DESC LIMIT 1").fetchone()[0])
    finally:
        connection.close()


def terminated(kit: Kit) -> Seen:
    """SIGTERM under load, and a start afterwards."""
    shop = Shop(kit)
    worker, load = shop.worker(), shop.load(ORDERS)
    shop.wait_applied(150)
    status = worker.end()
    said = "\n".join(distinct(worker.complaints))
    after = shop.worker()
    seen = end(shop, load.finish(), after, said=said)
    return Seen(said, status, seen.lost, seen.twice, seen.wrong or ("" if not seen.status else "the next did not stop"))


def garbage(kit: Kit) -> Seen:
    """Bytes that are no events, between the orders."""
    shop = Shop(kit)
    worker, load = shop.worker(), shop.load(ORDERS)
    shop.wait_applied(50)
    bodies = [b"", b"\xff\xfe" + os.urandom(40), b"[1, 2", b"[" * 5000, b'{"type": "order.placed"}', b"null"]
    send_raw(shop.url, "order.placed", bodies)
    until(lambda: len(shop.dead()) == len(bodies), 20, 0.5)
    return end(shop, load.finish(), worker, dead=len(bodies))


def disk_fills(kit: Kit) -> Seen:
    """The disk of a running server gets full, and has room again later."""
    folder, inside = kit.disk("size=48m")
    up = kit.start("up", "--folder", str(folder / "data"), "--json", inside=inside)
    url = kit.url(up, folder / "data")
    database = kit.folder / "stock.db"
    ledger.create(database)
    arguments = ("examples.shop.stock:stock", "--broker", f"{url}?ack_wait=3s", "--store", f"sqlite:///{database}")
    worker = kit.start("run", *arguments, "--port", "0", "--json", cwd=ROOT)
    worker.ready()
    beside = Publisher(kit, f"embedded:{folder / 'data'}", ("nsenter", "-t", str(up.pid), "-U", "-m"))
    before = beside.publish("before")
    filler = Path(f"/proc/{up.pid}/root{folder}/filler")
    fill(filler)
    refused = beside.until(4, "refused", size=100_000)
    filler.unlink()
    after = beside.until(0, "after")
    stored = {"before", "after"} if before.returncode == after.returncode == 0 else set()
    until(lambda: stored <= set(ledger.effects(database, HANDLER)), 30)
    until(lambda: not backlog(url), 20, 0.3)
    effects = ledger.effects(database, HANDLER)
    statuses = worker.end(), up.end()
    lost, twice = len(stored - set(effects)), sum(count - 1 for count in effects.values() if count > 1)
    wrong = "" if statuses == (0, 0) and stored else f"statuses {statuses}, before {before}, after {after}"
    return Seen(plain(refused.stderr), refused.returncode, lost, twice, wrong)


def fill(path: Path) -> None:
    """Write until nothing goes any more."""
    with path.open("wb", buffering=0) as file:
        try:
            while True:
                file.write(bytes(4096))
        except OSError:
            pass  # full, as it was meant to be


class Publisher:
    """Publishes single orders by the command line, on the server's own disk."""

    def __init__(self, kit: Kit, broker: str, inside: tuple[str, ...]) -> None:
        self._kit, self._broker, self._inside = kit, broker, (*inside, "--preserve-credentials")

    def publish(self, key: str, size: int = 0) -> subprocess.CompletedProcess[str]:
        data = {"order_id": key, "sku": "tea" + " " * size, "quantity": 1, "placed_at": "2026-01-31T12:00:00Z"}
        arguments = ("publish", "examples.shop.events:OrderPlaced", "-", "--broker", self._broker)
        return self._kit.tidings(*arguments, stdin=json.dumps(data), inside=self._inside)

    def until(self, status: int, key: str, size: int = 0) -> subprocess.CompletedProcess[str]:
        """Again and again until it ends like that, for 40 s at most."""
        end = time.monotonic() + 40
        while True:
            done = self.publish(key, size)
            if done.returncode == status or time.monotonic() > end:
                return done
            time.sleep(0.3)


def ctrl_c_during_the_demo(kit: Kit) -> Seen:
    """SIGINT in the middle of the demo. Afterwards its workers run until all that was stored is applied."""
    folder = kit.folder / "demo"
    command = (sys.executable, "-m", "examples.shop", "--orders", "600", "--folder", str(folder))
    demo = kit.start(name="demo", command=command, cwd=ROOT)
    assert until(lambda: demo_applied(folder) > 150, 60), demo.text
    status = demo.end(signal.SIGINT)
    left = kit.left_behind()
    message = demo.text.strip().splitlines()[-1]
    up = kit.start("up", "--folder", str(folder / "nats"), "--json")
    url = kit.url(up, folder / "nats")
    broker = f"embedded:{folder / 'nats'}?ack_wait=5s"
    workers = [demo_worker(kit, broker, folder, name) for name in DEMO]
    done = kit.tidings("tail", "order", "--json", "--broker", broker)
    events = [json.loads(line) for line in done.stdout.splitlines()]
    kit.said.remove(done.stdout)  # it shows garbage as it is, which is no message of ours
    keys = {one["subject"] for one in events if one.get("version") == "v1" and one["data"]["sku"] != "broken"}
    until(lambda: all(keys <= set(effects) for effects in demo_effects(folder)), 60, 0.3)
    until(lambda: not backlog(url), 20, 0.3)
    found = demo_effects(folder)
    lost = sum(1 for effects in found for key in keys if not effects[key])
    twice = sum(count - 1 for effects in found for count in effects.values() if count > 1)
    statuses = [one.end() for one in (*workers, up)]
    wrong = [f"{len(left)} processes went on after the demo"] if left else []
    wrong += [f"the workers ended with {statuses}"] if any(statuses) else []
    wrong += [f"only {len(keys)} orders were stored"] if len(keys) < 150 + BROKEN else []
    return Seen(message, status, lost, twice, "; ".join(wrong))


def demo_worker(kit: Kit, broker: str, folder: Path, name: str) -> Process:
    store = f"sqlite:///{folder / name}.db"
    arguments = ("run", f"examples.shop.{name}:{name}", "--broker", broker, "--store", store, "--port", "0", "--json")
    worker = kit.start(*arguments, name=name, cwd=ROOT)
    worker.ready()
    return worker


def demo_effects(folder: Path) -> list[Counter[str]]:
    return [ledger.effects(folder / f"{name}.db", handler) for name, handler in DEMO.items()]


def demo_applied(folder: Path) -> int:
    try:
        return sum(ledger.effects(folder / "orders.db", DEMO["orders"]).values())
    except Exception:  # it is not there yet
        return 0


CASES = (
    Case("Ctrl-C during the demo", ctrl_c_during_the_demo, 130, ("nothing was compared",)),
    Case("SIGKILL of the server under load", server_killed, 0, ("lost the connection",)),
    Case("the server hangs for 10 s", server_stopped, 0, ("the server was silent",)),
    Case("SIGKILL of workers under load", worker_killed, 0, ("went on",)),
    Case("SIGTERM under load", terminated, 0, ("stopping; what runs is finished first",)),
    Case("garbage on the stream", garbage, 0, ("dead letter (not-json)", "dead letter (empty)")),
    Case("the disk gets full under a server", disk_fills, 4, ("is full", "Free some space there")),
)
