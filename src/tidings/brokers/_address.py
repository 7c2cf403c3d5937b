"""How a host and a port are written as one."""

from __future__ import annotations


def address(host: str, port: int) -> str:
    """The two as they stand in a URL: an IPv6 address in brackets."""
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
