"""Bugs to seed into what is said to whoever has got an address, a user, a certificate or a server wrong."""

from __future__ import annotations

from tools.mutants_kit import Mutant

KAFKA = ("tests/unit/brokers/kafka",)
RIGHTS = ("tests/integration/kafka/test_rights.py",)
AWAY = ("tests/integration/kafka/test_away.py",)


def kafka(what: str, file: str, old: str, new: str, tests: tuple[str, ...] = KAFKA) -> Mutant:
    return Mutant(f"words: kafka: {what}", f"brokers/kafka/{file}", old, new, tests)


def cli(what: str, file: str, old: str, new: str, test: str) -> Mutant:
    return Mutant(f"words: cli: {what}", f"cli/{file}", old, new, (f"tests/unit/{test}.py",))


def rabbitmq(what: str, file: str, old: str, new: str, test: str = "connecting") -> Mutant:
    tests = (f"tests/integration/rabbitmq/test_rabbitmq_{test}.py",)
    return Mutant(f"words: rabbitmq: {what}", f"brokers/rabbitmq/{file}", old, new, tests)


WORDS: tuple[Mutant, ...] = (
    kafka(
        "the scheme of an address counts as what is wrong with it",
        "away.py",
        "    text = text.lower()\n    if",
        "    text = said.lower()\n    if",
    ),
    kafka(
        "a certificate that is not trusted is told in the words of the library",
        "away.py",
        '    if "certificate verify failed" in text:',
        '    if "certificate verified" in text:',
    ),
    kafka(
        "who takes connections and says nothing is not there",
        "link.py",
        "            if self._away.heard or all(",
        "            if True or all(",
        AWAY,
    ),
    kafka(
        "a user needs no password",
        "options.py",
        "        if not options.user or not (options.password or options.password_file):",
        "        if not options.user:",
    ),
    kafka("tokens come from nowhere", "options.py", "    _check_tokens(options)\n", ""),
    kafka(
        "a file that is not there is left to the library",
        "options.py",
        "                _must_read(option, path)\n",
        "",
    ),
    kafka(
        "what is refused is told in the names of the library",
        "clients.py",
        "        text = text.replace(setting, option)\n",
        "        pass\n",
    ),
    Mutant(
        "words: an address with colons is shown without brackets",
        "brokers/_address.py",
        """    return f"[{host}]:{port}" if ":" in host""",
        """    return f"{host}:{port}" if ":" in host""",
        KAFKA,
    ),
    kafka(
        "a group that the user may not read is silence",
        "link.py",
        "                self._barred.add(group)\n",
        "                pass\n",
        RIGHTS,
    ),
    kafka(
        "settings that the user may not see stop a start",
        "topics.py",
        "            if code_of(found) not in DENIED:\n",
        "            if True:\n",
        RIGHTS,
    ),
    kafka(
        "that a user may not see settings is no matter of the broker",
        "topics.py",
        "    except ConfigurationError:  # a right",
        "    except KeyError:  # a right",
        RIGHTS,
    ),
    kafka(
        "topics that the user may not see cannot be made",
        "topics.py",
        "        if code_of(error) in DENIED:\n            raise",
        "        if False:\n            raise",
        RIGHTS,
    ),
    kafka(
        "a right that is taken away is a matter of nobody",
        "commits.py",
        "        if error.code() not in DENIED:\n",
        "        if error.code():\n",
        RIGHTS,
    ),
    kafka(
        "whether a right is back is asked by nobody",
        "commits.py",
        "(self._signs or self._denied)",
        "self._signs",
        RIGHTS,
    ),
    Mutant(
        "words: that a position gains a type is told to nobody",
        "brokers/_gained.py",
        "_named(set(one.types) - set(had))",
        "_named(set())",
        ("tests/integration/rabbitmq/test_rabbitmq_declaring.py",),
    ),
    kafka(
        "another number of partitions than the URL says is told to nobody",
        "topics.py",
        "    return _counted(link, plan.streams) + await",
        "    return await",
        ("tests/integration/kafka/test_declaring.py",),
    ),
    Mutant(
        "words: what is older than a class is told to be newer",
        "evolution.py",
        "    if number and int(number[1]) < min(",
        "    if number and int(number[1]) > max(",
        ("tests/unit/test_evolution.py",),
    ),
    cli(
        "a field that the class does not have is passed over",
        "publish.py",
        "            if more := sorted(set(data) - set(known)):",
        "            if more := sorted(set(data) - set(data)):",
        "cli/test_publish",
    ),
    cli(
        "a module is taken for a package",
        "target.py",
        """    if parent and not hasattr(sys.modules.get(parent), "__path__"):""",
        """    if parent and not hasattr(sys.modules.get(parent), "__name__"):""",
        "test_cli_hints",
    ),
    rabbitmq(
        "who takes connections and says nothing is not there",
        "connection.py",
        "if isinstance(error, TimeoutError) and link.stood:",
        "if isinstance(error, TimeoutError) and link.up:",
    ),
    rabbitmq(
        "a user is told of that nobody wrote", "connection.py", "    if not options.named:", "    if options.external:"
    ),
    Mutant(
        "words: rabbitmq: an address with colons is shown without brackets",
        "brokers/_address.py",
        """    return f"[{host}]:{port}" if ":" in host""",
        """    return f"{host}:{port}" if ":" in host""",
        ("tests/integration/rabbitmq/test_rabbitmq_connecting.py",),
    ),
    rabbitmq(
        "a queue that is gone is told of again and again",
        "source.py",
        "        if isinstance(why, Refused) and self._open:",
        "        if isinstance(why, Refused):",
        "taking",
    ),
)
