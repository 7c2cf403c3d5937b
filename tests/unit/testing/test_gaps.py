"""What an adapter lacks fails a run of the suite, unless the run says that it allows that."""

from __future__ import annotations

import pytest

from tests.conformance import (
    test_kafka,
    test_kafka_cluster,
    test_memory,
    test_nats,
    test_nats_cluster,
    test_rabbitmq,
)
from tests.conformance.rigs import MemoryRig
from tidings.ports import Features
from tidings.testing.conformance import Bench
from tidings.testing.conformance.suite import _Suite

MODULES = (test_kafka, test_kafka_cluster, test_memory, test_nats, test_nats_cluster, test_rabbitmq)
WHY = {"history": "it keeps none", "cluster": "it is one"}


class _Forgetful(MemoryRig):
    features = Features(name="forgetful", history=False)


def test_a_feature_that_is_not_claimed_fails_the_run_and_is_said_to_belong_into_gaps() -> None:
    with pytest.raises(pytest.fail.Exception, match=r"not supported: history \(forgetful\).*gaps = {'history': "):
        Bench(_Forgetful(), "test").needs("history")


def test_a_part_that_a_rig_lacks_fails_the_run_and_is_said_to_belong_into_apart() -> None:
    with pytest.raises(
        pytest.fail.Exception, match=r"not supported: cluster \(memory\).*apart = {'cluster': "
    ) as caught:
        _ = Bench(MemoryRig(), "test").cluster
    assert "tidings.testing.conformance.Cluster" in str(caught.value)
    assert "gaps" not in str(caught.value)


def test_a_gap_that_the_run_allows_is_reported_with_its_reason() -> None:
    with pytest.raises(pytest.skip.Exception, match=r"not supported: history \(forgetful: it keeps none\)"):
        Bench(_Forgetful(), "test", gaps=WHY).needs("history")


def test_a_part_that_runs_elsewhere_is_no_gap() -> None:
    with pytest.raises(pytest.skip.Exception, match=r"not in this run: cluster \(memory: it is one\)"):
        _ = Bench(MemoryRig(), "test", apart=WHY).cluster


def test_only_history_on_rabbitmq_is_an_allowed_gap() -> None:
    classes = {one for module in MODULES for one in vars(module).values() if isinstance(one, type)}
    gaps = {(one.__name__, what) for one in classes if issubclass(one, _Suite) for what in one.gaps}
    assert gaps == {("TestRabbitMQ", "history")}


def test_what_a_run_has_no_place_for_is_never_something_that_its_broker_has_to_do() -> None:
    """Only how it is staged: servers, ways and processes."""
    classes = {one for module in MODULES for one in vars(module).values() if isinstance(one, type)}
    apart = {what for one in classes if issubclass(one, _Suite) for what in one.apart}
    assert apart == {"cluster", "network", "processes"}
