"""Tables of a page in Markdown, and what stands in their cells."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pandas as pd

__all__ = [
    "PAGE",
    "Cell",
    "Table",
    "as_text",
    "in_brackets",
    "number",
    "percent",
    "text",
]

PAGE = Path(__file__).parents[1] / "docs" / "results.md"

Cell = Callable[[pd.Series], str]


@dataclass(frozen=True)
class Table:
    """How a table follows from a CSV file.

    Attributes:
        file: Name of the CSV file, without its ending.
        rows: Columns that make up a row, by their headers.
        cells: What stands in a cell, by its header: `{}` is the value of `columns`.
        columns: Columns whose values make up a column of the table.
        prepare: What happens to the rows of the file first.
    """

    file: str
    rows: dict[str, str]
    cells: dict[str, Cell]
    columns: Sequence[str] = ()
    prepare: Callable[[pd.DataFrame], pd.DataFrame] = field(default=lambda table: table)

    def render(self) -> str:
        """Return the table in Markdown."""
        table = self.prepare(pd.read_csv(PAGE.parent / "results" / f"{self.file}.csv"))
        lines: dict[tuple[str, ...], dict[str, str]] = {}
        for _, row in table.iterrows():
            line = lines.setdefault(tuple(as_text(row[name]) for name in self.rows), {})
            values = [as_text(row[name]) for name in self.columns]
            for header, cell in self.cells.items():
                line[header.format(*values)] = cell(row)
        headers = list(dict.fromkeys(name for line in lines.values() for name in line))
        body = [
            [*key, *(line.get(name, "–") for name in headers)]
            for key, line in lines.items()
        ]
        head = [*self.rows.values(), *headers]
        return "\n".join(
            f"| {' | '.join(line)} |".replace("|  |", "| |")
            for line in [head, ["---"] * len(head), *body]
        )


def as_text(value: Any) -> str:
    """Return a value with commas between thousands."""
    if isinstance(value, float) and value.is_integer():
        value = int(value)
    return f"{value:,}" if isinstance(value, int) else str(value)


def number(name: str, decimals: int = 2, error_name: str | None = None) -> Cell:
    """A value, with its standard error where there is one."""
    error_name = error_name or f"{name}_se"

    def cell(row: pd.Series) -> str:
        if pd.isna(row[name]):
            return "–"
        error = row.get(error_name)
        known = error is not None and not pd.isna(error)
        text = f"{row[name]:.{decimals}f}"
        return (f"{text} ± {error:.{decimals}f}" if known else text).replace("-", "−")

    return cell


def text(name: str) -> Cell:
    """A value as it is."""
    return lambda row: "–" if pd.isna(row[name]) else as_text(row[name])


def percent(name: str, decimals: int = 0) -> Cell:
    """A share."""
    return lambda row: (
        "–" if pd.isna(row[name]) else f"{100.0 * row[name]:.{decimals}f} %"
    )


def in_brackets(first: Cell, second: Cell) -> Cell:
    """Two cells, the second one in brackets."""
    return lambda row: f"{first(row)} ({second(row)})"
