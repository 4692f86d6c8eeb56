"""Tables that fit: as wide as the terminal or ``COLUMNS`` says; what is too wide drops columns, and then turns over."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

from rich.measure import Measurement
from rich.table import Column, Table
from rich.text import Text

from mlflow_unlearn.console import say, stdout
from mlflow_unlearn.spelling import spelled

if TYPE_CHECKING:
    from rich.console import Console

_NOTHING = ("–", "")
"""A column of these alone is the first one to go."""
_MOST_LINES = 3
"""Of a cell, where there are columns that may be dropped."""
_BORDER, _PADDING = 1, 3
"""Of a table, and of each column with its border."""


def show_table(table: Table, *, drop: Sequence[str] = ()) -> tuple[str, ...]:
    """Print a table to standard output, and return the columns that are shown.

    Args:
        table: with a text in each cell.
        drop: columns that may be left out where not all fit without breaking words, or where a cell would take many
            lines; the first ones first. If it does not fit then either, each row is shown with a line for each of its
            columns.
    """
    console, names = stdout(), [str(column.header) for column in table.columns]
    empty = [str(c.header) for c in table.columns[1:] if table.rows and all(cell in _NOTHING for cell in c.cells)]
    shown = names
    for name in dict.fromkeys((*empty, *drop)):
        columns = _columns(table, shown)
        if _fits(columns, console) and _readable(columns, console):
            break
        shown = [other for other in shown if other != name]
    if table.title is not None:  # rich would break it where the table ends
        say(Text.from_markup(str(table.title), emoji=False).plain, style="italic")
    if _fits(_columns(table, shown), console):
        console.print(_with(table, shown, console))
    else:
        shown = [name for name in names if name not in empty]
        console.print(_turned_over(table, shown))
    if missing := [name for name in names if name not in (*shown, *empty)]:
        said = (
            f"Too narrow for: {', '.join(missing)}. Use a wider terminal, COLUMNS=200 or {spelled('format', 'json')}."
        )
        say(said, style="dim")
    return tuple(shown)


def _columns(table: Table, names: Sequence[str]) -> list[Column]:
    return [column for column in table.columns if str(column.header) in names]


def _measured(column: Column, console: "Console") -> Measurement:
    """The longest word and the longest line of a column."""
    unbounded = console.options.update(width=100_000, max_width=100_000)
    found = [Measurement.get(console, unbounded, text) for text in (column.header, *column.cells)]
    return Measurement(max(one.minimum for one in found), max(one.maximum for one in found))


def _room(columns: Sequence[Column], console: "Console") -> int:
    return console.width - _BORDER - _PADDING * len(columns)


def _fits(columns: Sequence[Column], console: "Console") -> bool:
    """Whether no word has to be broken."""
    return sum(_measured(column, console).minimum for column in columns) <= _room(columns, console)


def _widths(columns: Sequence[Column], console: "Console") -> list[int]:
    """Each at least as wide as its longest word; rich would take from the widest."""
    sizes = [_measured(column, console) for column in columns]
    widths = [size.minimum for size in sizes]
    extra = _room(columns, console) - sum(widths)
    # Who lacks least first: most columns then need no second line.
    for left, number in zip(
        range(len(sizes), 0, -1), sorted(range(len(sizes)), key=lambda i: sizes[i].span), strict=True
    ):
        given = min(sizes[number].span, extra // left)
        widths[number], extra = widths[number] + given, extra - given
    return widths


def _readable(columns: Sequence[Column], console: "Console") -> bool:
    """Whether no cell takes more than `_MOST_LINES`, as far as its length tells."""
    return all(
        _measured(column, console).maximum <= _MOST_LINES * width
        for column, width in zip(columns, _widths(columns, console), strict=True)
    )


def _with(table: Table, names: Sequence[str], console: "Console") -> Table:
    """A copy with these columns alone."""
    columns = _columns(table, names)
    copy = Table()
    for column, width in zip(columns, _widths(columns, console), strict=True):
        copy.add_column(column.header, justify=column.justify, width=width)
    for row, cells in zip(table.rows, zip(*(column.cells for column in columns), strict=True), strict=True):
        copy.add_row(*cells, style=row.style, end_section=row.end_section)
    return copy


def _turned_over(table: Table, names: Sequence[str]) -> Table:
    """One line a cell that says something, with the name of its column before it."""
    turned = Table(show_header=False)
    turned.add_column(style="bold")
    turned.add_column(overflow="fold")
    for cells in zip(*(column.cells for column in _columns(table, names)), strict=True):
        for name, cell in zip(names, cells, strict=True):
            if cell not in _NOTHING or name == names[0]:
                turned.add_row(name, cell)
        turned.add_section()
    return turned
