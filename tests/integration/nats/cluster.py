"""A real cluster of nats-servers for one test: each may be stopped, killed and started again by itself."""

from __future__ import annotations

import json
import signal
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, Self

from tests.integration.nats.server import NatsServer
from tools.services.ports import free_port

LIMIT = 60.0
"""Seconds in which a majority finds a leader, also on a machine that has much to do."""


class Node(NatsServer):
    """One server of a cluster, which also says over HTTP how it is."""

    def __init__(self, folder: Path, name: str, jetstream: str) -> None:
        super().__init__(folder)
        self.name = name
        self.jetstream = jetstream
        self.inner = free_port()
        self.monitor = free_port()

    def join(self, others: Sequence[Node]) -> None:
        routes = ", ".join(f'"nats://127.0.0.1:{one.inner}"' for one in others)
        self.configure(
            jetstream=self.jetstream,
            extra=f"server_name: {self.name}\n"
            f'http: "127.0.0.1:{self.monitor}"\n'
            # Clients are told of no other addresses than those that they were given: a proxy stays on their way.
            f'cluster {{ name: tests, listen: "127.0.0.1:{self.inner}", no_advertise: true, routes: [{routes}] }}',
        )

    @property
    def runs(self) -> bool:
        return self._process is not None and self._process.poll() is None

    def ask(self, page: str) -> dict[str, Any]:
        """What the server says of itself, or nothing while it cannot."""
        try:
            with urllib.request.urlopen(f"http://127.0.0.1:{self.monitor}/{page}", timeout=2) as answer:
                found: dict[str, Any] = json.load(answer)
                return found
        except (OSError, urllib.error.URLError, ValueError):
            return {}


class NatsCluster:
    """Three servers on free loopback ports, with JetStream over all of them."""

    def __init__(self, folder: Path, *, nodes: int = 3, jetstream: str = "") -> None:
        self.nodes = [Node(folder / f"n{number}", f"n{number}", jetstream) for number in range(nodes)]
        for node in self.nodes:
            node.join([one for one in self.nodes if one is not node])

    @property
    def url(self) -> str:
        """All addresses in one URL, for streams with a copy on each server."""
        addresses = ",".join(f"127.0.0.1:{node.port}" for node in self.nodes)
        return f"nats://{addresses}?replicas={len(self.nodes)}"

    def start(self) -> Self:
        """Start all at once, and wait until they work together; none is left where they do not."""
        try:
            with ThreadPoolExecutor(len(self.nodes)) as pool:
                list(pool.map(lambda node: node.start(), self.nodes))
            return self.wait()
        except BaseException:
            self.stop()
            raise

    def wait(self) -> Self:
        """Wait until the servers that run have a leader, and all streams have theirs."""
        _until(self._is_well, "a leader")
        return self

    def stop(self) -> None:
        """Kill all at once."""
        for node in self.nodes:
            node.signal(signal.SIGKILL)
        for node in self.nodes:
            node.stop()

    # ── who leads ───────────────────────────────────────────────────────────────────────────────────────────────────

    def meta_leader(self) -> int:
        """The server that leads the cluster, by its place; waits for an election."""
        return self._place(lambda: self._said("jsz", lambda found: found.get("meta_cluster", {}).get("leader", "")))

    def leader(self, stream: str) -> int:
        """The server that leads a stream, by its place; waits for an election."""
        return self._place(lambda: self._leaders().get(stream, ""))

    def consumers_led(self, stream: str) -> dict[str, str]:
        """The names of the servers that lead the consumers of a stream."""
        for node in self._running():
            for one in _streams(node.ask("jsz?consumers=true&streams=true&accounts=true")):
                if one["name"] == stream:
                    found = one.get("consumer_detail") or []
                    return {each["name"]: each.get("cluster", {}).get("leader", "") for each in found}
        return {}

    def _is_well(self) -> bool:
        running = self._running()
        if len(running) * 2 <= len(self.nodes) or not self._said("jsz", lambda found: found["meta_cluster"]["leader"]):
            return False
        names = {node.name for node in running}
        return all(leader in names for leader in self._leaders().values())

    def _leaders(self) -> dict[str, str]:
        """Of each stream the server that leads it, as any server knows it; one without a leader has an empty one."""
        found: dict[str, str] = {}
        for node in self._running():
            for one in _streams(node.ask("jsz?streams=true&accounts=true")):
                found[one["name"]] = found.get(one["name"]) or one.get("cluster", {}).get("leader", "")
        return found

    def _said(self, page: str, read: Callable[[dict[str, Any]], str]) -> str:
        for node in self._running():
            try:
                if said := read(node.ask(page)):
                    return said
            except KeyError:
                continue  # it is starting
        return ""

    def _running(self) -> list[Node]:
        return [node for node in self.nodes if node.runs]

    def _place(self, leader: Callable[[], str]) -> int:
        names = {node.name: place for place, node in enumerate(self.nodes) if node.runs}
        _until(lambda: leader() in names, "a leader")
        return names[leader()]


def _streams(answer: dict[str, Any]) -> list[dict[str, Any]]:
    return [one for account in answer.get("account_details") or [] for one in account.get("stream_detail") or []]


def _until(condition: Callable[[], object], what: str) -> None:
    end = time.monotonic() + LIMIT
    while not condition():
        assert time.monotonic() < end, f"no {what} in {LIMIT:.0f} s"
        time.sleep(0.05)
