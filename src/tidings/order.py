"""What keeps the order of a key while an earlier event of it waits for its next attempt."""

from __future__ import annotations

from collections import deque
from collections.abc import Container, Iterator

from tidings.delivery import Delivery


class Holds:
    """The keys of one lane that are held: first the event that failed, behind it those that came after."""

    def __init__(self) -> None:
        self._waiting: dict[str, deque[Delivery]] = {}
        self._due: dict[str, float] = {}

    def __len__(self) -> int:
        return sum(map(len, self._waiting.values()))

    def blocks(self, key: str | None) -> bool:
        return key in self._waiting

    def hold(self, key: str, delivery: Delivery, due: float) -> None:
        """Keep a failed delivery until `due` (loop time); where its key is held already, it stays behind that one."""
        if key in self._waiting:
            self._waiting[key].append(delivery)
        else:
            self._waiting[key] = deque([delivery])
            self._due[key] = due

    def follow(self, key: str, delivery: Delivery) -> None:
        """Queue a delivery behind the one that is held."""
        self._waiting[key].append(delivery)

    def go_on(self, key: str, delivery: Delivery, now: float) -> bool:
        """A delivery that holds its key may go on now; False where it does not hold it any more."""
        if delivery not in self._waiting.get(key, ()):
            return False
        self._due[key] = now
        return True

    def next_due(self) -> float | None:
        """When the next key may go on, in loop time."""
        return min(self._due.values(), default=None)

    def release(self, now: float) -> Iterator[Delivery]:
        """Take out what may go on, in order within each key."""
        for key in [key for key, due in self._due.items() if due <= now]:
            del self._due[key]
            yield from self._waiting.pop(key)

    def forget(self, gone: Container[Delivery]) -> None:
        """Take out what another process has now."""
        for key, waiting in list(self._waiting.items()):
            kept = deque(delivery for delivery in waiting if delivery not in gone)
            if kept:
                self._waiting[key] = kept
            else:
                del self._waiting[key], self._due[key]

    def clear(self) -> list[Delivery]:
        """Take out everything, to give it back."""
        everything = [delivery for waiting in self._waiting.values() for delivery in waiting]
        self._waiting.clear()
        self._due.clear()
        return everything
