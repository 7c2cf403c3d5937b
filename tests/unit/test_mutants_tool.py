"""The bugs that `make mutants` seeds still fit the code: one whose text is gone would show nothing."""

from __future__ import annotations

import pytest

from tools.mutants import KNOWN
from tools.mutants_kit import Mutant


@pytest.mark.parametrize("mutant", KNOWN, ids=lambda mutant: mutant.what)
def test_a_bug_to_seed_still_fits_the_code(mutant: Mutant) -> None:
    compile(mutant.seeded(), mutant.file, "exec")  # raises where the text is not there exactly once
