"""What keeps the order of a key while an earlier event of it waits for its next attempt."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Container, Iterator

from tidings.delivery import Delivery

NOT_YET = float("inf")


class Holds:
    """The keys of one lane that are held: first the event that failed, behind it those that came after."""

    def __init__(self, wake: Callable[[], object] = lambda: None) -> None:
        self._waiting: dict[str, deque[Delivery]] = {}
        self._due: dict[str, float] = {}
        self._untold: set[Delivery] = set()
        self._wake = wake

    def __len__(self) -> int:
        return sum(map(len, self._waiting.values()))

    def blocks(self, key: str | None) -> bool:
        return key in self._waiting

    def hold(self, key: str, delivery: Delivery, due: float) -> None:
        """Keep a failed delivery until `due` (loop time); where its key is held already, it stays behind that one."""
        if delivery in self._untold:
            self._untold.discard(delivery)
            if self._waiting[key][0] is delivery:
                self._due[key] = due
            self._wake()  # whoever waits for what is due knew of nothing here
        elif key in self._waiting:
            self._waiting[key].append(delivery)
        else:
            self._waiting[key] = deque([delivery])
            self._due[key] = due

    def hold_until_told(self, key: str, delivery: Delivery) -> None:
        """It is decided, and the broker is being told: what follows its key waits until it was, and others do not."""
        self.hold(key, delivery, NOT_YET)
        self._untold.add(delivery)

    def told(self, key: str, delivery: Delivery, now: float) -> None:
        """The broker was told of it, and it is no longer here. Does nothing for any other."""
        if delivery not in self._untold:
            return
        self._untold.discard(delivery)
        waiting = self._waiting[key]
        first = waiting[0] is delivery
        waiting.remove(delivery)
        if not waiting:
            del self._waiting[key], self._due[key]
            return
        if first and waiting[0] not in self._untold:
            self._due[key] = now
        if not self._is_told(key):
            self._wake()

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
        due = min((due for key, due in self._due.items() if not self._is_told(key)), default=NOT_YET)
        return None if due == NOT_YET else due

    def release(self, now: float) -> Iterator[Delivery]:
        """Take out what may go on, in order within each key."""
        for key in [key for key, due in self._due.items() if due <= now and not self._is_told(key)]:
            del self._due[key]
            yield from self._waiting.pop(key)

    def _is_told(self, key: str) -> bool:
        """Whether the broker is being told of one of this key: then none of them goes on, or that one would, too."""
        return bool(self._untold) and not self._untold.isdisjoint(self._waiting[key])

    def deliveries(self) -> Iterator[Delivery]:
        """Everything that is held, looked at only."""
        return (delivery for waiting in self._waiting.values() for delivery in waiting)

    def forget(self, gone: Container[Delivery]) -> None:
        """Take out what another process has now."""
        for key, waiting in list(self._waiting.items()):
            kept = deque(delivery for delivery in waiting if delivery not in gone)
            if not kept:
                del self._waiting[key], self._due[key]
                continue
            self._waiting[key] = kept
            if waiting[0] in self._untold and kept[0] not in self._untold:
                self._due[key] = 0.0
        self._untold = {delivery for delivery in self._untold if delivery not in gone}
        self._wake()

    def clear(self) -> list[Delivery]:
        """Take out everything, to give it back; but not that of which the broker is being told."""
        everything = [one for one in self.deliveries() if one not in self._untold]
        self._waiting.clear()
        self._due.clear()
        self._untold.clear()
        return everything
