"""Bugs to seed around the pipeline: claims, the time limit, holds, lanes and their supervision."""

from __future__ import annotations

from tools.mutants_kit import Mutant

WORKER = "worker.py"

LANES: tuple[Mutant, ...] = (
    Mutant(
        "a lane sleeps over what stands behind many that were taken away",
        WORKER,
        "                if not taken:  # behind",
        "                if not batch:  # behind",
        ("tests/unit/test_worker_shared.py",),
    ),
    Mutant(
        "review: an error of a handler's own database stops its lane",
        "claims.py",
        "return None if self._once is None or self._resource is None else self._once.translate(error)",
        "return None if self._once is None else self._once.translate(error)",
    ),
    Mutant(
        "a business key is compared across handlers only by its field",
        "claims.py",
        'text = f"{once}:{key_text(getattr(event, once))}" if isinstance(once, str) else EVENT_MARK + envelope.id',
        "text = EVENT_MARK + envelope.id",
    ),
    Mutant(
        "review: a swallowed timeout leaves the lane cancelled",
        "limit.py",
        """        if self._expired:
            self.took_back()
""",
        "",
    ),
    Mutant(
        "a handler that panics with what is no Exception ends its lane, and nobody knows",
        "calls.py",
        "                        except BaseException as error:",
        "                        except __import__('asyncio').CancelledError as error:",
        ("tests/unit/test_pipeline.py",),
    ),
    Mutant(
        "a batch handler that panics with what is no Exception ends its lane, and nobody knows",
        "handling.py",
        "        except BaseException as error:\n            if (meant := self.meant",
        "        except asyncio.CancelledError as error:\n            if (meant := self.meant",
        ("tests/unit/test_batch_handlers.py",),
    ),
    Mutant(
        "a supervised task that panics with what is no Exception dies unseen",
        "supervision.py",
        "            except BaseException as error:",
        "            except (Exception, asyncio.CancelledError) as error:",
        ("tests/unit/test_supervision.py",),
    ),
    Mutant(
        "the event after one that ran too long has the patience with that one for a timeout",
        "limit.py",
        "            if self._handle is not None:  # it is set",
        "            if False and self._handle is not None:  # it is set",
        ("tests/unit/test_limit.py",),
    ),
    Mutant(
        "a timeout is not taken back",
        "limit.py",
        "return self._task is not None and self._task.uncancel() == 0",
        "return self._task is not None",
    ),
    Mutant(
        "the time of a batch counts for each of its events",
        "limit.py",
        "and (wait := self.started + self._seconds - now) <= 0:",
        "and (wait := 0.0) <= 0:",
    ),
    Mutant(
        "a timeout strikes between events",
        "limit.py",
        "        self.started = self._overdue = None\n",
        "        self._overdue = None\n",
    ),
    Mutant(
        "the second failed event of a key overtakes the first in its hold",
        "order.py",
        "            self._waiting[key].append(delivery)\n        else:",
        "            self._waiting[key].appendleft(delivery)\n        else:",
    ),
    Mutant(
        "a held event is tried before its time",
        "order.py",
        "if due <= now and not self._is_told(key)]",
        "if due <= now + 0.4 and not self._is_told(key)]",
    ),
    Mutant(
        "what was held goes behind what waits",
        "lane.py",
        "queue.extendleft(reversed(list(self.holds.release(asyncio.get_running_loop().time()))))",
        "queue.extend(self.holds.release(asyncio.get_running_loop().time()))",
    ),
    Mutant(
        "what was held goes first, but backwards",
        "lane.py",
        "queue.extendleft(reversed(list(self.holds.release(asyncio.get_running_loop().time()))))",
        "queue.extendleft(self.holds.release(asyncio.get_running_loop().time()))",
    ),
    Mutant(
        "what could not be begun goes behind what waits",
        "lane.py",
        "        self.queue.extendleft(reversed(deliveries))\n",
        "        self.queue.extend(deliveries)\n",
    ),
    Mutant(
        "what could not be begun is dropped",
        WORKER,
        "            lane.put_back(rest)\n",
        "",
    ),
    Mutant(
        "a lane sleeps through what is due",
        WORKER,
        "await lane.sleep(self._until_next(lane))",
        "await lane.sleep(None)",
    ),
    Mutant(
        "a lane does not pause while the world is down",
        WORKER,
        "                await self._pause(pause)\n",
        "",
    ),
    Mutant(
        "review: an observer that raises costs its batch",
        WORKER,
        """                observer.received(self.position, len(batch))
            except Exception:""",
        """                observer.received(self.position, len(batch))
            except ZeroDivisionError:""",
    ),
    Mutant(
        "review: what is held is given back behind what came after it",
        "lane.py",
        "rest += [*(lane.holds.clear() if lane.holds else ()), *lane.queue]",
        "rest += [*lane.queue, *(lane.holds.clear() if lane.holds else ())]",
    ),
    Mutant(
        "a stop keeps what is held",
        "lane.py",
        "rest += [*(lane.holds.clear() if lane.holds else ()), *lane.queue]",
        "rest += lane.queue",
    ),
    Mutant(
        "review: without order a stop keeps what is not begun until what runs has ended",
        WORKER,
        "        self._wake_all()\n        if not self._subscription.ordered:\n",
        "        self._wake_all()\n        if False:\n",
    ),
    Mutant(
        "in order a stop gives back what follows before what runs has ended",
        WORKER,
        "        self._wake_all()\n        if not self._subscription.ordered:\n",
        "        self._wake_all()\n        if True:\n",
    ),
    Mutant(
        "a stop gives everything back twice",
        "lane.py",
        "        lane.queue.clear()\n",
        "        pass\n",
    ),
    Mutant(
        "a stop does not wait for the waves of acknowledgements",
        WORKER,
        "        await self._pipeline.settler.settled()\n        await",
        "        await",
    ),
    Mutant(
        "the events of a key are spread over lanes",
        "lane.py",
        "return self._lanes[(delivery.slot or 0) % len(self._lanes)]",
        "return self._lanes[int(delivery.origin[1]) // 2 % len(self._lanes)]",
    ),
    Mutant(
        "faststream: a lane that failed is never started again",
        "supervision.py",
        "            await asyncio.sleep(pause)\n",
        "            return\n",
    ),
    Mutant(
        "review: a lane that a library cancelled by mistake ends unseen",
        "supervision.py",
        "if isinstance(error, asyncio.CancelledError) and _we_are_cancelled():",
        "if isinstance(error, asyncio.CancelledError):",
    ),
    Mutant(
        "base exception: sys.exit in an internal task ends the process without a word",
        "supervision.py",
        "log.critical(",
        "log.debug(",
        ("tests/unit/test_supervision.py",),
    ),
    Mutant(
        "base exception: a task of a life that a proof has ended is started again",
        "supervision.py",
        "return isinstance(error, ENDS) or (",
        "return isinstance(error, ENDS) or False and (",
        ("tests/unit/test_supervision.py",),
    ),
    Mutant(
        "base exception: sys.exit in a handler ends the process",
        "handling.py",
        "_PASSED_ON: Final = (Exception, KeyboardInterrupt, points.Ended)",
        "_PASSED_ON: Final = (Exception, KeyboardInterrupt, SystemExit)",
        ("tests/unit/test_calling.py",),
    ),
    Mutant(
        "base exception: what a handler raises is taken for the end of its loop",
        "limit.py",
        "return asyncio.current_task() is self._task",
        "return False",
        ("tests/unit/test_pipeline.py",),
    ),
    Mutant(
        "base exception: the end of a loop is a failure of an event",
        "handling.py",
        "if isinstance(error, GeneratorExit) and not limit.runs:",
        "if isinstance(error, GeneratorExit) and False:",
        ("tests/unit/test_pipeline.py",),
    ),
    Mutant(
        "base exception: what a store panics over stays in the hands of nobody",
        "pipeline.py",
        "if ends_all(error):",
        "if not isinstance(error, (Exception, asyncio.CancelledError)):",
        ("tests/unit/test_pipeline.py",),
    ),
    Mutant(
        "base exception: of an upcast it leaves its event in the hands of nobody",
        "evolution.py",
        "        except BaseException as error:  # the program's own again: sys.exit in it ends no process",
        "        except Exception as error:",
        ("tests/unit/test_evolution.py",),
    ),
    Mutant(
        "what came together is in its lane by its place, not by its key",
        "lane.py",
        "lanes[(delivery.slot or 0) % many].queue.append(delivery)",
        "lanes[len(delivery.origin) % many].queue.append(delivery)",
        ("tests/unit/test_lane.py",),
    ),
    Mutant(
        "what came together wakes one lane only",
        "lane.py",
        "            if left and lane.wake():\n                left -= 1\n",
        "            if left and lane.wake():\n                left = 0\n",
        ("tests/unit/test_lane.py",),
    ),
)
