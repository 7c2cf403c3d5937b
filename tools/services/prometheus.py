"""Prometheus, scraping every second what a test names, with rules of its own."""

from __future__ import annotations

import json
import subprocess
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from tools.services.program import Program, find


class Prometheus(Program):
    name = "Prometheus"
    program = "prometheus"
    package = "prometheus"

    def __init__(self, folder: Path, targets: Mapping[str, str], rules: str = "", *, every: str = "1s") -> None:
        """`targets`: by the name of a job, the ``host:port`` to scrape."""
        super().__init__(folder)
        self._targets, self._rules, self._every = targets, rules, every

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def prepare(self) -> None:
        (self.folder / "rules.yml").write_text(self._rules or "groups: []\n")
        jobs = [{"job_name": name, "static_configs": [{"targets": [target]}]} for name, target in self._targets.items()]
        times = {"scrape_interval": self._every, "scrape_timeout": self._every, "evaluation_interval": self._every}
        config = {"global": times, "rule_files": [str(self.folder / "rules.yml")], "scrape_configs": jobs}
        (self.folder / "prometheus.yml").write_text(json.dumps(config))  # which is YAML, too

    def command(self) -> Sequence[str]:
        return [
            str(self._binary), f"--config.file={self.folder / 'prometheus.yml'}",
            f"--storage.tsdb.path={self.folder / 'data'}", f"--web.listen-address=127.0.0.1:{self.port}",
            "--log.level=warn",
        ]  # fmt: skip

    def ready(self) -> bool:
        try:
            with urllib.request.urlopen(f"{self.url}/-/ready", timeout=1) as answer:
                return bool(answer.status == 200)
        except OSError:
            return False

    def ask(self, path: str, **parameters: str) -> Any:
        """What the API answers as ``data``."""
        url = f"{self.url}/api/v1/{path}?{urllib.parse.urlencode(parameters)}"
        try:
            with urllib.request.urlopen(url, timeout=10) as answer:
                return json.load(answer)["data"]
        except urllib.error.HTTPError as error:
            with error:
                raise AssertionError(f"{path} {parameters}: {error.read().decode()}") from None

    def query(self, expression: str) -> list[dict[str, Any]]:
        """The samples of an expression now."""
        result: list[dict[str, Any]] = self.ask("query", query=expression)["result"]
        return result

    def firing(self) -> dict[str, dict[str, str]]:
        """The alerts that fire now, by name, with the labels of one of each."""
        alerts = self.ask("alerts")["alerts"]
        return {one["labels"]["alertname"]: one["labels"] for one in alerts if one["state"] == "firing"}


def promtool(*arguments: str, stdin: str = "") -> str:
    """What promtool prints of something that is right.

    Raises:
        AssertionError: it found something wrong.
    """
    done = subprocess.run(
        [str(find("promtool", "prometheus")), *arguments],
        input=stdin,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    said = done.stdout + done.stderr
    assert done.returncode == 0, said
    return said
