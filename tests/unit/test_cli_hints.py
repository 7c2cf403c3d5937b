"""What the command line says to somebody who typed nearly the right thing."""

from __future__ import annotations

from pathlib import Path

import pytest

from tidings.cli.failures import CommandError, Status
from tidings.cli.main import run
from tidings.cli.options import broker_url
from tidings.cli.output import Out
from tidings.cli.tail import Log, print_events
from tidings.cli.target import find_events
from tidings.ports import Plan, StreamPlan
from tidings.testing.memory import MemoryBroker

MODULE = """
from tidings import Event, Service


class OrderPlaced(Event, type="order.placed", version=1):
    order_id: str


stock = Service("stock", publishes=[OrderPlaced])
"""


@pytest.fixture
def shop(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """The name of a module in the current directory, another one for each test."""
    name = f"shop_{tmp_path.name.replace('-', '_')}"
    (tmp_path / f"{name}.py").write_text(MODULE)
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delenv("TIDINGS_BROKER", raising=False)
    return name


def test_names_that_are_there_are_listed_as_they_are_written(shop: str) -> None:
    with pytest.raises(CommandError, match=f"Did you mean {shop}:OrderPlaced\\? Events there: OrderPlaced"):
        find_events(f"{shop}:OrderPlacd")


def test_a_file_name_is_answered_with_how_a_module_is_named(shop: str) -> None:
    with pytest.raises(CommandError, match=f"without .py. Write {shop}:name"):
        find_events(f"{shop}.py")


def test_a_dot_in_the_place_of_the_colon_is_answered_with_the_colon(shop: str) -> None:
    with pytest.raises(CommandError, match=f"{shop} is a module, and no package. Did you mean {shop}:OrderPlaced"):
        find_events(f"{shop}.OrderPlaced")


def test_an_option_that_is_none_is_answered_with_the_near_one_in_one_sentence(
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert run(["run", "shop:stock", "--brokr", "x"]) == Status.USAGE
    assert "Did you mean --broker? tidings run --help" in capsys.readouterr().err


def test_data_that_the_shell_took_apart_is_answered_with_quotes(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["publish", "shop:OrderPlaced", "{order_id:", "1}"]) == Status.USAGE
    assert "put the JSON into single quotes" in capsys.readouterr().err


def test_one_end_of_a_pipe_on_a_terminal_implies_the_server_of_this_folder(
    shop: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    Path(".tidings").mkdir()
    monkeypatch.setattr("sys.stdin", _Terminal())
    assert broker_url(None) == "embedded:"


def test_a_folder_without_a_server_gets_none_from_a_command_that_only_looks(
    shop: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sys.stdin", _Terminal())
    with pytest.raises(CommandError, match=r"has no \.tidings.*Go to the folder"):
        broker_url(None)
    assert not Path(".tidings").exists()


async def test_a_tail_that_finds_nothing_counts_nothing(capsys: pytest.CaptureFixture[str]) -> None:
    broker = MemoryBroker()
    await broker.open(Plan(service="test", streams=(StreamPlan(name="order"),)))
    try:
        assert await print_events(broker, Log("order", "order.placd", None, False), None, None, Out()) == 0
    finally:
        await broker.close()
    assert capsys.readouterr().out == ""


class _Terminal:
    def isatty(self) -> bool:
        return True
