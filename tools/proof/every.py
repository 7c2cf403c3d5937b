"""All stores of the proof, by the names that the command takes."""

from __future__ import annotations

from typing import Final

from tools.proof.losses import LOSSES
from tools.proof.stores import PROMISING, Kind

STORES: Final[dict[str, Kind]] = {**PROMISING, **LOSSES}
