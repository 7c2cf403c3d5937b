"""A secret that stands in a file: read anew whenever somebody signs in, so that it can be replaced at any time."""

from __future__ import annotations

from pathlib import Path

from tidings.errors import ConfigurationError


def read_secret(option: str, path: str) -> str:
    """What the file says, without the line end that an editor leaves.

    Raises:
        ConfigurationError: it cannot be read, or is empty; the message names the option and the file.
    """
    try:
        text = Path(path).read_text(encoding="utf-8").rstrip("\r\n")
    except FileNotFoundError:
        raise ConfigurationError(f"{option}={path}: there is no such file") from None
    except (OSError, UnicodeDecodeError) as error:
        why = getattr(error, "strerror", None) or "it holds no text"
        raise ConfigurationError(f"{option}={path}: the file cannot be read: {why}") from None
    if not text:
        raise ConfigurationError(f"{option}={path}: the file is empty. It is to hold the secret, and nothing else")
    return text
