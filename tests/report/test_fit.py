"""Tables are as wide as where they go: columns are dropped in a stated order, then rows are turned over."""

import pytest
from rich.table import Table

from mlflow_unlearn.report.fit import show_table

URI = "models:/a-model-with-a-long-name/12"


def table(*rows: tuple[str, ...], title: str = "a title") -> Table:
    drawn = Table(title=title)
    for name in ("version", "state", "aliases", "why"):
        drawn.add_column(name)
    for row in rows:
        drawn.add_row(*row)
    return drawn


ROWS = (
    (URI, "contains", "champion", "by its list of training ids"),
    ("models:/clf/1", "unknown", "–", "no list at all"),
)


def printed(capsys, monkeypatch, columns: int | None, *rows: tuple[str, ...], **how) -> tuple[str, tuple[str, ...]]:
    if columns is None:
        monkeypatch.delenv("COLUMNS", raising=False)
    else:
        monkeypatch.setenv("COLUMNS", str(columns))
    shown = show_table(table(*rows), **how)
    out = capsys.readouterr().out
    assert all(len(line.rstrip()) <= (columns or 130) for line in out.splitlines()), out
    return out, shown


@pytest.mark.parametrize("columns", [20, 40, 60, 80, 120, None])
def test_no_line_is_longer_and_no_cell_is_lost(capsys, monkeypatch, columns):
    out, shown = printed(capsys, monkeypatch, columns, *ROWS)
    assert shown == ("version", "state", "aliases", "why") and "Too narrow" not in out
    together = "".join(part for line in out.splitlines() for part in line.replace("│", " ").split())
    for word in ("contains", "champion", "unknown"):
        assert word in together
    if (columns or 130) >= 60:
        assert URI in out, "no word is broken where there is room for it"
    assert ("┃" in out) == ((columns or 130) >= 80), "else it is turned over"


def test_columns_go_in_their_order_and_are_named(capsys, monkeypatch):
    out, shown = printed(capsys, monkeypatch, 66, *ROWS, drop=("why", "aliases"))
    assert shown == ("version", "state", "aliases")
    assert "Too narrow for: why." in out and "┃ aliases" in out and "by its list" not in out
    out, shown = printed(capsys, monkeypatch, 50, *ROWS, drop=("why", "aliases"))
    assert shown == ("version", "state") and "Too narrow for: aliases, why." in out
    out, shown = printed(capsys, monkeypatch, 120, *ROWS, drop=("why", "aliases"))
    assert len(shown) == 4


def test_a_column_that_says_nothing_goes_first_and_is_not_missed(capsys, monkeypatch):
    rows = [(uri, state, "–", why) for uri, state, _, why in ROWS]
    out, shown = printed(capsys, monkeypatch, 66, *rows, drop=("why",))
    assert shown == ("version", "state", "why") and "Too narrow" not in out
    _, shown = printed(capsys, monkeypatch, 120, *rows)
    assert "aliases" in shown


def test_a_column_goes_as_well_where_a_cell_would_take_many_lines(capsys, monkeypatch):
    rows = (("models:/clf/1", "contains", "champion", "by its list of training ids " * 5),)
    out, shown = printed(capsys, monkeypatch, 76, *rows, drop=("aliases",))
    assert shown == ("version", "state", "why") and "Too narrow for: aliases." in out
    out, shown = printed(capsys, monkeypatch, 100, *rows, drop=("aliases",))
    assert len(shown) == 4


def test_turned_over_a_cell_that_says_nothing_has_no_line(capsys, monkeypatch):
    out, _ = printed(capsys, monkeypatch, 40, *ROWS)
    assert out.count("│ aliases │") == 1 and out.count("│ why     │") == 2


def test_a_title_is_a_sentence_of_its_own(capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "60")
    show_table(table(("1", "a", "b", "c"), title="a title that is longer than its table, and no markup: \\[b]"))
    first, second, *_ = capsys.readouterr().out.splitlines()
    assert first == "a title that is longer than its table, and no markup: [b]" and second.startswith("┏")


def test_a_table_without_rows(capsys, monkeypatch):
    out, shown = printed(capsys, monkeypatch, 80)
    assert len(shown) == 4 and "version" in out
