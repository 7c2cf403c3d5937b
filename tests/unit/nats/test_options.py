"""A URL taken apart."""

from __future__ import annotations

import pytest

from tidings.brokers.nats.options import parse
from tidings.errors import ConfigurationError


def test_a_url_names_servers_user_and_options() -> None:
    options = parse("nats://me:p%40ss@one:4333,two,[::1]:5?ack_wait=500ms&inbox=_IN.me&domain=hub&replicas=3")
    assert options.servers == (("one", 4333), ("two", 4222), ("::1", 5))
    assert (options.user, options.password, options.token) == ("me", "p@ss", None)
    assert (options.ack_wait, options.inbox, options.api, options.replicas) == (0.5, "_IN.me", "$JS.hub.API", 3)
    assert not options.tls
    assert parse("tls://t0ken@h").tls
    assert parse("nats://t0ken@h").token == "t0ken"
    assert parse("nats://h?ack_wait=2m").ack_wait == 120.0
    assert parse("nats://h?prefix=JS.shop").api == "JS.shop"


@pytest.mark.parametrize(
    ("url", "said"),
    [
        ("nats://", "without host"),
        ("nats://u:hunter2@:4222", "without host"),
        ("nats://u:hunter2@h:port", "a port that is none"),
        ("nats://u:hunter2@h:99999", "a port that is none"),
        ("nats://u:hunter2@h/x", "cannot be read"),
        ("http://u:hunter2@h", "cannot be read"),
        ("nats://[u:hunter2@h", "cannot be read"),
        ("nats://u:hunter2@h?ackwait=1", "'ackwait', which is none"),
        ("nats://u:hunter2@h?ack_wait=soon", "a time such as 15s"),
        ("nats://u:hunter2@h?ack_wait=0", "a time such as 15s"),
        ("nats://u:hunter2@h?replicas=2", "1, 3 or 5"),
        ("nats://u:hunter2@h?inbox=a.*", "words joined by dots"),
        ("nats://u:hunter2@h?tls_key=/k", "needs tls_cert"),
        ("nats://u:hunter2@h?password_file=/p", "is for the password of a user"),
        ("nats://h?password_file=/p", "is for the password of a user"),
        ("nats://u:hunter2@h?token_file=/t", "in the place of a token or a user"),
    ],
)
def test_a_wrong_url_is_explained_without_its_password(url: str, said: str) -> None:
    with pytest.raises(ConfigurationError, match=said) as refused:
        parse(url)
    assert "hunter2" not in str(refused.value)
    assert refused.value.__cause__ is None


def test_trap_171_nothing_that_prints_options_shows_a_secret() -> None:
    options = parse("nats://me:hunter2@h")
    assert "hunter2" not in f"{options} {options!r} {options.where}"


def test_a_missing_certificate_is_named() -> None:
    with pytest.raises(ConfigurationError, match=r"/nowhere/ca\.pem cannot be used"):
        parse("tls://h?tls_ca=/nowhere/ca.pem").ssl_context()


def test_what_stands_before_the_at_sign_is_a_user_where_its_password_stands_in_a_file() -> None:
    options = parse("nats://me@h?password_file=/run/p")
    assert (options.user, options.password, options.token, options.password_file) == ("me", None, None, "/run/p")
    assert parse("nats://h?token_file=/run/t").token_file == "/run/t"
