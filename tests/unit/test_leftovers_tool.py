"""What tests leave running when their run is killed: it is ended, and nothing else is."""

from __future__ import annotations

import os
import signal
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
beside(sys.argv[1])
server = subprocess.Popen(["sh", "-c", "sleep 600 & echo $!; wait"], start_new_session=True)
print(server.pid, flush=True)
time.sleep(600)
"""


def test_what_a_killed_run_has_started_is_ended_and_what_others_have_started_is_not() -> None:
    mark = uuid.uuid4().hex
    other = subprocess.Popen(["sleep", "600"], env={**os.environ, MARK: mark + "0"})
    run = subprocess.Popen([sys.executable, "-c", RUN, mark], stdout=subprocess.PIPE, cwd=ROOT, text=True)
    with other, run:
        assert run.stdout is not None
        pids = [int(run.stdout.readline()) for _ in range(2)]
        assert all(map(living, pids))
        run.send_signal(signal.SIGKILL)
        assert until(lambda: not any(map(living, pids)), 60)
        assert living(other.pid)
        other.kill()
