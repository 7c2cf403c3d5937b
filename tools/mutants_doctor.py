"""Bugs to seed into what `tidings doctor` looks for on Kafka and NATS."""

from __future__ import annotations

from tools.mutants_kit import Mutant

KAFKA_TESTS = "tests/integration/kafka/test_doctor.py::test_"
NATS_TESTS = ("tests/integration/nats/test_nats_doctor.py",)


def kafka(what: str, file: str, old: str, new: str, test: str) -> Mutant:
    return Mutant(f"doctor: kafka: {what}", f"brokers/kafka/{file}", old, new, (KAFKA_TESTS + test,))


def nats(what: str, old: str, new: str) -> Mutant:
    return Mutant(f"doctor: nats: {what}", "brokers/nats/doctor.py", old, new, NATS_TESTS)


DOCTOR: tuple[Mutant, ...] = (
    kafka(
        "an address that nobody reaches is believed",
        "doctor.py",
        'Finding("wrong", one.told, one.remedy) if one.why else',
        'Finding("wrong", one.told, one.remedy) if one.why is None else',
        "a_broker_that_advertises_a_name_nobody_knows_is_named_in_the_first_line",
    ),
    kafka(
        "what a client was told is not listened to",
        "doctor.py",
        '            if broker["source"] == "learned":\n',
        '            if broker["source"] == "configured":\n',
        "where_the_brokers_send_their_clients_is_known_also_when_they_answer_nobody",
    ),
    Mutant(
        "doctor: kafka: whoever starts does not look where brokers send their clients",
        "brokers/kafka/doors.py",
        "    if closed and len(closed) == len(found):",
        "    if closed and len(closed) > len(found):",
        ("tests/integration/kafka/test_doors.py",),
    ),
    Mutant(
        "doctor: kafka: one address of several that leads nowhere is not told",
        "brokers/kafka/doors.py",
        "    for one in closed:",
        "    for one in closed[1:]:",
        ("tests/integration/kafka/test_doors.py",),
    ),
    kafka(
        "topics that are made by accident are no danger",
        "doctor.py",
        '.lower() != "true"',
        '.lower() != "never"',
        "a_broker_that_makes_topics_by_accident_is_a_warning",
    ),
    kafka(
        "a topic that is gone is not missed",
        "doctor_topics.py",
        "for topic in topics if topic not in link.partitions]",
        "for topic in topics if topic not in topics]",
        "a_topic_that_is_gone_is_named_with_its_position",
    ),
    kafka(
        "a position that was removed is missed",
        "doctor_topics.py",
        "return entry.stream not in link.partitions or bool(await committed_of(link, position, [entry.stream]))",
        "return True",
        "a_position_that_was_removed_misses_nothing",
    ),
    kafka(
        "more copies are demanded than there are",
        "doctor_topics.py",
        "    if least > copies:\n        return",
        "    if least > 9:\n        return",
        "copies_that_are_demanded_and_not_there_are_named_with_their_topics",
    ),
    kafka(
        "what new topics will be like is not looked at",
        "doctor_topics.py",
        "    if least > copies:\n        what",
        "    if least > 9:\n        what",
        "new_topics_that_could_take_nothing_are_told_before_there_are_any",
    ),
    nats("a server without JetStream is fine", "await Api(connection).check()", "await asyncio.sleep(0)"),
    nats("what is confirmed is on the disk", 'if config.get("sync_always"):', "if config:"),
    nats("another server's answer counts", 'if told["server_id"] != server:', "if not server:"),
    nats(
        "what cannot be seen is fine",
        '        return [\n            Finding(\n                "warning",\n                f"whether',
        '        return [] or [\n            Finding(\n                "fine",\n                f"whether',
    ),
    nats(
        "every version keeps everything",
        "for fixed, what in LOSSES if numbers < fixed]",
        "for fixed, what in LOSSES if fixed < ()]",
    ),
    nats("an old server starts", "if numbers < OLDEST:", "if numbers < ():"),
    nats("small messages are enough", "if most >= MAX_EVENT_BYTES + ROOM_FOR_HEADERS:", "if most:"),
)
