"""One thing after the other breaks: the right alert, and no other, fires in a real Prometheus, and clears."""

from __future__ import annotations

from pathlib import Path

import pytest

from tools.alarm.drill import Drill

pytestmark = [pytest.mark.server, pytest.mark.long, pytest.mark.timeout(900)]


@pytest.mark.proves("P12", "P14", broker="nats", store="sqlite")
async def test_P12_P14_what_breaks_is_told_by_its_own_alert_and_by_no_other(tmp_path: Path) -> None:
    drill = Drill(tmp_path)
    told = await drill.run()
    assert [(one.what, sorted(one.fired)) for one in told] == [(one.what, [one.alert]) for one in told]
    assert [one.alert for one in told] == [
        "TidingsHandlerStuck",
        "TidingsDeadLetters",
        "TidingsBrokerDown",
        "TidingsOutboxStuck",
        "TidingsScrapeMissing",
    ]
    assert (drill.lost, drill.twice) == (0, 0)
    assert len(drill.accepted) > 100
