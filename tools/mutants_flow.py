"""Bugs to seed into the way of a batch through the pipeline. Each is a replacement of text.

The word in front names where it was met: in another framework, in the first sketch of this pipeline, or in a review.
"""

from __future__ import annotations

from tools.mutants_kit import Mutant

PIPELINE = "pipeline.py"
CALLS = "calls.py"
HANDLING = "handling.py"
GROUPING = "grouping.py"
TURN = "turn.py"

FLOW: tuple[Mutant, ...] = (
    Mutant(
        "taskiq: what cannot be decoded is passed over and never settled",
        PIPELINE,
        "works = read(batch, self._handler, self._grouping)",
        "works = read(batch, self._handler, self._grouping)\n"
        "        works = [work for work in works if not isinstance(work.decision, DeadLettered)]",
    ),
    Mutant(
        "watermill: a key is marked as applied although its handler failed",
        CALLS,
        """        turn.claim.fail(index)
        turn.left_out.update(self.names(work))
        if""",
        """        turn.left_out.update(self.names(work))
        if""",
    ),
    Mutant(
        "sketch: decisions count before the claim has closed",
        PIPELINE,
        """                    await self._publish(turn)
        except""",
        """                    await self._publish(turn)
                for index, decision in turn.decided.items():
                    group[index].decision = decision
        except""",
    ),
    Mutant(
        "sketch: a failure is treated as done",
        CALLS,
        """                    self.failed(turn, index, error)
""",
        """                    decided[index] = DONE
""",
    ),
    Mutant(
        "sketch: a duplicate is not recognised",
        CALLS,
        "states[index].state is not new\n                    or",
        "states[index].state is State.BUSY\n                    or",
    ),
    Mutant(
        "sketch: a busy key is taken for a duplicate",
        "claims.py",
        'return Retried(after=BUSY_PAUSE, reason="another worker holds its key", counted=False)',
        "return Duplicate()",
    ),
    Mutant(
        "sketch: a busy key is handled anyway",
        CALLS,
        "states[index].state is not new\n                    or",
        "states[index].state is State.DONE\n                    or",
    ),
    Mutant(
        "the timeout that a handler swallowed is counted against the next event",
        CALLS,
        "                            if limit.over is not None:\n",
        "                            if not limit:\n",
    ),
    Mutant(
        "sketch: a handler may run for ever",
        TURN,
        "        self.limit.__enter__()\n",
        "",
    ),
    Mutant(
        "sketch: a shutdown leaves its deliveries unsettled",
        PIPELINE,
        """            await self._settle(works, None, began)
            raise
""",
        """            raise
""",
    ),
    Mutant(
        "sketch: a shutdown acknowledges",
        PIPELINE,
        "work.decision = Retried(after=after, reason=reason, counted=False)",
        "work.decision = Done()",
    ),
    Mutant(
        "sketch: a handler's own CancelledError is taken for a shutdown",
        HANDLING,
        "return None if we_are_cancelled() else RuntimeError(",
        "return None if True else RuntimeError(",
    ),
    Mutant(
        "sketch: settling is not shielded from a cancellation",
        PIPELINE,
        "await asyncio.shield(settling)",
        "await settling",
    ),
    Mutant(
        "a shutdown counts as a failure",
        PIPELINE,
        "work.decision = Retried(after=after, reason=reason, counted=False)",
        "work.decision = Retried(after=after, reason=reason)",
    ),
    Mutant(
        "a busy key counts as a failure",
        "claims.py",
        'reason="another worker holds its key", counted=False)',
        'reason="another worker holds its key")',
    ),
    Mutant(
        "a settled wave is settled once more",
        PIPELINE,
        "        works[:] = [work for work in works if work.decision is None] if len(ended) < len(works) else ()\n",
        "",
    ),
    Mutant(
        "review: what follows a busy key overtakes it",
        CALLS,
        "            if claimed.state is not State.BUSY:\n                return",
        "            if True:\n                return",
    ),
    Mutant(
        "what follows a failed event of its key overtakes it",
        CALLS,
        """        turn.left_out.update(self.names(work))
        if""",
        """        if""",
    ),
    Mutant(
        "what a closing batch leaves out is overtaken by its key",
        CALLS,
        """            turn.claim.fail(index)
            if self._handling.late""",
        """            return turn.claim.fail(index)
            if self._handling.late""",
    ),
    Mutant(
        "what a batch leaves out is marked as applied",
        CALLS,
        """            turn.claim.fail(index)
            if self._handling.late""",
        """            if self._handling.late""",
    ),
    Mutant(
        "review: the key of an applied twin is given back",
        CALLS,
        """        if claimed.state is State.NEW:
            turn.claim.fail(index)
            if self._handling.late""",
        """        if claimed.state is State.NEW or not turn.left_out.isdisjoint(names):
            turn.claim.fail(index)
            if self._handling.late""",
    ),
    Mutant(
        "a batch never closes",
        CALLS,
        "(index and (self.stopping or now > closes))",
        "(index and self.stopping)",
    ),
    Mutant(
        "a batch that closes before it began makes no progress for ever",
        CALLS,
        "or (index and (self.stopping",
        "or ((self.stopping",
    ),
    Mutant(
        "a stop does not end the batch",
        CALLS,
        "(index and (self.stopping or now > closes))",
        "(index and now > closes)",
    ),
    Mutant(
        "a stop goes on to the next batch",
        PIPELINE,
        "if trouble or self.calls.stopping or self.fence() or not (group := self._grouping.next(works, holds)):",
        "if trouble or self.fence() or not (group := self._grouping.next(works, holds)):",
    ),
    Mutant(
        "a failure in a shared transaction commits what it did",
        CALLS,
        "if self._claimer.shared and not self._stands_alone(turn, error):",
        "if False:",
    ),
    Mutant(
        "a lock in a shared transaction counts as the event's failure",
        CALLS,
        "        if self._claimer.shared:\n            for one in",
        "        if False and self._claimer.shared:\n            for one in",
    ),
    Mutant(
        "review: what fails behind an event of its key overtakes it when the transaction is taken back",
        GROUPING,
        "            if before.isdisjoint(names(work)):\n",
        "            if True:\n",
    ),
    Mutant(
        "what was put behind another is grouped with all that come before that one",
        GROUPING,
        "works[: 1 + firsts.index(True) if",
        "works[: 2 + firsts.index(True) if",
    ),
    Mutant(
        "what was put behind the events of its key is grouped with them again, for ever",
        GROUPING,
        "if True in firsts else most]",
        "if False else most]",
    ),
    Mutant(
        "an error that tells nobody's fault fails the first event of its batch",
        PIPELINE,
        "        if len(group) == 1:\n            group[0]",
        "        if group:\n            group[0]",
    ),
    Mutant(
        "an error that tells nobody's fault is tried together for ever",
        GROUPING,
        "most = min(self._now, works[0].most) if works else 0",
        "most = self._now",
    ),
    Mutant(
        "contention does not shrink the batch",
        PIPELINE,
        "                self._grouping.locked(group)\n",
        "                pass\n",
    ),
    Mutant(
        "a failure does not shrink the batch",
        PIPELINE,
        "                self._grouping.fewer(group)\n            if not failed.culprits",
        "                pass\n            if not failed.culprits",
    ),
    Mutant(
        "an event that failed alone shrinks the batch of the others",
        GROUPING,
        "        if len(group) > 1:\n",
        "        if group:\n",
    ),
    Mutant(
        "what has failed before takes the others back again",
        "reading.py",
        "                grouping.set_apart(work)\n",
        "                pass\n",
    ),
    Mutant(
        "what has failed before is handled alone for ever, while all goes well",
        GROUPING,
        "        if self._now < self._most or self._blames_nobody:\n",
        "        if True:\n",
    ),
    Mutant(
        "a batch that shrank never grows again",
        GROUPING,
        "self._now = min(self._ceiling, self._now * 2)",
        "pass",
    ),
    Mutant(
        "groups that met a lock grow with the next success, and meet it again",
        GROUPING,
        " and (now := self._clock()) >= self._raise_at:",
        " and (now := self._clock()):",
        ("tests/unit/test_grouping.py",),
    ),
    Mutant(
        "groups that grew too early grow as early again",
        GROUPING,
        "min(2 * self._peace, LONGEST_PEACE), False",
        "self._peace, False",
        ("tests/unit/test_grouping.py",),
    ),
    Mutant(
        "a store that is down makes each event of the batch fail",
        PIPELINE,
        """        except WorldError as error:
            if""",
        """        except Contention as error:
            if""",
    ),
    Mutant(
        "review: a cancellation that a store made up ends the lane",
        PIPELINE,
        """            if we_are_cancelled():
                raise
            raise StoreUnavailable""",
        """            if True:
                raise
            raise StoreUnavailable""",
    ),
    Mutant(
        "caused events that were not stored are lost",
        PIPELINE,
        "for index in sorted(turn.decided) if failed else ():",
        "for index in ():",
    ),
    Mutant(
        "review: a broker that is down counts as the failure of what caused an event",
        PIPELINE,
        "        if isinstance(error, WorldError):  # the broker's failure, not the event's\n",
        "        if False:\n",
    ),
    Mutant(
        "review: what follows an event whose own was not stored overtakes it",
        PIPELINE,
        "                del turn.decided[index]\n",
        "                continue\n",
    ),
    Mutant(
        "a key is marked as applied although what it caused was not stored",
        PIPELINE,
        """            if turn.claim.states[index].state is State.NEW:
                turn.claim.fail(index)
""",
        "",
    ),
    Mutant(
        "caused events go to the broker before their transaction commits",
        PIPELINE,
        "if turn.caused and not await claim.emit([message for _, message in turn.caused]):",
        "if turn.caused:",
    ),
    Mutant(
        "caused events of a transaction are dropped",
        CALLS,
        "                    decided[index] = DONE\n                    if messages:\n",
        "                    decided[index] = DONE\n                    if messages and not self._claimer.shared:\n",
    ),
    Mutant(
        "review: a transaction without an outbox keeps effects whose events were not stored",
        PIPELINE,
        """                if self._claimer.shared:
                    raise Failed([work], error)
                turn""",
        """                turn""",
    ),
    Mutant(
        "another event under an applied key is dropped where it was to be kept",
        "claims.py",
        'if self._handler.rules.conflict == "dead":',
        "if False:",
    ),
    Mutant(
        "followers of a held event are not held",
        GROUPING,
        "        if holds:\n            for work in [",
        "        if False:\n            for work in [",
    ),
    Mutant(
        "review: a cancelled lane gives back what follows a held event before that event",
        PIPELINE,
        "            self._grouping.next(works, holds)  # what follows a held event stays behind it\n",
        "",
    ),
    Mutant(
        "the count of a held copy is read from its header again",
        "reading.py",
        "                if not delivery.failures:\n",
        "                if True:\n",
    ),
    Mutant(
        "the failures of a retry copy are forgotten",
        "reading.py",
        "                    restore(delivery)\n",
        "                    pass\n",
    ),
    Mutant(
        "a delivery stays current after its handler",
        CALLS,
        "            current.set(None)\n",
        "",
    ),
    Mutant(
        "the control U+007F may stand in an id",
        "envelope.py",
        "return escaped or _DELETE in body or not body.isascii()",
        "return escaped or not body.isascii()",
        ("tests/unit/test_envelope.py",),
    ),
    Mutant(
        "controls that are written with an escape may stand in an id",
        "envelope.py",
        "return escaped or _DELETE in body or not body.isascii()",
        "return _DELETE in body or not body.isascii()",
        ("tests/unit/test_envelope.py",),
    ),
    Mutant(
        "controls beyond ASCII may stand in an id",
        "envelope.py",
        "return escaped or _DELETE in body or not body.isascii()",
        "return escaped or _DELETE in body",
        ("tests/unit/test_envelope.py",),
    ),
    Mutant(
        "small objects nest as deep as they like",
        "envelope.py",
        """MAX_DEPTH * len(b'{"":}')""",
        "MAX_DEPTH * 7",
        ("tests/unit/test_envelope.py",),
    ),
    Mutant(
        "only the first of a batch is ever current",
        CALLS,
        "                        current.set(scope)\n",
        "                        index or current.set(scope)\n",
        ("tests/unit/test_context.py",),
    ),
    Mutant(
        "review: an event that counts as false is left out of the claim",
        "claims.py",
        "[self.key(work.delivery, work.event) for work in batch]",
        "[self.key(work.delivery, work.event) for work in batch if work.event]",
    ),
    Mutant(
        "a batch that failed for one event commits what it sent before",
        CALLS,
        "or blamed.named or not self._stands_alone(turn, error):",
        "or blamed.named:",
    ),
    Mutant(
        "what was passed over makes a whole batch wait for it, for ever",
        CALLS,
        "        turn.left_out.clear()",
        "        # turn.left_out.clear()",
    ),
    Mutant(
        "the follower of a culprit is in a later part of its batch",
        CALLS,
        "for index in part if self._is_next(turn, index)]",
        "for index in part]",
    ),
    Mutant(
        "the repeat of an event that failed in its batch is acknowledged as known",
        CALLS,
        "                turn.decided.pop(index, None)\n",
        "                pass\n",
    ),
    Mutant(
        "the search for a culprit never closes its transaction",
        CALLS,
        "            if self.stopping or limit.clock() > closes:\n                for",
        "            if False:\n                for",
    ),
    Mutant(
        "what was put off for lack of time has its repeats acknowledged",
        CALLS,
        "                    self.pass_over(turn, index)\n                    self._leave_out_repeats(turn, index)\n",
        "                    self.pass_over(turn, index)\n",
    ),
    Mutant(
        "a search that has no time begins anew with the whole batch, for ever",
        CALLS,
        "work.most = len(part) // 2  # of",
        "pass  # of",
    ),
    Mutant(
        "what other parts caused is dropped where one failed",
        CALLS,
        "                for index, messages in zip(part, caused_by_each, strict=True):\n",
        "                for index, messages in zip(part, caused_by_each if part is together else [()] * len(part)):\n",
    ),
    Mutant(
        "a duplicate is passed to a batch handler",
        CALLS,
        "                    self.pass_over(turn, index)\n                    continue\n",
        """                    self.pass_over(turn, index)
                    if self._handling.at_once and claim.states[index].state is State.DONE:
                        together.append(index)
                    continue
""",
    ),
    Mutant(
        "a failed batch acknowledges the rest",
        PIPELINE,
        "                return self._halve(group, failed.error)\n",
        """                for one in failed.works[1:]:
                    one.decision = DONE
                failed.works[0].decision = self._decide(failed.error, failed.works[0])
                return
""",
    ),
    Mutant(
        "events that a batch handler names are looked for all the same",
        TURN,
        "            self.named = bool(self.culprits)\n",
        "            self.culprits = []\n",
    ),
    Mutant(
        "events that a batch handler names make the next batches small",
        PIPELINE,
        "            if not failed.named:\n",
        "            if True:\n",
    ),
    Mutant(
        "each event that a batch handler names ends as the first",
        TURN,
        "failed[id(work.event)]) for work",
        "error.pairs[0][1]) for work",
    ),
    Mutant(
        "a batch handler that names what it was not given kills events",
        TURN,
        "                self.error = MisuseError",
        "                self.note = MisuseError",
    ),
    Mutant(
        "a store that is away is the fault of the event that a batch handler names",
        CALLS,
        "for _, one in error.pairs] if isinstance(error, FailedEvents) else [error]:",
        "for _, one in error.pairs if False] if isinstance(error, FailedEvents) else [error]:",
    ),
    Mutant(
        "a failed batch is tried whole for ever",
        GROUPING,
        "work.most = 1 if alone else max(1, len(group) // 2)",
        "pass",
    ),
    Mutant(
        "what each event of a batch caused is laid to the first",
        HANDLING,
        "else self.wrap(result, Scope(delivery, position))",
        "else self.wrap(result, Scope(deliveries[0], position))",
    ),
    Mutant(
        "a batch handler that returns too few results is taken at its word",
        HANDLING,
        "or len(results) != len(works):",
        "or len(results) > len(works):",
    ),
    Mutant(
        "what failed by itself is forgotten when others of its transaction are taken back",
        GROUPING,
        "        if work.failure is None:\n",
        "        if work.failure is None or len(group) > 1:\n",
        ("tests/walk/test_walk.py",),
    ),
)
