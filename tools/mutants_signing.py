"""Bugs to seed into how one signs in to Kafka and RabbitMQ, what is said of it, and what an old broker is asked for."""

from __future__ import annotations

from tools.mutants_kit import Mutant

_OLD = tuple(
    f"tests/integration/kafka/test_old_brokers.py::{test}"
    for test in (
        "test_P1_P3_an_old_broker_that_is_killed_loses_nothing_that_it_confirmed",
        "test_brokers_that_are_too_old_to_assign_are_named_at_the_start",
        "test_the_doctor_says_how_old_a_broker_is_and_what_it_lacks",
    )
)
_PUBLISHING = ("tests/integration/kafka/test_publishing.py",)
_UNIT = ("tests/unit/brokers/kafka",)
_MADE = "            context = ssl.create_default_context(cafile=self.tls_ca)\n"
_RABBIT = "tests/integration/rabbitmq/test_rabbitmq_security.py"


def _kafka(what: str, file: str, old: str, new: str, tests: tuple[str, ...]) -> Mutant:
    return Mutant(f"signing: kafka: {what}", f"brokers/kafka/{file}", old, new, tests)


def _rabbit(what: str, file: str, old: str, new: str, test: str) -> Mutant:
    return Mutant(f"signing: rabbitmq: {what}", f"brokers/rabbitmq/{file}", old, new, (f"{_RABBIT}::test_{test}",))


SIGNING: tuple[Mutant, ...] = (
    _kafka(
        "brokers that cannot assign are waited for in silence",
        "versions.py",
        "        if not assigns(understood):\n",
        "        if not understood:\n",
        _OLD,
    ),
    _kafka(
        "what an old broker lacks is no matter to the doctor",
        "doctor.py",
        'if options.protocol == "consumer" and not versions',
        'if options.protocol == "never" and not versions',
        _OLD,
    ),
    _kafka(
        "old releases are taken for new ones",
        "versions.py",
        "if understood.get(LIST_OFFSETS, (0, 0))[1] >= 7:",
        "if understood.get(LIST_OFFSETS, (0, 0))[1] >= 6:",
        _UNIT,
    ),
    _kafka(
        "whatever answers is a broker",
        "versions.py",
        "if number != 1 or error or not 0 < count <= 1000 or end > len(answer):",
        "if error:",
        _UNIT,
    ),
    _kafka(
        "a broker that speaks TLS is asked without",
        "versions.py",
        '.lower().endswith("ssl"):',
        '.lower().endswith("never"):',
        ("tests/integration/kafka/test_security.py::test_the_doctor_asks_over_tls_how_old_a_broker_is",),
    ),
    _kafka(
        "what a producer was told once of a topic is believed",
        "publishing.py",
        "            if not partitions and time.monotonic() > patience:\n",
        "            if not partitions:\n",
        _PUBLISHING,
    ),
    _kafka(
        "a topic that is missing in one answer is gone",
        "publishing.py",
        "if topic not in self._link.seen or time.monotonic() > patience:",
        "if topic not in self._link.partitions:",
        _PUBLISHING,
    ),
    _kafka(
        "who asks about the cluster signs in by what the URL says alone",
        "options.py",
        "return {**self.common(), **self.more}",
        "return self.common()",
        _UNIT,
    ),
    _kafka("a token goes in the open", "options.py", ', "OAUTHBEARER": "token"}', "}", _UNIT),
    _kafka(
        "a setting turns TLS off behind the back of tls=1",
        "options.py",
        '    "security.protocol": "tls',
        '    "security": "tls',
        _UNIT,
    ),
    _kafka("keys may fall anywhere", "options.py", '    "partitioner": (\n', '    "partition": (\n', _UNIT),
    _rabbit(
        "any name may stand on the certificate",
        "options.py",
        _MADE,
        f"{_MADE}            context.check_hostname = False\n",
        "what_is_wrong_with_the_certificates_is_said_with_the_option",
    ),
    _rabbit(
        "whoever answers is trusted",
        "options.py",
        _MADE,
        "            context = ssl._create_unverified_context(cafile=self.tls_ca)\n",
        "what_is_wrong_with_the_certificates_is_said_with_the_option",
    ),
    _rabbit(
        "TLS where none was asked is not known",
        "link.py",
        "if self._rest.startswith(TLS_ALERT):",
        "if False:",
        "tls_at_the_wrong_port_is_told_from_wrong_certificates",
    ),
    _rabbit(
        "a port without TLS has a wrong certificate",
        "connection.py",
        "error.reason in _NO_TLS:",
        "False:",
        "tls_at_the_wrong_port_is_told_from_wrong_certificates",
    ),
    _rabbit(
        "a certificate that is demanded is not thought of",
        "connection.py",
        "if not options.tls or options.tls_cert:",
        "if options.tls or options.tls_cert:",
        "what_may_have_been_a_demand_for_a_certificate_is_said",
    ),
    _rabbit(
        "a certificate's name is taken for the user's",
        "connection.py",
        "if error.code == REFUSED and options.external:",
        "if error.code == 0 and options.external:",
        "who_may_not_in_is_said_without_the_password",
    ),
    _rabbit(
        "a right to make is not asked",
        "doctor.py",
        "        if error.code == REFUSED:\n",
        "        if False:\n",
        "the_doctor_names_what_a_user_may_not_and_makes_nothing",
    ),
    _rabbit(
        "a right to publish is not looked for",
        "doctor.py",
        "    if isinstance(why, Refused) and why.code == REFUSED:\n",
        "    if False:\n",
        "the_doctor_names_what_a_user_may_not_and_makes_nothing",
    ),
    _rabbit(
        "queues of other services are a fault",
        "doctor.py",
        "        except NotAllowed:\n            hidden += 1",
        '        except NotAllowed as error:\n            found.append(Finding("wrong", str(error)))',
        "the_doctor_names_what_a_user_may_not_and_makes_nothing",
    ),
    _rabbit(
        "the doctor makes what it looks for",
        "doctor.py",
        '{"x-queue-type": "stream", "x-max-length-bytes": "none"}',
        '{"x-queue-type": "stream"}',
        "the_doctor_makes_nothing_where_nobody_has_been",
    ),
    _rabbit(
        "a publish that is not allowed may be stored",
        "publishing.py",
        "why.code == REFUSED and f",
        "why.code == 0 and f",
        "a_start_and_a_publish_say_what_the_user_may_not",
    ),
    _rabbit(
        "a log that may not be read is waited for",
        "reading.py",
        "if _is_forbidden(error) and not follow:",
        "if False and not follow:",
        "the_doctor_names_what_a_user_may_not_and_makes_nothing",
    ),
    _rabbit(
        "processes hear each other by a right that no guide names",
        "members.py",
        'queue = f"{names.LIVE}.{secrets.token_hex(8)}"',
        'queue = ""',
        "the_rights_that_the_guide_names_are_enough",
    ),
    _rabbit(
        "processes that may not hear each other are silent about it",
        "ordered.py",
        "if isinstance(why, Refused) and why.code == REFUSED:",
        "if False:",
        "P10_an_ordered_handler_whose_processes_may_not_hear_each_other_says_so",
    ),
    _rabbit(
        "a queue that may not take says not what to do",
        "topology.py",
        'raise self._explained(f"the queue {queue!r} to take from the exchange {exchange!r}", error) from None',
        "raise",
        "a_start_and_a_publish_say_what_the_user_may_not",
    ),
)
