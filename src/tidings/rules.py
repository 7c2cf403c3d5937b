"""The options of `on`, `on_batch` and `Service`, checked where they are written.

A wrong one that is taken in silence shows itself much later, as something else: an event that is never counted, a
history that is read although nobody wanted it.
"""

from __future__ import annotations

import difflib
import math
from collections.abc import Iterable, Mapping
from datetime import timedelta
from typing import Any, Final, get_args

from tidings.delivery import Content
from tidings.errors import DeclarationError
from tidings.event import Event, spec_of
from tidings.handler import Rules
from tidings.policy import Retry
from tidings.switch import KillSwitch

CHOICES: Final[Mapping[str, tuple[str | None, ...]]] = {
    "order": ("key", "auto", None),
    "conflict": ("duplicate", "dead"),
    "start": ("all", "new"),
    "on_dead": ("skip", "park", "block"),
    "content": get_args(Content),
}

MEANT: Final[Mapping[str, Mapping[str, str | None]]] = {
    "order": {"none": None, "ordered": "key", "true": "key", "false": None},
    "conflict": {"skip": "duplicate", "ignore": "duplicate", "error": "dead"},
    "start": {
        **dict.fromkeys(("earliest", "first", "oldest", "beginning", "history", "stored"), "all"),
        **dict.fromkeys(("latest", "last", "newest", "end", "now", "tail"), "new"),
    },
    "on_dead": {"stop": "block", "wait": "block", "ignore": "skip", "drop": "skip", "continue": "skip"},
    "content": {"json": "structured", "headers": "binary"},
}
"""Words for the same in other systems, which no likeness of letters finds."""


def check_choice(option: str, value: object) -> None:
    """Refuse what an option with a few values cannot be.

    Raises:
        DeclarationError: it is none of them.
    """
    allowed = CHOICES[option]
    if (value is None or isinstance(value, str)) and value in allowed:
        return
    shown = [_shown(one) for one in allowed]
    word = str(value).lower()
    near = difflib.get_close_matches(word, [one for one in allowed if one is not None], 1)
    meant = _shown(MEANT[option][word]) if word in MEANT[option] else _shown(near[0]) if near else ""
    hint = f" Did you mean {option}={meant}?" if meant else ""
    raise DeclarationError(f"{option}={_shown(value)}: it is {', '.join(shown[:-1])} or {shown[-1]}.{hint}")


def check_rules(rules: Rules) -> None:
    """Refuse values that mean nothing.

    Raises:
        DeclarationError: one of them does.
    """
    for option in ("conflict", "start", "on_dead"):
        check_choice(option, getattr(rules, option))
    if not isinstance(rules.once, (bool, str)):
        raise DeclarationError(
            f'once={rules.once!r}: True for the id of each event, or the name of a field: once="order_id"'
        )
    retry: object = rules.retry
    if not isinstance(retry, Retry):
        attempts = retry if _is_whole(retry) and retry else 3
        raise DeclarationError(
            f"retry={retry!r} is no Retry. Write: retry=Retry(attempts={attempts}), or attempts=1 to try once only"
        )
    if not isinstance(rules.kill_switch, KillSwitch | None):
        raise DeclarationError(
            f"kill_switch={rules.kill_switch!r} is no KillSwitch. Write: kill_switch=KillSwitch(share=0.5), or None to"
            " have none"
        )
    _check_numbers(rules)
    _check_forgetting(rules)


def _check_numbers(rules: Rules) -> None:
    if not _is_whole(rules.concurrency) or not 1 <= rules.concurrency <= 64:
        raise DeclarationError(f"concurrency={rules.concurrency!r}: a number of lanes between 1 and 64")
    if not _is_time(rules.timeout):
        raise DeclarationError(f"timeout={rules.timeout!r}: a number of seconds, more than 0")
    if rules.abandon_after is not None and not _is_time(rules.abandon_after):
        raise DeclarationError(
            f"abandon_after={rules.abandon_after!r}: a number of seconds, more than 0, or None to wait for ever"
        )
    if rules.batch is not None and (not _is_whole(rules.batch) or not 1 <= rules.batch <= 1000):
        raise DeclarationError(f"batch={rules.batch!r}: a number of events between 1 and 1000")


def _check_forgetting(rules: Rules) -> None:
    if rules.forget_after is None:
        return
    if not isinstance(rules.once, str):
        raise DeclarationError(
            'forget_after= is for business keys, such as once="order_id". The ids of events are forgotten by'
            " themselves, when their stream no longer keeps the events"
        )
    if not isinstance(rules.forget_after, timedelta):
        raise DeclarationError(f"forget_after={rules.forget_after!r} is no timedelta. Write: timedelta(days=90)")
    if rules.forget_after <= timedelta(0):
        raise DeclarationError(f"forget_after={rules.forget_after}: more than no time, or None to know keys for ever")


def events_of(publishes: Iterable[type[Event]]) -> tuple[type[Event], ...]:
    """The events that a service says it publishes.

    Raises:
        DeclarationError: it is no list, or one of them is no event class.
    """
    if isinstance(publishes, type | str):
        name = getattr(publishes, "__name__", "OrderPlaced")
        raise DeclarationError(f"publishes={publishes!r} is no list. Write: publishes=[{name}]")
    events = tuple(publishes)
    for event in events:
        spec_of(event)
    return events


def check_service(content: object, keep: object, lifespan: object) -> None:
    """Refuse options of a service that mean nothing.

    Raises:
        DeclarationError: one of them does.
    """
    check_choice("content", content)
    if keep is not None and not (isinstance(keep, timedelta) and keep > timedelta(0)):
        raise DeclarationError(f"keep={keep!r} is no time to keep events for. Write: keep=timedelta(days=30)")
    if lifespan is not None and not callable(lifespan):
        raise DeclarationError(
            f"lifespan={lifespan!r} cannot be called. Hand over the function under @asynccontextmanager, not its result"
        )


def _is_whole(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _is_time(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and not math.isnan(value) and value > 0


def _shown(value: object) -> str:
    return f'"{value}"' if isinstance(value, str) else repr(value)
