"""Bugs to seed into what keeps events for newer code, while processes of older code run beside it."""

from __future__ import annotations

from tools.mutants_kit import Mutant

UNIT = ("tests/unit/test_newer.py",)
PUMP = ("tests/unit/brokers/kafka/test_pump.py",)
FEED = ("tests/unit/brokers/kafka/test_feed.py",)
DROPPING = ("tests/unit/test_dropping.py",)
AGAIN = (
    "tests/conformance/test_memory.py::TestMemory"
    "::test_P3_P13_an_old_process_that_starts_again_takes_nothing_from_newer_code[none]",
)
TOOL = "test_P13_a_tool_that_names_a_position_and_does_not_run_it_gives_it_no_types"
NATS_DECLARING = "tests/integration/nats/test_declaring.py"
RABBIT_DECLARING = "tests/integration/rabbitmq/test_rabbitmq_declaring.py"
SUITE = "test_P3_P8_P13_what_newer_code_asks_for_waits_where_older_code_gets_it[none-{}]"


def newer(what: str, old: str, new: str) -> Mutant:
    return Mutant(f"rolling: {what}", "newer.py", old, new, UNIT)


def kafka(what: str, file: str, old: str, new: str, tests: tuple[str, ...]) -> Mutant:
    return Mutant(f"rolling: kafka: {what}", f"brokers/kafka/{file}", old, new, tests)


def drops(what: str, old: str, new: str, file: str = "dropping.py", tests: tuple[str, ...] = DROPPING) -> Mutant:
    return Mutant(f"rolling: {what}", file, old, new, tests)


ROLLING: tuple[Mutant, ...] = (
    drops(
        "nobody answers who asks for a type",
        "            if text:\n                await",
        "            if not text:\n                await",
    ),
    drops(
        "that a note was taken back says nothing",
        "        if name.startswith(DROP)",
        "        if text and name.startswith(DROP)",
    ),
    drops(
        "a doubt that comes while one is looked at is lost",
        "            self._doubt.clear()  # one that comes from now on is another\n            try:\n"
        "                await self._keep(broker)\n",
        "            try:\n                await self._keep(broker)\n                self._doubt.clear()\n",
    ),
    drops("a start waits for a broker that is away", "asyncio.timeout(LOOK)", "asyncio.timeout(None)"),
    drops("who was cut off goes by what was asked before", "        self._since = None\n", ""),
    drops("who asks waits for no answer", "        if now < self._since + STANDS:\n            return surplus\n", ""),
    drops("the note of another is one's own", "if notes.get(DROP + one) == self._mine)", "if DROP + one in notes)"),
    drops(
        "the living are asked once",
        "        self._since, self._not_before = None, now",
        "        self._not_before = now",
    ),
    drops("what was taken away at the same moment stays so", "if missing := self._asked - taken:", "if missing := ():"),
    drops("who answered does not look", "            self._doubt.set()  # whoever", "            # whoever"),
    drops(
        "what was added since is taken away",
        "        if self._surplus is None:\n            self",
        "        if True:\n            self",
    ),
    drops(
        "the note of what is gone stands for ever",
        '            await self._notes.write({DROP + one: "" for',
        '            ({DROP + one: "" for',
    ),
    drops(
        "orders hear of no types",
        "                        await self._dropping.heard(name, text)\n",
        "                        pass\n",
        "control.py",
        AGAIN,
    ),
    drops(
        "an order that could not be obeyed is forgotten",
        "                self._another.set()  # it stands until it is obeyed\n",
        "",
        "control.py",
        ("tests/unit/test_control.py",),
    ),
    drops(
        "what is heard waits for a pause before it",
        "                        self._ordered(order_in(text))\n",
        "                        await self._obey(order_in(text))\n",
        "control.py",
        ("tests/unit/test_control.py",),
    ),
    drops(
        "no process says that it lives",
        "await asyncio.gather(*(one.start() for one in drops))",
        "drops.clear()",
        "running.py",
        AGAIN,
    ),
    drops(
        "a plan takes away what it does not ask for",
        '*(each for each in had if each.split(".", 1)[0] == one.stream)',
        "",
        "brokers/_gained.py",
        (NATS_DECLARING,),
    ),
    drops(
        "a tool gives a position types that nobody runs",
        "    if had and not one.hosted:\n        return tuple(sorted(had))\n",
        "",
        "brokers/_gained.py",
        ("tests/conformance/test_nats.py::TestNats::" + TOOL,),
    ),
    drops(
        "a replay gives its service's positions types",
        "[msgspec.structs.replace(one, hosted=False) for one in plan.subscriptions]",
        "plan.subscriptions",
        "beside.py",
        ("tests/unit/test_beside.py",),
    ),
    drops(
        "rabbitmq: what is taken again does not come",
        "            await self._bindings(now, None)\n        await write_down",
        "            pass\n        await write_down",
        "brokers/rabbitmq/topology.py",
        (RABBIT_DECLARING,),
    ),
    drops(
        "rabbitmq: who asks together with others reads once more",
        "            if asked - self._read_at > age:\n                began = time.monotonic()\n",
        "            if (began := time.monotonic()) - self._read_at > age:\n",
        "brokers/rabbitmq/topology.py",
        (RABBIT_DECLARING,),
    ),
    drops(
        "rabbitmq: what could not be bound is said to be taken",
        "        if set(now.types) - set(before.types):\n            await",
        "        await write_down([now])\n        if set(now.types) - set(before.types):\n            await",
        "brokers/rabbitmq/topology.py",
        (RABBIT_DECLARING,),
    ),
    drops(
        "rabbitmq: what goes takes along what somebody has bound meanwhile",
        "            if gone.intersection(again.types):",
        "            if not gone:",
        "brokers/rabbitmq/topology.py",
        (RABBIT_DECLARING,),
    ),
    newer(
        "what newer code asks for is passed over",
        " and (not known or _type_of(work.delivery) in self._types):",
        " and not known:",
    ),
    newer(
        "where nobody says whether newer code asks for it, it is passed over",
        " and (not known or _type_of(work.delivery) in self._types):",
        " and known and _type_of(work.delivery) in self._types:",
    ),
    newer("an answer is believed for ever", ", began + BELIEVED, False", ", began + 1e9, False"),
    newer("a question is asked for each batch", "        if time.monotonic() >= max(", "        if 0 <= max(0, "),
    newer("each lane asks", "if self._asking is None or self._asking.done():", "if True:"),
    newer("a question without an answer is waited for", "timeout=PATIENCE)", "timeout=None)"),
    newer("in order it goes before what has its key", "= None if key in keys else self", "= self"),
    newer(
        "what waits with the broker waits for ever", "                if self._types:\n", "                if False:\n"
    ),
    Mutant(
        "rolling: an event for newer code waits in the middle of a group",
        "newer.py",
        "                work.first = work.decision is None\n",
        "",
        UNIT,
    ),
    Mutant(
        "rolling: what was not asked for is nobody's business before anybody was asked",
        "reading.py",
        "                grouping.unasked = True\n",
        "                grouping.unasked = False\n",
        UNIT,
    ),
    kafka("what was said of types counts for ever", "arrivals.py", "time.monotonic() > until or ", "", PUMP),
    kafka(
        "what newer code asks for is passed over",
        "arrivals.py",
        " or kind in theirs",
        "",
        PUMP,
    ),
    kafka(
        "what is for newer code takes the room of the rest",
        "feed.py",
        " and self._left.take(delivery):",
        " and not self._left:",
        FEED,
    ),
    kafka("all that is for newer code is left", "left.py", " or self._count >= MOST:", ":", FEED),
    kafka(
        "what was left for code that was rolled back stays open",
        "left.py",
        "                track.progress.done(offset)\n",
        "",
        FEED,
    ),
    kafka(
        "what was left of a partition that went is done",
        "feed.py",
        "            self._left.drop(tracks)\n",
        "            pass\n",
        FEED,
    ),
    kafka("in order an event is left too", "feed.py", "None if subscription.ordered else Left()", "Left()", FEED),
    kafka(
        "types count before all have heard of them",
        "positions.py",
        "        await until_all_know()\n",
        "        pass\n",
        ("tests/integration/kafka/test_positions.py",),
    ),
    Mutant(
        "rolling: rabbitmq: types come before they are written down",
        "brokers/rabbitmq/topology.py",
        "        if drifts:  # before",
        "        if not drifts:  # before",
        (RABBIT_DECLARING,),
    ),
    Mutant(
        "rolling: nats: which types a position takes is written down once and for all",
        "brokers/nats/consumers.py",
        'TYPES_KEY: ",".join(types)}',
        "TYPES_KEY: found['config']['metadata'][TYPES_KEY]}",
        (NATS_DECLARING,),
    ),
    *(
        Mutant(
            f"rolling: nats: a feed {words} passes over by itself what it did not ask for",
            f"brokers/nats/{file}",
            "() if one.strangers else one.types",
            "one.types",
            ("tests/conformance/test_nats.py::TestNats::" + SUITE.format(order),),
        )
        for words, file, order in (("in no order", "feed.py", "None"), ("in order", "share.py", "key"))
    ),
    Mutant(
        "rolling: that a position takes a type no more is told to nobody",
        "brokers/rabbitmq/topology.py",
        "        drifts += dropped(plan, types)\n",
        "",
        (RABBIT_DECLARING,),
    ),
)
