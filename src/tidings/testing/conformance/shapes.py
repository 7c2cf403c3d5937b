"""Bytes of every shape, each with its stated outcome; none of them holds up or takes down the next."""

from __future__ import annotations

import json
from typing import Any

import pytest

from tidings.envelope import envelope_of, to_structured
from tidings.errors import EventTooLarge
from tidings.event import Event
from tidings.testing._effects import event_class
from tidings.testing.conformance.bench import PUBLISH_TIMEOUT
from tidings.testing.conformance.policy import ONLY_WITHOUT
from tidings.testing.conformance.stage import Stage, nothing

SKIPPED = "skipped"


def shapes(good: bytes) -> dict[str, tuple[bytes, dict[str, str], str]]:
    """Body, headers and outcome: the code of a dead letter, or that it is none of the handler's business."""
    whole: dict[str, Any] = json.loads(good)

    def but(**changed: object) -> bytes:
        return json.dumps({name: value for name, value in {**whole, **changed}.items() if value is not None}).encode()

    binary = {
        "ce-specversion": "1.0",
        "ce-id": "b-1",
        "ce-source": "elsewhere",
        "ce-type": whole["type"],
        "ce-version": "v1",
    }
    data = json.dumps(whole["data"]).encode()
    lacking = {name: value for name, value in binary.items() if name != "ce-version"}
    return {
        "no bytes": (b"", {}, "empty"),
        "no text": (b"\xff\xfe\x00\x01", {}, "not-json"),
        "cut off": (good[:-2], {}, "not-json"),
        "another shape": (b"[1, 2]", {}, "not-an-envelope"),
        "an attribute is missing": (but(version=None), {}, "not-an-envelope"),
        "a wrong attribute": (but(id="unfit", time="yesterday"), {}, "bad-attribute"),
        "no data": (but(data=None), {}, "bad-data"),
        "too deep": (but(data=None)[:-1] + b', "data": ' + b"[" * 100 + b"]" * 100 + b"}", {}, "too-deep"),
        "wrong data": (but(id="wrong", data={"id": 1}), {}, "bad-data"),
        "an unknown version": (but(id="v99", version="v99"), {}, "unknown-version"),
        "an unknown type": (but(id="else", type=whole["type"] + ".else"), {}, SKIPPED),
        "headers are missing": (data, {}, "not-an-envelope"),
        "a header is missing": (data, lacking, "not-an-envelope"),
        "attributes nobody knows": (but(id="more", key="k", extension="x", data={**whole["data"], "new": 1}), {}, ""),
        "binary, from elsewhere": (data, binary, ""),
    }


class Shapes:
    """Part of the suite."""

    @ONLY_WITHOUT
    async def test_P2_P13_every_shape_has_its_outcome(self, stage: Stage) -> None:
        service = stage.service()
        position = stage.handle(service)
        client = await stage.bench.client()
        sample: Any = stage.Happened(id="good", key="k0")
        cases = shapes(to_structured(envelope_of(sample, "elsewhere")))
        async with stage.running(service):
            messages = [
                stage.bench.message(f"{place}", body=body, headers=headers, key=None)
                for place, (body, headers, _) in enumerate(cases.values())
            ]
            for message in messages:
                assert await client.publish([message], timeout=PUBLISH_TIMEOUT) == [None]
                await stage.publish(service, [f"after {message.id}"])
            good = [f"after {message.id}" for message in messages]
            await stage.until_applied(position, good)
            wanted = {name: code for name, (_, _, code) in cases.items() if code not in ("", SKIPPED)}
            letters = await stage.letters(position, len(wanted), client)
            await stage.quiet(service)
        by_body = {(bytes(letter.body), *sorted(letter.headers.items())): letter.code for letter in letters}
        for name, code in wanted.items():
            body, headers, _ = cases[name]
            assert by_body.get((body, *sorted(headers.items()))) == code, f"{name}: {by_body}"
        read = sum(code == "" for _, _, code in cases.values())
        assert len(stage.ids(position)) == len(good) + read
        assert {letter.failures for letter in letters} == {0}

    async def test_P13_what_nobody_can_read_holds_up_nobody_else(self, stage: Stage) -> None:
        """Two handlers of one stream, of which one reads an older version only."""
        count = stage.bench.size("events", 1000, 20)
        service, old = stage.service(), stage.service("old")
        newer = event_class(stage.bench.stream, version=2)
        position = stage.handle(service, events=[newer])
        behind = stage.handle(old, kill_switch=None)
        client = await stage.bench.client()
        events = [stage.message(newer, id=str(number), key=f"k{number % 3}") for number in range(count)]
        async with stage.running(service, old):
            await stage.bench.publish(client, events)
            await stage.until_applied(position, range(count))
            letters = await stage.letters(behind, count, client)
        assert {letter.code for letter in letters} == {"unknown-version"}
        stage.judge(position, range(count))
        assert stage.ids(behind) == []

    @ONLY_WITHOUT
    async def test_P1_P7_the_largest_event_travels_and_dies_whole(self, stage: Stage) -> None:
        most = stage.bench.features.max_bytes
        service = stage.service()
        position = stage.handle(service, nothing)
        failing = stage.service("failing")
        dying = stage.handle(failing, _refuse)
        client = await stage.bench.client()

        def sized(size: int) -> Any:
            bare = len(to_structured(envelope_of(stage.Happened(id="1", key="k"), service.name)))
            return stage.Happened(id=str(size), key="k", note="x" * (size - bare - len(str(size)) + 1))

        async with stage.running(service, failing):
            for size in (most - 1, most):
                await service.publish(sized(size))
            with pytest.raises(EventTooLarge):
                await service.publish(sized(most + 1))
            await stage.until_applied(position, [most - 1, most])
            letters = await stage.letters(dying, 2, client)
        assert sorted(len(letter.body) for letter in letters) == [most - 1, most]
        assert {bytes(letter.body) for letter in letters} == {bytes(one.body) for one in stage.deliveries}


async def _refuse(event: Event, delivery: object) -> None:
    raise RuntimeError("too much") from None
