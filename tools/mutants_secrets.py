"""Bugs to seed into how credentials are read, renewed and spoken of."""

from __future__ import annotations

from tools.mutants_kit import Mutant

ON_NATS = ("tests/unit/nats/test_login.py", "tests/integration/nats/test_renewed.py")
IN_STORES = ("tests/integration/service/test_renewed_passwords.py",)


def bug(what: str, file: str, old: str, new: str, tests: tuple[str, ...] = ON_NATS) -> Mutant:
    return Mutant(f"secrets: {what}", file, old, new, tests)


_ONCE = ("secret.py", "def read_secret(", "import functools\n\n\n@functools.cache\ndef read_secret(")

SECRETS: tuple[Mutant, ...] = (
    bug("what stands in a file is read once, for the broker", *_ONCE),
    bug("what stands in a file is read once, for the stores", *_ONCE, IN_STORES),
    bug("what login= failed with is shown", "brokers/nats/login.py", "raised {type(error).__name__}", "raised {error}"),
    bug(
        "a coroutine that gives credentials is not awaited",
        "brokers/nats/login.py",
        "if inspect.isawaitable(found):",
        "if False:",
    ),
    bug(
        "nobody is told since when credentials are good for nothing",
        "brokers/nats/login.py",
        "if expires is None or",
        "if True or",
    ),
    bug(
        "a refusal ends the attempts",
        "brokers/_healing.py",
        "            except TidingsError as error:\n",
        "            except BrokerUnavailable as error:\n",
    ),
    bug(
        "a refusal is said once and never again",
        "brokers/_healing.py",
        "if str(error) != said or time.monotonic() - at > SAY_AGAIN:",
        "if str(error) != said:",
    ),
    bug(
        "a refusal is a warning among others",
        "brokers/_healing.py",
        "logging.ERROR if refused else logging.WARNING",
        "logging.WARNING",
    ),
    bug("refused credentials are tried without pause", "brokers/_healing.py", "random.uniform(0.0, pause)", "0.0"),
    bug(
        "an event fails because a password file is gone",
        "stores/_passwords.py",
        "            raise StoreUnavailable(str(error)) from None\n",
        "            raise\n",
        IN_STORES,
    ),
    bug(
        "an event fails because the password file of Redis is gone",
        "stores/_redis_link.py",
        "            raise exceptions.AuthenticationError(str(error)) from None\n",
        "            raise\n",
        IN_STORES,
    ),
)
