"""What is promised, where it must be shown, and where it need not be: the data behind `make promises`."""

from __future__ import annotations

PROMISES: dict[str, str] = {
    "P1": "publish returns only when the event is stored",
    "P2": "settled exactly once, or reported as unsettled",
    "P3": "nothing is acknowledged before its effect is durable",
    "P4": "key, effects and caused events commit together",
    "P5": "with Redis: no event lost, leases fenced",
    "P6": "retried after its delay, failures counted, nobody held up",
    "P7": "dead letters are whole and can be redriven",
    "P8": "events of one key are handled in order",
    "P9": "a stop finishes, gives back and kills nothing",
    "P10": "the connection heals itself, or says that it cannot",
    "P11": "memory is bounded",
    "P12": "a handler that waits stops only itself",
    "P13": "what is unknown never crashes and is never dropped",
    "P14": "everything can be traced",
}

ANY = "any"
"""The broker or store of a test that does not say which."""

BROKERS = ("memory", "nats", "kafka", "rabbitmq")
STORES = ("none", "memory", "sqlite", "postgres", "mariadb", "redis")

NEEDED: dict[str, tuple[str, ...]] = {
    "P3": ("none", "sqlite", "postgres", "mariadb", "redis"),
    "P4": ("sqlite", "postgres", "mariadb"),
    "P5": ("redis",),
    "P7": ("none", "sqlite", "postgres", "mariadb", "redis"),
}
"""The stores on which a promise must be shown, with every broker. The others hold whatever the store is."""

GAPS: dict[tuple[str, str], str] = {
    ("P10", "memory"): "lives in the process that uses it: there is no connection to heal",
}
"""Promise and broker: why it need not be shown there."""
