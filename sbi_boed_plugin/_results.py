"""A folder of result files, each written completely or not at all."""

import csv
import io
import json
import os
import tempfile
from collections.abc import Iterable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure

__all__ = ["ResultFolder"]


class ResultFolder:
    """A folder of results in which every file is whole at any moment.

    A file is written under a temporary name and then takes its place in one step:
    whoever stops the run finds the earlier file or the new one, never a part.

    Args:
        path: The folder; it is made with its parents.

    Raises:
        OSError: If it cannot be made or nothing can be written to it.
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
        self._save(name, (text + "\n").encode())

    def save_table(
        self, name: str, header: Sequence[str], rows: Iterable[Sequence[Any]]
    ) -> None:
        """Write rows of numbers as comma-separated values with a header."""
        text = io.StringIO()
        writer = csv.writer(text, lineterminator="\n")
        writer.writerow(header)
        writer.writerows(rows)
        self._save(name, text.getvalue().encode())

    def save_figure(self, name: str, figure: Figure) -> None:
        """Write a figure as PNG."""
        image = io.BytesIO()
        figure.savefig(image, format="png", dpi=150)
        self._save(name, image.getvalue())

    def _save(self, name: str, content: bytes) -> None:
        descriptor, temporary = tempfile.mkstemp(dir=self.path, prefix=f".{name}.")
        try:
            with os.fdopen(descriptor, "wb") as file:
                file.write(content)
            # Temporary files are private; results are as readable as other files.
            os.chmod(temporary, 0o666 & ~_umask())
            os.replace(temporary, self.path / name)
        except BaseException:
            with suppress(FileNotFoundError):
                os.unlink(temporary)
            raise
        if name not in self.written:
            self.written.append(name)


def _umask() -> int:
    # The only portable way to read it is to set it.
    mask = os.umask(0)
    os.umask(mask)
    return mask


def finite_or_none(content: Any) -> Any:
    """Replace what JSON cannot express."""
    if isinstance(content, dict):
        return {key: finite_or_none(value) for key, value in content.items()}
    if isinstance(content, (list, tuple)):
        return [finite_or_none(value) for value in content]
    if isinstance(content, float) and not abs(content) < float("inf"):
        return None
    return content
