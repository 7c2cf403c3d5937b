"""What a command prints on a terminal: nothing that is to be copied is cut."""

from __future__ import annotations

import pytest

from tests.unit.cli.test_dead import letter
from tidings.cli.letters import EACH, GROUPED, grouped, row_of
from tidings.cli.output import Out

LETTERS = [
    letter(
        id=f"{number}{'e' * 23}",
        position=f"payments.charge-the-card-{number}",
        reason="failed 5 times: PaymentRefused: the card of customer 4711 was refused by the bank",
        first_failure="2026-01-01T00:00:00.000000+00:00",
        last_failure="2026-01-02T00:00:00.000000+00:00",
    )
    for number in range(2)
]


@pytest.fixture
def out(monkeypatch: pytest.MonkeyPatch) -> Out:
    monkeypatch.setattr("sys.stdout.isatty", lambda: True)
    return Out()


@pytest.mark.parametrize("width", [40, 80, 120, 200])
def test_dead_letters_are_shown_whole_at_any_width_of_the_terminal(
    out: Out, width: int, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("COLUMNS", str(width))
    for columns, rows in ((GROUPED, grouped(LETTERS)), (EACH, [row_of(one) for one in LETTERS])):
        out.table(columns, rows)
        said = capsys.readouterr().out
        assert "…" not in said
        for row in rows:
            for cell in row[:-1]:
                assert cell in said, f"{cell} cannot be copied"
            assert " ".join(row[-1].split()[:3]) in said


def test_a_row_is_one_line_where_there_is_room(
    out: Out, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    out.table(("id", "type", "why"), [("1", "order.placed", "no " * 30)])
    header, *lines = capsys.readouterr().out.splitlines()
    assert header.split() == ["id", "type", "why"]
    assert lines[0].startswith("1   order.placed  no no")
    assert all(len(line) <= 80 for line in lines)
    assert "".join(lines).count("no") == 30
