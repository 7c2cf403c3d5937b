"""Seed known bugs one by one into a copy of the package, and see the tests catch each of them.

    python -m tools.mutants [words that the bug's description holds]

The last line is ``n/n caught``; the exit status is 1 if one was missed, or shows nothing any more.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor

from tools.mutants_cluster import CLUSTER
from tools.mutants_counts import COUNTS
from tools.mutants_databases import DATABASES
from tools.mutants_doctor import DOCTOR
from tools.mutants_ends import ENDS
from tools.mutants_faults import FAULTS
from tools.mutants_flow import FLOW
from tools.mutants_held import HELD
from tools.mutants_isolation import ISOLATION
from tools.mutants_kafka import KAFKA
from tools.mutants_kit import Broken, Mutant, run
from tools.mutants_lanes import LANES
from tools.mutants_letters import LETTERS
from tools.mutants_nats import NATS
from tools.mutants_outbox import OUTBOX
from tools.mutants_postgres import POSTGRES
from tools.mutants_rabbitmq import RABBITMQ
from tools.mutants_reading import READING
from tools.mutants_redis import REDIS
from tools.mutants_rolling import ROLLING
from tools.mutants_secrets import SECRETS
from tools.mutants_shares import SHARES
from tools.mutants_sight import SIGHT
from tools.mutants_signing import SIGNING
from tools.mutants_stuck import STUCK
from tools.mutants_words import WORDS
from tools.mutants_workers import WORKERS

AT_ONCE = 2

KNOWN = (
    *FLOW,
    *LANES,
    *COUNTS,
    *HELD,
    *ENDS,
    *LETTERS,
    *NATS,
    *OUTBOX,
    *POSTGRES,
    *REDIS,
    *ROLLING,
    *READING,
    *RABBITMQ,
    *ISOLATION,
    *SHARES,
    *CLUSTER,
    *FAULTS,
    *STUCK,
    *WORKERS,
    *SECRETS,
    *KAFKA,
    *DATABASES,
    *DOCTOR,
    *WORDS,
    *SIGHT,
    *SIGNING,
)
"""Every bug, whatever it is seeded into."""


def main(words: Sequence[str]) -> int:
    wanted = [mutant for mutant in KNOWN if all(word in mutant.what for word in words)]
    began = time.monotonic()
    if not wanted:
        print(f"no mutant is described by {' '.join(words)!r}")
        return 1
    if not (plain := run(None)).passed:
        print(f"the tests fail without any bug ({plain.caught_by}): mend that first")
        return 1
    print(f"the tests pass without a bug; now {len(wanted)} bugs, one by one", flush=True)
    with ThreadPoolExecutor(AT_ONCE) as pool:
        caught = sum(pool.map(_try, wanted))
    print(f"{time.monotonic() - began:.0f} s")
    print(f"{caught}/{len(wanted)} caught")
    return 0 if caught == len(wanted) else 1


def _try(mutant: Mutant) -> bool:
    try:
        found = run(mutant)
    except Broken as error:
        print(f"BROKEN  {mutant.what}: {error}", flush=True)
        return False
    if found.passed:
        print(f"MISSED  {mutant.what}", flush=True)
        return False
    print(f"caught  {mutant.what}\n        by {found.caught_by}", flush=True)
    return True


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
