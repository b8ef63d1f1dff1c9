"""Tables for people: with `rich` on a terminal, where it is installed; aligned columns everywhere else.

In a pipe nothing is cut off or coloured. What comes from elsewhere is made printable: a command line may
hold bytes that a terminal would obey.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
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


def print_table(columns: Sequence[Column], rows: Sequence[Sequence[str]]) -> None:
    """Print rows, as many texts each as there are columns, to stdout.

    Raises:
        OSError: they cannot be written.
    """
    cells = [[printable(text) for text in row] for row in rows]
    if sys.stdout.isatty():
        try:
            _print_with_rich(columns, cells)
            return
        except ImportError:
            pass
    _print_aligned(columns, cells)


def printable(text: str) -> str:
    """The text with an escape in place of every character that is none to look at."""
    return "".join(
        char if char.isprintable() else char.encode("unicode_escape").decode("ascii") for char in text
    )


def _print_aligned(columns: Sequence[Column], rows: Sequence[Sequence[str]]) -> None:
    lines = [[column.title for column in columns], *rows]
    widths = [max(len(line[place]) for line in lines) for place in range(len(columns))]
    for line in lines:
        texts = [
            text.rjust(width) if column.is_number else text.ljust(width)
            for column, text, width in zip(columns, line, widths, strict=True)
        ]
        print("  ".join(texts).rstrip())


def _print_with_rich(columns: Sequence[Column], rows: Sequence[Sequence[str]]) -> None:
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
    Console().print(table)


def _width(column: Column, rows: Sequence[Sequence[str]], place: int) -> int:
    return max(len(text) for text in [column.title, *(row[place] for row in rows)])
