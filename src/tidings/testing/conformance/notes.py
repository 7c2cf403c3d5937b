"""Notes: what the processes of a handler remember together."""

from __future__ import annotations

import asyncio

from tidings.notes import Notes
from tidings.testing.conformance.bench import Bench

NAMES = ("held/a b", "held/é", "failed/order@7", "control/paused", "x" * 300, "a.*.>")


class Noting:
    """Part of the suite."""

    async def test_of_each_name_the_last_note_is_kept_for_the_position_that_wrote_it(self, bench: Bench) -> None:
        one, other = bench.subscription("one").position, bench.subscription("other").position
        client, reader = await bench.client(), await bench.client()
        assert await Notes(client, one).read() == {}
        await Notes(client, one).write({name: f"first of {name}" for name in NAMES})
        await Notes(client, other).write({NAMES[0]: "of the other"})
        await Notes(client, one).write({NAMES[1]: "zweiter: é\n", NAMES[2]: ""})
        wanted = {name: f"first of {name}" for name in NAMES} | {NAMES[1]: "zweiter: é\n"}
        del wanted[NAMES[2]]
        if bench.features.restart and bench.features.durable:
            await bench.rig.restart()
        assert await Notes(reader, one).read() == wanted
        assert await Notes(reader, other).read() == {NAMES[0]: "of the other"}

    async def test_many_notes_are_read_whole_while_others_are_written(self, bench: Bench) -> None:
        count = bench.size("notes", 2500, 400)
        position = bench.subscription().position
        client = await bench.client()
        wanted = {f"held/{number}": str(number) for number in range(count)}
        await Notes(client, position).write(wanted)

        async def disturb() -> None:
            for number in range(20):
                await Notes(client, bench.subscription("other").position).write({f"n{number}": "x"})

        disturbing = asyncio.create_task(disturb())
        assert await Notes(client, position).read() == wanted
        await disturbing

    async def test_who_begins_to_follow_notes_hears_what_stands_and_not_what_stood(self, bench: Bench) -> None:
        position = bench.subscription().position
        client, reader = await bench.client(), await bench.client()
        for number in range(5):
            await Notes(client, position).write({"control/paused": f"order {number}", "other": str(number)})
            await Notes(client, position).write({"control/paused": ""})
        found: list[tuple[str, str]] = []

        async def follow() -> None:
            async for name, text in Notes(reader, position).follow():
                if text or name != "control/paused":
                    found.append((name, text))

        following = asyncio.create_task(follow())
        try:
            await bench.until(lambda: bool(found) or following.done(), "what stands")
            await Notes(client, position).write({"control/paused": "the last"})
            await bench.until(lambda: len(found) > 1 or following.done(), "what came")
            assert found == [("other", "4"), ("control/paused", "the last")]
        finally:
            following.cancel()
            await asyncio.wait([following])

    async def test_notes_can_be_followed_through_a_restart(self, bench: Bench) -> None:
        position = bench.subscription().position
        client, reader = await bench.client(), await bench.client()
        await Notes(client, position).write({"before": "1"})
        found: dict[str, str] = {}

        async def follow() -> None:
            async for name, text in Notes(reader, position).follow():
                found[name] = text

        following = asyncio.create_task(follow())
        try:
            await bench.until(lambda: found == {"before": "1"}, "what was there")
            if bench.features.restart and bench.features.durable:
                await bench.rig.restart()
            await Notes(client, position).write({"after": "2", "before": ""})
            await bench.until(lambda: found == {"before": "", "after": "2"} or following.done(), "what came")
            assert not following.done()
        finally:
            following.cancel()
            await asyncio.wait([following])
