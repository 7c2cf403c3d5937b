"""What tests leave running when their run is killed: it is ended, and nothing else is."""

from __future__ import annotations

import os
import subprocess
import sys
import uuid

from tools.drill_kit import ROOT, until
from tools.services.freezing import living
from tools.services.leftovers import MARK

RUN = """
import os, subprocess, sys, time
from tools.services.leftovers import MARK, beside
os.environ[MARK] = sys.argv[1]
guard = beside(sys.argv[1])  # kept, or its pipe would be closed, and the run be over
server = subprocess.Popen(["sh", "-c", "sleep 600 & echo $$ $!; wait"], start_new_session=True)
time.sleep(600)
"""


def test_what_a_killed_run_has_started_is_ended_and_what_others_have_started_is_not() -> None:
    mark = uuid.uuid4().hex
    other = subprocess.Popen(["sleep", "600"], env={**os.environ, MARK: mark + "0"})
    run = subprocess.Popen([sys.executable, "-c", RUN, mark], stdout=subprocess.PIPE, cwd=ROOT, text=True)
    with other, run:
        try:
            assert run.stdout is not None
            pids = [int(one) for one in run.stdout.readline().split()]
            assert len(pids) == 2
            assert all(map(living, pids))
            run.kill()
            assert until(lambda: not any(map(living, pids)), 60)
            assert living(other.pid)
        finally:
            run.kill()
            other.kill()
