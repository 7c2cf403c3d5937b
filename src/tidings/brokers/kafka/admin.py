"""The library's words for questions to a cluster, where its type hints do not name them."""

from __future__ import annotations

from typing import Final

from confluent_kafka.admin import (  # type: ignore[attr-defined]  # it imports these for everybody, and does not say so
    AdminClient,
    ClusterMetadata,
    ConfigEntry,
    ConfigResource,
    NewPartitions,
    NewTopic,
    OffsetSpec,
    ResourceType,
)

EARLIEST: Final = OffsetSpec.earliest()  # type: ignore[no-untyped-call]
LATEST: Final = OffsetSpec.latest()  # type: ignore[no-untyped-call]


def at_time(seconds: float) -> OffsetSpec:
    """The first record that was stored then or later."""
    spec: OffsetSpec = OffsetSpec.for_timestamp(int(seconds * 1000))
    return spec


__all__ = [
    "EARLIEST",
    "LATEST",
    "AdminClient",
    "ClusterMetadata",
    "ConfigEntry",
    "ConfigResource",
    "NewPartitions",
    "NewTopic",
    "OffsetSpec",
    "ResourceType",
    "at_time",
]
