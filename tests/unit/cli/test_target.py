"""Finding module:service, and what is said when it is not there."""

from __future__ import annotations

import re
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from textwrap import dedent

import pytest

from tidings.cli.failures import CommandError, Status, explain
from tidings.cli.target import find_events, find_service

Write = Callable[..., None]

EVENTS = """
    from tidings import Event

    class Placed(Event, type="order.placed", version=1, key="order_id"):
        order_id: str

    class Paid(Event, type="order.paid", version=1):
        order_id: str
"""


@pytest.fixture
def write(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Write]:
    """Write modules of a program into the current directory."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    before = set(sys.modules)

    def write(**modules: str) -> None:
        for name, text in modules.items():
            path = tmp_path / (name.replace("__", "/") + ".py")
            path.parent.mkdir(exist_ok=True)
            path.write_text(dedent(text))

    yield write
    for name in set(sys.modules) - before:
        del sys.modules[name]


def said(target: str, find: Callable[[str], object] = find_service) -> tuple[Status, str]:
    with pytest.raises(CommandError) as failed:
        find(target)
    return explain(failed.value)


def test_a_service_is_found_in_the_current_directory(write: Write) -> None:
    write(zz_stock='from tidings import Service\nstock = Service("stock")')
    assert find_service("zz_stock:stock").name == "stock"
    assert find_service("zz_stock").name == "stock"


def test_a_module_with_two_services_asks_which(write: Write) -> None:
    write(zz_two='from tidings import Service\na = Service("a")\nb = Service("b")')
    status, message = said("zz_two")
    assert status is Status.CONFIGURATION
    assert "a, b" in message


def test_a_typo_in_the_service_suggests_the_near_name(write: Write) -> None:
    write(zz_stock='from tidings import Service\nstock = Service("stock")\nother = 3')
    status, message = said("zz_stock:stok")
    assert status is Status.CONFIGURATION
    assert "Did you mean zz_stock:stock?" in message
    assert "Services there: stock" in message


def test_a_typo_in_the_module_suggests_the_near_name(write: Write) -> None:
    write(zz_shop__stock="", zz_shop__orders="")
    assert "Did you mean zz_shop.stock?" in said("zz_shop.stok:stock")[1]
    assert "Did you mean zz_shop.stock?" in said("zz_shp.stock:stock")[1]


def test_a_list_of_modules_that_is_cut_says_so(write: Write) -> None:
    write(**{f"aa_{number}": "" for number in range(12)})
    assert re.search(r"There: aa_0, .*, aa_5 and \d+ more\.", said("nope:stock")[1])


def test_what_is_no_service_is_named(write: Write) -> None:
    write(zz_stock='from tidings import Service\nstock = Service("stock")\napp = 3')
    assert "zz_stock:app is of type int, not a Service; services there: stock" in said("zz_stock:app")[1]


def test_a_path_is_answered_with_the_dots_to_write() -> None:
    status, message = said("shop/stock.py:stock")
    assert status is Status.USAGE
    assert "such as shop.stock:stock" in message


def test_an_error_in_the_users_module_shows_its_own_last_line(write: Write) -> None:
    write(
        zz_helper="""
            import json

            def read():
                return json.loads("{")
            """,
        zz_stock="""
            from zz_helper import read

            settings = read()
            """,
    )
    status, message = said("zz_stock:stock")
    assert status is Status.CONFIGURATION
    assert message.startswith("zz_helper.py:5: JSONDecodeError: ")
    assert 'return json.loads("{")' in message


def test_a_missing_import_of_the_module_is_not_taken_for_the_module(write: Write) -> None:
    write(zz_stock="import zz_not_installed")
    message = said("zz_stock:stock")[1]
    assert message.startswith("zz_stock.py:1: ModuleNotFoundError: No module named 'zz_not_installed'")


def test_a_syntax_error_shows_its_line(write: Write) -> None:
    write(zz_stock="x = 1\ny = = 2\n")
    assert said("zz_stock:stock")[1] == "zz_stock.py:2: SyntaxError: invalid syntax: y = = 2"


def test_a_module_that_exits_is_said(write: Write) -> None:
    write(zz_stock="import sys\nsys.exit(7)")
    assert "sys.exit(7)" in said("zz_stock:stock")[1]


def test_a_handler_without_annotation_is_one_line_with_the_line_to_write(write: Write) -> None:
    write(
        zz_events=EVENTS,
        zz_stock="""
            from tidings import Service
            from zz_events import Placed

            stock = Service("stock")

            @stock.on(Placed, idempotent=True)
            async def reserve(order): ...
            """,
    )
    status, message = said("zz_stock:stock")
    assert status is Status.CONFIGURATION
    assert message.startswith("zz_stock.py:7: reserve: the parameter 'order' has no annotation")
    assert "async def reserve(order: OrderPlaced) -> None" in message
    assert "\n" not in message


def test_an_event_without_version_is_one_line_with_the_line_to_write(write: Write) -> None:
    write(zz_events='from tidings import Event\n\nclass Placed(Event, type="order.placed"):\n    order_id: str\n')
    status, message = said("zz_events", find_events)
    assert status is Status.CONFIGURATION
    assert message.startswith("zz_events.py:3: Placed does not say its version")
    assert 'class Placed(Event, type="order.placed", version=1' in message


def test_events_are_found_in_a_module_in_a_service_and_by_name(write: Write) -> None:
    write(
        zz_events=EVENTS,
        zz_stock="""
            from tidings import Service
            from zz_events import Paid, Placed

            stock = Service("stock", publishes=[Paid])

            @stock.on(Placed, idempotent=True)
            async def reserve(order: Placed) -> None: ...
            """,
    )
    assert [event.__name__ for event in find_events("zz_events")] == ["Placed", "Paid"]
    assert [event.__name__ for event in find_events("zz_events:Paid")] == ["Paid"]
    assert [event.__name__ for event in find_events("zz_stock:stock")] == ["Paid", "Placed"]
    assert "Did you mean zz_events:Placed?" in said("zz_events:Place", find_events)[1]
    assert "no event class" in said("json", find_events)[1]
