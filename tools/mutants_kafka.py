"""Bugs to seed into the Kafka adapter."""

from __future__ import annotations

from tools.mutants_kit import Mutant

FAST = ("tests/unit/brokers/kafka",)
POSITIONS = ("tests/integration/kafka/test_positions.py",)
KEEPING = ("tests/integration/kafka/test_keeping.py",)
DECLARING = ("tests/integration/kafka/test_declaring.py",)
LAST_WORD = ("tests/integration/kafka/test_last_word.py",)
PUBLISHING = ("tests/integration/kafka/test_publishing.py",)


def bug(what: str, file: str, old: str, new: str, tests: tuple[str, ...] = FAST) -> Mutant:
    return Mutant(f"kafka: {what}", f"brokers/kafka/{file}", old, new, tests)


KAFKA: tuple[Mutant, ...] = (
    bug(
        "what was on its way to a partition that goes is given up",
        "publishing.py",
        " or (error.code() == KafkaError._DESTROY and not self._closing)",
        "",
        ("tests/integration/kafka/test_remade_topics.py",),
    ),
    bug(
        "a record without bytes that comes alone is passed over",
        "pump.py",
        "elif (record := consumer.poll(POLL)) is not None:",
        "elif record := consumer.poll(POLL):",
        ("tests/conformance/test_kafka.py::TestKafka::test_P1_a_message_without_bytes_that_comes_alone_is_taken",),
    ),
    bug(
        "whoever begins to follow notes lives through their past",
        "../_standing.py",
        "only_last(found) if route is Route.NOTE else ",
        "",
        (
            "tests/conformance/test_memory.py::TestMemory::test_who_begins_to_follow_notes_hears_what_stands_and_not_what_stood",
        ),
    ),
    bug(
        "the offset passes what is not done",
        "progress.py",
        "        mark = still[0] if still else seen\n        ahead",
        "        mark = seen\n        ahead",
    ),
    bug("what is done behind the offset comes again", "progress.py", "offset) % 2 == 0", "offset) % 2 == 2"),
    bug(
        "a text that is too long takes for done what it leaves out",
        "progress.py",
        "            known = begin  # what is done behind this comes again\n",
        "",
    ),
    bug(
        "a text that is too long is sent all the same",
        "progress.py",
        "        if room < 0:\n",
        "        if room < -(10**9):\n",
    ),
    bug(
        "what a killed process had is delivered for the first time",
        "progress.py",
        "            ahead = seen + window\n",
        "",
    ),
    bug(
        "each time a partition comes back its process counts as another one",
        "progress.py",
        "        self._who = who\n",
        "        self._who = who + hex(id(self))\n",
        ("tests/unit/brokers/kafka/test_progress.py",),
    ),
    bug("a publish waits for one copy", "options.py", '"acks": "all"', '"acks": "1"'),
    bug("positions move on by themselves", "options.py", '"enable.auto.commit": False', '"enable.auto.commit": True'),
    bug(
        "a new position skips what is stored",
        "options.py",
        '"auto.offset.reset": "earliest"',
        '"auto.offset.reset": "latest"',
    ),
    bug(
        "every setting is safe",
        "options.py",
        "            if str(value).lower() not in safe:\n",
        "            if not safe:\n",
    ),
    bug(
        "a password goes in the open",
        "options.py",
        "open_words and not secure",
        "False and not secure",
    ),
    bug(
        "a note that is taken back stays",
        "records.py",
        "Outgoing(topic, key, body or None, headers)",
        "Outgoing(topic, key, body, headers)",
    ),
    bug(
        "deliveries are not counted over processes",
        "arrivals.py",
        "1 + progress.delivered(offset) if offset < progress.bound else 1,",
        "1,",
        POSITIONS,
    ),
    bug(
        "a partition goes while events of it run",
        "feed.py",
        "        ends = time.monotonic() + PATIENCE\n",
        "        ends = time.monotonic()\n",
        POSITIONS,
    ),
    bug(
        "who is cut off from its group goes on",
        "feed.py",
        "if not pump.tracks or time.monotonic() < pump.commits.sure_until:",
        "if not pump.tracks or pump.commits.sure_until:",
        POSITIONS,
    ),
    bug(
        "copies come before their time",
        "feed.py",
        "            elif (due := batch.due.get(delivery, 0.0)) > now:\n",
        "            elif (due := batch.due.get(delivery, 0.0)) > now + 10**9:\n",
        POSITIONS,
    ),
    bug(
        "the bytes of all copies are kept",
        "waiting.py",
        "if place.track.route is Route.RETRY and self._bytes + place.size > self._limit:",
        "if place.track.route is Route.DEAD:",
        POSITIONS,
    ),
    bug(
        "what waits is removed from the retry route",
        "waiting.py",
        "        until = track.text[0]\n",
        "        until = track.progress.seen\n",
        POSITIONS,
    ),
    bug(
        "what is given back comes behind what is new",
        "feed.py",
        "        self._queue.extendleft(reversed(self._returned))\n",
        "        self._queue.extend(self._returned)\n",
        POSITIONS,
    ),
    bug(
        "what a topic brings that was made anew is passed over",
        "arrivals.py",
        "                track = self._anew(track, offset)\n",
        "                continue\n",
    ),
    bug(
        "an id is forgotten while its event stands in a segment that is still open",
        "topics.py",
        "else keep + opened\n",
        "else keep\n",
        KEEPING,
    ),
    bug(
        "a position whose group is forgotten begins with what comes, as a new one",
        "positions.py",
        "(_again(link, subscription.stream, began) if began else beginnings(link, subscription))",
        "beginnings(link, subscription)",
        POSITIONS,
    ),
    bug("a compacted topic keeps events", "topics.py", 'if "compact" in settings', 'if "never" in settings', DECLARING),
    bug(
        "a retry route does not grow with its stream",
        "topics.py",
        "    await _match_retries(link, plan)\n",
        "",
        DECLARING,
    ),
    bug(
        "a deleted group is a position",
        "positions.py",
        "zip(written.items(), there, strict=True) if found}",
        "zip(written.items(), there, strict=True)}",
        DECLARING,
    ),
    bug(
        "a repeat is stored twice by one process",
        "publishing.py",
        "            if (others := self._pending.get(id)) is not None:\n",
        "            if (others := self._pending.get('')) is not None:\n",
        PUBLISHING,
    ),
    bug(
        "keys fall where only this library would put them",
        "options.py",
        '"partitioner": "murmur2_random"',
        '"partitioner": "consistent_random"',
        PUBLISHING,
    ),
    bug(
        "a producer that cannot go on is kept",
        "publishing.py",
        "                if fatal and ",
        "                if not fatal and fatal and ",
        (f"{PUBLISHING[0]}::test_P1_P10_a_producer_that_cannot_go_on_is_made_anew",),
    ),
    bug(
        "nobody hears the reports of a producer that was made anew",
        "publishing.py",
        "        self._producer = producer = self._link.clients.producer(settings)\n",
        "        before = getattr(self, '_producer', None)\n"
        "        producer = self._link.clients.producer(settings)\n"
        "        self._producer = producer if before is None else before\n"
        "        self._loop.call_later(0.05, lambda: setattr(self, '_producer', producer))\n",
        (f"{PUBLISHING[0]}::test_P1_P10_a_producer_that_cannot_go_on_is_made_anew",),
    ),
    bug(
        "what was paused when it went stands still when it comes back",
        "pump.py",
        "(consumer.pause if self._paused else consumer.resume)(starts)",
        "(consumer.pause if self._paused else list)(starts)",
        (f"{POSITIONS[0]}::test_a_partition_that_went_while_there_was_no_room_is_read_on_when_it_comes_back",),
    ),
    bug(
        "all copies that are due are fetched at once",
        "waiting.py",
        "            if brought := self._queued(brought):\n",
        "            if (brought := self._queued(brought)) and not brought:\n",
        (f"{POSITIONS[0]}::test_P11_copies_that_are_due_at_once_are_fetched_as_there_is_room_for_them",),
    ),
    bug(
        "what was given back for a while makes room for more",
        "feed.py",
        "            if track_of(fresh).route is Route.EVENT:  # it keeps",
        "            if track_of(fresh).route is Route.NOTE:  # it keeps",
        (f"{POSITIONS[0]}::test_P11_what_is_given_back_for_a_while_keeps_its_room",),
    ),
    bug(
        "nobody takes from a retry route that grew later than its stream",
        "pump.py",
        "        if not alone or self.stopping:\n",
        "        if not alone or alone:\n",
        (f"{POSITIONS[0]}::test_P6_copies_come_from_a_partition_of_the_retry_route_that_is_younger_than_its_twin",),
    ),
    bug(
        "copies wait for one that nobody has any more",
        "waiting.py",
        "            if offset < begins[number]:\n",
        "            if offset < 0:\n",
        (f"{POSITIONS[0]}::test_P6_copies_need_not_wait_for_one_that_somebody_removed",),
    ),
    bug(
        "what has no key falls anywhere",
        "publishing.py",
        "        if record.topic not in places:\n",
        "        if True:\n",
        PUBLISHING,
    ),
    bug(
        "types that nobody asked for are handed over",
        "arrivals.py",
        "if kind is not None and kind not in self._types:",
        "if kind is not None and not self._types:",
    ),
    bug(
        "what was found out about one event's headers counts for the next",
        "arrivals.py",
        "elif pairs == self._pairs and self._common is not None:",
        "elif self._common is not None:",
    ),
    bug(
        "what was found out about one partition counts for the next record",
        "arrivals.py",
        "if record.partition() != number or record.topic() != topic:",
        "if number < 0:",
    ),
    bug("what came before is taken with what never did", "arrivals.py", "progress.known, progress.bound", "0"),
    bug("a log that goes back is not seen", "arrivals.py", " or any(map(ge, offsets, offsets[1:]))", ""),
    bug(
        "copies are events to whom events are beside",
        "arrivals.py",
        "        if not _all(run, Record.topic, topic):\n            return False\n",
        "",
    ),
    bug("the headers of the first are those of all", "arrivals.py", " or not _all(run, headers_in, pairs)", ""),
    bug(
        "an error beside events is an event",
        "arrivals.py",
        " or any([record.error() is not None for record in run])",
        "",
    ),
    bug("nothing is taken together", "arrivals.py", "if MANY * len(runs) > len(records):", "if records:"),
    bug(
        "partitions that take turns are looked at twice",
        "arrivals.py",
        "if MANY * len(runs) > len(records):",
        "if not records:",
    ),
    bug(
        "a little room is not used",
        "pump.py",
        "                time.sleep(GATHER)\n                room = self._has_room() or -1\n",
        "                return -1\n",
    ),
    bug(
        "a handler that is fast waits before each batch",
        "pump.py",
        "elif room < min(MOST, self._most // 2):",
        "elif 2 * room < self._most:",
        ("tests/unit/brokers/kafka/test_pump.py",),
    ),
    bug(
        "an event is settled twice",
        "feed.py",
        "        if not is_open:\n",
        "        if False:\n",
    ),
    bug(
        "who has given an event back can still acknowledge it",
        "feed.py",
        "verdict is ACK and still.get(offset) is delivery:",
        "verdict is ACK and still.get(offset) is not None:",
    ),
    bug(
        "what comes of a partition that went is handed over",
        "feed.py",
        "if self._stopping or batch.due or any(track.gone for track in batch.ends):",
        "if self._stopping or batch.due:",
    ),
    bug(
        "what comes after a stop is handed over",
        "feed.py",
        "if self._stopping or batch.due or any(track.gone for track in batch.ends):",
        "if batch.due or any(track.gone for track in batch.ends):",
    ),
    bug(
        "copies whose time has not come are taken for events",
        "feed.py",
        "if self._stopping or batch.due or any(track.gone for track in batch.ends):",
        "if self._stopping or any(track.gone for track in batch.ends):",
    ),
    bug(
        "what was found out about one partition counts for what the next one had handed over",
        "tracks.py",
        "        if delivery.token is not last.token:\n            _mark_one(last)\n",
        "",
    ),
    bug(
        "what waits for room is taken for what runs",
        "feed.py",
        "and offset < track.came and delivery not in queued",
        "and offset < track.came",
    ),
    bug(
        "what is on its way to the loop is taken for what runs",
        "feed.py",
        "and offset < track.came and delivery not in queued",
        "and delivery not in queued",
    ),
    bug(
        "what went with its partition is acknowledged with the others of its wave",
        "feed.py",
        "is_ours = track.progress.open, track.owner is self and not track.gone",
        "is_ours = track.progress.open, track.owner is self",
    ),
    bug(
        "a wave is told to the feed of its first delivery alone",
        "broker.py",
        "            if other is not owner:\n",
        "            if other is not owner and owner is None:\n",
    ),
    bug(
        "what was settled makes no room",
        "feed.py",
        "        self.released += count\n",
        "",
    ),
    bug(
        "a report of an outage that is over makes one",
        "link.py",
        "self._lost if refused else self._wake.set",
        "self._lost",
        ("tests/integration/kafka/test_away.py",),
    ),
    bug(
        "of an outage the library's figures are told",
        "away.py",
        '        if self._answered:\n            return f"the connection to {self._where} was lost", IS_IT_UP\n',
        '        if self._answered:\n            return f"{self._where}: 1/1 brokers are down", IS_IT_UP\n',
    ),
    bug(
        "a text that the brokers do not keep is said again as it is",
        "commits.py",
        "        self._room = self._room // 2 if",
        "        self._room = self._room if",
        (
            "tests/integration/kafka/test_positions.py::test_P3_P9_brokers_that_keep_little_beside_an_offset_are_told_less_and_get_every_commit",
        ),
    ),
    bug(
        "names beside an offset have all the room they want",
        "progress.py",
        " if end <= room // 2)",
        ")",
    ),
    bug(
        "what waits for a slow follower has no limit",
        "reading.py",
        "self.missed |= len(self._records) + len(records) > MOST_COMING",
        "self.missed = False",
        ("tests/integration/kafka/test_reading.py",),
    ),
    bug(
        "what a slow follower was not told is lost to it",
        "reading.py",
        "                if coming.missed:\n",
        "                if coming.missed is None:\n",
        ("tests/integration/kafka/test_reading.py",),
    ),
    bug(
        "a password that was replaced is not read again",
        "link.py",
        "                    await self.clients.renew(self.ask)\n",
        "                    pass\n",
        (
            "tests/integration/kafka/test_security.py::test_P10_a_password_that_was_replaced_is_read_again_by_all_that_is_connected",
        ),
    ),
    bug(
        "a consumer is told the new password from outside, and never hears of it",
        "clients.py",
        "        if isinstance(client, _Consumer):\n",
        "        if client is None:\n",
        (
            "tests/integration/kafka/test_security.py::test_P10_a_password_that_was_replaced_is_read_again_by_all_that_is_connected",
        ),
    ),
    bug(
        "who is let in hides that another client is not",
        "away.py",
        "if time.monotonic() - self._refused > REFUSED_FOR:",
        "if time.monotonic() - self._refused > 0:",
    ),
    bug(
        "the last commit is given up while the coordinator cannot take it",
        "commits.py",
        "code_of(error) not in _PASSING or",
        "code_of(error) != KafkaError.REBALANCE_IN_PROGRESS or",
        LAST_WORD,
    ),
    bug(
        "a commit that is tried again sets back the last one",
        "commits.py",
        """        if final and between is not None:
            self._hear(between)
        doubtful = final and self._waits > 0
""",
        "        doubtful = False\n",
        LAST_WORD,
    ),
    bug(
        "a commit that is tried again sets back what was said of a partition that goes",
        "commits.py",
        "        if doubtful and not why:\n",
        "        if doubtful and why:\n",
        LAST_WORD,
    ),
    bug(
        "what was refused counts as said where a partition goes",
        "commits.py",
        """                for track in ours:
                    track.text = (-1, "")
""",
        "",
        LAST_WORD,
    ),
    bug(
        "who stops speaks on of partitions that went",
        "commits.py",
        "[track for track in tracks if self._is_ours(track)]:",
        "list(tracks):",
        LAST_WORD,
    ),
    bug(
        "that the last commit was refused is told to nobody",
        "commits.py",
        "if why and final and between is None:",
        "if not why and between is self:",
        LAST_WORD,
    ),
)
