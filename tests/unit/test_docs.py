"""The documentation is run, and what it shows is compared with what the code does.

Every block marked ``python`` in README.md and under docs/ is executed, the blocks of one page in order and in one
namespace; ``await`` may stand at the top level, and tests that a page shows are called at its end. A block that cannot
be run has a line before it that says why: ``<!-- not run: it needs a server -->``.
"""

from __future__ import annotations

import ast
import asyncio
import inspect
import re
import sys
import types
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec
import pytest

from tests.golden.examples import FOLDER, examples
from tidings import delivery
from tidings.brokers.nats.frames import frame_of
from tidings.context import derived_id
from tidings.copies import MAX_FOREIGN, MAX_REASON, MAX_TRACEBACK, retry_copy
from tidings.delivery import MAX_EVENT_BYTES, MAX_KEY_LENGTH, PARTITIONS, Delivery, Envelope, Header, Message, Retried
from tidings.envelope import STRUCTURED_HEADERS, read_envelope, to_binary, to_structured
from tidings.errors import UndecodableEvent
from tidings.event import MAX_TYPE_LENGTH
from tidings.partition import murmur2, slot_of
from tidings.testing.prover import Prover
from tidings.values import MAX_DEPTH

ROOT = Path(__file__).resolve().parents[2]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]
NAMES = [str(page.relative_to(ROOT)) for page in PAGES]

FENCE = re.compile(r"^(?P<indent> *)```(?P<language>[a-z]*) *$")
COMMENT = re.compile(r"^ *<!-- (?P<text>.*) -->$")


class Block(msgspec.Struct):
    """A fenced block: where its first line stands, its language, its text, and the comment right before it."""

    line: int
    language: str
    text: str
    comment: str


def blocks(page: Path) -> Iterator[Block]:
    lines = page.read_text(encoding="utf-8").splitlines()
    number = 0
    while number < len(lines):
        opening = FENCE.match(lines[number])
        number += 1
        if not opening:
            continue
        start = number
        while lines[number].strip() != "```":
            number += 1
        before = COMMENT.match(lines[start - 2]) if start > 1 else None
        cut = len(opening["indent"])
        text = "\n".join(line[cut:] for line in lines[start:number])
        yield Block(start + 1, opening["language"], text, before["text"] if before else "")
        number += 1


def run(page: Path) -> int:
    """Execute the Python of a page; returns how many blocks were."""
    module = types.ModuleType(f"page_{page.stem.lower().replace('-', '_')}")
    sys.modules[module.__name__] = module
    ran = 0
    try:
        with asyncio.Runner() as runner:
            for block in blocks(page):
                if block.language != "python":
                    continue
                if block.comment.startswith("not run:"):
                    assert block.comment.removeprefix("not run:").strip(), f"{page}:{block.line}: say why"
                    continue
                source = "\n" * (block.line - 1) + block.text
                code = compile(source, str(page), "exec", ast.PyCF_ALLOW_TOP_LEVEL_AWAIT, dont_inherit=True)
                result = eval(code, vars(module))
                if inspect.iscoroutine(result):
                    runner.run(result)
                ran += 1
            for name, test in list(vars(module).items()):
                if name.startswith("test_") and inspect.isfunction(test):
                    fixtures = {"tmp_path": Path.cwd(), "prover": Prover(Path.cwd() / "prover")}
                    result = test(*(fixtures[one] for one in inspect.signature(test).parameters))
                    if inspect.iscoroutine(result):
                        runner.run(result)
    finally:
        del sys.modules[module.__name__]
    return ran


@pytest.mark.parametrize("page", PAGES, ids=NAMES)
def test_the_examples_of_the_documentation_run(page: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for name in ("TIDINGS_BROKER", "TIDINGS_STORE"):
        monkeypatch.delenv(name, raising=False)
    run(page)


def test_a_wrong_example_is_found_at_its_line(tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    page.write_text(
        "# Page\n\n```python\nimport asyncio\nx = 1\n```\n\n- item\n\n  ```python\n  await asyncio.sleep(0)\n"
        "  assert x == 2\n  ```\n"
    )
    with pytest.raises(AssertionError) as caught:
        run(page)
    assert caught.traceback[-1].lineno == 11
    page.write_text("```python\nasync def test_sums() -> None:\n    assert 1 + 1 == 3\n```\n")
    with pytest.raises(AssertionError):
        run(page)
    page.write_text("<!-- not run: it needs a server -->\n```python\nassert False\n```\n```text\nassert False\n```\n")
    assert run(page) == 0


def test_links_between_pages_lead_somewhere() -> None:
    broken = []
    for page in PAGES[1:]:
        for target in re.findall(r"\]\(([^)#\s]+)(?:#[^)]*)?\)", page.read_text(encoding="utf-8")):
            if "://" not in target and not (page.parent / target).exists():
                broken.append(f"{page.relative_to(ROOT)}: {target}")
    assert not broken


# ── docs/reference/wire.md ──────────────────────────────────────────────────────────────────────────────────────────

WIRE = ROOT / "docs" / "reference" / "wire.md"


def table(marker: str) -> list[list[str]]:
    """The rows of the table after ``<!-- marker -->``, without markup."""
    lines = WIRE.read_text(encoding="utf-8").splitlines()
    start = lines.index(f"<!-- {marker} -->") + 3
    rows = []
    for line in lines[start:]:
        if not line.startswith("|"):
            break
        rows.append([cell.strip().strip("`") for cell in line.strip().strip("|").split("|")])
    assert rows
    return rows


def message_of(name: str, mode: str) -> Message:
    envelope = examples()[name][1]
    headers, body = to_binary(envelope) if mode == "binary" else (STRUCTURED_HEADERS, to_structured(envelope))
    stream = envelope.type.split(".")[0]
    return Message(id=envelope.id, stream=stream, type=envelope.type, key=envelope.key, body=body, headers=headers)


def retry_message(monkeypatch: pytest.MonkeyPatch) -> Message:
    envelope = examples()["placed-v1"][1]
    made = Delivery(
        body=b"", stream="order", origin=("order", 1043), token=None, headers=STRUCTURED_HEADERS, failures=1
    )
    made.envelope = envelope
    monkeypatch.setattr("tidings.copies.time.time", lambda: 1795437007.5)
    copy = retry_copy(made, "stock.reserve", Retried(after=4.0, reason="TimeoutError: no answer"))
    return msgspec.structs.replace(copy, body=to_structured(envelope), due=32472144000.0)


def test_the_golden_files_stand_in_the_reference_as_they_are() -> None:
    shown = {block.comment: block.text for block in blocks(WIRE) if block.comment.startswith("golden: ")}
    assert len(shown) >= 6
    for comment, text in shown.items():
        golden = (FOLDER / comment.removeprefix("golden: ")).read_bytes().decode()
        assert text == golden.replace("\r\n", "\n")


def test_the_messages_in_the_reference_are_those_that_are_sent(monkeypatch: pytest.MonkeyPatch) -> None:
    shown = {block.comment: block.text for block in blocks(WIRE) if block.comment.startswith("message: ")}
    messages = {
        "message: structured placed-v1": message_of("placed-v1", "structured"),
        "message: binary caused": message_of("caused", "binary"),
        "message: retry": retry_message(monkeypatch),
    }
    assert shown.keys() == messages.keys()
    for comment, message in messages.items():
        sent = frame_of(message, 1024 * 1024, 2 * 1024 * 1024).publish(b"_INBOX.example").decode()
        if comment == "message: retry":
            sent = sent.removesuffix(message.body.decode() + "\r\n")
        assert shown[comment].rstrip() == sent.replace("\r\n", "\n").rstrip()


def test_the_vectors_of_the_reference_hold() -> None:
    for key, number, partition in table("vectors: partitions"):
        unsigned = murmur2(key.encode())
        assert int(number) == (unsigned - 2**32 if unsigned >= 2**31 else unsigned), key
        assert int(partition) == slot_of(key), key
    for cause, position, place, id in table("vectors: derived ids"):
        assert derived_id(cause, position, int(place)) == id
    base = examples()["placed-v1"][1]
    for text, header in table("vectors: headers"):
        headers, body = to_binary(msgspec.structs.replace(base, key=text))
        assert headers["ce-subject"] == header
        assert read_envelope(body, headers).key == text


def test_the_limits_of_the_reference_are_those_of_the_code() -> None:
    def most(field: str) -> int:
        hint = Envelope.__annotations__[field]
        found = re.search(r"max_length=(\w+)", str(hint))
        assert found
        return int(found[1]) if found[1].isdigit() else int(getattr(delivery, found[1]))

    assert [int(value) for _, value in table("limits")] == [
        MAX_EVENT_BYTES,
        MAX_DEPTH,
        most("id"),
        MAX_KEY_LENGTH,
        most("source"),
        MAX_TYPE_LENGTH,
        PARTITIONS,
    ]
    text = WIRE.read_text(encoding="utf-8")
    assert f"up to {MAX_REASON:,} bytes" in text
    assert f"up to {MAX_TRACEBACK:,} bytes" in text
    assert f"a copy keeps {MAX_FOREIGN // 1024} KiB of them" in text


def test_every_header_and_code_stands_in_the_reference() -> None:
    headers: set[Any] = {value for name, value in vars(Header).items() if name.isupper()}
    assert {row[0] for row in table("headers")} == headers
    codes = set(re.findall(r"``([a-z-]+)``", UndecodableEvent.__doc__ or ""))
    text = WIRE.read_text(encoding="utf-8")
    assert {row for row in codes if f"| `{row}` |" not in text} == set()
    for name in Envelope.__struct_encode_fields__:
        assert f"`{name}`" in text


def test_the_codes_of_dead_letters_stand_in_the_reference() -> None:
    sources = "".join(path.read_text() for path in (ROOT / "src" / "tidings").glob("*.py"))
    used = set(re.findall(r'code="([a-z-]+)"', sources)) | {"failed"}
    (row,) = [line for line in WIRE.read_text(encoding="utf-8").splitlines() if line.startswith("| `tidings-error`")]
    undecodable = set(re.findall(r"``([a-z-]+)``", UndecodableEvent.__doc__ or ""))
    assert used - undecodable == set(re.findall(r"`([a-z-]+)`", row.split("|")[3]))
