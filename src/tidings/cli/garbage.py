"""The garbage collector, in a process that runs a service and nothing else.

Events in flight are thousands of young objects that all die by themselves. The collector looks through them again and
again, and through all modules each time that enough of them have lived for a moment: a quarter of the work of a handler
that does little.
"""

from __future__ import annotations

import gc
from typing import Final

PYTHONS_OWN: Final = frozenset({(700, 10, 10), (2000, 10, 10), (2000, 10, 0)})
"""What Python begins with, by its version. Whoever has set something else has meant it."""
THRESHOLDS: Final = (10_000, 50, 100)


def settle_garbage() -> None:
    """Leave out what was made until now, which stays, and look less often for the rest."""
    if not gc.isenabled() or gc.get_threshold() not in PYTHONS_OWN:
        return
    gc.collect()
    gc.freeze()
    gc.set_threshold(*THRESHOLDS)
