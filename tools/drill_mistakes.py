"""What a new user does wrong, as data: what is typed, and what is to come of it."""

from __future__ import annotations

import json
import signal
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

from tools.drill_kit import SECRET, Case, Kit, Seen, plain, until
from tools.services.ports import free_port

GOOD = """
from tidings import Event, Service

class OrderPlaced(Event, type="order.placed", version=1, key="order_id"):
    order_id: str
    note: str = ""

shop = Service("shop")

@shop.on(OrderPlaced, idempotent=True)
async def reserve(order: OrderPlaced) -> None: ...
"""
ONCE = GOOD.replace(", idempotent=True", "")
NO_ANNOTATION = GOOD.replace("order: OrderPlaced", "order")
NO_VERSION = GOOD.replace(", version=1", "")
RENAMED = GOOD.replace("def reserve", "def put_aside")

RUN = ("run", "shop:shop", "--port", "0")


@dataclass(frozen=True)
class Mistake:
    """One command line that fails. `{…}` in it stands for what `_places` makes."""

    action: str
    arguments: tuple[str, ...]
    status: int
    says: tuple[str, ...]
    module: str = GOOD
    environment: Mapping[str, str] = field(default_factory=dict)
    stdin: str = ""

    @property
    def case(self) -> Case:
        return Case(self.action, self._run, self.status, self.says)

    def _run(self, kit: Kit) -> Seen:
        kit.write(shop=self.module)
        places = {name: make(kit) for name, make in _PLACES.items() if f"{{{name}}}" in " ".join(self.arguments)}
        arguments = [one.format(**places) for one in self.arguments]
        done = kit.tidings(*arguments, env=self.environment, stdin=self.stdin)
        extra = "" if not done.stdout else f"it printed to stdout as well: {done.stdout[:200]}"
        many = "" if len(done.stderr.splitlines()) == 1 else f"{len(done.stderr.splitlines())} lines instead of one"
        return Seen(done.stderr.strip(), done.returncode, wrong=extra or many)


_ACCOUNTS = 'jetstream {{ store_dir: "{folder}" }}\nauthorization {{ user: shop, password: "{password}" }}'

_PLACES: Mapping[str, Callable[[Kit], object]] = {
    "closed": lambda kit: free_port(),
    "taken": lambda kit: kit.occupied(),
    "guarded": lambda kit: kit.server(_ACCOUNTS.format(folder=kit.folder / "js", password="another-" + SECRET)),
    "plain": lambda kit: kit.server(""),
    "folder": lambda kit: kit.folder,
    "secret": lambda kit: SECRET,
}

MISTAKES = (
    Mistake(
        "no server there",
        (*RUN, "--broker", "nats://shop:{secret}@127.0.0.1:{closed}"),
        4,
        ("nothing listens on nats://127.0.0.1", "Is the server running"),
    ),
    Mistake(
        "wrong password",
        (*RUN, "--broker", "nats://shop:{secret}@127.0.0.1:{guarded}"),
        3,
        ("refused the user 'shop' with the password given", "correct them in the broker's URL"),
    ),
    Mistake(
        "a server without JetStream",
        (*RUN, "--broker", "nats://127.0.0.1:{plain}"),
        3,
        ("runs without JetStream", "start it with -js"),
    ),
    Mistake(
        "no broker named (no terminal)",
        RUN,
        3,
        ("shop has no broker", "TIDINGS_BROKER=nats://user:password@host:4222"),
    ),
    Mistake(
        "a broker URL nobody knows",
        (*RUN, "--broker", "kafak://shop:{secret}@host"),
        3,
        ("no broker is known for 'kafak:'", "Did you mean kafka://?"),
    ),
    Mistake(
        "server port in use (up)",
        ("up", "--folder", "data", "--port", "{taken}"),
        3,
        ("is in use by another program", "Name another"),
    ),
    Mistake(
        "server port in use (run)",
        (*RUN, "--broker", "embedded:data?port={taken}"),
        3,
        ("is in use by another program", "Name another (embedded:?port="),
    ),
    Mistake(
        "metrics port in use",
        ("run", "shop:shop", "--broker", "embedded:data", "--port", "{taken}"),
        3,
        ("for metrics and health, is in use", "--port 0"),
    ),
    Mistake(
        "a typo in the module",
        ("run", "shpo:shop"),
        3,
        ("there is no module 'shpo'", "Did you mean shop"),
    ),
    Mistake(
        "a typo in the service",
        ("run", "shop:shpo"),
        3,
        ("shop has no 'shpo'", "Did you mean shop:shop?"),
    ),
    Mistake(
        "the file instead of the module",
        ("run", "shop.py:shop"),
        3,
        ("without .py", "shop:"),
    ),
    Mistake(
        "a handler without annotation",
        (*RUN, "--broker", "embedded:data"),
        3,
        ("shop.py:10", "'order' has no annotation", "async def reserve(order: OrderPlaced)"),
        module=NO_ANNOTATION,
    ),
    Mistake(
        "an event without version",
        (*RUN, "--broker", "embedded:data"),
        3,
        ("shop.py:4", "does not say its version", 'class OrderPlaced(Event, type="order.placed", version=1'),
        module=NO_VERSION,
    ),
    Mistake(
        "once without a store",
        (*RUN, "--broker", "embedded:data"),
        3,
        ("has no store to remember it in", "store=", "idempotent=True"),
        module=ONCE,
    ),
    Mistake(
        "TIDINGS_STORE set to nothing",
        (*RUN, "--broker", "embedded:data"),
        3,
        ("has no store to remember it in", "set TIDINGS_STORE"),
        module=ONCE,
        environment={"TIDINGS_STORE": ""},
    ),
    Mistake(
        "a store URL nobody knows",
        (*RUN, "--broker", "embedded:data", "--store", "oracle://shop:{secret}@host/shop"),
        3,
        ("there is no store oracle:", "sqlite:///file.db"),
        module=ONCE,
    ),
    Mistake(
        "a store in a folder that is not there",
        (*RUN, "--broker", "embedded:data", "--store", "sqlite:///nowhere/shop.db"),
        4,
        ("nowhere/shop.db", "there is no folder", "Make it"),
        module=ONCE,
    ),
    Mistake(
        "an event of 2 MB",
        ("publish", "shop:OrderPlaced", "-", "--broker", "embedded:data"),
        5,
        ("at most 1048576 may travel", "send its address"),
        stdin=json.dumps({"order_id": "1", "note": "x" * 2_000_000}),
    ),
    Mistake(
        "data that does not fit",
        ("publish", "shop:OrderPlaced", '{{"order_id": 7}}', "--broker", "embedded:data"),
        5,
        ("does not fit OrderPlaced", "$.order_id"),
    ),
)


def renamed(kit: Kit) -> Seen:
    """Run a service, rename its handler's function, run it again."""
    kit.write(shop=GOOD)
    first = kit.start(*RUN, "--broker", "embedded:data", "--json")
    first.ready()
    stopped = first.end()
    kit.write(shop=RENAMED)
    done = kit.tidings(*RUN, "--broker", "embedded:data")
    return Seen(plain(done.stderr), done.returncode, wrong="" if stopped == 0 else f"the first ended with {stopped}")


def read_only(kit: Kit) -> Seen:
    """The data folder stands on a disk that cannot be written."""
    folder, inside = kit.disk("ro")
    done = kit.tidings("up", "--folder", str(folder / "data"), inside=inside)
    return Seen(done.stderr.strip(), done.returncode)


def full_disk(kit: Kit) -> Seen:
    """The data folder stands on a disk without room."""
    folder, inside = kit.disk("size=2m")
    done = kit.tidings("up", "--folder", str(folder / "data"), inside=inside)
    return Seen(done.stderr.strip(), done.returncode)


def stopped_while_starting(kit: Kit) -> Seen:
    """Ctrl-C while a service still looks for its server."""
    kit.write(shop=GOOD)
    process = kit.start(*RUN, "--broker", f"nats://127.0.0.1:{free_port()}?connect_timeout=30s")
    until(lambda: process.popen.poll() is not None, 2.0)
    status = process.end(signal.SIGINT)
    return Seen(plain(process.text), status)


CASES = (
    *(one.case for one in MISTAKES),
    Case("a renamed handler", renamed, 3, ("shop.reserve", "name='reserve'", "remove the old position")),
    Case("a read-only data folder", read_only, 3, ("cannot write to its folder", "Make it writable")),
    Case("a full disk at the start", full_disk, 4, ("is full", "Free some space there")),
    Case("Ctrl-C while it still starts", stopped_while_starting, 130, ("stopping",)),
)
