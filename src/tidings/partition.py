"""Which partition a key falls into: murmur2 as Kafka's Java client computes it, so that every client agrees.

Source of the algorithm: Austin Appleby's MurmurHash2 with the seed and the sign mask of Apache Kafka's
``org.apache.kafka.common.utils.Utils.murmur2`` and ``toPositive``.
"""

from __future__ import annotations

from functools import lru_cache

from tidings.delivery import PARTITIONS

_SEED = 0x9747B28C
_M = 0x5BD1E995
_MASK = 0xFFFFFFFF


def murmur2(data: bytes) -> int:
    """The 32 bit hash, as an unsigned number."""
    length = len(data)
    h = _SEED ^ length
    whole = length & ~3
    for i in range(0, whole, 4):
        k = int.from_bytes(data[i : i + 4], "little") * _M & _MASK
        k = (k ^ (k >> 24)) * _M & _MASK
        h = (h * _M & _MASK) ^ k
    if tail := data[whole:]:
        h = (h ^ int.from_bytes(tail, "little")) * _M & _MASK
    h = (h ^ (h >> 13)) * _M & _MASK
    return h ^ (h >> 15)


@lru_cache(maxsize=65536)
def slot_of(key: str, partitions: int = PARTITIONS) -> int:
    """The partition of a key, 0 to `partitions` - 1."""
    return (murmur2(key.encode()) & 0x7FFFFFFF) % partitions
