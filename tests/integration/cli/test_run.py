"""`tidings run`: ready, stopped, killed, and every way in which it cannot start."""

from __future__ import annotations

import fcntl
import json
import os
import pty
import re
import signal
import socket
import subprocess
import sys
import termios
import time
from collections.abc import Callable

import pytest

from tests.integration.cli.shell import STOCK, Running, Shell, alive, await_, get
from tools.services.freezing import freeze
from tools.services.ports import free_port

pytestmark = pytest.mark.server
RUN = ("run", "shop.stock:stock", "--port", "0")


def place(shell: Shell, order: str, wanted: str = "done") -> None:
    data = json.dumps({"order_id": order, "wanted": wanted})
    assert shell.run("publish", "shop.events:OrderPlaced", data).status == 0


def url_of(running: Running) -> str:
    found = re.search(r"http://[^/ ]+", running.out)
    assert found, running.out
    return found[0]


def test_a_service_says_in_one_line_that_it_is_ready_and_where_it_is_seen(served: Shell) -> None:
    running = served.start(*RUN).until("is ready")
    (line,) = running.out.splitlines()
    assert line.startswith("stock is ready: broker embedded:, handlers reserve, metrics http://127.0.0.1:")
    place(served, "1")
    place(served, "2", "fail")
    running.until('"outcome": "dead"', err=True)
    url = url_of(running)
    status, metrics = get(f"{url}/metrics")
    assert status == 200
    assert (
        'tidings_dead_letters_total{code="failed",handler="reserve",service="stock",type="order.placed"} 1.0' in metrics
    )
    for page in ("live", "ready"):
        await_(lambda page=page: get(f"{url}/health/{page}")[0] == 200)
    lines = [json.loads(line) for line in running.err.splitlines()]
    own = [line for line in lines if line["message"] == "reserving"]
    assert {line["key"] for line in own} == {"1", "2"}
    assert running.stop() == 0
    assert served.applied() == ["1"]


def test_P9_a_stop_lets_the_handler_finish_and_ends_with_0(served: Shell) -> None:
    running = served.start(*RUN).until("is ready")
    place(served, "1", "slow")
    running.until("reserving", err=True)
    assert running.stop() == 0
    assert served.applied() == ["1"]
    assert served.run("dead", "list", "--json").out == ""


def test_a_second_signal_ends_it_at_once_also_while_the_loop_is_blocked(served: Shell) -> None:
    running = served.start(*RUN).until("is ready")
    place(served, "1", "block")
    running.until("reserving", err=True)
    running.until("the event loop has been blocked", err=True)
    running.send(signal.SIGINT)
    running.until("stopping", err=True)
    assert running.stop(signal.SIGINT) == 130
    assert "ended at once" in running.err
    assert served.applied() == []


def test_an_interrupt_while_it_starts_ends_it(shell: Shell) -> None:
    with socket.socket() as silent:  # it takes connections and never says anything
        silent.bind(("127.0.0.1", 0))
        silent.listen()
        url = f"nats://127.0.0.1:{silent.getsockname()[1]}?connect_timeout=25s"
        running = shell.start(*RUN, "--broker", url)
        connection, _ = silent.accept()
        with connection:
            running.send(signal.SIGINT)
            assert running.wait() == 130
    assert "Traceback" not in running.err


def test_P10_a_server_that_is_killed_comes_back_and_the_service_goes_on(shell: Shell) -> None:
    up = shell.embedded()
    running = shell.start(*RUN).until("is ready")
    found = re.search(r"\(pid (\d+)\)", up.out)
    assert found

    os.kill(int(found[1]), signal.SIGKILL)
    up.until("had died, and is back")
    place(shell, "1")
    await_(lambda: shell.applied() == ["1"])
    assert running.stop() == 0


# ── what a new user does wrong: one line, its own status, no traceback ──────────────────────────────────────────────


def wrong(shell: Shell, status: int, *says: str, arguments: tuple[str, ...] = RUN) -> str:
    result = shell.run(*arguments)
    assert result.status == status, result
    assert result.err.startswith("tidings: ")
    assert result.err.count("\n") == 1
    assert not result.out
    for text in says:
        assert text in result.err, result
    return result.err


def test_no_server(shell: Shell) -> None:
    with socket.socket() as closed:
        closed.bind(("127.0.0.1", 0))
        where = f"127.0.0.1:{closed.getsockname()[1]}"
        url = f"nats://user:canary@{where}?connect_timeout=300ms"
        err = wrong(shell, 4, where, "Is the server running", arguments=(*RUN, "--broker", url))
    assert "canary" not in err


def test_no_broker_named(shell: Shell) -> None:
    wrong(shell, 3, "stock has no broker", "TIDINGS_BROKER=")


def test_a_wrong_password_is_named_without_showing_it(shell: Shell) -> None:
    """Trap 171."""
    up = shell.start("up", "--show-url").until("Ctrl-C")
    found = re.search(r"nats://(\w+):(\w+)@(\S+)", up.out)
    assert found
    url = f"nats://{found[1]}:canary@{found[3]}"
    for arguments in (RUN, ("tail", "order"), ("dead", "list")):
        err = wrong(shell, 3, "refused", arguments=(*arguments, "--broker", url))
        assert "canary" not in err
        assert found[2] not in err


def test_a_port_in_use(served: Shell) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = str(taken.getsockname()[1])
        wrong(served, 3, f"port {port}", "--port 0", arguments=(*RUN[:2], "--port", port))


def test_a_typo_in_the_target(shell: Shell) -> None:
    wrong(shell, 3, "Did you mean shop.stock:stock?", arguments=("run", "shop.stock:stok"))
    wrong(shell, 3, "Did you mean shop.stock?", arguments=("run", "shop.stok:stock"))


@pytest.mark.parametrize(
    ("spoil", "says"),
    [
        (lambda text: text.replace("order: OrderPlaced", "order"), "has no annotation"),
        (lambda text: text.replace("OrderPlaced, idempotent=True", "OrderPlaced"), "has no store to remember it in"),
        (lambda text: text.replace("stock = ", "stock = 1 / 0 #"), "shop/stock.py:6: ZeroDivisionError"),
    ],
    ids=["a handler without annotation", "once without a store", "an error of its own"],
)
def test_a_program_that_cannot_start(served: Shell, spoil: Callable[[str], str], says: str) -> None:
    served.write("shop/stock.py", spoil(STOCK))
    wrong(served, 3, says)


def test_a_renamed_handler(served: Shell) -> None:
    served.start(*RUN).until("is ready").stop()
    served.write("shop/stock.py", STOCK.replace("def reserve", "def take"))
    wrong(served, 3, "stock.take is new", "name='reserve'")


def test_a_traceback_is_shown_to_who_asks_for_it(shell: Shell) -> None:
    result = shell.run(*RUN, TIDINGS_DEBUG="1")
    assert "Traceback" in result.err
    assert result.status == 3


# ── several processes ───────────────────────────────────────────────────────────────────────────────────────────────


def pids(parent: Running) -> list[int]:
    found = re.search(r"workers are ready \(pids ([\d, ]+)\)", parent.out)
    assert found, parent.out
    return [int(pid) for pid in found[1].split(", ")]


def test_workers_are_started_again_when_they_die_and_stop_together(served: Shell) -> None:
    parent = served.start(*RUN, "--workers", "3").until("workers are ready")
    workers = pids(parent)
    assert len(set(workers)) == 3

    os.kill(workers[1], signal.SIGKILL)
    parent.until("worker 1 was killed by SIGKILL; it is started again", err=True)
    await_(lambda: parent.out.count("stock is ready") == 4)
    for order in range(5):
        place(served, str(order))
    await_(lambda: sorted(served.applied()) == list("01234"))
    assert parent.stop() == 0
    assert not any(map(alive, workers))


def test_the_parent_tells_the_health_of_its_workers(served: Shell) -> None:
    port = free_port(following=2)  # the parent's, and one for each worker
    parent = served.start(*RUN[:2], "--workers", "2", "--port", str(port)).until("workers are ready")
    assert f"http://127.0.0.1:{port + 1}/metrics" in parent.out
    assert f"http://127.0.0.1:{port + 2}/metrics" in parent.out
    url = f"http://127.0.0.1:{port}"
    await_(lambda: get(f"{url}/health/ready")[0] == 200)
    await_(lambda: get(f"{url}/health/live")[0] == 200)  # each worker has two seconds to answer
    assert "tidings_workers_alive 2" in get(f"{url}/metrics")[1]

    freeze(pids(parent)[0])
    try:
        status, body = get(f"{url}/health/live")
        assert (status, "worker 0 does not answer" in body) == (503, True)
    finally:
        os.kill(pids(parent)[0], signal.SIGCONT)


def done_by(url: str) -> float:
    """How many orders all workers have done, as their parent says."""
    return sum(
        float(one)
        for one in re.findall(r'^tidings_outcomes_total{.*outcome="done".*} (.+)$', get(f"{url}/metrics")[1], re.M)
    )


def test_the_parent_tells_the_sum_of_what_its_workers_count_also_after_one_has_died(served: Shell) -> None:
    port = free_port(following=2)  # the parent's, and one for each worker
    parent = served.start(*RUN[:2], "--workers", "2", "--port", str(port)).until("workers are ready")
    url = f"http://127.0.0.1:{port}"
    for order in range(6):
        place(served, str(order))
    await_(lambda: done_by(url) == 6)
    assert 'tidings_live{service="stock"} 1.0' in get(f"{url}/metrics")[1]
    os.kill(pids(parent)[0], signal.SIGKILL)
    parent.until("was killed by SIGKILL; it is started again", err=True)
    assert done_by(url) == 6
    await_(lambda: parent.out.count("stock is ready") == 3)
    place(served, "6")
    await_(lambda: done_by(url) == 7)
    assert parent.stop() == 0


def test_workers_stop_when_their_parent_was_killed(served: Shell) -> None:
    parent = served.start(*RUN, "--workers", "2").until("workers are ready")
    parent.stop(signal.SIGKILL)
    await_(lambda: not any(map(alive, pids(parent))))


def test_what_is_wrong_with_the_program_is_told_once(served: Shell) -> None:
    served.write("shop/stock.py", f'open("begun", "a").write("once\\n")\n{STOCK}')
    wrong(
        served,
        3,
        "Did you mean shop.stock:stock?",
        arguments=("run", "shop.stock:stok", "--workers", "4", "--port", "0"),
    )
    assert (served.folder / "begun").read_text().count("once") == 1, "it went on starting workers"


def test_ctrl_c_of_a_terminal_reaches_all_and_still_stops_with_grace(served: Shell) -> None:
    parent = served.start(*RUN, "--workers", "2").until("workers are ready")
    place(served, "1", "slow")
    parent.until("reserving", err=True)

    for pid in [parent.pid, *pids(parent)]:  # as a terminal does, to the whole group
        os.kill(pid, signal.SIGINT)
    assert parent.wait() == 0
    assert served.applied() == ["1"]


@pytest.mark.proves("P9", broker="nats", store="none")
def test_P9_a_stop_that_reaches_the_workers_beside_their_parent_lets_them_finish_too(served: Shell) -> None:
    """As systemd and timeout(1) stop: the whole group at once, so that a worker hears it from its parent as well."""
    parent = served.start(*RUN, "--workers", "2").until("workers are ready")
    place(served, "1", "slow")
    parent.until("reserving", err=True)
    for pid in [*pids(parent), parent.pid]:
        os.kill(pid, signal.SIGTERM)
    assert parent.wait() == 0
    assert served.applied() == ["1"]


# ── one after the other ─────────────────────────────────────────────────────────────────────────────────────────────


def replaced(parent: Running) -> list[int]:
    found = re.findall(r"workers were replaced \(pids ([\d, ]+)\)", parent.out)
    assert found, parent.out
    return [int(pid) for pid in found[-1].split(", ")]


@pytest.mark.proves("P9", broker="nats", store="none")
def test_P9_a_hangup_replaces_the_workers_one_after_the_other_by_what_the_program_is_now(served: Shell) -> None:
    parent = served.start(*RUN, "--workers", "3").until("workers are ready")
    old = pids(parent)
    place(served, "1", "slow")
    parent.until("reserving", err=True)
    served.write("shop/stock.py", STOCK.replace('"ledger"', '"new-ledger"'))
    parent.send(signal.SIGHUP)
    parent.until("workers were replaced")
    new = replaced(parent)
    assert served.applied() == ["1"], "what ran is finished first"
    assert not any(map(alive, old))
    assert len(set(new)) == 3
    assert all(map(alive, new))
    assert "is started again" not in parent.err, "an end that was meant is no failure"
    place(served, "2")
    await_((served.folder / "new-ledger").exists)
    assert served.applied() == ["1"]

    os.kill(new[1], signal.SIGKILL)  # and they are still looked after
    parent.until("worker 1 was killed by SIGKILL; it is started again", err=True)
    assert parent.stop() == 0
    assert not any(map(alive, new))


@pytest.mark.proves("P9", broker="nats", store="none")
def test_P9_a_new_version_that_does_not_start_replaces_one_worker_and_no_more(served: Shell) -> None:
    parent = served.start(*RUN, "--workers", "2").until("workers are ready")
    first, second = pids(parent)
    served.write("shop/stock.py", STOCK.replace("import asyncio", "import nowhere"))
    parent.send(signal.SIGHUP)
    parent.until("worker 0, which was to be replaced, does not start", err=True)
    assert not alive(first)
    assert alive(second)
    place(served, "1")
    await_(lambda: served.applied() == ["1"])

    served.write("shop/stock.py", STOCK)
    parent.send(signal.SIGHUP)
    parent.until("workers were replaced")
    assert not alive(second)
    assert parent.stop() == 0


def test_a_stop_while_workers_are_replaced_stops_all(served: Shell) -> None:
    parent = served.start(*RUN, "--workers", "3").until("workers are ready")
    old = pids(parent)
    served.write(
        "shop/stock.py", f"import time\n\ntime.sleep(5)  # so that the others have not been replaced yet\n{STOCK}"
    )
    parent.send(signal.SIGHUP)
    await_(lambda: not alive(old[0]))
    assert parent.stop() == 0
    assert not any(map(alive, old))
    assert "were replaced" not in parent.out


def on_a_terminal(served: Shell, before: Callable[[], object] = bool) -> tuple[subprocess.Popen[bytes], list[int], int]:
    """Workers of a parent that leads the session of a terminal; their pids, and the end that closes the terminal."""
    master, slave = pty.openpty()
    out, err = served.folder / "out-tty", served.folder / "err-tty"

    def prepare() -> None:
        fcntl.ioctl(0, termios.TIOCSCTTY, 0)
        signal.signal(signal.SIGHUP, signal.SIG_DFL)  # whoever runs these tests may ignore it
        before()

    with out.open("w") as said, err.open("w") as logged:
        process = subprocess.Popen(
            [sys.executable, "-m", "tidings.cli", *RUN, "--workers", "2"],
            cwd=served.folder,
            env=served.environment,
            stdin=slave,
            stdout=said,
            stderr=logged,
            start_new_session=True,
            preexec_fn=prepare,
        )
    os.close(slave)
    await_(lambda: re.search(r"\(pids [\d, ]+\)", out.read_text()) or process.poll() is not None)
    found = re.search(r"\(pids ([\d, ]+)\)", out.read_text())
    assert found
    return process, [int(pid) for pid in found[1].split(", ")], master


def test_P9_the_end_of_its_terminal_stops_it_with_grace(served: Shell) -> None:
    """Which sends the same signal as who wants the workers replaced."""
    process, workers, master = on_a_terminal(served)
    try:
        place(served, "1", "slow")
        await_(lambda: "reserving" in (served.folder / "err-tty").read_text())
        os.close(master)
        assert process.wait(60) == 0
    finally:
        process.kill()
        process.wait()
    assert served.applied() == ["1"]
    assert not any(map(alive, workers))


def test_under_nohup_it_outlives_its_terminal_and_replaces_its_workers_when_it_is_asked_to(served: Shell) -> None:
    process, workers, master = on_a_terminal(served, lambda: signal.signal(signal.SIGHUP, signal.SIG_IGN))
    try:
        os.close(master)
        place(served, "1")
        await_(lambda: served.applied() == ["1"])
        time.sleep(1.0)  # it would stop at once
        assert process.poll() is None
        assert all(map(alive, workers))
        process.send_signal(signal.SIGHUP)
        await_(lambda: "workers were replaced" in (served.folder / "out-tty").read_text())
        assert not any(map(alive, workers))
        process.terminate()
        assert process.wait(60) == 0
    finally:
        process.kill()
        process.wait()
