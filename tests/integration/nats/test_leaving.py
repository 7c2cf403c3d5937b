"""A share that is given to another process while the connection is lost and made anew."""

from __future__ import annotations

import pytest

from tests.integration.nats.conftest import Connect, position, until
from tests.integration.nats.server import NatsServer
from tidings.brokers.nats.ordered import OrderedFeed
from tidings.brokers.nats.share import Share

pytestmark = pytest.mark.server


async def test_P8_a_share_that_leaves_while_the_link_is_replaced_is_not_asked_for_any_more(
    server: NatsServer, connect: Connect, monkeypatch: pytest.MonkeyPatch
) -> None:
    one = await connect(server.url, position(ordered=True))
    feed, inward = one.feed, one.broker._inward
    assert isinstance(feed, OrderedFeed)
    assert inward is not None
    await one.publish(b"1")
    await one.settled(1)
    left: list[Share] = []
    emptied = feed.emptied

    async def cut_off_meanwhile(share: Share, patience: float) -> bool:
        if not left:
            assert inward.link is not None
            inward.link.abandon("cut")
            await until(lambda: inward.link is not None and share.events.attached)
        left.append(share)
        return await emptied(share, patience)

    monkeypatch.setattr(feed, "emptied", cut_off_meanwhile)
    await connect(server.url, position(ordered=True))
    await until(lambda: left)
    first = left[0]
    await until(lambda: not first.leaving)
    assert not first.wanted
    assert not first.events.attached
