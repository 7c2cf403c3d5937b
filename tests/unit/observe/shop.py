"""A small service whose events end in every way there is."""

from __future__ import annotations

from tidings import Dead, Event, Retry, Service


class Placed(Event, type="order.placed", version=1, key="order_id"):
    order_id: str
    wanted: str = "done"


class Tripped(RuntimeError):
    """What the handler raises on request."""


def shop(attempts: int = 2) -> Service:
    """`Placed.wanted` says what becomes of it: done, fail, or dead."""
    service = Service("shop", publishes=[Placed])

    @service.on(Placed, name="handle", idempotent=True, order=None, retry=Retry(attempts=attempts, first=0.01))
    async def handle(event: Placed) -> None:
        if event.wanted == "fail":
            raise Tripped(f"{event.order_id} cannot be done")
        if event.wanted == "dead":
            raise Dead("nobody wants it")

    return service
