"""What is said of a Kafka that is away: one sentence of ours about what happened, one about what to do."""

from __future__ import annotations

import time
from collections.abc import Sequence

import pytest
from confluent_kafka import KafkaError

from tidings.brokers.kafka.away import REFUSED_FOR, Away

WHERE = "kafka://127.0.0.1:9092"
DOWN = (KafkaError._ALL_BROKERS_DOWN, "0/2 brokers are down")
REFUSED = (
    KafkaError._TRANSPORT,
    "127.0.0.1:9092/bootstrap: Connect to ipv4#127.0.0.1:9092 failed: Connection refused (after 0ms in state CONNECT)",
)
UNKNOWN = (
    KafkaError._RESOLVE,
    "nosuch:9092/bootstrap: Failed to resolve 'nosuch:9092': Name or service not known (after 2ms in state CONNECT)",
)
RUBBISH = (
    KafkaError._BAD_MSG,
    "127.0.0.1:9092/bootstrap: Receive failed: Invalid response size 1095586128 (0..100000000): increase"
    " receive.message.max.bytes (after 0ms in state APIVERSION_QUERY)",
)
DENIED = (
    KafkaError._AUTHENTICATION,
    "sasl_ssl://127.0.0.1:9092/bootstrap: SASL authentication error: Authentication failed (after 9ms in state AUTH)",
)
NOT_TRUSTED = (
    KafkaError._SSL,
    "sasl_ssl://127.0.0.1:9092/bootstrap: SSL handshake failed: error:0A000086:SSL routines::certificate verify failed:"
    " broker certificate could not be verified, verify that ssl.ca.location is correctly configured or root CA"
    " certificates are installed (install ca-certificates package) (after 9ms in state SSL_HANDSHAKE)",
)
NO_TLS = (
    KafkaError._SSL,
    "sasl_ssl://127.0.0.1:9092/bootstrap: SSL handshake failed: Disconnected: SSL connection closed by peer: connecting"
    " to a PLAINTEXT broker listener? (after 9ms in state SSL_HANDSHAKE)",
)
NOBODY_ASKED = (
    KafkaError._AUTHENTICATION,
    "sasl_plaintext://127.0.0.1:9092/bootstrap: SASL PLAIN mechanism handshake failed: Broker: Request not valid in"
    " current SASL state: broker's supported mechanisms:  (after 3ms in state AUTH_HANDSHAKE)",
)
NO_CERTIFICATE = (
    KafkaError._TRANSPORT,
    "ssl://127.0.0.1:9093/bootstrap: Disconnected: SSL routines::sslv3 alert bad certificate: SSL alert number 42",
)
NO_ROUTE = (
    KafkaError._TRANSPORT,
    "10.0.0.1:9092/bootstrap: Connect to ipv4#10.0.0.1:9092 failed: No route to host (after 2ms in state CONNECT, 3"
    " identical error(s) suppressed)",
)
ASTRAY = (
    KafkaError._TRANSPORT,
    "sasl_ssl://kafka:29092/2: Connect to ipv4#10.0.0.1:29092 failed: Connection refused (after 2ms in state CONNECT)",
)


def told(*reports: tuple[int, str], known: bool = False) -> str:
    away = Away(WHERE)
    if known:
        away.answered()
    for code, said in reports:
        away.hear(KafkaError(code, said))
    return ". ".join(away.why())


@pytest.mark.parametrize(
    ("reports", "what", "to_do"),
    [
        ([REFUSED, DOWN], f"nothing listens on {WHERE}", "Is the broker running"),
        ([DOWN], f"{WHERE} took the connection and did not answer", "Does this port speak Kafka"),
        ([DOWN], f"{WHERE} took the connection and did not answer", "kafka://user:password@host:9092"),
        ([RUBBISH, DOWN], f"what {WHERE} answers is not Kafka", "Does this port speak Kafka"),
        ([UNKNOWN, DOWN], "Failed to resolve 'nosuch:9092': Name or service not known. ", "Is the address right"),
        ([DENIED], "SASL authentication error: Authentication failed. ", "Look at the user, the password"),
        ([NOT_TRUSTED], f"the certificate that {WHERE} shows is not trusted. ", "Look at tls_ca="),
        ([NO_TLS], "connecting to a PLAINTEXT broker listener. ", "whether this listener speaks TLS"),
        ([NOBODY_ASKED], f"{WHERE} asks nobody for a user. ", "Leave user, password and mechanism= out"),
        ([NO_CERTIFICATE], "SSL alert number 42. ", "tls_cert= and tls_key="),
        ([NO_ROUTE, DOWN], f"{WHERE} cannot be reached: No route to host. ", "Is the broker running"),
        (
            [ASTRAY, DOWN],
            "but broker 2 tells its clients to come to kafka:29092, and from here: Connection ref",
            "Set advertised.listeners of broker 2",
        ),
        ([], f"no answer from {WHERE} in time", "Is the broker running"),
    ],
    ids=[
        "nobody listens",
        "another server, or one that hangs",
        "nobody signs in where one must",
        "another server answers",
        "no such name",
        "refused",
        "a certificate of nobody known",
        "no TLS",
        "somebody signs in where nobody does",
        "no certificate",
        "no route",
        "sent elsewhere",
        "silence",
    ],
)
def test_what_is_wrong_with_a_cluster_is_said_with_what_to_do_and_without_the_librarys_figures(
    reports: Sequence[tuple[int, str]], what: str, to_do: str
) -> None:
    text = told(*reports)
    assert what in text
    assert to_do in text
    assert not any(end in text for end in ("?.", ":.", ".."))
    for figure in ("brokers are down", "in state", "ipv4#", "/bootstrap", "ssl.ca.location"):
        assert figure not in text


def test_a_cluster_that_was_there_was_lost_and_speaks_kafka() -> None:
    text = told(DOWN, known=True)
    assert text.startswith(f"the connection to {WHERE} was lost. Is the broker running")


def test_a_broker_that_was_reached_before_was_sent_to_the_right_address() -> None:
    assert "advertised" not in told(ASTRAY, DOWN, known=True)


def test_a_slip_of_the_library_while_it_signs_in_anew_is_no_outage() -> None:
    slip = (
        "sasl_ssl://127.0.0.1:9093/1: SASL OAUTHBEARER mechanism handshake failed: Broker: Request not valid in current"
        " SASL state: broker's supported mechanisms:  (after 0ms in state AUTH_HANDSHAKE)"
    )
    away = Away(WHERE)
    assert not away.hear(KafkaError(KafkaError._AUTHENTICATION, slip))
    assert not away.heard


def test_who_is_let_in_does_not_hide_that_another_client_is_not(monkeypatch: pytest.MonkeyPatch) -> None:
    away = Away(WHERE)
    away.hear(KafkaError(*DENIED))
    away.answered()
    assert "Authentication failed" in ". ".join(away.why())
    later = time.monotonic() + REFUSED_FOR + 0.1
    monkeypatch.setattr(time, "monotonic", lambda: later)
    away.answered()
    assert not away.heard


def test_only_what_concerns_all_brokers_is_a_reason_to_look() -> None:
    away = Away(WHERE)
    assert not away.hear(KafkaError(*REFUSED))
    assert away.hear(KafkaError(*DOWN))
    away.answered()
    assert not away.heard
