"""Everything that is written about the results of a benchmark."""

from pathlib import Path

from sbi_boed_plugin._atomic import write_bytes
from sbi_boed_plugin._results import ResultFolder
from sbi_boed_plugin.benchmark.figures import metric_figure, runtime_figure
from sbi_boed_plugin.benchmark.html import page
from sbi_boed_plugin.benchmark.summary import read_results
from sbi_boed_plugin.benchmark.tables import (
    difference_table,
    job_table,
    markdown,
    summary_table,
)

__all__ = ["make_report"]


def make_report(folder: Path | str, output: Path | str | None = None) -> list[Path]:
    """Make tables, figures and a page of all results in a folder.

    The results stay as they are, and a benchmark that still runs may be reported on.

    Args:
        folder: Folder of a benchmark.
        output: Folder for the report; that of the results if `None`.

    Returns:
        Paths of what was written: `results.csv`, `summary.csv`, `differences.csv` if
        there are variants beside what they are variants of, `summary.md`, a figure per
        metric, `runtimes.png` and `index.html`.

    Raises:
        ValueError: If the folder holds no results.
        OSError: If a result cannot be read, or the report not written.
    """
    folder = Path(folder)
    results = read_results(folder)
    written = ResultFolder(folder if output is None else Path(output))
    written.save_table("results.csv", *job_table(results))
    written.save_table("summary.csv", *summary_table(results))
    header, differences = difference_table(results)
    if differences:
        written.save_table("differences.csv", header, differences)
    for metric in results.metrics:
        written.save_figure(f"{metric}.png", metric_figure(results, metric))
    if any(group.num_done for group in results.groups):
        written.save_figure("runtimes.png", runtime_figure(results))
    paths = [written.path / name for name in written.written]
    for name, text in (
        ("summary.md", markdown(results)),
        ("index.html", page(results, folder.resolve().name)),
    ):
        write_bytes(written.path / name, text.encode())
        paths.append(written.path / name)
    return paths
