"""The dashboards: made of what stands in tools/dashboards, and each query answered by a real Prometheus with data.

The load is that of the demo: orders of which some fail and some are doubled, garbage, and an unknown version.
"""

from __future__ import annotations

import asyncio
import json
import random
import re
import time
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from examples.shop import ledger, trouble
from examples.shop.events import OrderPlaced
from tests.unit.test_docs import ROOT
from tidings import Service
from tidings.cli.main import run
from tidings.observe.alerts import rules
from tidings.observe.grafana import dashboards
from tools.alarm.process import Process
from tools.dashboards.__main__ import BOARDS, json_of
from tools.dashboards.panels import Board
from tools.services.nats import Nats
from tools.services.prometheus import Prometheus

SERVICES = ("orders", "payments", "stock")
STANDS_FOR = {"$__rate_interval": "30s", "$service": "stock", "$handler": ".*"}


@pytest.mark.parametrize("board", BOARDS, ids=lambda board: board.uid)
def test_the_package_has_the_dashboards_that_are_made_here(board: Board) -> None:
    assert dashboards()[f"{board.uid}.json"] == json_of(board), "write them anew: make dashboards"


def test_there_are_no_others() -> None:
    assert sorted(dashboards()) == sorted(f"{board.uid}.json" for board in BOARDS)


@pytest.mark.parametrize("board", BOARDS, ids=lambda board: board.uid)
def test_a_dashboard_is_what_grafana_wants(board: Board) -> None:
    made = json.loads(json_of(board))
    panels = made["panels"]
    ids = [panel["id"] for panel in panels]
    assert len(ids) == len(set(ids))
    assert made["uid"] == board.uid
    assert [one["name"] for one in made["templating"]["list"]] == ["datasource", *board.variables]
    assert made["links"][0]["tags"] == made["tags"] == ["tidings"], "each leads to the other"
    taken: set[tuple[int, int]] = set()
    for panel in panels:
        place = panel["gridPos"]
        cells = {
            (x, y)
            for x in range(place["x"], place["x"] + place["w"])
            for y in range(place["y"], place["y"] + place["h"])
        }
        assert not cells & taken, f"{panel['title']} lies on another panel"
        taken |= cells
        assert max(x for x, _ in cells) < 24
        if panel["type"] != "row":
            assert panel["description"].endswith("."), panel["title"]


@pytest.mark.parametrize("board", BOARDS, ids=lambda board: board.uid)
def test_each_panel_is_described_in_its_place(board: Board) -> None:
    page = (ROOT / "docs" / "howto" / "observe.md").read_text(encoding="utf-8")
    section = page.partition(f"### {board.title.removeprefix('Tidings: ').capitalize()}\n")[2].partition("\n##")[0]
    found = re.findall(r"^\*([^*]+)\*(?:,|:)|^\* \*\*([^*]+)\*\*: .", section, re.MULTILINE)
    wanted = [(row.title, *(panel.title for panel in row.panels)) for row in board.rows]
    assert [title for pair in found for title in pair if title] == [title for row in wanted for title in row]


def test_the_command_writes_them(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = tmp_path / "new" / "boards"
    assert run(["observe", "dashboards", "--out", str(folder)]) == 0
    assert capsys.readouterr().out.split() == [str(folder / name) for name in dashboards()]
    assert {one.name: one.read_text() for one in folder.iterdir()} == dict(dashboards())


def test_the_command_says_why_it_cannot(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "file").write_text("")
    assert run(["observe", "dashboards", "--out", str(tmp_path / "file")]) == 3
    assert "Name a folder that can be written" in capsys.readouterr().err


# ── against a real Prometheus ───────────────────────────────────────────────────────────────────────────────────────


class Watched(NamedTuple):
    """A Prometheus, and the server whose services it scrapes."""

    prometheus: Prometheus
    broker: str


@pytest.fixture(scope="module")
def watched(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Watched]:
    """A Prometheus that has scraped the demo's services at work."""
    folder = tmp_path_factory.mktemp("watched")
    with ExitStack() as stack:
        nats = stack.enter_context(Nats(folder / "nats"))
        processes = {}
        for name in SERVICES:
            path = folder / f"{name}.db"
            ledger.create(path)
            process = Process(f"examples.shop.{name}:{name}", folder, broker=nats.url, store=f"sqlite:///{path}")
            processes[name] = stack.enter_context(process)
        targets = {name: process.address for name, process in processes.items()}
        prometheus = stack.enter_context(Prometheus(folder / "prometheus", targets, rules(windows=0.05)))
        asyncio.run(load(nats.url, prometheus))
        yield Watched(prometheus, nats.url)


async def load(url: str, prometheus: Prometheus) -> None:
    """Some seconds of the demo's orders, until the last has come through."""
    await reaches(prometheus, "sum(up)", len(SERVICES))  # it looks for targets every few seconds only
    rng = random.Random(7)
    orders, broken = trouble.make_orders(200, rng)
    orders = [*orders, *(one for one in orders[:20])]
    front = Service("front", broker=url, publishes=[OrderPlaced])
    async with front.running():
        broker = front.active.broker
        await broker.publish([*trouble.garbage(rng), *trouble.unknown_versions()], timeout=10)
        for at in range(0, len(orders), 20):
            wave = orders[at : at + 20]
            assert not any(await front.publish_many(wave))
            again = [
                trouble.duplicate(order, at + place) for place, order in enumerate(wave[:2]) if order.sku != "broken"
            ]
            await broker.publish(again, timeout=10)
            await asyncio.sleep(0.5)
    await reaches(prometheus, 'sum(tidings_outcomes_total{service="orders",outcome="done"})', 200)
    assert broken


async def again(url: str) -> None:
    """A few more orders: a rate, and a share of what takes how long, is only to be had of what happens just now."""
    orders, _ = trouble.make_orders(40, random.Random())
    front = Service("front", broker=url, publishes=[OrderPlaced])
    async with front.running():
        await front.publish_many(orders)


async def reaches(prometheus: Prometheus, expression: str, wanted: float, seconds: float = 60.0) -> None:
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        found = await asyncio.to_thread(prometheus.query, expression)
        if found and float(found[0]["value"][1]) >= wanted:
            return
        await asyncio.sleep(0.5)
    raise AssertionError(f"{expression} did not come to {wanted:g}")


def queries() -> Iterator[tuple[str, str, str]]:
    for name, text in dashboards().items():
        for panel in json.loads(text)["panels"]:
            for target in panel.get("targets", ()):
                yield name, panel["title"], target["expr"]


def answered(prometheus: Prometheus, expression: str) -> list[dict[str, Any]]:
    for name, value in STANDS_FOR.items():
        expression = expression.replace(name, value)
    return prometheus.query(expression)


@pytest.mark.server
def test_each_query_of_each_panel_is_answered_with_data(watched: Watched) -> None:
    empty, end = set(queries()), time.monotonic() + 60
    while True:
        empty = {one for one in empty if not has_data(answered(watched.prometheus, one[2]))}
        if not empty or time.monotonic() > end:
            break
        asyncio.run(again(watched.broker))
        time.sleep(1)  # the figures are looked at, and scraped, every few seconds
    assert not empty, "\n".join(": ".join(one) for one in sorted(empty))


def has_data(found: list[dict[str, Any]]) -> bool:
    return any(one["value"][1] != "NaN" for one in found)


@pytest.mark.server
def test_each_query_of_a_variable_is_answered_with_data(watched: Watched) -> None:
    for text in dashboards().values():
        for one in json.loads(text)["templating"]["list"]:
            if one["type"] == "query":
                query = one["query"] if isinstance(one["query"], str) else one["query"]["query"]
                series, label = query.removeprefix("label_values(").removesuffix(")").rsplit(", ", 1)
                for name, value in STANDS_FOR.items():
                    series = series.replace(name, value)
                found = {sample["metric"].get(label) for sample in watched.prometheus.query(series)}
                assert found - {None}, query
