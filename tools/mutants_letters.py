"""Bugs to seed into what is given back to a handler: dead letters, many of them at once, and replays."""

from __future__ import annotations

from tools.mutants_kit import Mutant

BULK = "bulk.py"
DEAD = "dead_letters.py"
REPLAY = "replay.py"

LETTER_TESTS = ("tests/unit/test_bulk.py", "tests/unit/test_dead_letters.py", "tests/unit/cli/test_dead.py")
REPLAY_TESTS = ("tests/integration/service/test_replays.py", "tests/unit/cli/test_replay.py")


def _letters(what: str, file: str, old: str, new: str) -> Mutant:
    return Mutant(what, file, old, new, LETTER_TESTS)


def _replay(what: str, file: str, old: str, new: str) -> Mutant:
    return Mutant(what, file, old, new, REPLAY_TESTS)


LETTERS: tuple[Mutant, ...] = (
    _letters(
        "redrive reaches another handler",
        DEAD,
        'redrive:{letter.redriven + 1}",\n        route=Route.RETRY,\n        position=letter.position,\n',
        'redrive:{letter.redriven + 1}",\n        route=Route.RETRY,\n        position=letter.position + "-two",\n',
    ),
    _letters(
        "a redriven letter has an id of its own, and is applied once more",
        DEAD,
        "        **letter.headers,\n        Header.ID: header_text(letter.event_id),\n",
        "        **letter.headers,\n        Header.ID: header_text(letter.id),\n",
    ),
    _letters(
        "no beginning of an id at all names the only letter there is",
        DEAD,
        "    if not begins:\n",
        "    if begins is None:\n",
    ),
    _letters(
        "a list keeps the tracebacks of all letters",
        DEAD,
        'traceback=plain_text(traceback) if whole else ""',
        "traceback=plain_text(traceback)",
    ),
    _letters(
        "bulk redrive reorders a key: letters go as they died",
        BULK,
        "                line.sort(key=lambda one: _place(one.origin))\n",
        "                pass\n",
    ),
    _letters(
        "bulk redrive reorders a key: ids that tell no order are taken for places",
        BULK,
        "            if all(_PLACE.fullmatch(one.origin) for one in line):\n",
        "            if line:\n",
    ),
    _letters(
        "bulk redrive reorders a key: what died again goes behind what came after it",
        DEAD,
        "            letter.rank = before.rank\n",
        "            pass\n",
    ),
    _letters(
        "letters are redriven to a handler that is gone",
        "cli/dead.py",
        "            await found_at(broker, position)\n",
        "            pass\n",
    ),
    _letters(
        "bulk redrive: a letter goes past an earlier one of its key that was not stored",
        BULK,
        "                    failed[_line(changed.letter)] = changed.letter.id\n",
        "                    pass\n",
    ),
    _letters(
        "bulk redrive: letters of one key are stored in one go",
        BULK,
        "(apart and _line(letter) in lines)",
        "False",
    ),
    _letters(
        "bulk redrive: what is stored is not marked, and goes again",
        BULK,
        "        if stored:\n",
        "        if False:\n",
    ),
    _letters(
        "bulk redrive: what was not stored is marked",
        BULK,
        "        stored = [one for one in letters if one.id not in errors]\n",
        "        stored = list(letters)\n",
    ),
    _letters(
        "bulk redrive: letters are given back empty",
        BULK,
        "known, body=ready.body,",
        'known, body=b"",',
    ),
    _letters(
        "bulk redrive: it cannot be stopped",
        BULK,
        "            if self._stopped():\n",
        "            if False:\n",
    ),
    _letters(
        "a dry run of a redrive changes something",
        "cli/dead.py",
        "    if order.dry_run:\n",
        "    if False:\n",
    ),
    _letters(
        "many letters are changed without asking",
        "cli/dead.py",
        "    if order.yes or count == 1:\n",
        "    if True:\n",
    ),
    _replay(
        "replay repeats what was applied: each has a scope",
        "copies.py",
        "    if again:\n",
        "    if True:\n",
    ),
    _replay(
        "replay --again repeats nothing: its scope is not part of the key",
        "claims.py",
        "        if scope := delivery.scope:\n",
        '        if scope := "":\n',
    ),
    _replay(
        "replay --again causes the ids that were caused before",
        "context.py",
        "place, self.delivery.scope)",
        "place)",
    ),
    _replay(
        "replay: a stranger's event says its own scope",
        "delivery.py",
        'return self.headers.get(Header.SCOPE, "") if self.route is Route.RETRY else ""',
        'return self.headers.get(Header.SCOPE, "")',
    ),
    _replay(
        "replay: what dies in a scope leaves it",
        "copies.py",
        "Header.LEFT_OUT, Header.REPLAY, Header.SCOPE):",
        "Header.LEFT_OUT):",
    ),
    _replay(
        "replay: what is redriven leaves its scope",
        DEAD,
        "(Header.SCOPE, letter.scope)",
        '(Header.SCOPE, "")',
    ),
    _replay(
        "replay reaches another handler",
        REPLAY,
        "replay_copy(one, replay.position,",
        'replay_copy(one, "stock.other",',
    ),
    _replay(
        "replay begins again where it was to go on",
        REPLAY,
        "        if replay.place and ",
        "        if False and ",
    ),
    _replay(
        "replay writes down what was not stored",
        REPLAY,
        "                raise answer\n",
        "                break\n",
    ),
    _replay(
        "replay: a portion of which some was not stored is passed over",
        REPLAY,
        "            messages, answer = messages[failed:],",
        "            messages, answer = [],",
    ),
    _replay(
        "replay goes on behind its end",
        REPLAY,
        "        if delivery.stored > replay.until:\n",
        "        if False:\n",
    ),
    _replay(
        "replay fills the retry route without end",
        REPLAY,
        " >= MOST_WAITING:",
        " >= 1 << 60:",
    ),
    _replay(
        "replay gives events of types that the handler does not take",
        REPLAY,
        "        elif delivery.envelope.type in types:\n            self.wanted",
        "        elif True:\n            self.wanted",
    ),
    _replay(
        "a dry run of a replay changes something",
        "cli/replay.py",
        "    if order.dry_run:\n",
        "    if False:\n",
    ),
    _replay(
        "replay repeats effects without asking",
        "cli/replay.py",
        "    repeats = order.again or order.once is False\n",
        "    repeats = False\n",
    ),
    _replay(
        "replay: one that has ended is taken up",
        "cli/replay.py",
        'if one.state == "running"]',
        "if one.id]",
    ),
    _replay(
        "replay --as begins at the beginning",
        "beside.py",
        "name=name, since=since)",
        "name=name)",
    ),
)
