"""Internal tasks: none dies unseen."""

from __future__ import annotations

import asyncio
from itertools import pairwise

import pytest

from tests.unit.parts import until
from tidings import points, supervision
from tidings.supervision import Supervisor


@pytest.fixture(autouse=True)
def _short_pauses(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(supervision, "FIRST_PAUSE", 0.01)
    monkeypatch.setattr(supervision, "LONGEST_PAUSE", 0.05)


async def test_a_task_that_failed_runs_again_after_a_pause_and_its_failure_is_known() -> None:
    tasks, runs = Supervisor(), 0

    async def run() -> None:
        nonlocal runs
        runs += 1
        if runs < 3:
            raise ValueError("no luck")
        await asyncio.sleep(60)

    tasks.spawn("one", run)
    await until(lambda: tasks.failures)
    assert tasks.failures == {"one": "ValueError: no luck"}
    await until(lambda: runs == 3)
    await until(lambda: not tasks.failures)
    await tasks.cancel()


async def test_P12_a_task_that_ends_with_what_is_no_exception_runs_again_and_its_failure_is_known() -> None:
    class Panic(BaseException):
        """As drivers raise that are written in Rust."""

    tasks, runs = Supervisor(), 0

    async def run() -> None:
        nonlocal runs
        runs += 1
        if runs == 1:
            raise Panic("index out of bounds")
        await asyncio.sleep(60)

    tasks.spawn("one", run)
    await until(lambda: tasks.failures)
    assert tasks.failures == {"one": "Panic: index out of bounds"}
    await until(lambda: runs == 2)
    await tasks.cancel()


async def test_a_task_that_keeps_failing_is_not_started_in_a_hot_loop() -> None:
    tasks, runs = Supervisor(), list[float]()

    async def run() -> None:
        runs.append(asyncio.get_running_loop().time())
        raise ValueError

    tasks.spawn("one", run)
    await until(lambda: len(runs) == 4)
    await tasks.cancel()
    assert all(later - earlier >= 0.009 for earlier, later in pairwise(runs))


async def test_a_task_that_a_library_cancelled_by_mistake_runs_again() -> None:
    tasks, runs = Supervisor(), 0

    async def run() -> None:
        nonlocal runs
        runs += 1
        if runs == 1:
            raise asyncio.CancelledError
        await asyncio.sleep(60)

    tasks.spawn("one", run)
    await until(lambda: runs == 2)
    await tasks.cancel()


def test_a_task_that_ends_the_process_says_so_before(caplog: pytest.LogCaptureFixture) -> None:
    tasks = Supervisor()

    async def run() -> None:
        raise SystemExit(3)

    async def main() -> None:
        tasks.spawn("one", run)
        await asyncio.sleep(60)

    with pytest.raises(SystemExit):
        asyncio.run(main())
    assert "one ends the process" in caplog.text
    assert tasks.failures == {"one": "SystemExit: 3"}


@pytest.mark.parametrize("error", [points.Ended(), BaseExceptionGroup("a task group", [points.Ended()])], ids=repr)
async def test_a_task_of_a_process_that_a_proof_has_ended_is_not_started_again(error: BaseException) -> None:
    tasks, runs = Supervisor(), 0

    async def run() -> None:
        nonlocal runs
        runs += 1
        raise error

    tasks.spawn("one", run)
    assert await tasks.wait("one", timeout=5.0)
    assert runs == 1
    with pytest.raises(type(error)):
        await tasks._tasks["one"]


async def test_a_task_that_ended_by_itself_is_not_started_again() -> None:
    tasks, runs = Supervisor(), 0

    async def run() -> None:
        nonlocal runs
        runs += 1

    tasks.spawn("one", run)
    assert await tasks.wait("one", timeout=5.0)
    assert runs == 1
    assert tasks.failures == {}


async def test_waiting_ends_in_time_when_a_task_does_not() -> None:
    tasks = Supervisor()
    tasks.spawn("one", asyncio.Event().wait)
    assert not await tasks.wait("one", timeout=0.01)
    assert await tasks.wait("unknown", timeout=0.01)
    await tasks.cancel()


async def test_cancelling_ends_the_named_task_and_leaves_the_others() -> None:
    tasks, ended = Supervisor(), list[str]()

    async def run(name: str) -> None:
        try:
            await asyncio.sleep(60)
        finally:
            ended.append(name)

    tasks.spawn("one", lambda: run("one"))
    tasks.spawn("two", lambda: run("two"))
    await asyncio.sleep(0)
    await tasks.cancel("one", "unknown")
    assert ended == ["one"]
    await tasks.cancel()
    assert ended == ["one", "two"]


async def test_a_task_cancelled_after_it_failed_leaves_nothing_that_fails_later() -> None:
    tasks, runs, unseen = Supervisor(), 0, list[object]()
    asyncio.get_running_loop().set_exception_handler(lambda loop, context: unseen.append(context))

    async def run() -> None:
        nonlocal runs
        runs += 1
        if runs == 1:
            raise ValueError
        await asyncio.sleep(60)

    tasks.spawn("one", run)
    await until(lambda: runs == 2)
    await tasks.cancel()
    await asyncio.sleep(0.1)
    assert unseen == []
