"""Bugs to seed into how deliveries end: settling, copies, dead letters, policy, ids and sync handlers."""

from __future__ import annotations

from tools.mutants_kit import Mutant

SETTLING = "settling.py"
COPIES = "copies.py"
LETTERS = "dead_letters.py"

ENDS: tuple[Mutant, ...] = (
    Mutant(
        "what the broker did not confirm counts as told where all was acknowledged",
        SETTLING,
        "if verdicts is None and errors.count(None) == len(told) and not",
        "if verdicts is None and not",
        ("tests/unit/test_settling.py",),
    ),
    Mutant(
        "what was given back alive is not remembered where the broker confirmed everything",
        SETTLING,
        "if verdicts is None and errors.count(None) == len(told) and not",
        "if errors.count(None) == len(told) and not",
    ),
    Mutant(
        "a lane that is cancelled does not tell a broker that takes its time",
        SETTLING,
        "return at_once and self.holding is None",
        "return self.holding is None",
    ),
    Mutant(
        "a batch of nothing but letters is acknowledged without them",
        SETTLING,
        "if self.holding is None and (kinds or kinds_of(ended)) <= _KNOWN:\n",
        "if self.holding is None and (kinds or kinds_of(ended)) <= _KNOWN_OR_DEAD:\n",
        ("tests/unit/test_settling.py",),
    ),
    Mutant(
        "dramatiq: a hand-off that failed is passed over, and the message acknowledged",
        SETTLING,
        "            if not failed:\n",
        "            if True:\n",
    ),
    Mutant(
        "sketch: a message is acknowledged before its letter is stored",
        SETTLING,
        "            verdicts += await self._store(ended, copies, outcomes, holds)\n",
        """            await self._broker.settle([(ended[place][0], ACK) for place in copies])
            await self._store(ended, copies, outcomes, holds)
""",
    ),
    Mutant(
        "sketch: what an observer raises escapes",
        SETTLING,
        """                observer.settled(self._position, batch, time.monotonic() - began)
            except Exception:""",
        """                observer.settled(self._position, batch, time.monotonic() - began)
            except ZeroDivisionError:""",
    ),
    Mutant(
        "sketch: what a broker raises escapes",
        SETTLING,
        "    except (Exception, asyncio.CancelledError) as error:\n        task",
        "    except ZeroDivisionError as error:\n        task",
    ),
    Mutant(
        "review: a cancellation that a broker made up ends the lane",
        SETTLING,
        "(task is None or task.cancelling()):",
        "True:",
    ),
    Mutant(
        "a settle that failed is not reported",
        SETTLING,
        "outcomes[place] = Unsettled(ended[place][1], describe(failure))",
        "pass",
    ),
    Mutant(
        "watermill: what failed is given back at once instead of after its pause",
        SETTLING,
        "verdicts.append((place, Release(decision.after)))",
        "verdicts.append((place, Release()))",
    ),
    Mutant(
        "a failure in order goes onto the retry route, and is overtaken",
        SETTLING,
        "        elif holds is not None and delivery.key is not None:\n",
        "        elif holds is not None and delivery.key == '':\n",
    ),
    Mutant(
        "the failures of a held event are not counted",
        "counting.py",
        "            one.failures += 1\n",
        "            pass\n",
    ),
    Mutant(
        "what is no failure is counted while its key is held",
        SETTLING,
        "            if decision.counted:\n",
        "            if True:\n",
    ),
    Mutant(
        "review: observers see the attempt after the one that failed",
        SETTLING,
        """            if decision.counted:
                failed.append(delivery)
""",
        """            delivery.failures += decision.counted
""",
    ),
    Mutant(
        "review: what follows a letter that could not be stored overtakes it",
        SETTLING,
        """        if holds is not None and delivery.key is not None:
            _hold(holds, delivery.key, delivery, COPY_PAUSE)
        else""",
        """        if holds is not None and delivery.key == '':
            _hold(holds, delivery.key, delivery, COPY_PAUSE)
        else""",
    ),
    Mutant(
        "a copy that is too large is tried for ever",
        SETTLING,
        "elif isinstance(failed[0], EventTooLarge) and isinstance(decision, Retried):",
        "elif False:",
    ),
    Mutant(
        "a letter that is too large is tried for ever in one settle",
        SETTLING,
        "elif isinstance(failed[0], EventTooLarge) and isinstance(decision, Retried):",
        "elif isinstance(failed[0], EventTooLarge):",
    ),
    Mutant(
        "review: a letter for a copy too large forgets why its event failed",
        SETTLING,
        'code="copy-too-large", error=decision.error)',
        'code="copy-too-large")',
    ),
    Mutant(
        "one part of a letter stands for all",
        SETTLING,
        "if error is not None]\n            if not failed:",
        "if error is not None][:0]\n            if not failed:",
    ),
    Mutant(
        "repid: an infrastructure error is a failure too many: the last attempt is never reached",
        "policy.py",
        "if failures >= retry.attempts:",
        "if failures > retry.attempts:",
    ),
    Mutant(
        "a bad event is retried",
        "policy.py",
        "    if isinstance(error, EventError):\n",
        "    if False:\n",
    ),
    Mutant(
        "a pause is shorter than said",
        "policy.py",
        "return base * (1.0 + 0.2 * jitter())",
        "return base * (0.9 + 0.2 * jitter())",
    ),
    Mutant(
        "sketch: errors of the policy escape",
        "policy.py",
        "    except Exception:  # an exception of the user's",
        "    except ZeroDivisionError:  # an exception of the user's",
    ),
    Mutant(
        "a retry copy does not count its failure",
        COPIES,
        "failures = delivery.failures + (1 if retried.counted else 0)",
        "failures = delivery.failures",
    ),
    Mutant(
        "a retry copy has the id of the one before it, and is de-duplicated away",
        COPIES,
        'id=_digest("retry", delivery, position, str(failures)),',
        'id=_digest("retry", delivery, position),',
    ),
    Mutant(
        "a retry copy has another id each time it is stored",
        COPIES,
        'id=_digest("retry", delivery, position, str(failures)),',
        'id=_digest("retry", delivery, position, str(failures), str(now)),',
    ),
    Mutant(
        "a retry copy does not wait",
        COPIES,
        "        due=now + retried.after,\n",
        "        due=now,\n",
    ),
    Mutant(
        "the retry copies of two handlers are one",
        COPIES,
        'id=_digest("retry", delivery, position, str(failures)),',
        'id=_digest("retry", delivery, str(failures)),',
    ),
    Mutant(
        "a redriven letter forgets which one it was when it is retried",
        COPIES,
        "    for header in (Header.LETTER, Header.REDRIVE, Header.LEFT_OUT, Header.REPLAY, Header.SCOPE):\n",
        "    for header in ():\n",
    ),
    Mutant(
        "a redriven letter that dies again has the id of the first one",
        COPIES,
        "(kind, origin_of(delivery), _redrive(delivery), *parts)",
        "(kind, origin_of(delivery), *parts)",
    ),
    Mutant(
        "the letters of a stream that was made anew are taken for those of the old one",
        COPIES,
        "return blake2b(delivery.body, key=",
        "return blake2b(b'', key=",
    ),
    Mutant(
        "review: a second redrive of a letter shares its copies with the first",
        COPIES,
        'return f"{_kept(delivery, Header.LETTER)}:{_kept(delivery, Header.REDRIVE)}"',
        "return _kept(delivery, Header.LETTER)",
    ),
    Mutant(
        "the letter of a redriven copy does not say which one it was",
        COPIES,
        "        headers[Header.REDRIVEN_FROM] = redriven\n",
        "        pass\n",
    ),
    Mutant(
        "review: an event that carries another's headers is taken for it",
        COPIES,
        'return delivery.headers.get(header, "") if delivery.route is Route.RETRY else ""',
        'return delivery.headers.get(header, "")',
    ),
    Mutant(
        "a retry copy forgets where its event stood",
        COPIES,
        "return plain_text(_kept(delivery, Header.ORIGIN)) or delivery.origin_text",
        "return delivery.origin_text",
    ),
    Mutant(
        "a letter loses the headers of its event",
        COPIES,
        "        **_storable(delivery.headers),\n",
        "",
    ),
    Mutant(
        "a letter keeps only its first part",
        COPIES,
        "        for number, piece in enumerate(pieces, 1)\n",
        "        for number, piece in enumerate(pieces[:1], 1)\n",
    ),
    Mutant(
        "review: half a character in an error keeps its event from being copied",
        COPIES,
        'value.encode(errors="backslashreplace")',
        "value.encode()",
    ),
    Mutant(
        "review: a key loses the spaces at its ends on the retry route",
        COPIES,
        'return _OUTER_SPACES.sub(lambda found: "%20" * len(found[0]), text)',
        "return text.strip()",
    ),
    Mutant(
        "a letter is shown before it is whole",
        LETTERS,
        "        if len(parts) < count:\n            return\n",
        "",
    ),
    Mutant(
        "review: parts that were cut in two sizes are mixed",
        LETTERS,
        "        parts = self._parts.setdefault((letter_id, count), {})\n",
        "        parts = self._parts.setdefault((letter_id, 0), {})\n        self._parts[letter_id, count] = parts\n",
    ),
    Mutant(
        "two copies of one death are two letters",
        LETTERS,
        "        if known is not None:\n",
        "        if known is not None and False:\n",
    ),
    Mutant(
        "review: what dies again after it was put away stays unseen",
        LETTERS,
        '            known.state = "dead"  # it died once more, after whatever was done about it\n',
        "",
    ),
    Mutant(
        "a redrive is not marked",
        LETTERS,
        '    await _store(broker, marker(letter, "redriven", audit))\n',
        "",
    ),
    Mutant(
        "a redrive is marked before its copy is stored",
        LETTERS,
        """    await _store(broker, redriven_copy(letter))
    points.at(points.REDRIVEN)
    await _store(broker, marker(letter, "redriven", audit))
""",
        """    await _store(broker, marker(letter, "redriven", audit))
    points.at(points.REDRIVEN)
    await _store(broker, redriven_copy(letter))
""",
    ),
    Mutant(
        "a redriven copy has its failures already",
        LETTERS,
        '        Header.FAILURES: "0",\n',
        "        Header.FAILURES: str(letter.failures),\n",
    ),
    Mutant(
        "a redriven copy goes to every handler",
        LETTERS,
        'redrive:{letter.redriven + 1}",\n        route=Route.RETRY,\n        position=letter.position,\n',
        'redrive:{letter.redriven + 1}",\n        route=Route.EVENT,\n',
    ),
    Mutant(
        "every handler causes the same ids",
        "context.py",
        "return derived_id(self.delivery.event_id, self.position, place, ",
        'return derived_id(self.delivery.event_id, "", place, ',
    ),
    Mutant(
        "two events of one handler share an id",
        "context.py",
        "place, self.caused = self.caused, self.caused + 1",
        "place, self.caused = self.caused, self.caused",
    ),
    Mutant(
        "a repeat causes another id",
        "context.py",
        "return derived_id(self.delivery.event_id, self.position, place, ",
        "return derived_id(str(uuid.uuid4()), self.position, place, ",
    ),
    Mutant(
        "a bare publish in a handler leaves before the effect is durable",
        "publisher.py",
        '    if scope is not None:\n        raise MisuseError(\n            f"{scope.position} called',
        '    if scope is None and False:\n        raise MisuseError(\n            f"{scope.position} called',
    ),
    Mutant(
        "review: a sync handler is given up while its thread goes on",
        "calling.py",
        "if running.cancelled() or (",
        "if True or (",
    ),
    Mutant(
        "review: a sync handler that raises StopIteration never comes back",
        "calling.py",
        "        except StopIteration as error:",
        "        except ZeroDivisionError as error:",
    ),
    Mutant(
        "review: sync handlers use up the threads of the loop",
        "calling.py",
        "own or claim.executor, within",
        "claim.executor, within",
    ),
    Mutant(
        "a sync handler does not know its delivery",
        "calling.py",
        "partial(copy_context().run, run, scope, event, claim, delivery)",
        "partial(run, scope, event, claim, delivery)",
    ),
    Mutant(
        "review: a handler cannot publish while its service starts",
        "service.py",
        "return await (self._begun or self.active).publish(events, tx, timeout)",
        "return await self.active.publish(events, tx, timeout)",
    ),
    Mutant(
        "a service stops its store before its handlers",
        "running.py",
        "                stack.push_async_callback(store.close)\n",
        "                pass\n",
    ),
    Mutant(
        "events whose copies we fail to make stay open for ever",
        SETTLING,
        "        except Exception as error:\n            places",
        "        except ZeroDivisionError as error:\n            places",
    ),
    Mutant(
        "in order, what follows a letter is handled before that is stored",
        SETTLING,
        "                holds.hold_until_told(delivery.key, delivery)\n",
        "                pass\n",
        ("tests/unit/test_pipeline_waves.py",),
    ),
    Mutant(
        "in order, what follows an event that is held for its next attempt is handled before it",
        SETTLING,
        "return (more or DeadLettered in kinds) and kinds <= _KNOWN_OR_DEAD",
        "return more",
        ("tests/unit/test_pipeline_waves.py",),
    ),
    Mutant(
        "in order, what follows a letter waits for ever",
        SETTLING,
        "                holds.told(delivery.key, delivery, asyncio.get_running_loop().time())\n",
        "                pass\n",
        ("tests/unit/test_pipeline_waves.py",),
    ),
    Mutant(
        "a lane that sleeps is not told that what follows a letter may go on",
        "order.py",
        "        if not self._is_told(key):\n            self._wake()\n",
        "",
        ("tests/unit/test_order.py",),
    ),
    Mutant(
        "a lane that sleeps is not told that a letter could not be stored, and when it comes again",
        "order.py",
        "            self._wake()  #",
        "            pass  #",
    ),
    Mutant(
        "what is being told to the broker is given back as well",
        "order.py",
        " for one in self.deliveries() if one not in self._untold]",
        " for one in self.deliveries()]",
        ("tests/unit/test_order.py",),
    ),
    Mutant(
        "a letter that cannot be stored comes again behind what follows it",
        "order.py",
        "            if self._waiting[key][0] is delivery:\n",
        "            self._waiting[key].rotate(-1)\n            if True:\n",
        ("tests/unit/test_pipeline_waves.py",),
    ),
    Mutant(
        "what is held goes on while the letter of one behind it is stored, and takes that one along",
        "order.py",
        "if due <= now and not self._is_told(key)]",
        "if due <= now]",
        ("tests/unit/test_pipeline_waves.py",),
    ),
    Mutant(
        "a lane looks again and again at what may not go on yet",
        "order.py",
        "for key, due in self._due.items() if not self._is_told(key))",
        "for key, due in self._due.items())",
        ("tests/unit/test_order.py",),
    ),
    Mutant(
        "an event that waits for its call is called for once more after a letter behind it",
        "order.py",
        "        if first and waiting[0]",
        "        if self._due[key] == NOT_YET and waiting[0]",
        ("tests/integration/service/test_stuck_handlers.py",),
    ),
    Mutant(
        "each batch leaves a circle behind for the garbage collector",
        "limit.py",
        "        self._stuck = _nobody\n",
        "",
        ("tests/unit/test_pipeline_waves.py",),
    ),
    Mutant(
        "the traceback of each failure leaves a circle behind",
        "traces.py",
        "        error.__traceback__ = first\n",
        "        pass\n",
        ("tests/unit/test_pipeline_waves.py", "tests/unit/test_traces.py"),
    ),
    Mutant(
        "copies of one lane hold up all that is done",
        SETTLING,
        "                if verdicts:  # what is done",
        "                if False:  # what is done",
    ),
    Mutant(
        "a copy that nobody waits for any more is stored later",
        "together.py",
        "            self._gathered.remove(mine)",
        "            if mine.answers is not None:\n                self._gathered.remove(mine)",
        ("tests/unit/test_together.py",),
    ),
    Mutant(
        "each lane is told what became of the copies of another",
        "together.py",
        "        for one in taken:\n",
        "        for one in reversed(taken):\n",
        ("tests/unit/test_together.py",),
    ),
    Mutant(
        "a traceback tells of another error at the same place",
        "traces.py",
        "*traceback.format_tb(error.__traceback__)]",
        "*traceback.format_exception(error)]",
        ("tests/unit/test_traces.py",),
    ),
)
