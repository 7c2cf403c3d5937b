"""What must hold when all is over, whatever happened on the way."""

from __future__ import annotations

from tests.walk.broker import Token
from tests.walk.case import POSITION, RETRY, Moment, Process, Setting
from tests.walk.world import World
from tidings.context import derived_id
from tidings.dead_letters import Fold, Letter
from tidings.delivery import Delivery, Route, Unsettled
from tidings.envelope import read_envelope

HANDLER_FAULTS = frozenset(
    {"raise", "mute", "cancel", "hang", "swallow", "slow", "observer", "driver", "contention", "claim", "busy"}
)
"""Those after which the failures of an event are known exactly."""

MEANT_DEAD = frozenset({"dead", "too-large"})

CAN_REPEAT = {
    "none": frozenset({"publish", "publish-late", "settle", "settle-late"}),  # and a call that does not end, unordered
    "lease": frozenset({"commit", "commit-odd", "publish", "publish-late"}),
    "tx": frozenset[str](),
}
"""Faults after which an effect may be applied again: the gap that each store leaves open, and no more."""


def judge(setting: Setting, world: World, *, interrupted: bool = False, gave_back: bool = False) -> list[str]:
    """Everything that is wrong at the end. `interrupted`: a process died, or was stopped before it was done.

    `gave_back`: one was stopped with all the time that it needed, and gave back what it had not begun.
    """
    wrong = list(world.violations)
    letters = _letters(world)
    wrong += [f"{one.event} is still at the broker" for one in world.messages if not one.gone]
    for event in setting.ids:
        applied, dead = world.ledger.count(event), event in letters
        if not applied and not dead:
            wrong.append(f"{event} is LOST")
        if applied and dead and setting.store != "none" and not MEANT_DEAD & set(world.faults.struck):
            wrong.append(f"{event} was applied, and is a dead letter")
        repeats = world.faults.names & CAN_REPEAT[setting.store] or (
            setting.store == "none"
            and (setting.twice or setting.whole or ("stuck" in world.faults.names and not setting.ordered))
        )
        # A call that does not end is given up when its process is stopped, and may end while that is under way.
        ended = interrupted or (gave_back and "stuck" in world.faults.names)
        if applied > 1 and not repeats and not (ended and setting.store != "tx"):
            wrong.append(f"{event} was applied {applied} times")
    wrong += _dead_only_when_meant(setting, world, letters)
    wrong += _caused(setting, world)
    if setting.ordered:
        wrong += _order(setting, world, interrupted or gave_back)
    return wrong


def judge_process(setting: Setting, process: Process) -> list[str]:
    """What one process that came to its end must have told, waited for and counted."""
    wrong = [f"not reported as unsettled: {token.stored.event}" for token in _unreported(process)]
    faults = process.world.faults.names
    if setting.twice or faults - HANDLER_FAULTS:
        return wrong
    for event, moments in process.moments.items():
        failures, not_before = 0, 0.0
        for moment in moments:
            if _again(setting, moment, failures):
                failures, not_before = failures - 1, 0.0
            if moment.what == "fail":
                failures += 1
                not_before = moment.at + RETRY.pause(failures, lambda: 0.0)
            elif moment.at < not_before:
                wrong.append(f"{event} was tried again {not_before - moment.at:.3f} s before its time")
            if moment.what == "start" and moment.attempt != failures + 1:
                wrong.append(f"{event} had attempt {moment.attempt} after {failures} failures")
    return wrong


def _again(setting: Setting, moment: Moment, failures: int) -> bool:
    """Whether a failure was passed over: an earlier event of its key was taken back with it, and goes first."""
    return setting.store == "tx" and setting.ordered and moment.what == "start" and moment.attempt == failures


def _unreported(process: Process) -> set[Token]:
    told = {one.delivery.token for one in process.watch.told if isinstance(one.outcome, Unsettled)}
    return {token for token in process.session.unsure if token not in told}


def _letters(world: World) -> dict[str, list[Letter]]:
    """The dead letters by the event in them."""
    fold = Fold(bodies=True)
    for number, message in enumerate(world.dead):
        fold.add(
            Delivery(
                body=message.body,
                stream=message.stream,
                origin=("dead", number),
                token=None,
                headers=message.headers,
                route=Route.DEAD,
            )
        )
    found: dict[str, list[Letter]] = {}
    for letter in fold.letters.values():
        event = next((one.event for one in world.messages if one.body == letter.body), "a stranger")
        found.setdefault(event, []).append(letter)
    return found


def _dead_only_when_meant(setting: Setting, world: World, letters: dict[str, list[Letter]]) -> list[str]:
    wrong = []
    meant = {"garbage": "not-json"}
    if setting.bad:
        meant[setting.ids[0]] = "failed"
    for event, found in letters.items():
        for letter in found:
            if letter.position != POSITION:
                wrong.append(f"the letter of {event} is in the name of {letter.position!r}")
            if letter.code == "failed" and letter.failures != RETRY.attempts:
                wrong.append(f"{event} died after {letter.failures} failures of {RETRY.attempts}")
            by_fault = {"rejected": "dead", "copy-too-large": "too-large"}.get(letter.code)
            if meant.get(event) != letter.code and not (by_fault and world.faults.struck[by_fault]):
                wrong.append(f"{event} died, which nobody meant: {letter.code}: {letter.reason}")
    if "garbage" in world.faults.names and "garbage" not in letters:
        wrong.append("garbage is LOST")
    return wrong


def _caused(setting: Setting, world: World) -> list[str]:
    """Events are caused by effects that are durable, each by one, whatever was repeated."""
    published = world.outbox if setting.store == "tx" else world.caused
    ids = [message.id for message in published]
    wrong = [f"{one} was caused twice" for one in set(ids) if ids.count(one) > 1]
    expected = {derived_id(event, POSITION, 0): event for event in set(world.ledger)}
    for message in published:
        cause = expected.get(message.id)
        if cause is None:
            wrong.append("an event was caused by what was never applied")
        elif read_envelope(message.body, message.headers).causation_id != cause:
            wrong.append(f"the event caused by {cause} names another cause")
    by_letter = {message.body for message in world.dead}
    bodies = {one.event: one.body for one in world.messages}
    for missing in set(expected) - set(ids):
        if bodies[expected[missing]] not in by_letter:
            wrong.append(f"what {expected[missing]} caused was never published")
    return wrong


def _order(setting: Setting, world: World, gave_back: bool) -> list[str]:
    """Events of one key take effect in their order; where effects may repeat, the last state is the last event's."""
    wrong: list[str] = []
    struck = set(world.faults.struck)
    if MEANT_DEAD & struck and (setting.twice or "settle" in struck):
        return wrong  # what died once and comes again takes effect in its second place
    if gave_back and "settle" in struck:
        return wrong  # the broker did not hear that an event was given back, but heard it of those behind
    for key in sorted(set(setting.keys)):
        seen = [event for event in world.ledger if event[0] == key]
        first = list(dict.fromkeys(seen))
        if first != sorted(first):
            wrong.append(f"the order of {key} was not kept: {seen}")
        out_of_hand = setting.twice or world.faults.names & {"settle", "settle-late"}
        if seen and seen[-1] != first[-1] and not (setting.store == "none" and out_of_hand):
            wrong.append(f"the last event of {key} was not the last to take effect: {seen}")
    return wrong


def as_text(setting: Setting, faults: frozenset[str], wrong: list[str]) -> str:
    return f"{setting} + {', '.join(sorted(faults)) or 'nothing'}: {'; '.join(sorted(set(wrong)))}"
