"""Bugs to seed into what keeps events for newer code, while processes of older code run beside it."""

from __future__ import annotations

from tools.mutants_kit import Mutant

UNIT = ("tests/unit/test_newer.py",)
PUMP = ("tests/unit/brokers/kafka/test_pump.py",)
FEED = ("tests/unit/brokers/kafka/test_feed.py",)
SUITE = "test_P3_P8_P13_what_newer_code_asks_for_waits_where_older_code_gets_it[none-{}]"


def newer(what: str, old: str, new: str) -> Mutant:
    return Mutant(f"rolling: {what}", "newer.py", old, new, UNIT)


def kafka(what: str, file: str, old: str, new: str, tests: tuple[str, ...]) -> Mutant:
    return Mutant(f"rolling: kafka: {what}", f"brokers/kafka/{file}", old, new, tests)


ROLLING: tuple[Mutant, ...] = (
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
        ("tests/integration/rabbitmq/test_rabbitmq_declaring.py",),
    ),
    Mutant(
        "rolling: nats: which types are asked for is written down once and for all",
        "brokers/nats/consumers.py",
        'TYPES_KEY: wanted["metadata"][TYPES_KEY]}',
        "TYPES_KEY: found['config']['metadata'][TYPES_KEY]}",
        ("tests/integration/nats/test_declaring.py",),
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
        ("tests/integration/rabbitmq/test_rabbitmq_declaring.py",),
    ),
)
