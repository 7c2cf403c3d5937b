"""Three nodes of RabbitMQ that work as one: each may be killed and started again by itself."""

from __future__ import annotations

import re
import secrets
import subprocess
import time
from collections import Counter
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import TracebackType
from typing import Final, Self

from tools.services.program import Program
from tools.services.rabbitmq import RabbitMQ

NODES: Final = 3
LEADS_WITHIN: Final = 60.0
_LEADERS: Final = """
[io:format("~s ~s~n", [element(4, amqqueue:get_name(Q)), N])
 || Q <- rabbit_amqqueue:list(<<"/">>), {_, N} <- [amqqueue:get_pid(Q)]], ok.
"""


class Names(Program):
    """What the nodes find each other by; it outlives each of them."""

    name = "epmd"
    program = "epmd"
    package = "erlang-base"

    @property
    def url(self) -> str:
        return f"127.0.0.1:{self.port}"

    def command(self) -> Sequence[str]:
        return [str(self._binary), "-address", "127.0.0.1", "-port", str(self.port)]


class Node(RabbitMQ):
    """One of them."""

    def __init__(self, folder: Path, number: int, names: Names, cookie: str) -> None:
        nodes = [f"cluster_formation.classic_config.nodes.{one} = rabbit{one}@localhost" for one in range(1, NODES + 1)]
        super().__init__(folder, "cluster_formation.peer_discovery_backend = classic_config", *nodes)
        self.node = f"rabbit{number}@localhost"
        self._epmd_port = names.port
        self._cookie = cookie

    def prepare(self) -> None:
        super().prepare()
        path = self.folder / ".erlang.cookie"
        path.write_text(self._cookie)
        path.chmod(0o400)

    def command(self) -> Sequence[str]:
        return ["env", *(f"{name}={value}" for name, value in self.environment().items()), str(self._binary)]

    @property
    def runs(self) -> bool:
        return self._process is not None and self._process.poll() is None


class RabbitCluster:
    """`with RabbitCluster(folder) as cluster: cluster.url`."""

    def __init__(self, folder: Path) -> None:
        cookie = secrets.token_hex(16)
        self._names = Names(folder / "names")
        self.nodes = [Node(folder / f"node-{one}", one, self._names, cookie) for one in range(1, NODES + 1)]
        self._formed = False

    @property
    def url(self) -> str:
        return "amqp://tidings:tidings@" + ",".join(f"127.0.0.1:{node.port}" for node in self.nodes)

    def start(self) -> Self:
        """All together; but for the first time one after the other, so that there is one to join."""
        if not self._formed:
            self._formed = True
            self._names.start()
            for node in self.nodes:
                node.start()
        else:
            with ThreadPoolExecutor(NODES) as pool:
                list(pool.map(lambda node: node.start(), self.nodes))
        return self

    def stop(self) -> None:
        """Kill all of them."""
        for node in self.nodes:
            node.stop()

    def leader(self, stream: str) -> int:
        """The place of the node that leads most queues of a stream's positions."""
        ends = time.monotonic() + LEADS_WITHIN
        while time.monotonic() < ends:
            for node in self.nodes:
                if not node.runs:
                    continue
                try:
                    said = node.control("eval", _LEADERS)
                except subprocess.SubprocessError:
                    continue  # it has just come, or is just going
                found = Counter(re.findall(rf"^{re.escape(stream)}\S* rabbit(\d)@", said, re.MULTILINE))
                if found:
                    return int(found.most_common(1)[0][0]) - 1
            time.sleep(0.2)
        raise AssertionError(f"nobody leads {stream}")

    def __enter__(self) -> Self:
        try:
            return self.start()
        except BaseException:
            self.__exit__(None, None, None)
            raise

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        self.stop()
        self._names.stop()
