"""Who takes which share of an ordered position: the same answer in every process that knows the same members.

Nobody has to be asked and nothing has to be stored. Where two processes know different members for a moment they ask
for the same share, and the server serves one of them.
"""

from __future__ import annotations

from collections.abc import Iterable
from hashlib import blake2b


def assign(members: Iterable[str], shares: int) -> list[str]:
    """The member that each share belongs to.

    All get as many as each other, give or take one. The pairs of a share and a member are served in the order of their
    hashes: so a member that comes or goes moves hardly more shares than its own.
    """
    names = sorted(set(members))
    fewest, with_one_more = divmod(shares, len(names))
    owners = [""] * shares
    counts = dict.fromkeys(names, 0)
    pairs = sorted(((_hash(name, share), share, name) for share in range(shares) for name in names), reverse=True)
    for _, share, name in pairs:
        if owners[share] or counts[name] > fewest:
            continue
        if counts[name] == fewest:
            if not with_one_more:
                continue
            with_one_more -= 1
        owners[share] = name
        counts[name] += 1
    return owners


def _hash(name: str, share: int) -> bytes:
    return blake2b(f"{name} {share}".encode(), digest_size=8).digest()
