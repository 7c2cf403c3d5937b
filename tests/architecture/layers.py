"""Which way the arrows point, as data. A new module is entered here; where it goes is a decision, so it is asked for.

A core module may import its own layer and the layers before it. Adapters stand beside the core and import its lowest
layers only, and their own unit: the folder of a broker, the file of a store.
"""

from __future__ import annotations

LAYERS: tuple[tuple[str, ...], ...] = (
    (
        *(
            "errors",
            "delivery",
            "findings",
            "pace",
            "partition",
            "points",
            "rolling",
            "secret",
            "sight",
            "stacks",
            "supervision",
            "threads",
        ),
        *("together", "traces"),
    ),
    ("ports",),
    ("outcomes",),
    ("declaration", "values", "event", "envelope", "evolution", "policy", "switch"),
    # what the pipeline is made of
    ("handler", "claims", "context", "copies", "counting", "grouping", "limit", "notes", "order", "rules"),
    ("holding",),
    ("settling",),
    ("newer", "dropping"),
    ("reading", "handling", "turn"),
    ("calls", "leaving"),
    ("pipeline",),
    ("alone", "asides", "lane", "releasing", "worker", "calling", "publisher", "dead_letters", "sweeping"),
    ("control", "bulk", "replay"),
    ("running",),
    ("beside",),
    ("service",),
    ("",),  # tidings/__init__.py: the public names
    ("testing",),
    ("cli",),
)
"""The core, lowest first. A name stands for a module or for a whole folder."""

ADAPTERS: dict[str, tuple[str, ...]] = {
    "brokers": ("errors", "delivery", "findings", "partition", "rolling", "secret", "sight", "supervision", "ports"),
    "stores": ("errors", "delivery", "partition", "points", "secret", "supervision", "threads", "ports", "outbox"),
    "outbox": ("errors", "delivery", "partition", "points", "supervision", "ports"),
    "observe": (
        "errors",
        "delivery",
        "partition",
        "sight",
        "stacks",
        "supervision",
        "ports",
        "outcomes",
        "context",
    ),  # a log line names its delivery
}
"""What stands beside the core, and all of the package that it may import besides its own unit.

A module whose name begins with an underscore, directly in such a folder, is shared by the adapters in it."""

SHARED_FOLDERS: tuple[str, ...] = ("outbox",)
"""Adapters whose whole folder is one unit. Elsewhere each module or folder directly inside is a unit of its own."""

REGISTRIES: tuple[str, ...] = ("brokers", "stores", "observe")
"""Folders whose `__init__.py` finds the adapters by name and may therefore import any of them."""

ADAPTER_USERS: tuple[str, ...] = ("running", "service", "", "testing", "cli")
"""The core modules that may import adapters."""

THIRD_PARTY: dict[str, tuple[str, ...]] = {
    "msgspec": ("*",),
    "uuid_utils": ("control", "event", "envelope", "notes", "publisher", "replay", "service"),
    "nats": ("brokers.nats",),
    "confluent_kafka": ("brokers.kafka",),
    "nkeys": ("brokers.nats",),
    "pamqp": ("brokers.rabbitmq",),
    "sqlalchemy": ("stores.sqlalchemy", "stores._", "outbox", "testing"),
    "aiosqlite": ("stores.sqlalchemy", "stores._"),
    "redis": ("stores.redis", "stores._"),
    "aiomysql": ("stores._",),
    "pymysql": ("stores._",),
    "asyncpg": ("stores.postgres", "stores._"),
    "prometheus_client": ("observe",),
    "opentelemetry": ("observe",),
    "structlog": ("observe", "cli"),
    "cyclopts": ("cli",),
    "rich": ("cli",),
    "pytest": ("testing",),
    "pytest_asyncio": ("testing",),
    "starlette": ("observe",),
}
"""Who may import what from outside the standard library; `*` is everybody, `stores._` what the stores share."""

BROKER_NAMES: dict[str, str] = {
    "nats": "brokers/nats/",
    "jetstream": "brokers/nats/",
    "kafka": "brokers/kafka/",
    "rabbitmq": "brokers/rabbitmq/",
    "amqp": "brokers/rabbitmq/",
}
"""A broker's name, and the only folder whose code may say it."""

MAY_NAME_BROKERS: dict[str, tuple[int, tuple[str, ...]]] = {
    "brokers/__init__.py": (16, ("string", "identifier")),  # the table of URL schemes, their libraries, examples
    "cli/": (12, ("string",)),  # texts for people: examples of a URL
}
"""Where else a broker's name may stand: how often in one file, and in what."""

MOST_PUBLIC_NAMES = 30
MOST_LINES = {"pipeline.py": 299, "": 399}
"""The most lines of a file; the empty name is every other file."""
MOST_FUNCTION_LINES = 60
"""Without the docstring."""
