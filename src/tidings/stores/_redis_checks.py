"""What is asked of a Redis before it is trusted: its version, what it may drop, and what it keeps through a crash."""

from __future__ import annotations

import logging
import re
from typing import Final

from tidings.errors import ConfigurationError, StoreUnavailable, TidingsError
from tidings.stores._redis_link import Link

log = logging.getLogger("tidings.stores.redis")

OLDEST: Final = (6, 2)


async def check(link: Link, *, allow_eviction: bool) -> None:
    """Refuse a Redis that cannot keep what it is told, and say what a crash of this one costs.

    Raises:
        ConfigurationError: too old, a cluster, or it may drop keys when its memory is full.
        StoreUnavailable: no answer.
    """
    try:
        told = _fields(await link.command("INFO"))
    except ConfigurationError:
        log.warning(
            "Redis at %s does not let this user ask INFO, so these could not be checked: version %s or newer, no"
            " cluster, maxmemory-policy noeviction, appendonly yes. See to them yourself",
            link.where,
            ".".join(map(str, OLDEST)),
        )
        return
    _check_version(link.where, told.get("redis_version", ""))
    if told.get("cluster_enabled") == "1":
        raise ConfigurationError(
            f"Redis at {link.where} is a cluster, which runs no script over keys of several slots, and the keys of a"
            " batch are claimed in one. Name a single Redis, with a replica if it is to be there always"
        )
    if told.get("loading") == "1":
        raise StoreUnavailable(f"Redis at {link.where} still reads what it kept")
    _check_eviction(link.where, told, allow_eviction)
    await _say_what_a_crash_costs(link, told)


def _fields(answer: object) -> dict[str, str]:
    """The lines of INFO; a client may have read them already."""
    if isinstance(answer, dict):
        return {str(name): str(value) for name, value in answer.items()}
    text = answer.decode(errors="replace") if isinstance(answer, bytes) else str(answer)
    pairs = (line.partition(":") for line in text.splitlines() if ":" in line)
    return {name: value.strip() for name, _, value in pairs}


def _check_version(where: str, version: str) -> None:
    numbers = tuple(int(one) for one in re.findall(r"\d+", version)[:2])
    if numbers and numbers < OLDEST:
        raise ConfigurationError(
            f"Redis at {where} is version {version}; the store needs {'.'.join(map(str, OLDEST))} or newer"
        )


def _check_eviction(where: str, told: dict[str, str], allowed: bool) -> None:
    policy = told.get("maxmemory_policy", "noeviction")
    if policy == "noeviction" or told.get("maxmemory", "0") == "0":  # without a limit nothing is ever dropped
        return
    means = (
        f"Redis at {where} has maxmemory-policy {policy}: when its memory is full it drops keys, also leases and what"
        " was applied, and those effects are applied again"
    )
    if not allowed:
        raise ConfigurationError(
            f"{means}. Set maxmemory-policy noeviction, which refuses new claims instead, and nothing is lost; or"
            " confirm that effects may repeat: ?unsafe=eviction"
        )
    log.warning("%s. This was confirmed by unsafe=eviction", means)


async def _say_what_a_crash_costs(link: Link, told: dict[str, str]) -> None:
    again = "Events that come again after that are applied again"
    if told.get("aof_enabled") == "0":
        log.warning(
            "Redis at %s runs with appendonly no: its crash forgets every lease and every applied event since the last"
            " snapshot. %s. Set appendonly yes and appendfsync always",
            link.where,
            again,
        )
        return
    try:
        answer = await link.command("CONFIG", "GET", "appendfsync")
    except TidingsError as error:
        log.warning(
            "Redis at %s does not tell its appendfsync (%s). With everysec a power cut forgets up to a second; see"
            " to it yourself",
            link.where,
            error,
        )
        return
    fsync = _value(answer)
    if fsync == "everysec":
        log.warning(
            "Redis at %s runs with appendfsync everysec: a power cut or a crash of its machine forgets about a second."
            " %s. Set appendfsync always where they must not",
            link.where,
            again,
        )
    elif fsync == "no":
        log.warning(
            "Redis at %s runs with appendfsync no: a power cut or a crash of its machine forgets what its system had"
            " not written, often half a minute. %s. Set appendfsync always",
            link.where,
            again,
        )


def _value(answer: object) -> str:
    if isinstance(answer, dict):
        found = next(iter(answer.values()), "")
    else:
        found = answer[1] if isinstance(answer, list | tuple) and len(answer) > 1 else ""
    return found.decode() if isinstance(found, bytes) else str(found)
