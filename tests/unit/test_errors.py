"""The tree of errors: what it promises in its docstring, and that errors travel whole."""

from __future__ import annotations

import copy
import inspect
import pickle
import re

import pytest

import tidings
from tidings import errors
from tidings.errors import EventError, ProgramError, TidingsError, UndecodableEvent, WorldError

ALL = [
    one
    for one in vars(errors).values()
    if inspect.isclass(one) and issubclass(one, TidingsError) and one.__module__ == errors.__name__
]
BRANCHES = (EventError, WorldError, ProgramError)


def test_the_tree_in_the_docstring_is_the_tree_in_the_code() -> None:
    drawn: dict[str, str] = {}
    above = ["TidingsError"]
    for line in (errors.__doc__ or "").splitlines():
        if match := re.match(r"    ((?:[│ ]   )*)[├└]── (\w+)", line):
            depth = len(match[1]) // 4 + 1
            drawn[match[2]] = above[depth - 1]
            above[depth:] = [match[2]]
    in_code = {one.__name__: one.__mro__[1].__name__ for one in ALL if one is not TidingsError}
    assert drawn == in_code


def test_each_error_stands_in_one_branch() -> None:
    for one in ALL:
        if one is not TidingsError:
            assert sum(issubclass(one, branch) for branch in BRANCHES) == 1


def test_each_error_says_what_it_means_and_can_be_imported_from_the_package() -> None:
    for one in ALL:
        assert inspect.cleandoc(one.__doc__ or "")
        assert getattr(tidings, one.__name__) is one


@pytest.mark.parametrize("again", [copy.copy, copy.deepcopy, lambda error: pickle.loads(pickle.dumps(error))])
@pytest.mark.parametrize("error", [UndecodableEvent("bad-data", "no such field"), errors.Dead("enough")], ids=str)
def test_an_error_travels_between_processes_whole(error: TidingsError, again: object) -> None:
    assert callable(again)
    other = again(error)
    assert type(other) is type(error)
    assert str(other) == str(error)
    assert vars(other) == vars(error)


def test_the_codes_of_the_docstring_are_those_that_are_used() -> None:
    told = set(re.findall(r"``([a-z-]+)``", UndecodableEvent.__doc__ or ""))
    used = set()
    for module in ("envelope", "evolution"):
        text = inspect.getsource(__import__(f"tidings.{module}", fromlist=["x"]))
        used |= set(re.findall(r'UndecodableEvent\(\s*"([a-z-]+)"', text))
    assert told == used | {"not-an-envelope", "bad-attribute"}
