"""The bugs that `make mutants` seeds still fit the code: one whose text is gone would show nothing."""

from __future__ import annotations

import pytest

from tools.mutants_ends import ENDS
from tools.mutants_flow import FLOW
from tools.mutants_kit import Mutant
from tools.mutants_lanes import LANES
from tools.mutants_letters import LETTERS


@pytest.mark.parametrize("mutant", [*FLOW, *LANES, *ENDS, *LETTERS], ids=lambda mutant: mutant.what)
def test_a_bug_to_seed_still_fits_the_code(mutant: Mutant) -> None:
    compile(mutant.seeded(), mutant.file, "exec")  # raises where the text is not there exactly once
