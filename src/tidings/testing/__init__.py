"""For the tests of services: a broker in one process. Authors of adapters: see `tidings.testing.conformance`."""

from tidings.testing.memory import MemoryBroker

__all__ = ["MemoryBroker"]
