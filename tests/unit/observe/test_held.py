"""What is held of a handler's dead letters is what the list of dead letters shows, whatever was done about them."""

from __future__ import annotations

import random
import time
from collections.abc import Hashable, Mapping, Sequence
from datetime import UTC, datetime

import pytest

from tests.unit.observe.shop import Placed, shop
from tests.unit.observe.test_metrics import sample
from tidings.dead_letters import Fold, discard, list_letters, redrive
from tidings.delivery import Delivery, Header, Route
from tidings.errors import BrokerUnavailable
from tidings.observe import Observability
from tidings.observe._held import Held, HeldLetters
from tidings.observe.merging import Merged
from tidings.sight import Lines
from tidings.testing import MemoryBroker

WHERE = '{handler="handle",service="shop"}'
COUNT, AGE = f"tidings_dead_letters_held{WHERE}", f"tidings_dead_letters_oldest_seconds{WHERE}"
DIED = 1_700_000_000.0

Headers = Mapping[str, str]


def letter(name: str, *, part: str = "1/1", died: float = DIED) -> Headers:
    stamp = datetime.fromtimestamp(died, UTC).isoformat(timespec="milliseconds")
    return {Header.LETTER: name, Header.PART: part, Header.LAST_FAILURE: stamp, Header.HANDLER: "shop.handle"}


def mark(name: str, what: str = "discarded") -> Headers:
    return {Header.LETTER: name, Header.MARKER: what, Header.HANDLER: "shop.handle"}


class Written:
    """A log that can be written to, and read from its beginning by everybody."""

    def __init__(self, *lines: Headers) -> None:
        self.lines = list(lines)
        self.piece = 10_000
        self.begun = 0
        self.error: Exception | None = None

    def begin(self) -> Reading:
        self.begun += 1
        return Reading(self)


class Reading:
    def __init__(self, log: Written) -> None:
        self.log, self.at, self.anew, self.refused = log, 0, False, False

    async def more(self, most: int) -> Lines | None:
        if self.log.error is not None:
            raise self.log.error
        if self.refused:
            return None
        found: Sequence[Headers] = self.log.lines[self.at : self.at + min(most, self.log.piece)]
        self.at += len(found)
        anew, self.anew = self.anew, False
        return Lines(found, whole=self.at == len(self.log.lines), anew=anew)


async def held(log: Written, *, most_known: int = 1000) -> Held | None:
    letters = HeldLetters(log.begin, most_known=most_known)
    await letters.look()
    return letters.held


async def test_where_nothing_died_nothing_is_held() -> None:
    assert await held(Written()) == Held(0, None)


async def test_the_oldest_is_that_of_those_that_are_held() -> None:
    log = Written(letter("a", died=DIED), letter("b", died=DIED + 5), letter("c", died=DIED + 9), mark("a"))
    assert await held(log) == Held(2, DIED + 5)


async def test_one_that_dies_again_after_its_redrive_is_held_since_then() -> None:
    assert await held(Written(letter("a"), mark("a", "redriven"), letter("a", died=DIED + 60))) == Held(1, DIED + 60)


async def test_a_copy_that_a_crash_left_is_no_second_letter() -> None:
    assert await held(Written(letter("a"), letter("a", died=DIED + 60))) == Held(1, DIED)


async def test_a_large_letter_is_one_and_only_when_all_of_it_is_there() -> None:
    log = Written(letter("a", part="1/3"), letter("a", part="3/3"))
    letters = HeldLetters(log.begin)
    await letters.look()
    assert letters.held == Held(0, None)
    log.lines += [letter("a", part="1/3"), letter("a", part="2/3")]
    await letters.look()
    assert letters.held == Held(1, DIED)


async def test_what_a_stranger_wrote_is_no_letter() -> None:
    assert await held(Written({"content-type": "text/plain"}, {Header.MARKER: "redriven"})) == Held(0, None)


async def test_a_letter_that_does_not_say_when_it_died_alarms_nobody() -> None:
    found = await held(Written({**letter("a"), Header.LAST_FAILURE: "yesterday"}))
    assert found is not None
    assert found.since == pytest.approx(time.time(), abs=60)


async def test_nothing_is_told_until_the_log_was_read_to_its_end() -> None:
    log = Written(*(letter(str(number)) for number in range(5)))
    log.piece = 2
    letters = HeldLetters(log.begin)
    for _ in range(2):
        await letters.look()
        assert letters.held is None
        assert letters.behind
    await letters.look()
    assert letters.held == Held(5, DIED)
    assert not letters.behind


async def test_a_log_that_begins_anew_is_counted_anew() -> None:
    log = Written(letter("a"), letter("b"))
    reading = log.begin()
    letters = HeldLetters(lambda: reading)
    await letters.look()
    log.lines, reading.at, reading.anew = [letter("c")], 0, True
    await letters.look()
    assert letters.held == Held(1, DIED)


async def test_where_the_log_may_not_be_read_nothing_is_told() -> None:
    log = Written(letter("a"))
    reading = log.begin()
    letters = HeldLetters(lambda: reading)
    reading.refused = True
    await letters.look()
    assert letters.held is None
    assert not letters.behind


async def test_those_beyond_what_is_known_one_by_one_are_counted_and_found_when_there_is_room() -> None:
    log = Written(*(letter(str(number), died=DIED + number) for number in range(10)))
    letters = HeldLetters(log.begin, most_known=4)
    await letters.look()
    assert letters.held == Held(10, DIED)
    log.lines += [mark(str(number)) for number in range(3)]
    await letters.look()
    assert letters.held == Held(7, DIED + 3)
    await letters.look()
    assert log.begun == 2, "one of four is left: the others are looked for"
    assert letters.held == Held(7, DIED + 3)


@pytest.mark.parametrize("seed", range(20))
async def test_it_is_what_the_list_shows_whatever_stands_in_the_log(seed: int) -> None:
    chance = random.Random(seed)
    lines: list[Headers] = []
    for _ in range(300):
        name = str(chance.randrange(40))
        lines.append(
            chance.choice(
                [
                    letter(name),
                    mark(name),
                    mark(name, "redriven"),
                    letter(f"big-{name}", part=f"{chance.randrange(1, 4)}/3"),
                    mark(f"big-{name}"),
                ]
            )
        )
    fold = Fold()
    for headers in lines:
        fold.add(Delivery(body=b"", stream="order", origin=("dead", 1), token=None, headers=headers, route=Route.DEAD))
    found = await held(Written(*lines))
    assert found is not None
    assert found.letters == sum(one.state == "dead" for one in fold.letters.values())


# ── as metrics ──────────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.fixture
def eager(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tidings.observe._looking.LETTERS_EVERY", 0.0)


@pytest.mark.proves("P7", broker="memory", store="none")
async def test_P7_what_is_held_follows_redrive_and_discard(eager: None) -> None:
    broker, service = MemoryBroker(), shop()
    sight = Observability(service, port=None)
    async with sight, service.running(broker=broker):
        await sight.look()
        assert figures(sight) == (0, 0)
        for name in ("a", "b", "c"):
            await service.publish(Placed(order_id=name, wanted="dead"))
        await broker.idle()
        await sight.look()
        assert figures(sight)[0] == 3
        first, second, _ = await list_letters(broker)
        await discard(broker, first)
        await sight.look()
        assert figures(sight)[0] == 2
        await redrive(broker, second)
        await broker.idle()
        await sight.look()
        assert figures(sight)[0] == 2, "it died again"
        assert figures(sight)[1] < 60


async def test_two_processes_tell_of_the_same_letters_and_their_parent_does_not_add_them_up(eager: None) -> None:
    broker = MemoryBroker()
    pages: dict[Hashable, str] = {}
    for name in ("one", "two"):
        service = shop()
        sight = Observability(service, port=None)
        async with sight, service.running(broker=broker.client()):
            if name == "one":
                await service.publish(Placed(order_id="a", wanted="dead"))
                await broker.idle()
            await sight.look()
            pages[name] = sight.metrics.text().decode()
            assert figures(sight)[0] == 1
    assert sample(Merged().page(lambda: {"one", "two"}, pages).decode())[COUNT] == 1


async def test_while_the_log_cannot_be_read_there_is_no_figure_rather_than_an_old_one(eager: None) -> None:
    broker, service = MemoryBroker(), shop()
    sight = Observability(service, port=None)
    async with sight, service.running(broker=broker):
        await sight.look()
        assert figures(sight) == (0, 0)
        async with broker.outage():
            await sight.look()
            assert COUNT not in sample(sight.metrics.text().decode())
        await sight.look()
        assert figures(sight) == (0, 0)


async def test_a_service_that_stops_and_runs_again_tells_of_them_again(eager: None) -> None:
    broker, service = MemoryBroker(), shop()
    sight = Observability(service, port=None)
    async with sight:
        async with service.running(broker=broker):
            await service.publish(Placed(order_id="a", wanted="dead"))
            await broker.idle()
            await sight.look()
            assert figures(sight)[0] == 1
        await sight.look()
        assert COUNT not in sample(sight.metrics.text().decode()), "it does not run"
        async with service.running(broker=broker):
            await sight.look()
            assert figures(sight)[0] == 1


async def test_a_broker_that_cannot_show_them_leaves_the_figures_out() -> None:
    class Silent(MemoryBroker):
        letters = None  # type: ignore[assignment]  # what it does not have

    service = shop()
    sight = Observability(service, port=None)
    async with sight, service.running(broker=Silent()):
        await sight.look()
        assert COUNT not in sample(sight.metrics.text().decode())


def figures(sight: Observability) -> tuple[float, float]:
    found = sample(sight.metrics.text().decode())
    return found[COUNT], found[AGE]


async def test_an_error_of_the_log_is_no_end_of_the_figures() -> None:
    log = Written(letter("a"))
    letters = HeldLetters(log.begin)
    log.error = BrokerUnavailable("away")
    with pytest.raises(BrokerUnavailable):
        await letters.look()
    log.error = None
    await letters.look()
    assert letters.held == Held(1, DIED)
