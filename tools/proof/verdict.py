"""What a round came to, as plain data."""

from __future__ import annotations

from dataclasses import dataclass, field


@dataclass
class Verdict:
    """What became of one round."""

    kills: int = 0
    deliveries: int = 0
    redeliveries: int = 0
    republished: int = 0
    """Caused events that the broker was given again."""
    lost: int = 0
    twice: int = 0
    repeated: int = 0
    """Effects that came again in the window that the store documents."""
    wrong: list[str] = field(default_factory=list)
    """Everything that is not as it should be, in words."""

    @property
    def passed(self) -> bool:
        return not (self.lost or self.twice or self.wrong)
