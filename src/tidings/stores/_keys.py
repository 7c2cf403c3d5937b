"""How a key stands in the inbox, on every SQL database alike."""

from __future__ import annotations

from hashlib import sha256

MOST_KEY = 256
"""Characters of a key that are kept as they are. Longer ones would not fit into the indexes of every database."""


def stored_key(key: str, *, utf8: bool = False) -> str:
    """The text that stands for a key: itself, or its beginning and a hash of all of it where it cannot be kept.

    Args:
        key: any text.
        utf8: the database keeps valid UTF-8 without NUL and nothing else.
    """
    if len(key) <= MOST_KEY and not (utf8 and unfit(key)):
        return key
    begins = key[: MOST_KEY - 65]
    if utf8:
        begins = begins.replace("\0", "").encode(errors="ignore").decode()
    return f"{begins}~{sha256(key.encode(errors='surrogatepass')).hexdigest()}"


def unfit(text: str) -> bool:
    """Whether a database that keeps valid UTF-8 without NUL cannot keep this text."""
    if text.isascii():
        return "\0" in text
    try:
        return b"\0" in text.encode()
    except UnicodeEncodeError:  # half of a surrogate pair
        return True


def fit(text: str) -> str:
    """The text, or what stands for one that such a database cannot keep."""
    return stored_key(text, utf8=True) if unfit(text) else text
