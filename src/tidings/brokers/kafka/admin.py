"""The library's words for questions to a cluster, where its type hints do not name them."""

from __future__ import annotations

from confluent_kafka.admin import (  # type: ignore[attr-defined]  # it imports these for everybody, and does not say so
    AdminClient,
    ClusterMetadata,
    ConfigEntry,
    ConfigResource,
    NewPartitions,
    NewTopic,
    ResourceType,
)

__all__ = [
    "AdminClient",
    "ClusterMetadata",
    "ConfigEntry",
    "ConfigResource",
    "NewPartitions",
    "NewTopic",
    "ResourceType",
]
