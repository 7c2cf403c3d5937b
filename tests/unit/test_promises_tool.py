"""`make promises`: what a test proves is read rightly, and nothing that is missing or fails looks well."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from textwrap import dedent

import pytest

from tools import promises
from tools.promises_table import ANY, BROKERS, GAPS, NEEDED, PROMISES, STORES

ROOT = Path(__file__).parents[2]


def run(folder: Path, source: str, *arguments: str) -> tuple[subprocess.CompletedProcess[str], list[promises.Cell]]:
    """Run the tool on a folder with one test file of this source."""
    (folder / "pytest.ini").write_text("[pytest]\naddopts = --strict-markers\n")
    (folder / "test_it.py").write_text("import pytest\n" + dedent(source))
    done = subprocess.run(
        [sys.executable, "-m", "tools.promises", "--json", "-c", str(folder / "pytest.ini"), *arguments, str(folder)],
        cwd=ROOT,
        env={**os.environ, "PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1"},
        capture_output=True,
        text=True,
        timeout=100,
        check=False,
    )
    cells = [promises.Cell(**one) for one in json.loads(done.stdout)] if done.stdout else []
    return done, cells


def state(cells: list[promises.Cell], promise: str, broker: str, store: str = ANY) -> str:
    return next(str(one) for one in cells if (one.promise, one.broker, one.store) == (promise, broker, store))


def test_what_a_test_proves_stands_in_its_name_its_marks_or_its_parameters(tmp_path: Path) -> None:
    done, cells = run(
        tmp_path,
        """
        @pytest.mark.proves(broker="nats", store="sqlite")
        def test_P4_by_marks(): ...

        @pytest.mark.proves("P2", "P14", broker="nats")
        def test_by_marks_alone(): ...

        @pytest.mark.parametrize("broker", ["memory", "nats"])
        def test_P1_by_a_parameter(broker): ...

        @pytest.fixture(params=["memory", pytest.param("x", marks=pytest.mark.proves(broker="nats"))])
        def kit(request): ...

        def test_P8_P9_by_a_fixture(kit): ...

        @pytest.mark.parametrize("kit", ["memory-small", "nats-sqlite"])
        def test_P3_by_a_part_of_the_id(kit): ...

        @pytest.mark.proves(broker="memory")
        class TestMemory:
            @pytest.mark.parametrize("store", ["sqlite", "none", "memory"])
            def test_P7_by_its_class(self, store): ...

        def test_P13_nowhere_in_particular(): ...

        def test_of_no_promise():
            raise AssertionError("must not run")
        """,
    )
    passed = {(one.promise, one.broker, one.store): one.passed for one in cells if one.state == "passed"}
    assert passed == {
        ("P4", "nats", "sqlite"): 1,
        ("P2", "nats", ANY): 1,
        ("P14", "nats", ANY): 1,
        ("P1", "memory", ANY): 1,
        ("P1", "nats", ANY): 1,
        ("P8", "memory", ANY): 1,
        ("P8", "nats", ANY): 1,
        ("P9", "memory", ANY): 1,
        ("P9", "nats", ANY): 1,
        ("P3", "memory", "none"): 1,
        ("P3", "nats", "sqlite"): 1,
        ("P7", "memory", "sqlite"): 1,
        ("P7", "memory", "none"): 1,
        ("P7", "memory", "memory"): 1,
        ("P13", ANY, ANY): 1,
    }
    assert "must not run" not in done.stderr


def test_the_other_tests_run_too_where_that_is_asked_for(tmp_path: Path) -> None:
    done, cells = run(
        tmp_path,
        """
        @pytest.mark.proves(broker="nats")
        def test_P1_of_a_promise(): ...

        def test_of_no_promise():
            raise AssertionError("it ran")
        """,
        "--promises-all",
    )
    assert "it ran" in done.stderr
    assert state(cells, "P1", "nats") == "passed 1"
    assert done.returncode == 1


def test_a_promise_without_a_test_that_passed_is_missing(tmp_path: Path) -> None:
    done, cells = run(
        tmp_path,
        """
        def test_P1_proven_on_no_broker(): ...

        @pytest.mark.proves(broker="nats")
        def test_P2_skipped():
            pytest.skip("no server")

        @pytest.mark.proves(broker="nats")
        @pytest.mark.xfail(reason="not yet")
        def test_P6_known_to_fail():
            raise AssertionError
        """,
    )
    assert done.returncode == 1
    assert state(cells, "P1", ANY) == "passed 1"
    assert [state(cells, promise, "nats") for promise in ("P1", "P2", "P6", "P8")] == ["MISSING"] * 4
    assert state(cells, "P10", "memory") == "allowed gap"
    assert state(cells, "P1", "kafka") == "MISSING"
    assert state(cells, "P5", "rabbitmq", "redis") == "MISSING"
    assert state(cells, "P5", "nats", "redis") == "MISSING"


def test_one_failure_outweighs_all_that_passed(tmp_path: Path) -> None:
    done, cells = run(
        tmp_path,
        """
        pytestmark = pytest.mark.proves(broker="nats")

        def test_P1_well(): ...

        def test_P1_badly():
            raise AssertionError

        @pytest.fixture
        def bad_end():
            yield
            raise RuntimeError

        def test_P2_fails_at_its_end(bad_end): ...

        @pytest.fixture
        def bad_start():
            raise RuntimeError

        def test_P6_fails_at_its_start(bad_start): ...
        """,
    )
    assert done.returncode == 1
    assert [state(cells, promise, "nats") for promise in ("P1", "P2", "P6")] == ["FAILED"] * 3


def test_a_run_that_dies_does_not_look_well(tmp_path: Path) -> None:
    done, cells = run(tmp_path, "def test_P1_dies():\n    import os\n    os._exit(1)")
    assert done.returncode == 1
    assert state(cells, "P1", ANY) == "FAILED"


@pytest.mark.parametrize(
    ("source", "says"),
    [
        ("def test_P99_of_nothing(): ...", "there is no promise P99"),
        ("@pytest.mark.proves(broker='nat')\ndef test_P1_typo(): ...", "there is no broker 'nat'"),
        ("@pytest.mark.proves(store='sqlit')\ndef test_P1_typo(): ...", "there is no store 'sqlit'"),
        ("import a_module_that_is_not_there\ndef test_P1_x(): ...", "a_module_that_is_not_there"),
    ],
)
def test_a_mistake_in_a_test_ends_the_run_and_is_named(tmp_path: Path, source: str, says: str) -> None:
    done, cells = run(tmp_path, source)
    assert done.returncode == 1
    assert cells == []
    assert says in done.stderr


def test_all_is_well_only_when_every_cell_passed() -> None:
    results = [
        promises.Result("test", (promise,), broker, store, "passed")
        for promise in PROMISES
        for store in NEEDED.get(promise, (ANY,))
        for broker in BROKERS
        if (promise, broker) not in GAPS
    ]
    assert {cell.state for cell in promises.table(results)} == {"passed", "allowed gap", "-"}
    assert all("MISSING" in {cell.state for cell in promises.table(results[:n] + results[n + 1 :])} for n in range(4))


def test_the_table_says_what_is_wrong_in_words() -> None:
    results = [
        promises.Result("test_a", ("P1",), "nats", ANY, "passed"),
        promises.Result("test_b", ("P2",), "nats", ANY, "failed"),
    ]
    text = promises.text(promises.table(results), results)
    assert "broker: any  memory" in text
    assert "failed: P2: test_b" in text
    assert text.splitlines()[-1].startswith("passed=1 allowed_gaps=1 missing=")
    assert text.splitlines()[-1].endswith("failed=1")


def test_the_data_speaks_of_things_that_exist() -> None:
    assert set(NEEDED) <= set(PROMISES)
    assert {store for stores in NEEDED.values() for store in stores} <= set(STORES)
    assert {promise for promise, _ in GAPS} <= set(PROMISES)
    assert {broker for _, broker in GAPS} <= set(BROKERS)
