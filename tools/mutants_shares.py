"""Bugs to seed into the sharing of an ordered position: who has what, the fence, and letting go."""

from __future__ import annotations

from functools import partial

from tools.mutants_kit import Mutant

SHARE, ORDERED = "brokers/nats/share.py", "brokers/nats/ordered.py"
COPIES = "brokers/nats/share_copies.py"

_bug = partial(
    Mutant,
    tests=(
        "tests/unit/brokers/test_assignment.py",
        "tests/unit/nats",
        "tests/unit/test_worker_shared.py",
        "tests/integration/nats/test_ordered.py",
        "tests/integration/nats/test_ordered_copies.py",
    ),
)
_copies = partial(
    Mutant,
    tests=(
        "tests/unit/nats/test_takeover.py",
        "tests/unit/nats/test_members.py",
        "tests/integration/nats/test_ordered_copies.py",
    ),
)

_requests = partial(Mutant, tests=("tests/integration/nats/test_ordered_requests.py",))

SHARES: tuple[Mutant, ...] = (
    _requests(
        "shares: a request is left behind that the server may pin the share to",
        "brokers/nats/hearing_out.py",
        "while share.events.asked and link.up and time.monotonic() < end:",
        "while False:",
    ),
    _requests(
        "shares: an old request is left behind that the server may pin the share to",
        "brokers/nats/hearing_out.py",
        'link.send(b"PUB %b %b 0\\r\\n\\r\\n" % (about, link.own_subject()))',
        "about.strip()",
    ),
    _requests(
        "shares: who is pinned while it stops keeps that for itself",
        SHARE,
        "            await heard_out(self, [], link)\n            await self.unpin()\n",
        "            await heard_out(self, [], link)\n",
    ),
    _requests(
        "shares: who keeps a share for now keeps also what it was pinned to while it heard out",
        SHARE,
        "            if not self.pin:\n                await self.unpin()",
        "            if False:\n                await self.unpin()",
    ),
    _requests(
        "shares: who keeps a share for now, and lost its connection, asks for it no more",
        SHARE,
        "        if not self.pin:\n            self.events.blocked = False",
        "        if link.up:\n            self.events.blocked = False",
    ),
    _requests(
        "shares: whoever closes a feed that is closing goes on at once",
        "brokers/nats/feed.py",
        "        async with self._ending:\n            if not self._closed:",
        "        if True:\n            if not self._closed:",
    ),
    _requests(
        "shares: what comes of a request that is heard out is handed over",
        "brokers/nats/hearing_out.py",
        "    events.hear_out(heard)\n",
        "",
    ),
    _bug(
        "shares: two processes compute different owners",
        "brokers/_assignment.py",
        "sorted(set(members))",
        "list(members)",
    ),
    _bug(
        "shares: one member gets nearly everything",
        "brokers/_assignment.py",
        "        if counts[name] == fewest:\n            if not with_one_more:\n                continue\n",
        "        if counts[name] == fewest:\n",
    ),
    _bug(
        "shares: a copy goes to the share of another key",
        "brokers/nats/names.py",
        "{_NO_KEY if key is None else _place_of(key)}",
        "{_NO_KEY if key is None else _place_of(key + 'x')}",
    ),
    _bug(
        "shares: events without a partition reach nobody",
        "brokers/nats/names.py",
        "if share == 0 else set()",
        "if share == 8 else set()",
    ),
    _bug(
        "shares: a process that was stopped goes on with what it had",
        ORDERED,
        "share.exposed and now >= share.sure_until",
        "False",
    ),
    _bug(
        "shares: any answer counts as a pin",
        SHARE,
        "in_time = time.monotonic() < self.sure_until and not self.in_doubt",
        "in_time = True",
    ),
    _bug(
        "shares: a share counts as ours from the answer on",
        SHARE,
        "self.sure(self._asked_at)",
        "self.sure(time.monotonic())",
    ),
    _bug("shares: the dead are counted for ever", "brokers/_members.py", "> DEAD_AFTER:", "> 1e9:"),
    _bug("shares: a goodbye is not heard", "brokers/_members.py", "if word.leaves:", "if word.new and word.leaves:"),
    _bug(
        "shares: the owner keeps what a newcomer is to have",
        ORDERED,
        "share.leave()\n            elif",
        "pass\n            elif",
    ),
    _bug(
        "shares: each share has the limits of a process",
        ORDERED,
        "split(max(1, self._most // wanted)",
        "split(max(1, self._most)",
    ),
    _bug(
        "shares: what another process has is begun",
        "worker.py",
        "[delivery for delivery in taken if not delivery.withdrawn]",
        "list(taken)",
    ),
    _bug("shares: what runs is not waited for", "lane.py", "if not self._at_work(gone):", "if True:"),
    _bug(
        "shares: what failed while it was given up is tried again",
        "lane.py",
        "            self.holds.forget(gone)",
        "            self.holds.forget(())",
    ),
    _bug(
        "shares: nothing is begun before it is known whose it is, but this",
        "worker.py",
        "(doubt := self._pipeline.fence()):",
        "(doubt := self._pipeline.fence()) == '-':",
    ),
    _bug(
        "shares: a batch that runs goes on with what was lost",
        "pipeline.py",
        "self.calls.stopping or self.fence() or not",
        "self.calls.stopping or not",
    ),
    _bug(
        "shares: a batch that runs goes on with what is to go",
        "grouping.py",
        "if any([work.delivery.withdrawn for work in works]):",
        "if False:",
    ),
    _copies(
        "shares: copies that a dead process had come behind later ones",
        COPIES,
        "if await self._left_by_others():",
        "if False:",
    ),
    _copies(
        "shares: copies are taken away from a process that is not done with them",
        COPIES,
        "while self._owner.others_have(self._share.number):",
        "while False:",
    ),
    _copies(
        "shares: a copy that went to another process is not missed",
        COPIES,
        "if self._active and not self._over.follows(token):",
        "if False:",
    ),
    _copies(
        "shares: a successor gathers all that is open, however much",
        "brokers/nats/takeover.py",
        "if missing > ORDERED_ACK_PENDING:",
        "if missing > 1 << 40:",
    ),
    _copies(
        "shares: whoever stops does not say what it still has",
        ORDERED,
        "going = (share for share in self.shares if share.leaving or self._stopping)",
        "going = (share for share in self.shares if share.leaving)",
    ),
    _copies(
        "shares: whoever lets go does not say what it still has",
        ORDERED,
        "going = (share for share in self.shares if share.leaving or self._stopping)",
        "going = (share for share in self.shares if self._stopping)",
    ),
    _copies(
        "shares: a copy that was gathered stays with who may not have it",
        COPIES,
        "            self.refuse_gathered()\n            self.let_go()\n",
        "            self.let_go()\n",
    ),
)
