"""Tables for people: with `rich` on a terminal, where it is installed; aligned columns everywhere else.

In a pipe nothing is cut off or coloured. What comes from elsewhere is made printable: a command line may
hold bytes that a terminal would obey.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field


@dataclass(frozen=True, slots=True)
class Column:
    """How one column looks.

    Args:
        title: its heading.
        is_number: whether it is aligned to the right.
        may_be_cut: whether it makes room on a terminal that is too narrow.
        styles: how texts of it look with `rich`.
    """

    title: str
    is_number: bool = False
    may_be_cut: bool = False
    styles: Mapping[str, str] = field(default_factory=dict[str, str])


def table_text(columns: Sequence[Column], rows: Sequence[Sequence[str]], *, on_terminal: bool) -> str:
    """Rows, as many texts each as there are columns, below their headings.

    Args:
        columns: what is in each.
        rows: the texts.
        on_terminal: whether stdout is one, and this is for it.
    """
    cells = [[printable(text) for text in row] for row in rows]
    if on_terminal:
        with suppress(ImportError):
            return _rich_text(columns, cells)
    return _aligned_text(columns, cells)


def printable(text: str) -> str:
    """The text with an escape in place of every character that is none to look at."""
    return "".join(
        char if char.isprintable() else char.encode("unicode_escape").decode("ascii") for char in text
    )


def _aligned_text(columns: Sequence[Column], rows: Sequence[Sequence[str]]) -> str:
    lines = [[column.title for column in columns], *rows]
    widths = [max(len(line[place]) for line in lines) for place in range(len(columns))]
    text = ""
    for line in lines:
        texts = [
            cell.rjust(width) if column.is_number else cell.ljust(width)
            for column, cell, width in zip(columns, line, widths, strict=True)
        ]
        text += "  ".join(texts).rstrip() + "\n"
    return text


def _rich_text(columns: Sequence[Column], rows: Sequence[Sequence[str]]) -> str:
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0), header_style="bold")
    for column in columns:
        table.add_column(
            column.title,
            justify="right" if column.is_number else "left",
            # rich takes room from every column that it may; a part of an id is no id.
            min_width=None if column.may_be_cut else _width(column, rows, columns.index(column)),
        )
    for row in rows:
        texts = [
            Text(text, column.styles.get(text, ""), no_wrap=True, overflow="ellipsis")
            for column, text in zip(columns, row, strict=True)
        ]
        table.add_row(*texts)
    console = Console()
    with console.capture() as captured:
        console.print(table)
    return captured.get()


def _width(column: Column, rows: Sequence[Sequence[str]], place: int) -> int:
    return max(len(text) for text in [column.title, *(row[place] for row in rows)])
