"""Vectors from Apache Kafka's UtilsTest.testMurmur2 (the Java client's own)."""

import pytest

from tidings.partition import murmur2, slot_of

VECTORS = {
    b"21": -973932308,
    b"foobar": -790332482,
    b"a-little-bit-long-string": -985981536,
    b"a-little-bit-longer-string": -1486304829,
    b"lkjh234lh9fiuh90y23oiuhsafujhadof229phr9h19h89h8": -58897971,
    b"abc": 479470107,
}


@pytest.mark.parametrize(("data", "expected"), VECTORS.items())
def test_the_hash_is_the_one_of_the_java_client(data: bytes, expected: int) -> None:
    assert murmur2(data) == expected & 0xFFFFFFFF


def test_a_slot_is_the_positive_hash_modulo_the_partitions() -> None:
    assert slot_of("abc") == (479470107 & 0x7FFFFFFF) % 64
    assert {slot_of(f"order-{n}") for n in range(2000)} == set(range(64))
