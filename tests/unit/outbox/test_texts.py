"""Texts of events as every database keeps them."""

from __future__ import annotations

import pytest

from tidings.outbox.texts import escaped, plain

TEXTS = ["", "plain", "\0", "a\0b", "\\", "\\0", "\\\\0", "\\\0", "\0\\0\\", "é\0🛒\\n"]


@pytest.mark.parametrize("text", TEXTS)
def test_a_text_comes_back_and_holds_no_nul_meanwhile(text: str) -> None:
    """Trap 130: PostgreSQL refuses a NUL, so its event would never leave."""
    assert "\0" not in escaped(text)
    assert plain(escaped(text)) == text


def test_different_texts_stay_different_and_ordinary_ones_are_kept_as_they_are() -> None:
    assert len({escaped(text) for text in TEXTS}) == len(TEXTS)
    assert escaped("order-1 é") == "order-1 é"
