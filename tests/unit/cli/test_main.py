"""Statuses, one line for each failure, and what every command has."""

from __future__ import annotations

import json
import time
from pathlib import Path

import pytest

from tidings import BrokerUnavailable, ConfigurationError, EventTooLarge, __version__
from tidings.cli import demo, main, options
from tidings.cli.failures import MEANINGS, CommandError, Status, explain
from tidings.cli.moments import moment_of
from tidings.cli.output import Out

COMMANDS = [
    ["run"],
    ["up"],
    ["publish"],
    ["tail"],
    ["demo"],
    ["replay"],
    ["dead", "list"],
    ["dead", "show"],
    ["dead", "redrive"],
    ["dead", "discard"],
]


@pytest.mark.parametrize("command", COMMANDS, ids=" ".join)
def test_every_command_has_json_and_explains_itself(command: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert main.run([*command, "--help"]) == 0
    found = capsys.readouterr().out
    assert "--json" in found
    assert "130" in found


def test_the_help_says_what_each_exit_status_means(capsys: pytest.CaptureFixture[str]) -> None:
    assert main.run(["--help"]) == 0
    found = capsys.readouterr().out
    assert all(f"{int(status)}:" in found for status in Status)
    assert set(MEANINGS) == set(Status)
    for command in COMMANDS:
        assert command[0] in found


@pytest.mark.parametrize("given", [[], ["--broker"]], ids=["as an argument", "as everywhere"])
def test_the_doctor_is_told_its_broker_as_the_other_commands_are(
    given: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    assert main.run(["doctor", *given, "nats://127.0.0.1:1"]) == Status.WORLD
    assert capsys.readouterr().out.startswith("down: ")


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (
            ["runn"],
            'Did you mean "run"? Commands: run, relay, up, publish, tail, pause, resume, replay, doctor, demo, ',
        ),
        (["dead", "lst"], 'Did you mean "list"? Commands: list, show, redrive, discard. tidings dead --help'),
    ],
)
def test_a_command_that_is_none_gets_all_that_there_are(
    arguments: list[str], says: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main.run(arguments) == Status.USAGE
    assert says in capsys.readouterr().err


def test_the_doctor_examines_one_broker(capsys: pytest.CaptureFixture[str]) -> None:
    assert main.run(["doctor", "nats://127.0.0.1:1", "--broker", "nats://127.0.0.1:2"]) == Status.USAGE
    assert "name one broker" in capsys.readouterr().err


def test_the_version_is_printed(capsys: pytest.CaptureFixture[str]) -> None:
    assert main.run(["--version"]) == 0
    assert capsys.readouterr().out.strip() == __version__


@pytest.mark.parametrize(
    "arguments", [["rn"], ["run"], ["run", "x", "--fo"], ["run", "x", "--port", "y"], ["dead", "no"], ["tail", "a b"]]
)
def test_a_wrong_command_line_is_one_line_and_status_2(
    arguments: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    assert main.run(arguments) == Status.USAGE
    out, err = capsys.readouterr()
    assert not out
    assert err.startswith("tidings: ")
    assert err.count("\n") == 1


def test_a_failure_is_json_where_json_is_wanted(capsys: pytest.CaptureFixture[str]) -> None:
    assert main.run(["tail", "a b", "--json"]) == Status.USAGE
    found = json.loads(capsys.readouterr().err)
    assert found["status"] == 2
    assert "neither a stream" in found["error"]


@pytest.mark.parametrize(
    ("error", "status"),
    [
        (EventTooLarge("big"), Status.EVENT),
        (BrokerUnavailable("gone"), Status.WORLD),
        (ConfigurationError("wrong"), Status.CONFIGURATION),
        (CommandError("no", Status.USAGE), Status.USAGE),
        (KeyboardInterrupt(), Status.INTERRUPTED),
        (ExceptionGroup("several", [BrokerUnavailable("gone")]), Status.WORLD),
        (ZeroDivisionError("0"), Status.FAILED),
    ],
)
def test_each_branch_of_errors_has_a_status_of_its_own(error: BaseException, status: Status) -> None:
    assert explain(error)[0] is status


def test_what_is_unexpected_says_how_to_see_more() -> None:
    assert "TIDINGS_DEBUG=1" in explain(ZeroDivisionError("0"))[1]


@pytest.mark.parametrize(
    ("url", "public"),
    [
        ("nats://user:canary@host:4222?token=canary", "nats://host:4222"),
        ("nats://canary@host", "nats://host"),
        ("tls://a:canary@one:1,b:canary@two:2", "tls://two:2"),
        ("postgresql+asyncpg://u:canary@db/shop?password=canary", "postgresql+asyncpg://db/shop"),
        ("sqlite:///shop.db", "sqlite:///shop.db"),
        ("embedded:./data?port=4222", "embedded:./data"),
        ("embedded:", "embedded:"),
    ],
)
def test_a_url_is_shown_without_its_secrets(url: str, public: str) -> None:
    """Trap 171."""
    assert options.public(url) == public
    assert "canary" not in options.public(url)


def test_without_a_broker_the_remedy_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("TIDINGS_BROKER", raising=False)
    with pytest.raises(CommandError, match="TIDINGS_BROKER") as failed:
        options.broker_url(None)
    assert failed.value.status is Status.CONFIGURATION
    monkeypatch.setenv("TIDINGS_BROKER", "embedded:x")
    assert options.broker_url(None) == "embedded:x"
    assert options.broker_url("embedded:y") == "embedded:y"


def test_a_table_is_plain_where_nobody_looks(capsys: pytest.CaptureFixture[str]) -> None:
    Out().table(["a", "b"], [["1", "x\ny"]])
    assert capsys.readouterr().out == "a\tb\n1\tx\\ny\n"


@pytest.mark.parametrize("text", ["yesterday", "2026-13-01", "0001-01-01T00:00", "10 minutes", "99999999999999d"])
def test_what_is_no_time_is_refused(text: str) -> None:
    with pytest.raises(CommandError, match="--since"):
        moment_of("--since", text, Out())


def test_a_time_is_read_as_people_write_it(capsys: pytest.CaptureFixture[str]) -> None:
    assert moment_of("--since", None, Out()) is None
    ago, stamp = moment_of("--since", "10m", Out()), moment_of("--since", "2026-01-31T12:00:00Z", Out())
    assert ago is not None
    assert stamp is not None
    assert stamp.isoformat() == "2026-01-31T12:00:00+00:00"
    assert ago > stamp or ago.tzinfo is not None
    assert capsys.readouterr().err == ""


def test_a_time_without_zone_is_the_time_here_and_it_is_said_so(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TZ", "Asia/Tokyo")
    time.tzset()
    try:
        found = moment_of("--from", "2026-11-01T00:00", Out())
    finally:
        monkeypatch.undo()
        time.tzset()
    assert found is not None
    assert found.isoformat() == "2026-11-01T00:00:00+09:00"
    assert "--from 2026-11-01T00:00 has no zone" in capsys.readouterr().err


def test_without_the_repository_the_demo_says_where_it_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(demo, "__file__", str(tmp_path / "a" / "b" / "c" / "demo.py"))
    with pytest.raises(CommandError, match="make demo"):
        demo._root()
