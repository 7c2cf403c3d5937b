"""Operator, account and user for a server that trusts signed tokens; what nsc would write."""

from __future__ import annotations

import base64
import json
import os
import time
from pathlib import Path

import nkeys  # type: ignore[import-untyped]  # it has no annotations


def _pair(prefix: int) -> tuple[nkeys.KeyPair, str]:
    seed = nkeys.encode_seed(os.urandom(32), prefix)
    pair = nkeys.from_seed(bytearray(seed))
    return pair, bytes(seed).decode()


def _sign(pair: nkeys.KeyPair, subject: str, name: str, nats: dict[str, object], lives: float | None = None) -> str:
    claims: dict[str, object] = {
        "jti": name + str(time.time()),
        "iat": int(time.time()),
        "iss": pair.public_key.decode(),
        "name": name,
        "sub": subject,
        "nats": {**nats, "version": 2},
    }
    if lives is not None:
        claims["exp"] = int(time.time() + lives)
    parts = [_b64(json.dumps(part).encode()) for part in ({"typ": "JWT", "alg": "ed25519-nkey"}, claims)]
    return ".".join([*parts, _b64(pair.sign(".".join(parts).encode()))])


def _b64(data: bytes) -> str:
    return base64.urlsafe_b64encode(data).rstrip(b"=").decode()


class Authority:
    """One operator with one account, which issues credentials files."""

    def __init__(self) -> None:
        self._operator, _ = _pair(nkeys.PREFIX_BYTE_OPERATOR)
        self._account, _ = _pair(nkeys.PREFIX_BYTE_ACCOUNT)

    @property
    def config(self) -> str:
        """The lines of a server's configuration that trust it."""
        operator = self._operator.public_key.decode()
        account = self._account.public_key.decode()
        everything = dict.fromkeys(("subs", "data", "payload", "imports", "exports", "conn", "leaf"), -1)
        store = dict.fromkeys(("mem_storage", "disk_storage", "streams", "consumer"), -1)
        limits = {**everything, **store, "wildcards": True}
        operator_jwt = _sign(self._operator, operator, "operator", {"type": "operator"})
        account_jwt = _sign(self._operator, account, "account", {"type": "account", "limits": limits})
        system, _ = _pair(nkeys.PREFIX_BYTE_ACCOUNT)
        name = system.public_key.decode()
        system_jwt = _sign(
            self._operator, name, "SYS", {"type": "account", "limits": {**everything, "wildcards": True}}
        )
        preload = f"resolver_preload: {{\n{account}: {account_jwt}\n{name}: {system_jwt}\n}}\n"
        return f"operator: {operator_jwt}\nsystem_account: {name}\nresolver: MEMORY\n{preload}"

    def issue(self, path: Path, lives: float | None = None) -> None:
        """Write a credentials file that is good for so many seconds."""
        user, seed = _pair(nkeys.PREFIX_BYTE_USER)
        claims = {"type": "user", "pub": {}, "sub": {}, "subs": -1, "data": -1, "payload": -1}
        token = _sign(self._account, user.public_key.decode(), "user", claims, lives)
        whole = path.with_name(f"{path.name}.new")  # whoever reads meanwhile reads all of the old ones or of the new
        whole.write_text(
            f"-----BEGIN NATS USER JWT-----\n{token}\n------END NATS USER JWT------\n\n"
            f"-----BEGIN USER NKEY SEED-----\n{seed}\n------END USER NKEY SEED------\n"
        )
        whole.replace(path)


def nkey_user(path: Path) -> str:
    """Write a file with a user's seed, and return the public key."""
    user, seed = _pair(nkeys.PREFIX_BYTE_USER)
    path.write_text(seed + "\n")
    return str(user.public_key.decode())
