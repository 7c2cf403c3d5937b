"""Who gives an order."""

from __future__ import annotations

import getpass
import os
import socket


def who() -> str:
    """``user@host``, as far as this machine knows it."""
    try:
        user = getpass.getuser()
    except (KeyError, OSError, ImportError):  # a container's user need not have a name
        user = f"uid {os.getuid()}" if hasattr(os, "getuid") else "somebody"
    return f"{user}@{socket.gethostname()}"
