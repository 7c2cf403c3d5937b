"""What a URL of a RabbitMQ says, and what is wrong with one."""

from __future__ import annotations

from pathlib import Path

import pytest

from tidings.brokers.rabbitmq.options import parse
from tidings.errors import ConfigurationError


def test_a_url_is_taken_apart() -> None:
    options = parse("amqp://me:p%40ss@one:5673,two/my%2Fshop?heartbeat=20s&connect_timeout=3")
    assert options.servers == (("one", 5673), ("two", 5672))
    assert (options.user, options.secret(), options.vhost) == ("me", "p@ss", "my/shop")
    assert (options.heartbeat, options.connect_timeout, options.tls) == (20, 3, False)
    assert options.where == "amqp://one:5673,two:5672/my/shop"


def test_what_is_not_said_is_as_servers_come() -> None:
    options = parse("amqp://localhost")
    assert (options.user, options.secret(), options.vhost) == ("guest", "guest", "/")
    assert parse("amqps://host").servers == (("host", 5671),)
    assert parse("amqp://[::1]:5673").servers == (("::1", 5673),)


def test_a_password_may_stand_in_a_file_and_is_read_anew(tmp_path: Path) -> None:
    file = tmp_path / "secret"
    options = parse(f"amqp://me@host?password_file={file}")
    for word in ("first", "second"):
        file.write_text(word + "\n")
        assert options.secret() == word


@pytest.mark.parametrize(
    ("url", "said"),
    [
        ("amqp://host/a/b", "cannot be read"),
        ("amqp://", "without host"),
        ("amqp://host:x", "without host"),
        ("amqp://host?colour=red", "'colour', which is none"),
        ("amqp://host?heartbeat=0.5s", "whole seconds"),
        ("amqp://host?heartbeat=1000s", "whole seconds"),
        ("amqp://host?auth=kerberos", "plain or external"),
        ("amqp://host?tls_ca=/x", "write amqps://"),
        ("amqps://host?tls_key=/x", "needs tls_cert"),
        ("amqp://me:hunter2@host?password_file=/x", "leave that out"),
        ("amqp://host?group_size=0", "a number of nodes"),
    ],
)
def test_a_wrong_url_is_told_without_its_password(url: str, said: str) -> None:
    with pytest.raises(ConfigurationError, match=said) as error:
        parse(url)
    assert "hunter2" not in str(error.value)


def test_a_password_is_not_shown() -> None:
    assert "hunter2" not in repr(parse("amqp://me:hunter2@host")) + str(parse("amqp://me:hunter2@host"))
