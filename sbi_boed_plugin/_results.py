"""Results in files: a folder of them, what JSON can hold, and versions of the code."""

from __future__ import annotations

import csv
import io
import json
import tempfile
from collections.abc import Iterable, Sequence
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sbi_boed_plugin import __version__
from sbi_boed_plugin._atomic import write_bytes

if TYPE_CHECKING:
    from matplotlib.figure import Figure

__all__ = ["ResultFolder", "finite_or_none", "installed_versions"]


class ResultFolder:
    """A folder in which every file is the earlier or the new one, never a part.

    One that cannot be made or written to raises an `OSError`.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        path.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=path):
            pass
        self.written: list[str] = []

    def remove(self, names: Iterable[str]) -> None:
        """Remove files of an earlier run, if there are any."""
        for name in names:
            (self.path / name).unlink(missing_ok=True)

    def save_json(self, name: str, content: dict[str, Any]) -> None:
        """Write a dictionary of plain values; not-a-number becomes `null`."""
        text = json.dumps(finite_or_none(content), indent=2, ensure_ascii=False)
        self.save(name, (text + "\n").encode())

    def save_table(
        self, name: str, header: Sequence[str], rows: Iterable[Sequence[Any]]
    ) -> None:
        """Write rows of numbers as comma-separated values with a header."""
        text = io.StringIO()
        csv.writer(text, lineterminator="\n").writerows([header, *rows])
        self.save(name, text.getvalue().encode())

    def save_figure(self, name: str, figure: "Figure") -> None:
        """Write a figure as PNG."""
        image = io.BytesIO()
        figure.savefig(image, format="png", dpi=150)
        self.save(name, image.getvalue())

    def save(self, name: str, content: bytes) -> None:
        """Write a file in one step and remember its name."""
        write_bytes(self.path / name, content)
        if name not in self.written:
            self.written.append(name)


def finite_or_none(content: Any) -> Any:
    """Return plain values with `None` for numbers that JSON cannot express."""
    if isinstance(content, dict):
        return {key: finite_or_none(value) for key, value in content.items()}
    if isinstance(content, (list, tuple)):
        return [finite_or_none(value) for value in content]
    if isinstance(content, float) and not abs(content) < float("inf"):
        return None
    return content


def installed_versions() -> dict[str, str | None]:
    """Return versions of what results depend on; `None` for what is not installed."""
    found: dict[str, str | None] = {"sbi_boed_plugin": __version__}
    for name in ("sbi", "sbibm", "torch"):
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            found[name] = None
    return found
