"""Bugs to seed into keys that are held behind a dead letter."""

from __future__ import annotations

from tools.mutants_kit import Mutant

HOLDING = "holding.py"
RELEASING = "releasing.py"
HERE = ("tests/integration/service/test_on_dead.py", "tests/unit/test_holding.py")

HELD: tuple[Mutant, ...] = (
    Mutant(
        "a follower overtakes a held key",
        HOLDING,
        '                work.decision = DeadLettered(reason=reason, code="behind")\n',
        "                pass\n",
        HERE,
    ),
    Mutant(
        "a redriven follower overtakes a held key",
        HOLDING,
        "            if 0 < place <= turn:\n",
        "            if 0 < place:\n",
        HERE,
    ),
    Mutant(
        "a follower overtakes a held key after a take-over, which does not ask what is held",
        "worker.py",
        "        if began == self._began:\n",
        "        if self._began[0] is not None:\n",
        HERE,
    ),
    Mutant(
        "a held key is not noted",
        HOLDING,
        "        await self._notes.write(texts)\n",
        "",
        HERE,
    ),
    Mutant(
        "a letter is stored before its place is noted",
        "settling.py",
        "            return concerned, f",
        "            return [], f",
        HERE,
    ),
    Mutant(
        "a crash between note and letter gives a follower a second place",
        HOLDING,
        "            held.recent[letter] = place\n",
        "            pass\n",
        HERE,
    ),
    Mutant(
        "a key stays held when all its places need nothing any more",
        HOLDING,
        "        if held.settled >= held.placed:\n",
        "        if held.settled > held.placed:\n",
        HERE,
    ),
    Mutant(
        "a key is let go while followers wait",
        HOLDING,
        "        if held.settled >= held.placed:\n",
        "        if held.settled:\n",
        HERE,
    ),
    Mutant(
        "what passed is acknowledged although that is not noted",
        HOLDING,
        "        if isinstance(decision, DeadLettered) or key in self._unwritten:\n",
        "        if isinstance(decision, DeadLettered):\n",
        HERE,
    ),
    Mutant(
        "a discarded follower counts as a decision about the first",
        HOLDING,
        "        if place == self.settled + 1:\n            self.settled = place\n",
        "        if place:\n            self.settled = place\n",
        HERE,
    ),
    Mutant(
        "blocked followers never go on",
        HOLDING,
        "            held.going = self.blocks\n",
        "            held.going = False\n",
        HERE,
    ),
    Mutant(
        "followers go on although one of them died in its turn",
        HOLDING,
        "            held.first, held.going = letter, False\n",
        "            held.first = letter\n",
        HERE,
    ),
    Mutant(
        "a redriven copy that is tried again is overtaken by the next one",
        HOLDING,
        "            elif not place or holds is None or not holds.blocks(key):\n",
        "            else:\n",
        HERE,
    ),
    Mutant(
        "followers are given back beyond one whose letter is not stored yet",
        RELEASING,
        "            break\n",
        "            continue\n",
        HERE,
    ),
    Mutant(
        "a redriven letter forgets its place",
        "dead_letters.py",
        '        (Header.PLACE, str(letter.place or "")),\n',
        "",
        HERE,
    ),
)
