"""Each rule catches what it is there for: a small bad package for every way to break it, and a good one beside it."""

from __future__ import annotations

from pathlib import Path
from textwrap import dedent

import pytest

from tests.architecture import rules
from tests.architecture.rules import RULES, Rule

LONG = "x = 1\n"

BROKEN: list[tuple[Rule, str, dict[str, str]]] = [
    (
        rules.arrows_point_one_way,
        "an arrow up",
        {"errors.py": "", "policy.py": "from tidings.worker import W", "worker.py": ""},
    ),
    (
        rules.arrows_point_one_way,
        "an arrow up for type checking",
        {"delivery.py": "if TYPE_CHECKING:\n    from tidings.ports import Broker", "ports.py": ""},
    ),
    (
        rules.arrows_point_one_way,
        "an arrow up inside a function",
        {"pipeline.py": "def f():\n    import tidings.service", "service.py": ""},
    ),
    (
        rules.arrows_point_one_way,
        "an arrow up by import_module",
        {"pipeline.py": "import_module('tidings.service')", "service.py": ""},
    ),
    (rules.arrows_point_one_way, "a relative arrow up", {"ports.py": "from .service import Service", "service.py": ""}),
    (
        rules.arrows_point_one_way,
        "the core imports the root",
        {"worker.py": "from tidings import Event", "__init__.py": ""},
    ),
    (
        rules.arrows_point_one_way,
        "the core imports an adapter",
        {"pipeline.py": "from tidings.stores import memory", "stores/__init__.py": "", "stores/memory.py": ""},
    ),
    (
        rules.arrows_point_one_way,
        "a broker imports another",
        {"brokers/one/__init__.py": "from tidings.brokers.two import T", "brokers/two/__init__.py": ""},
    ),
    (
        rules.arrows_point_one_way,
        "a store imports another",
        {"stores/one.py": "from tidings.stores.two import T", "stores/two.py": ""},
    ),
    (
        rules.arrows_point_one_way,
        "a broker imports the core",
        {"brokers/one/a.py": "import tidings.policy", "policy.py": ""},
    ),
    (
        rules.arrows_point_one_way,
        "an observer imports a store",
        {"observe/a.py": "import tidings.stores", "stores/__init__.py": ""},
    ),
    (
        rules.arrows_point_one_way,
        "the core imports the test kit",
        {"service.py": "import tidings.testing", "testing.py": ""},
    ),
    (rules.arrows_point_one_way, "a module in no layer", {"helpers.py": ""}),
    (
        rules.no_import_cycles,
        "two modules",
        {"event.py": "from tidings import envelope", "envelope.py": "from tidings.event import Event"},
    ),
    (
        rules.no_import_cycles,
        "three, one for type checking, one in a function",
        {
            "a.py": "import tidings.b",
            "b.py": "if TYPE_CHECKING:\n    from tidings.c import C",
            "c.py": "def f():\n    from tidings.a import A",
        },
    ),
    (
        rules.libraries_stay_in_their_place,
        "the core imports a driver",
        {"pipeline.py": "import sqlalchemy.ext.asyncio"},
    ),
    (
        rules.libraries_stay_in_their_place,
        "a client outside its folder",
        {"brokers/kafka/a.py": "from nats.aio import client"},
    ),
    (rules.libraries_stay_in_their_place, "a library nobody decided on", {"cli/main.py": "def f():\n    import click"}),
    (rules.no_broker_is_named_outside_its_folder, "an identifier", {"service.py": "def open_jetstream(): ..."}),
    (rules.no_broker_is_named_outside_its_folder, "a class", {"ports.py": "class KafkaThing: ..."}),
    (rules.no_broker_is_named_outside_its_folder, "an argument", {"service.py": "def f(*, nats_url): ..."}),
    (rules.no_broker_is_named_outside_its_folder, "a string", {"publisher.py": "HEADER = 'Nats-Msg-Id'"}),
    (rules.no_broker_is_named_outside_its_folder, "bytes", {"publisher.py": "HEADER = b'NATS/1.0'"}),
    (rules.no_broker_is_named_outside_its_folder, "an f-string", {"service.py": "x = f'amqps://{host}'"}),
    (rules.no_broker_is_named_outside_its_folder, "another broker's folder", {"brokers/nats/a.py": "x = 'rabbitmq'"}),
    (
        rules.no_broker_is_named_outside_its_folder,
        "an identifier of the CLI",
        {"cli/up.py": "from x import NatsServer"},
    ),
    (rules.no_broker_is_named_outside_its_folder, "far too many texts", {"cli/up.py": "x = 'nats'\n" * 13}),
    (rules.public_names_are_few_and_listed, "no list", {"__init__.py": "from tidings.event import Event"}),
    (rules.public_names_are_few_and_listed, "one not listed", {"__init__.py": "from a import B, C\n__all__ = ['B']"}),
    (rules.public_names_are_few_and_listed, "one not there", {"__init__.py": "from a import B\n__all__ = ['B', 'C']"}),
    (rules.public_names_are_few_and_listed, "one twice", {"__init__.py": "from a import B\n__all__ = ['B', 'B']"}),
    (
        rules.public_names_are_few_and_listed,
        "too many",
        {"__init__.py": "\n".join(f"a{n} = 1" for n in range(31)) + f"\n__all__ = {[f'a{n}' for n in range(31)]}"},
    ),
    (rules.files_are_short, "the pipeline", {"pipeline.py": LONG * 300}),
    (rules.files_are_short, "another file", {"brokers/nats/feed.py": LONG * 400}),
    (rules.functions_fit_a_screen, "a function", {"worker.py": "def f():\n" + "    x = 1\n" * 60}),
    (rules.functions_fit_a_screen, "a method", {"worker.py": "class W:\n  async def f():\n" + "    x = 1\n" * 60}),
    (rules.no_wait_for, "called", {"worker.py": "async def f():\n    await asyncio.wait_for(g(), 1)"}),
    (rules.no_wait_for, "imported", {"worker.py": "from asyncio import wait_for"}),
    (rules.no_wait_for, "imported from within", {"worker.py": "from asyncio.tasks import wait_for as w"}),
    (rules.nothing_swallows_cancellation, "a bare except", {"a.py": "try: f()\nexcept: pass"}),
    (rules.nothing_swallows_cancellation, "BaseException", {"a.py": "try: f()\nexcept BaseException as e: log(e)"}),
    (rules.nothing_swallows_cancellation, "in a tuple", {"a.py": "try: f()\nexcept (OSError, BaseException): pass"}),
    (
        rules.nothing_swallows_cancellation,
        "raised only in a function that is defined there",
        {"a.py": "try: f()\nexcept BaseException:\n    def g(): raise"},
    ),
    (rules.nothing_swallows_cancellation, "suppressed", {"a.py": "with suppress(BaseException): f()"}),
    (rules.tasks_are_kept, "a statement", {"a.py": "asyncio.create_task(f())"}),
    (rules.tasks_are_kept, "an underscore", {"a.py": "_ = loop.create_task(f())"}),
    (rules.tasks_are_kept, "a lambda", {"a.py": "loop.call_soon(lambda: asyncio.ensure_future(f()))"}),
    (rules.tasks_are_kept, "from a thread", {"a.py": "asyncio.run_coroutine_threadsafe(f(), loop)"}),
]

GOOD = {
    "__init__.py": """
        from typing import TYPE_CHECKING
        from tidings.event import Event
        if TYPE_CHECKING:
            from tidings.service import Service
        __version__ = "1"
        __all__ = ["Event", "Service", "__version__"]
        """,
    "errors.py": "",
    "delivery.py": "",
    "ports.py": '"""NATS may be named here."""\nimport msgspec\nfrom tidings.errors import E  # as kafka does',
    "event.py": "alternatives = 'combinations of native parts'",
    "envelope.py": "from tidings.event import Event",
    "policy.py": "from tidings.ports import Once",
    "pipeline.py": LONG * 299,
    "worker.py": """
        async def f():
            "A docstring does not count." + ""
            async with asyncio.TaskGroup() as group, asyncio.timeout(3):
                group.create_task(g())
            await condition.wait_for(ready)
            task = asyncio.create_task(g())
            try:
                await task
            except BaseException:
                if task:
                    raise
        """,
    "service.py": "from tidings.brokers import connect\nfrom tidings.worker import W",
    "brokers/__init__.py": "def f(x):\n    if x == 'nats':\n        from tidings.brokers.nats import NatsBroker",
    "brokers/nats/__init__.py": "from tidings.brokers.nats.feed import Feed",
    "brokers/nats/feed.py": "import nats\nfrom tidings.ports import Feed\nJETSTREAM = 'nats'",
    "stores/__init__.py": "def f():\n    from tidings.stores import memory",
    "stores/memory.py": "from tidings.outbox.table import T",
    "stores/sqlalchemy.py": "from tidings.stores._locks import L",
    "stores/_locks.py": "import sqlalchemy",
    "outbox/table.py": "from tidings.ports import T",
    "testing/suite.py": "import pytest\nimport tidings\nfrom tidings.service import S",
    "cli/main.py": "import cyclopts\nfrom tidings import Service\nHELP = 'such as nats://localhost'",
}


def build(root: Path, files: dict[str, str]) -> Path:
    for place, text in files.items():
        path = root / place
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(dedent(text))
    return root


@pytest.mark.parametrize(("rule", "how", "files"), BROKEN, ids=[f"{rule.__name__}: {how}" for rule, how, _ in BROKEN])
def test_the_rule_catches(rule: Rule, how: str, files: dict[str, str], tmp_path: Path) -> None:
    assert rule(build(tmp_path, files)), f"{rule.__name__} does not see {how}"


@pytest.mark.parametrize("rule", RULES, ids=lambda rule: rule.__name__)
def test_the_rule_lets_good_code_pass(rule: Rule, tmp_path: Path) -> None:
    assert rule(build(tmp_path, GOOD)) == []


@pytest.mark.parametrize("rule", RULES, ids=lambda rule: rule.__name__)
def test_the_rule_stands_an_empty_folder(rule: Rule, tmp_path: Path) -> None:
    assert rule(tmp_path / "nowhere") == []


def test_every_rule_has_something_to_catch() -> None:
    assert {rule for rule, _, _ in BROKEN} == set(RULES)


def test_what_is_found_names_the_file_and_the_line(tmp_path: Path) -> None:
    root = build(tmp_path, {"policy.py": "\n\nfrom tidings.worker import W", "worker.py": ""})
    assert rules.arrows_point_one_way(root) == ["policy.py:3: policy imports worker: the arrow points the other way"]
