"""The example that takes GitHub's webhooks, fed with the payloads that GitHub sends."""

from __future__ import annotations

import asyncio
import base64
import json
import os
import re
import signal
import sys
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from uuid import UUID, uuid5

import httpx
import pytest

from examples.webhooks import payloads
from examples.webhooks.app import MAX_BODY, create, signature
from examples.webhooks.events import RECOGNIZED, StarChanged, Unrecognized
from examples.webhooks.service import counts, webhooks
from tidings import BrokerUnavailable, ConfigurationError, dead_letters
from tidings.brokers.nats.embedded import embedded_server
from tidings.envelope import read_envelope
from tidings.evolution import Reader
from tidings.testing import MemoryBroker
from tools.services.ports import free_port

ROOT = Path(__file__).parents[2]
DATA = ROOT / "tests" / "data" / "github"
SECRET = "it is no secret here"
SPACE = UUID("c2d3e4f5-0617-4829-8a3b-4c5d6e7f8091")

PAYLOADS = {path.name.removesuffix(".json"): path.read_bytes() for path in sorted(DATA.glob("*.json"))}
KNOWN = {name for name in PAYLOADS if name.split(".")[0] in ("push", "issues", "issue_comment", "pull_request", "star")}
STRANGE = {"fork.payload", "organization.member_added"}
EXPECTED = {
    "by_repository": {
        "Codertocat/Hello-World issue-changed": 2,
        "Codertocat/Hello-World issue-commented": 1,
        "Codertocat/Hello-World pull-request-changed": 2,
        "Codertocat/Hello-World pushed": 2,
        "Codertocat/Hello-World star-changed": 2,
    },
    "by_author": {"Codertocat": 8},  # one of the pushes is of a tag and has no commits
}

Send = Callable[..., Awaitable[httpx.Response]]


def sender(client: httpx.AsyncClient) -> Send:
    """Sends as GitHub does; what is said in `changes` replaces a header, None takes it out."""

    async def send(
        name: str, body: bytes | AsyncIterator[bytes], signed: bytes | None = None, **changes: str | None
    ) -> httpx.Response:
        content = body if isinstance(body, bytes) else b""
        headers: dict[str, str | None] = {
            "Content-Type": "application/json",
            "X-GitHub-Event": name.split(".")[0],
            "X-GitHub-Delivery": str(uuid5(SPACE, name + content.hex())),
            "X-Hub-Signature-256": signature(SECRET, content if signed is None else signed),
            **{header.replace("_", "-"): value for header, value in changes.items()},
        }
        kept = {header: value for header, value in headers.items() if value is not None}
        return await client.post("/webhooks/github", content=body, headers=kept)

    return send


class Desk:
    """The application on a memory broker and a file of SQLite."""

    def __init__(self, broker: MemoryBroker, send: Send) -> None:
        self.broker, self.send = broker, send

    @property
    def published(self) -> int:
        return len(self.broker.messages())

    def unrecognized(self) -> list[tuple[str, Unrecognized]]:
        """The dead letters: their reason, and what they keep."""
        fold = dead_letters.Fold(bodies=True)
        for message in self.broker.dead_letters:
            fold.add(message)
        found = []
        for letter in fold.letters.values():
            event = Reader([Unrecognized]).read(read_envelope(letter.body, letter.headers))
            assert isinstance(event, Unrecognized)
            found.append((letter.reason, event))
        return found


@pytest.fixture
async def desk(tmp_path: Path) -> AsyncIterator[Desk]:
    broker = MemoryBroker()
    async with webhooks.running(broker=broker, store=f"sqlite:///{tmp_path}/webhooks.db"):
        transport = httpx.ASGITransport(app=create(SECRET))
        async with httpx.AsyncClient(transport=transport, base_url="http://desk") as client:
            yield Desk(broker, sender(client))


# ── what GitHub sends ───────────────────────────────────────────────────────────────────────────────────────────────


def test_the_selection_has_something_of_everything() -> None:
    assert len(KNOWN) == 9
    assert set(PAYLOADS) == KNOWN | STRANGE | {"ping.repository", "ping.organization"}


async def test_real_payloads_are_counted_by_repository_and_author(desk: Desk) -> None:
    for name, body in PAYLOADS.items():
        response = await desk.send(name, body)
        assert response.status_code == (200 if name.startswith("ping") else 202), response.text
    await desk.broker.idle()
    assert await counts() == EXPECTED
    kept = {event.name: event for _, event in desk.unrecognized()}
    assert kept.keys() == {"fork", "organization"}
    assert kept["fork"].body == PAYLOADS["fork.payload"]
    assert kept["organization"].body == PAYLOADS["organization.member_added"]


async def test_a_webhook_that_github_sends_again_counts_once(desk: Desk) -> None:
    for _ in range(3):
        for name in sorted(KNOWN):
            assert (await desk.send(name, PAYLOADS[name])).status_code == 202
    await desk.broker.idle()
    assert await counts() == EXPECTED
    assert desk.published == 3 * len(KNOWN)


async def test_the_event_says_only_what_somebody_wants_to_know(desk: Desk) -> None:
    response = await desk.send("pull_request.closed", PAYLOADS["pull_request.closed"])
    (message,) = desk.broker.messages("github.pull-request-changed")
    envelope = read_envelope(message.body, message.headers)
    assert json.loads(bytes(envelope.data)) == {
        "delivery": str(uuid5(SPACE, "pull_request.closed" + PAYLOADS["pull_request.closed"].hex())),
        "repository": "Codertocat/Hello-World",
        "author": "Codertocat",
        "action": "closed",
        "number": 2,
        "title": "Update the README with new information.",
        "merged": False,
    }
    assert envelope.key == "Codertocat/Hello-World"
    assert response.json() == {"status": "github.pull-request-changed", "id": envelope.id}


# ── what fits no type ───────────────────────────────────────────────────────────────────────────────────────────────

STAR = PAYLOADS["star.created"]
MISFITS = {
    "a name without an event": ("deployment", STAR, "there is no event for it"),
    "half of a payload": ("star", STAR[: len(STAR) // 2], "truncated"),
    "no JSON": ("star", b"payload=%7B%7D", "malformed"),
    "nothing": ("star", b"", "truncated"),
    "bytes": ("star", bytes(range(256)), "malformed"),
    "a list": ("star", b"[]", "Expected `object`, got `array`"),
    "without the repository": ("star", b'{"action":"created","sender":{"login":"x"}}', "missing required field"),
    "a number as the login": ("star", STAR.replace(b'"login": "Codertocat"', b'"login": 7'), "Expected `str`"),
    "U+0000 in a title": (
        "issues",
        re.sub(rb'"title": "[^"]*"', rb'"title": "a\\u0000b"', PAYLOADS["issues.opened"]),
        "U+0000",
    ),
    "a name too long for a key": (
        "star",
        re.sub(rb'"full_name": "[^"]*"', b'"full_name": "%b"' % (b"x" * 300), STAR),
        "a key has",
    ),
    "a name of no characters": ("star", re.sub(rb'"full_name": "[^"]*"', b'"full_name": ""', STAR), "a key has"),
    "100,000 levels": ("star", b'{"repository":' * 25_000 + b"1" + b"}" * 25_000, ""),
    "half a character": ("issues", PAYLOADS["issues.opened"].replace(b'"Codertocat"', b'"\\ud800"'), ""),
}


@pytest.mark.parametrize(("name", "body", "reason"), MISFITS.values(), ids=MISFITS)
async def test_P13_a_payload_that_fits_no_type_is_kept_whole_as_a_dead_letter(
    desk: Desk, name: str, body: bytes, reason: str
) -> None:
    response = await desk.send(name, body)
    assert (response.status_code, response.json()["status"]) == (202, "github.unrecognized")
    await desk.broker.idle()
    ((said, kept),) = desk.unrecognized()
    assert kept.body == body
    assert kept.name == name
    assert said.startswith(f"Dead: GitHub's {name!r} fits no event: ")
    assert reason in said
    assert (await counts())["by_author"] == {}


async def test_the_largest_payload_can_be_kept_whole(desk: Desk) -> None:
    body = os.urandom(MAX_BODY)
    assert (await desk.send("star", body)).status_code == 202
    await desk.broker.idle()
    ((_, kept),) = desk.unrecognized()
    assert kept.body == body
    assert len(base64.b64encode(body)) > 900_000


async def test_P7_a_letter_becomes_its_event_once_the_code_knows_it(
    desk: Desk, monkeypatch: pytest.MonkeyPatch
) -> None:
    await desk.send("fork", PAYLOADS["fork.payload"])
    await desk.broker.idle()
    assert len(desk.unrecognized()) == 1

    def fork(delivery: UUID, body: bytes) -> StarChanged:
        found = json.loads(body)
        return StarChanged(
            delivery=delivery,
            repository=found["repository"]["full_name"],
            author=found["sender"]["login"],
            action="forked",
        )

    monkeypatch.setitem(payloads._READERS, "fork", fork)
    (letter,) = await dead_letters.list_letters(desk.broker)
    for _ in range(2):
        (whole,) = await dead_letters.find(desk.broker, [letter.id])
        await dead_letters.redrive(desk.broker, whole)
        await desk.broker.idle()

    async def counted() -> bool:
        return await counts() == {
            "by_repository": {"Codertocat/Hello-World star-changed": 1},
            "by_author": {"Octocoders": 1},
        }

    await until(counted)
    assert await dead_letters.list_letters(desk.broker) == []


# ── who may send ────────────────────────────────────────────────────────────────────────────────────────────────────

FORGED: dict[str, str | None] = {
    "none": None,
    "empty": "",
    "of another secret": signature("guessed", STAR),
    "of another body": signature(SECRET, STAR + b" "),
    "without its beginning": signature(SECRET, STAR).removeprefix("sha256="),
    "of the old kind": "sha1=" + "0" * 40,
    "in capitals": signature(SECRET, STAR).upper(),
    "cut short": signature(SECRET, STAR)[:-1],
    "with something behind": signature(SECRET, STAR) + "0",
}


@pytest.mark.parametrize("forged", FORGED.values(), ids=FORGED)
async def test_a_bad_signature_gets_401_and_nothing_is_published(desk: Desk, forged: str | None) -> None:
    response = await desk.send("star.created", STAR, X_Hub_Signature_256=forged)
    assert response.status_code == 401
    assert SECRET not in response.text
    assert desk.published == 0


async def test_a_signature_that_is_not_ascii_is_a_bad_one(desk: Desk) -> None:
    transport = httpx.ASGITransport(app=create(SECRET))
    async with httpx.AsyncClient(transport=transport, base_url="http://desk") as client:
        headers = [(b"X-Hub-Signature-256", "sha256=ü".encode("latin-1")), (b"X-GitHub-Event", b"star")]
        assert (await client.post("/webhooks/github", content=STAR, headers=headers)).status_code == 401


async def test_what_is_too_large_is_refused_before_its_end_was_read(desk: Desk) -> None:
    sent = 0

    async def endless() -> AsyncIterator[bytes]:
        nonlocal sent
        while True:
            sent += 1
            yield b" " * 65_536

    assert (await desk.send("star", b" " * (MAX_BODY + 1))).status_code == 413
    async with asyncio.timeout(20):
        assert (await endless_post(endless())).status_code == 413
    assert sent < 50
    assert desk.published == 0


async def endless_post(body: AsyncIterator[bytes]) -> httpx.Response:
    """What a server hands to the application part by part; the client library would collect it first."""
    replies: list[dict[str, object]] = []

    async def receive() -> dict[str, object]:
        return {"type": "http.request", "body": await anext(body), "more_body": True}

    async def reply(message: object) -> None:
        assert isinstance(message, dict)
        replies.append(message)

    scope = {"type": "http", "method": "POST", "path": "/webhooks/github", "headers": [], "query_string": b""}
    await create(SECRET)(scope, receive, reply)
    status = replies[0]["status"]
    assert isinstance(status, int)
    return httpx.Response(status)


@pytest.mark.parametrize(
    "changes",
    [
        {"X_GitHub_Delivery": None},
        {"X_GitHub_Delivery": "17"},
        {"X_GitHub_Event": None},
        {"X_GitHub_Event": ""},
    ],
    ids=str,
)
async def test_a_request_that_is_no_webhook_gets_400(desk: Desk, changes: dict[str, str | None]) -> None:
    assert (await desk.send("star.created", STAR, **changes)).status_code == 400
    assert desk.published == 0


async def test_a_ping_is_answered_and_not_published(desk: Desk) -> None:
    response = await desk.send("ping.repository", PAYLOADS["ping.repository"])
    assert (response.status_code, response.json()) == (200, {"status": "pong"})
    assert desk.published == 0


async def test_P1_what_could_not_be_stored_gets_503_so_that_github_shows_it_as_failed(desk: Desk) -> None:
    desk.broker.fail_publish(BrokerUnavailable("no answer"))
    response = await desk.send("star.created", STAR)
    assert response.status_code == 503
    assert "deliver it again" in response.json()["error"]
    assert (await desk.send("star.created", STAR)).status_code == 202
    await desk.broker.idle()
    assert (await counts())["by_author"] == {"Codertocat": 1}


def test_without_a_secret_it_does_not_start(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("GITHUB_WEBHOOK_SECRET", raising=False)
    with pytest.raises(ConfigurationError, match="Set GITHUB_WEBHOOK_SECRET"):
        create()


# ── as it is run ────────────────────────────────────────────────────────────────────────────────────────────────────


class Process:
    """The application under uvicorn, on the embedded server."""

    def __init__(self, folder: Path, port: int) -> None:
        self._folder, self._port = folder, port
        self._process: asyncio.subprocess.Process | None = None

    @asynccontextmanager
    async def running(self) -> AsyncIterator[httpx.AsyncClient]:
        environment = {
            **os.environ,
            "PYTHONPATH": str(ROOT),
            "GITHUB_WEBHOOK_SECRET": SECRET,
            "TIDINGS_BROKER": f"embedded:{self._folder / 'nats'}",
        }
        command = ["-m", "uvicorn", "--factory", "examples.webhooks.app:create", "--port", str(self._port)]
        self._process = await asyncio.create_subprocess_exec(
            sys.executable, *command, "--log-level", "warning", cwd=self._folder, env=environment
        )
        try:
            async with httpx.AsyncClient(base_url=f"http://127.0.0.1:{self._port}", timeout=30) as client:
                await until(self._answers(client))
                yield client
        finally:
            if self._process.returncode is None:
                self._process.terminate()
                try:
                    async with asyncio.timeout(60):
                        await self._process.wait()
                except TimeoutError:
                    self._process.kill()
                    raise

    def _answers(self, client: httpx.AsyncClient) -> Callable[[], Awaitable[bool]]:
        async def answers() -> bool:
            assert self._process is not None
            assert self._process.returncode is None, "it ended by itself"
            try:
                return (await client.get("/")).status_code == 200
            except httpx.TransportError:
                return False

        return answers

    async def kill(self) -> None:
        assert self._process is not None
        self._process.send_signal(signal.SIGKILL)
        await self._process.wait()


async def until(condition: Callable[[], Awaitable[bool]], limit: float = 90.0) -> None:
    end = time.monotonic() + limit
    while not await condition():
        assert time.monotonic() < end, "it did not come to that"
        await asyncio.sleep(0.1)


@pytest.mark.server
@pytest.mark.proves(broker="nats", store="sqlite")
async def test_P4_webhooks_are_counted_once_though_the_process_is_killed_and_github_sends_them_again(
    tmp_path: Path,
) -> None:
    names = sorted(KNOWN | STRANGE)
    async with embedded_server(tmp_path / "nats"):  # so that the server ends with the test whatever happens
        process = Process(tmp_path, free_port())
        async with process.running() as client:
            send = sender(client)
            responses = await asyncio.gather(*(send(name, PAYLOADS[name]) for name in names[:6]))
            assert [response.status_code for response in responses] == [202] * 6
            await process.kill()
        async with process.running() as client:
            send = sender(client)
            for name in names:
                assert (await send(name, PAYLOADS[name])).status_code == 202

            async def counted() -> bool:
                return bool((await client.get("/")).json() == EXPECTED)

            await until(counted)
            response = await send("star.created", STAR, X_Hub_Signature_256="sha256=" + "0" * 64)
            assert response.status_code == 401


def test_every_event_of_the_example_tells_its_delivery() -> None:
    for event in (*RECOGNIZED, Unrecognized):
        assert "delivery" in event.__struct_fields__
