"""With what a connection signs in, and what is said of those who are refused."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import pytest

from tests.integration.nats.jwt import Authority
from tidings.brokers.nats.broker import NatsBroker
from tidings.brokers.nats.login import Login, credentials, expiry, remedy, who
from tidings.brokers.nats.options import parse
from tidings.errors import BrokerUnavailable, ConfigurationError


def _given(found: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in found.items() if value is not None}


async def test_what_stands_in_files_is_read_each_time(tmp_path: Path) -> None:
    secret = tmp_path / "secret"
    by_password, by_token = parse(f"nats://me@h?password_file={secret}"), parse(f"nats://h?token_file={secret}")
    for text in ("first", "s\u00e9cond with spaces "):
        secret.write_text(f"{text}\n")
        assert _given(await credentials(by_password, None)) == {"user": "me", "password": text}
        assert _given(await credentials(by_token, None)) == {"token": text}
    assert _given(await credentials(parse("nats://me:hunter2@h"), None)) == {"user": "me", "password": "hunter2"}


@pytest.mark.parametrize(
    ("option", "kind", "said"),
    [
        ("password_file", "missing", "there is no such file"),
        ("token_file", "missing", "there is no such file"),
        ("password_file", "empty", "the file is empty"),
        ("token_file", "folder", "cannot be read: Is a directory"),
        ("token_file", "binary", "cannot be read: it holds no text"),
        ("creds", "missing", "there is no such file. It holds what this service signs in with"),
        ("nkey", "missing", "there is no such file. It holds what this service signs in with"),
    ],
)
async def test_a_file_that_cannot_be_used_is_named_with_its_option(
    tmp_path: Path, option: str, kind: str, said: str
) -> None:
    path = tmp_path / "secret"
    if kind == "folder":
        path.mkdir()
    elif kind != "missing":
        path.write_bytes(b"\xff\xfe" if kind == "binary" else b"\n")
    options = parse(f"nats://{'me@' if option == 'password_file' else ''}h?{option}={path}")
    with pytest.raises(ConfigurationError) as error:
        await credentials(options, None)
    assert f"{option}={path}" in str(error.value)
    assert said in str(error.value)


async def test_a_function_is_asked_each_time_and_stands_in_for_what_the_url_says() -> None:
    passwords = iter(["first", "second"])

    async def asked() -> tuple[str, str]:
        return "me", next(passwords)

    options = parse("nats://other:hunter2@h")
    for password in ("first", "second"):
        assert await credentials(options, asked) == {"user": "me", "password": password}
    assert await credentials(options, lambda: "t0ken") == {"token": "t0ken"}


@pytest.mark.parametrize("given", [None, "", ("me",), ("me", 7), b"t0ken"])
async def test_what_are_no_credentials_is_refused_by_its_type(given: Any) -> None:
    with pytest.raises(ConfigurationError, match="a user and a password as a pair") as error:
        await credentials(parse("nats://h"), lambda: given)
    assert "me" not in str(error.value).split("not ")[1]


async def test_a_function_that_fails_is_an_outage_and_shows_nothing_of_its_error() -> None:
    def fails() -> str:
        raise RuntimeError("could not read hunter2 from the vault")

    with pytest.raises(BrokerUnavailable, match="raised RuntimeError") as error:
        await credentials(parse("nats://h"), fails)
    assert "hunter2" not in str(error.value)


def test_an_embedded_server_knows_its_own_password() -> None:
    with pytest.raises(ConfigurationError, match="embedded:"):
        NatsBroker("embedded:", login=lambda: "t0ken")


def test_who_was_refused_is_said_without_a_secret_and_with_what_to_do(tmp_path: Path) -> None:
    creds = tmp_path / "user.creds"
    Authority().issue(creds, lives=-100)
    cases: list[tuple[str, Login | None, str, str]] = [
        (
            f"nats://h?creds={creds}",
            None,
            f"the credentials of {creds}, which expired 10",
            f"replace what {creds} holds",
        ),
        ("nats://h?nkey=/n", None, "the credentials of /n", "replace what /n holds"),
        ("nats://h?token_file=/t", None, "the token of /t", "replace what /t holds"),
        ("nats://me@h?password_file=/p", None, "the user 'me' with the password of /p", "replace what /p holds"),
        ("nats://me:hunter2@h", None, "the user 'me' with the password given", "correct them in the broker's URL"),
        ("nats://hunter2@h", None, "the token", "correct them in the broker's URL"),
        ("nats://me:hunter2@h", lambda: "hunter2", "what login= returned", "it is asked again"),
    ]
    for url, login, refused, remedied in cases:
        options = parse(url)
        assert who(options, login).startswith(refused)
        assert remedy(options, login).startswith(remedied)
        assert "hunter2" not in who(options, login) + remedy(options, login)


def test_when_credentials_expire_is_read_from_their_file(tmp_path: Path) -> None:
    creds = tmp_path / "user.creds"
    assert expiry(str(creds)) is None
    Authority().issue(creds, lives=3600)
    found = expiry(str(creds))
    assert found is not None
    assert abs(found - time.time() - 3600) < 10
    Authority().issue(creds)
    assert expiry(str(creds)) is None
    for rubbish in ("rubbish", "-----BEGIN NATS USER JWT-----\na.b.c\n", "-----BEGIN NATS USER JWT-----\nx\n"):
        creds.write_text(rubbish)
        assert expiry(str(creds)) is None
