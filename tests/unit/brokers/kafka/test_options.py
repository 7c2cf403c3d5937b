"""What a kafka:// URL says."""

from __future__ import annotations

from pathlib import Path

import pytest

from tidings.brokers.kafka.admin import AdminClient
from tidings.brokers.kafka.clients import made
from tidings.brokers.kafka.options import parse
from tidings.errors import ConfigurationError

CANARY = "s3cret-canary"


def test_addresses_and_numbers_are_read() -> None:
    found = parse("kafka://one:9092,two,[::1]:9094?partitions=12&replication=3&session_timeout=6s")
    assert found.servers == (("one", 9092), ("two", 9092), ("::1", 9094))
    assert (found.partitions, found.replication, found.session_timeout) == (12, 3, 6.0)
    assert found.common()["bootstrap.servers"] == "one:9092,two:9092,[::1]:9094"


def test_P1_a_producer_waits_for_every_copy_once_and_in_order_unless_told_otherwise() -> None:
    settings = parse("kafka://host").producer()
    assert settings["acks"] == "all"
    assert settings["enable.idempotence"] is True
    assert settings["partitioner"] == "murmur2_random"
    assert settings["allow.auto.create.topics"] is False


def test_P3_a_consumer_commits_nothing_by_itself() -> None:
    settings = parse("kafka://host").consumer("stock.reserve")
    assert settings["enable.auto.commit"] is settings["enable.auto.offset.store"] is False
    assert settings["auto.offset.reset"] == "earliest"
    assert settings["partition.assignment.strategy"] == "cooperative-sticky"


def test_a_name_with_a_dot_is_a_setting_of_the_library() -> None:
    found = parse("kafka://host?linger.ms=7&compression.type=zstd", {"queue.buffering.max.ms": 3})
    settings = found.producer()
    assert (settings["linger.ms"], settings["compression.type"], settings["queue.buffering.max.ms"]) == ("7", "zstd", 3)


def test_what_asks_about_the_cluster_signs_in_like_all_others() -> None:
    given = {"oauth_cb": print, "ssl.ca.pem": "-----BEGIN"}
    found = parse("kafka://host?mechanism=OAUTHBEARER&tls=1&sasl.oauthbearer.method=oidc", given)
    for settings in (found.administrator(), found.producer(), found.consumer("stock.reserve"), found.reader()):
        assert settings["security.protocol"] == "SASL_SSL"
        assert {name: settings[name] for name in given} == given


def test_the_group_protocol_of_the_brokers_leaves_out_what_they_decide() -> None:
    settings = parse("kafka://host?group.protocol=consumer").consumer("stock.reserve")
    assert settings["group.protocol"] == "consumer"
    assert not {"session.timeout.ms", "heartbeat.interval.ms", "partition.assignment.strategy"} & set(settings)


@pytest.mark.parametrize(
    ("url", "protocol", "mechanism"),
    [
        ("kafka://localhost", "PLAINTEXT", None),
        ("kafka://host?tls=1", "SSL", None),
        ("kafka://host?tls_ca=/", "SSL", None),
        ("kafka://u:p@host?tls=1", "SASL_SSL", "PLAIN"),
        ("kafka://u:p@host?mechanism=scram-sha-512", "SASL_PLAINTEXT", "SCRAM-SHA-512"),
        ("kafka://u:p@127.0.0.1:9092,[::1]:9093,localhost", "SASL_PLAINTEXT", "PLAIN"),
        ("kafka://host?mechanism=OAUTHBEARER&tls=1&sasl.oauthbearer.method=oidc", "SASL_SSL", "OAUTHBEARER"),
    ],
)
def test_how_it_signs_in_and_whether_it_is_seen(url: str, protocol: str, mechanism: str | None) -> None:
    settings = parse(url).common()
    assert settings["security.protocol"] == protocol
    assert settings.get("sasl.mechanism") == mechanism


@pytest.mark.parametrize(
    ("query", "word"),
    [
        ("acks=1", "acks"),
        ("acks=0", "acks"),
        ("request.required.acks=1", "acks"),
        ("enable.idempotence=false", "idempotence"),
        ("enable.auto.commit=true", "auto-commit"),
        ("enable.auto.offset.store=true", "auto-commit"),
        ("auto.offset.reset=latest", "latest"),
        ("enable.ssl.certificate.verification=false", "tls"),
        ("ssl.endpoint.identification.algorithm=none", "tls"),
        ("allow.auto.create.topics=true", "auto-create"),
        ("isolation.level=read_uncommitted", "uncommitted"),
        ("partitioner=random", "partitioner"),
    ],
)
def test_what_loses_or_doubles_events_is_refused_with_the_reason_unless_confirmed(query: str, word: str) -> None:
    with pytest.raises(ConfigurationError, match=f"unsafe={word}$"):
        parse(f"kafka://localhost?{query}")
    assert parse(f"kafka://localhost?{query}&unsafe={word}").more


def test_the_same_settings_in_their_safe_values_are_no_matter() -> None:
    parse("kafka://localhost?acks=all&enable.idempotence=true&enable.auto.commit=false&auto.offset.reset=earliest")


def test_a_password_in_the_open_is_refused_unless_it_stays_here() -> None:
    with pytest.raises(ConfigurationError, match="PLAIN without TLS") as raised:
        parse(f"kafka://user:{CANARY}@elsewhere")
    assert CANARY not in str(raised.value)
    parse(f"kafka://user:{CANARY}@elsewhere?unsafe=plain")
    parse(f"kafka://user:{CANARY}@elsewhere?tls=1")
    with pytest.raises(ConfigurationError, match=r"token would travel.*unsafe=oauthbearer$"):
        parse("kafka://localhost,elsewhere?mechanism=OAUTHBEARER")
    parse("kafka://elsewhere?mechanism=OAUTHBEARER&unsafe=oauthbearer&sasl.oauthbearer.method=oidc")


@pytest.mark.parametrize(
    ("url", "why"),
    [
        ("kafka://user@localhost", "no password"),
        ("kafka://user:@localhost?mechanism=SCRAM-SHA-256", "no password"),
        (f"kafka://:{CANARY}@localhost", "no user"),
        ("kafka://localhost?mechanism=PLAIN", "no user"),
        ("kafka://localhost?mechanism=OAUTHBEARER", "oauth_cb"),
    ],
)
def test_who_signs_in_without_what_that_takes_is_told_what_to_write(url: str, why: str) -> None:
    with pytest.raises(ConfigurationError, match=why) as raised:
        parse(url)
    assert CANARY not in str(raised.value)


def test_what_makes_tokens_is_enough_to_sign_in() -> None:
    url = "kafka://localhost?mechanism=OAUTHBEARER"
    parse(url, {"oauth_cb": print})
    parse(f"{url}&sasl.oauthbearer.method=oidc")
    parse(f"{url}&enable.sasl.oauthbearer.unsecure.jwt=true")


@pytest.mark.parametrize("option", ["tls_ca", "tls_cert", "tls_key"])
def test_a_file_that_cannot_be_read_is_named_with_its_option(option: str, tmp_path: Path) -> None:
    good = tmp_path / "good.pem"
    good.write_text("-----BEGIN")
    files = {name: good for name in ("tls_ca", "tls_cert", "tls_key")} | {option: tmp_path / "bad.pem"}
    found = parse("kafka://localhost?" + "&".join(f"{name}={path}" for name, path in files.items()))
    with pytest.raises(ConfigurationError, match=rf"{option}={tmp_path}/bad\.pem: No such file"):
        found.common()


def test_what_the_library_refuses_is_told_by_the_name_that_stands_in_the_url(tmp_path: Path) -> None:
    rubbish = tmp_path / "rubbish.pem"
    rubbish.write_text("no certificates")
    found = parse(f"kafka://localhost?tls_ca={rubbish}")
    with pytest.raises(ConfigurationError, match=r"refused: tls_ca failed: .*no certificate") as raised:
        made(AdminClient, found.common(), found.where)
    assert "ssl.ca.location" not in str(raised.value)


def test_certificates_to_trust_may_be_a_folder_of_them(tmp_path: Path) -> None:
    assert parse(f"kafka://localhost?tls_ca={tmp_path}").common()["ssl.ca.location"] == str(tmp_path)


def test_an_address_with_colons_is_shown_as_it_has_to_be_written() -> None:
    assert parse("kafka://[::1]:9093,localhost").where == "kafka://[::1]:9093,localhost:9092"


@pytest.mark.parametrize(
    ("query", "why"),
    [
        ("group.id=mine", "the position's name"),
        ("transactional.id=t", "no transactions"),
        ("bootstrap.servers=other", "into the URL"),
        ("tls=1&security.protocol=SASL_PLAINTEXT", "in the open"),
        ("sasl.mechanisms=PLAIN&sasl.username=user", "mechanism="),
        (f"sasl.password={CANARY}", "password_file="),
        ("partition.assignment.strategy=range", "cooperative-sticky"),
    ],
)
def test_what_is_nobodys_to_set_is_refused_whatever_is_confirmed(query: str, why: str) -> None:
    with pytest.raises(ConfigurationError, match=why) as raised:
        parse(f"kafka://host?{query}&unsafe=acks,latest")
    assert CANARY not in str(raised.value)


@pytest.mark.parametrize(
    "url",
    [
        "kafka:host",
        "kafka://",
        "kafka://host:no",
        "kafka://host/path",
        "kafka://host?partition=3",
        "kafka://host?partitions=0",
        "kafka://host?session_timeout=soon",
        "kafka://host?mechanism=KERBEROS5",
        "kafka://host?tls_key=/k",
        "kafka://host?password_file=/p",
        f"kafka://user:{CANARY}@host?password_file=/p",
    ],
)
def test_what_cannot_be_read_is_said_without_the_password(url: str) -> None:
    with pytest.raises(ConfigurationError) as raised:
        parse(url)
    assert CANARY not in str(raised.value)


def test_a_password_is_read_from_its_file_at_each_connection(tmp_path: Path) -> None:
    file = tmp_path / "password"
    found = parse(f"kafka://user@localhost?password_file={file}")
    for secret in ("first", "second"):
        file.write_text(secret + "\n")
        assert found.common()["sasl.password"] == secret


def test_nothing_that_is_printed_shows_the_password() -> None:
    found = parse(f"kafka://user:{CANARY}@localhost")
    assert CANARY not in f"{found!r} {found} {found.where}"
