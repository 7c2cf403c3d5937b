"""Options of `on`, `on_batch` and `Service`: what cannot be is refused where it is written, with what can."""

from __future__ import annotations

from datetime import timedelta
from typing import Any

import pytest

from tests.unit.parts import Placed, Shipped
from tidings import DeclarationError, KillSwitch, Retry, Service


@pytest.mark.parametrize("how", ["on", "on_batch"])
@pytest.mark.parametrize(
    ("rules", "says"),
    [
        ({"start": "latest"}, 'start="latest": it is "all" or "new". Did you mean start="new"?'),
        ({"start": "earliest"}, 'Did you mean start="all"?'),
        ({"start": None}, 'start=None: it is "all" or "new".'),
        ({"order": "keys"}, 'order="keys": it is "key", "auto" or None. Did you mean order="key"?'),
        ({"order": "none"}, "Did you mean order=None?"),
        ({"order": True}, 'order=True: it is "key", "auto" or None. Did you mean order="key"?'),
        ({"on_dead": "stop"}, 'on_dead="stop": it is "skip", "park" or "block". Did you mean on_dead="block"?'),
        ({"on_dead": "prak"}, 'Did you mean on_dead="park"?'),
        ({"conflict": "maybe"}, 'conflict="maybe": it is "duplicate" or "dead".'),
        ({"conflict": ["dead"]}, "conflict=['dead']: it is"),
        ({"retry": 3}, "retry=3 is no Retry. Write: retry=Retry(attempts=3)"),
        ({"retry": None}, "retry=None is no Retry. Write: retry=Retry("),
        ({"kill_switch": 0.5}, "kill_switch=0.5 is no KillSwitch. Write: kill_switch=KillSwitch("),
        ({"kill_switch": False}, "or None to have none"),
        ({"once": 1}, "once=1: True for the id of each event, or the name of a field"),
        ({"once": None}, "once=None: True for"),
        ({"concurrency": "4"}, "concurrency='4': a number of lanes between 1 and 64"),
        ({"concurrency": True}, "concurrency=True: a number of lanes"),
        ({"timeout": timedelta(seconds=3)}, "a number of seconds, more than 0"),
        ({"timeout": None}, "timeout=None: a number of seconds"),
        ({"timeout": float("nan")}, "timeout=nan: a number of seconds"),
        ({"abandon_after": "1m"}, "abandon_after='1m': a number of seconds, more than 0, or None"),
        ({"batch": 2.5}, "batch=2.5: a number of events between 1 and 1000"),
        ({"once": "order_id", "forget_after": 90}, "forget_after=90 is no timedelta. Write: timedelta(days=90)"),
    ],
    ids=str,
)
def test_a_value_that_an_option_cannot_have_is_refused_where_it_is_written(
    how: str, rules: dict[str, Any], says: str
) -> None:
    with pytest.raises(DeclarationError) as caught:
        getattr(Service("stock"), how)(Placed, **rules)
    assert says in str(caught.value)


@pytest.mark.parametrize(
    "rules",
    [
        {"start": "new", "conflict": "dead", "on_dead": "park", "order": "key"},
        {"order": None, "concurrency": 64, "timeout": 1, "abandon_after": None, "batch": 1},
        {"once": "order_id", "forget_after": timedelta(days=1), "retry": Retry(attempts=1), "kill_switch": None},
        {"once": False, "timeout": float("inf"), "kill_switch": KillSwitch(share=0.9)},
    ],
    ids=str,
)
def test_what_an_option_can_be_is_taken(rules: dict[str, Any]) -> None:
    Service("stock").on(Placed, **rules)


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"content": "binry"}, 'content="binry": it is "structured" or "binary". Did you mean content="binary"?'),
        ({"keep": 7}, "keep=7 is no time to keep events for. Write: keep=timedelta(days=30)"),
        ({"keep": timedelta(0)}, "is no time to keep events for"),
        ({"lifespan": 3}, "lifespan=3 cannot be called"),
        ({"publishes": Shipped}, "is no list. Write: publishes=[Shipped]"),
        ({"publishes": "order.shipped"}, "is no list. Write: publishes=[OrderPlaced]"),
        ({"publishes": [int]}, "int is no event class"),
    ],
    ids=str,
)
def test_a_value_that_an_option_of_a_service_cannot_have_is_refused(options: dict[str, Any], says: str) -> None:
    with pytest.raises(DeclarationError) as caught:
        Service("stock", **options)
    assert says in str(caught.value)
