"""Bugs to seed into the RabbitMQ adapter."""

from __future__ import annotations

from tools.mutants_kit import Mutant

_FOLDER, _INTEGRATION, _UNIT = "brokers/rabbitmq/", "tests/integration/rabbitmq/", "tests/unit/brokers/rabbitmq"


def _bug(what: str, file: str, old: str, new: str, *tests: str) -> Mutant:
    where = tuple(f"{_INTEGRATION}test_rabbitmq_{test}" for test in tests) or (_UNIT,)
    return Mutant(f"rabbitmq: {what}", _FOLDER + file, old, new, where)


RABBITMQ: tuple[Mutant, ...] = (
    _bug(
        "a log from which nothing has come yet is empty",
        "reading.py",
        "        async with asyncio.timeout(patience):\n            await came.wait()\n"
        "        await channel.round_trip(ANSWER)  # a chunk comes as a whole\n",
        "        await channel.round_trip(ANSWER)\n        if not chunk:\n            return -1\n",
        "reading.py",
    ),
    _bug(
        "a start fails where another one is just making a log",
        "reading.py",
        "            if _is_forbidden(error) or time.monotonic() > until:\n",
        "            if True:\n",
        "declaring.py::test_processes_that_start_at_once_wait_for_the_logs_that_one_of_them_is_making",
    ),
    _bug("messages do not outlive a restart", "frames.py", "PERSISTENT: Final = 2", "PERSISTENT: Final = 1"),
    _bug(
        "what no queue takes counts as stored",
        "frames.py",
        'b"\\x01" if mandatory else b"\\x00"',
        'b"\\x00" if mandatory else b"\\x00"',
    ),
    _bug(
        "what a server does not take is sent to it again and again",
        "publishing.py",
        "                await channel.link.drained()\n",
        "                pass\n",
        "supervision.py::test_P11_what_a_server_does_not_take_is_not_sent_again_and_again",
    ),
    _bug(
        "processes talk where they acknowledge",
        "ordered.py",
        "self._others_changed, self._outward)",
        "self._others_changed, self._connection)",
        "supervision.py::test_P3_trap_118_what_is_done_is_acknowledged_while_a_server_takes_no_messages",
    ),
    _bug(
        "a share that stays counts what it has once more",
        "ordered.py",
        "                self.hand_over(token, delivery)\n",
        "                super().offer(token, delivery)\n",
        "taking.py::test_P11_what_a_share_has_that_stays_after_all_is_counted_once",
    ),
    _bug("a hand-back throws the message away", "frames.py", "_confirm.pack(tag, 2)", "_confirm.pack(tag, 0)"),
    _bug(
        "a copy comes too early",
        "feed.py",
        "waiting.seconds_left(content.headers)) > 0",
        "waiting.seconds_left(content.headers)) > 1e9",
        "moving.py",
    ),
    _bug("a copy that is not stored elsewhere is let go of", "moving.py", "if error is None]", "if True]", "moving.py"),
    _bug(
        "who stops leaves a copy in two places",
        "moving.py",
        "async with asyncio.timeout(CLOSE), self._moving:",
        "async with asyncio.timeout(CLOSE):",
        "moving.py",
    ),
    _bug("copies that wait for long are kept in hand", "moving.py", "if left > HOLD:", "if False:", "moving.py"),
    _bug("copies go in circles, and not on", "moving.py", "if _stays(content) <= 0]", "if True]", "moving.py"),
    _bug("the key of a copy says no time", "names.py", ".{ceil(until * 1000)}", ".0"),
    _bug(
        "nobody comes back to copies that were put back",
        "moving.py",
        "return min(left, self._look_after)",
        "return 3600.0",
        "moving.py",
    ),
    _bug(
        "a channel that refused once is asked again and again",
        "publishing.py",
        "and confirming is self._confirming:",
        "and False:",
        "publishing.py",
    ),
    _bug(
        "a channel is closed while others wait for its answers",
        "publishing.py",
        "if confirming is not self._confirming and not confirming.waits:",
        "if confirming is not self._confirming:",
        "publishing.py",
    ),
    _bug("the keys of a share overlap", "names.py", "_EACH: Final = PARTITIONS // SHARES", "_EACH: Final = 7"),
    _bug("events without a key reach nobody", "names.py", "shares[0] |= wanted", "shares[0] |= set()"),
    _bug(
        "a return is taken for that of another message",
        "publishing.py",
        "(frame.routing_key, frame.exchange) == (content.routing_key, content.exchange)",
        "True",
        "publishing.py",
    ),
    _bug(
        "an event that nobody takes goes beside although no position takes from its stream",
        "publishing.py",
        "if not any(one.stream == message.stream for one in known.values()):",
        "if False:",
        "publishing.py",
    ),
    _bug(
        "events come into a queue that the server may forget",
        "topology.py",
        "            await asyncio.sleep(ON_DISK)\n        for now",
        "            pass\n        for now",
        "publishing.py",
    ),
    _bug(
        "the server drops what is given back often",
        "topology.py",
        "NO_LIMIT: Final = 2_000_000_000",
        "NO_LIMIT: Final = 20",
        "taking.py",
    ),
    _bug(
        "an acknowledgement takes those before it along",
        "source.py",
        "            if tag not in done:\n                break\n            last = tag\n",
        "            last = tag\n",
        "taking.py",
    ),
    _bug(
        "what came by a channel that ended is acknowledged by the next",
        "source.py",
        "return self.is_open and self.channel.open",
        "return True",
        "taking.py",
    ),
    _bug(
        "large messages are asked for in any number",
        "feed.py",
        "if self._held_bytes > TOO_MUCH * self._most_bytes:",
        "if False:",
        "taking.py",
    ),
    _bug(
        "a type that nobody asks for any more still comes",
        "topology.py",
        "for key in sorted(old - keys):",
        "for key in sorted(set[str]()):",
        "declaring.py",
    ),
    _bug(
        "a process that was cut off goes on with what it had",
        "ordered.py",
        "if time.monotonic() < self._connection.sure_until:",
        "if True:",
        "supervision.py",
    ),
    _bug(
        "a silent server is waited for without end",
        "connection.py",
        "if quiet > SILENT_TICKS:",
        "if quiet > 10_000:",
        "supervision.py",
    ),
    _bug(
        "a channel that nobody waits for any more stays",
        "link.py",
        "            channel.leave()\n",
        "            pass\n",
        "supervision.py",
    ),
    _bug(
        "the number of a channel is given to the next while the server still speaks to it",
        "channel.py",
        "        if not self._parting:\n",
        "        if True:\n",
    ),
)
