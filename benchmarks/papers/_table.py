"""Rows of a study: read, appended, averaged over seeds, and printed."""

import csv
import io
import math
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from benchmarks.papers.study import Row
from sbi_boed_plugin._statistics import mean_and_error

__all__ = [
    "ForeignTableError",
    "append_row",
    "format_table",
    "identity",
    "read_rows",
    "summarize",
]


class ForeignTableError(ValueError):
    """A file that holds rows of something else, and must not be written to."""


def identity(row: Mapping[str, Any], names: Sequence[str]) -> tuple[str, ...]:
    """Return what tells a job from others, as it is written to a file.

    Args:
        row: A job, or the row that it made.
        names: The columns of a job.

    Returns:
        One text per column.

    Example:
        >>> identity({"seed": 0, "strength": 0.1}, ["strength", "seed"])
        ('0.1', '0')
    """
    return tuple(str(row[name]) for name in names)


def read_rows(path: Path, first: Sequence[str], last: Sequence[str]) -> list[Row]:
    """Read the rows of a file, and drop what a killed process left of a last one.

    Args:
        path: A CSV file; there need not be one.
        first: Columns that it must begin with.
        last: Columns that it must end with.

    Returns:
        Rows, with numbers where the text is one.

    Raises:
        ForeignTableError: If the columns are others.
    """
    try:
        content = path.read_bytes()
    except FileNotFoundError:
        return []
    whole = content[: content.rfind(b"\n") + 1]
    header, *records = csv.reader(io.StringIO(whole.decode())) if whole else ([],)
    if content and (
        len(header) < len(first) + len(last)
        or header[: len(first)] != list(first)
        or header[-len(last) :] != list(last)
        or any(len(record) != len(header) for record in records)
    ):
        raise ForeignTableError(
            f"{path} has the columns {', '.join(header) or 'of no table'}, but this "
            f"study writes {', '.join(first)}, ..., {', '.join(last)}. Move the file "
            "away or choose another output folder: it is not overwritten."
        )
    if len(whole) < len(content):
        os.truncate(path, len(whole))
    return [
        {name: _number(text) for name, text in zip(header, record, strict=True)}
        for record in records
    ]


def append_row(path: Path, row: Row) -> None:
    """Append a row to a file, with a header if the file is new.

    Args:
        path: A CSV file.
        row: The row; its columns must be those of the file.

    Raises:
        ForeignTableError: If they are not.
    """
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    if path.exists() and path.stat().st_size:
        with path.open(newline="") as file:
            header = next(csv.reader(file))
        if header != list(row):
            raise ForeignTableError(
                f"{path} has the columns {', '.join(header)}, but the study made a row "
                f"of {', '.join(row)}. Move the file away or choose another output "
                "folder: it is not overwritten."
            )
    else:
        writer.writerow(list(row))
    writer.writerow(row.values())
    # In one write, after which it is on the disk: a kill leaves a row or none.
    with path.open("ab", buffering=0) as file:
        file.write(text.getvalue().encode())
        os.fsync(file.fileno())


def _number(text: str) -> Any:
    if "_" in text:  # Python reads 1_000 as a number.
        return text
    for kind in (int, float):
        try:
            return kind(text)
        except ValueError:
            continue
    return text


def summarize(
    rows: Sequence[Row], by: Sequence[str], values: Sequence[str]
) -> list[Row]:
    """Average rows over seeds.

    Args:
        rows: All rows.
        by: Columns of a setting.
        values: Columns to average.

    Returns:
        One row per setting, in order of the settings, with the number of seeds and,
        for each value, its mean and standard error over them.

    Example:
        >>> rows = [{"D": 1, "seed": 0, "eig": 2.0}, {"D": 1, "seed": 1, "eig": 4.0}]
        >>> summarize(rows, by=["D"], values=["eig"])
        [{'D': 1, 'seeds': 2, 'eig': 3.0, 'eig_se': 1.0}]
    """
    groups: dict[tuple[Any, ...], list[Row]] = {}
    for row in sorted(rows, key=lambda row: tuple(row[name] for name in by)):
        groups.setdefault(tuple(row[name] for name in by), []).append(row)
    table: list[Row] = []
    for setting, group in groups.items():
        summary: dict[str, Any] = dict(zip(by, setting, strict=True))
        summary["seeds"] = len(group)
        for name in values:
            mean, error = mean_and_error([row[name] for row in group])
            summary |= {name: mean, f"{name}_se": error}
        table.append(summary)
    return table


def format_table(rows: Sequence[Row]) -> str:
    """Return rows as aligned text, numbers with four digits.

    Args:
        rows: Rows of the same columns.

    Returns:
        A header and one line per row.

    Example:
        >>> print(format_table([{"D": 1, "eig": 2.41589}, {"D": 100, "eig": 7.5}]))
          D    eig
          1  2.416
        100    7.5
    """
    if not rows:
        return "no rows"
    cells = [list(rows[0]), *([_text(value) for value in row.values()] for row in rows)]
    widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
    return "\n".join(
        "  ".join(f"{text:>{width}}" for text, width in zip(line, widths, strict=True))
        for line in cells
    )


def _text(value: Any) -> str:
    if isinstance(value, float):
        return "–" if math.isnan(value) else f"{value:.4g}"
    return str(value)
