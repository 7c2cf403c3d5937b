"""A life that ends at a point runs nothing more, in whichever thread it was, until it is let go."""

from __future__ import annotations

import asyncio
import threading

import pytest

from tidings import points
from tidings.testing.prover.life import Abandoned, Life


class Program:
    """Passes two points, and cleans up behind itself."""

    def __init__(self, *, in_a_thread: bool = False) -> None:
        self.done: list[str] = []
        self._in_a_thread = in_a_thread

    async def __call__(self, life: Life) -> None:
        beside = asyncio.create_task(self._beside(life))
        try:
            await (asyncio.to_thread(self._work) if self._in_a_thread else asyncio.to_thread(lambda: None))
            if not self._in_a_thread:
                self._work()
        except Exception:
            self.done.append("except")
        finally:
            self.done.append("finally")
            await beside

    def _work(self) -> None:
        for number in (1, 2):
            points.at("before-commit")
            self.done.append(f"work {number}")

    async def _beside(self, life: Life) -> None:
        while not life.crashed and len(self.done) < 3:  # noqa: ASYNC110  # what is waited for tells nobody
            await asyncio.sleep(0.001)
        self.done.append("beside")


@pytest.mark.parametrize("in_a_thread", [False, True])
async def test_a_crash_runs_no_line_more_until_the_life_is_let_go(in_a_thread: bool) -> None:
    program = Program(in_a_thread=in_a_thread)
    life = Life(program, ("before-commit", 2))
    at_the_crash: list[list[str]] = []
    life.at_the_crash = lambda: at_the_crash.append(list(program.done))
    await life.run()
    assert life.crashed
    await asyncio.sleep(0.05)
    assert at_the_crash == [["work 1"]]
    if in_a_thread:  # the loop runs on for the turn it was in
        program.done = [one for one in program.done if one != "beside"]
    assert program.done == ["work 1"]
    assert points.reached is None
    await life.let_go()
    assert "finally" in program.done
    assert "except" not in program.done  # no `except Exception` sees it
    assert "work 2" not in program.done


async def test_a_life_without_a_crash_ends_by_itself_and_says_what_it_passed() -> None:
    program = Program()
    life = Life(program, None)
    await life.run()
    await life.let_go()
    assert not life.crashed
    assert life.passed == ["before-commit"] * 2
    assert program.done == ["work 1", "work 2", "finally", "beside"]


async def test_what_a_life_raises_is_kept() -> None:
    async def main(life: Life) -> None:
        raise LookupError("gone")

    life = Life(main, None)
    await life.run()
    await life.let_go()
    assert isinstance(life.error, LookupError)


async def test_a_thread_of_an_abandoned_life_stands_still_at_the_points_of_the_next() -> None:
    go_on, seen = threading.Event(), []

    def stray() -> None:
        go_on.wait()
        try:
            points.at("before-ack")
        except Abandoned:
            return
        seen.append("it went on")

    thread = threading.Thread(target=stray)
    thread.start()

    async def main(life: Life) -> None:
        go_on.set()
        await asyncio.sleep(0.05)

    life = Life(main, None)
    await life.run()
    assert thread.is_alive()
    await life.let_go()
    thread.join(5)
    assert seen == []
    assert life.passed == []


async def test_a_life_that_does_not_end_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tidings.testing.prover.life.LIMIT", 0.2)
    ended: list[bool] = []

    async def main(life: Life) -> None:
        try:
            await asyncio.Event().wait()
        finally:
            ended.append(True)

    life = Life(main, None)
    with pytest.raises(TimeoutError, match=r"still at work after 0.2 s"):
        await life.run()
    assert ended == []
    await life.let_go()
    assert ended == [True]
