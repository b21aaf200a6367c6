"""Many jobs, each kept in a file, and reports of them.

`run_benchmark` fills a folder with one file per job on a task of sbibm, and goes on
after whatever stopped it; `make_report` reads what is there. `runner` and `store` serve
any other jobs, such as those of a study.
"""

from pathlib import Path

from sbi_boed_plugin.benchmark.jobs import run_benchmark as run_benchmark

__all__ = ["make_report", "run_benchmark"]


def make_report(folder: Path | str, output: Path | str | None = None) -> list[Path]:
    """Make tables, figures and a page of all results in a folder.

    The results stay as they are, and a benchmark that still runs may be reported on.
    Files that hold no result are left out with a warning.

    Args:
        folder: Folder of a benchmark.
        output: Folder for the report; that of the results if `None`.

    Returns:
        Paths of what was written: `results.csv`, `summary.csv`, `differences.csv` if
        there are variants beside what they are variants of, `summary.md`, a figure per
        metric and `index.html`.

    Raises:
        ImportError: If pandas, jinja2 or matplotlib is not installed.
        ValueError: If the folder holds no results.
        OSError: If a result cannot be read, or the report not written.
    """
    try:
        # Optional dependencies, which a run does not need.
        from sbi_boed_plugin.benchmark.report import write_report
    except ModuleNotFoundError as error:
        raise ImportError(
            f"a report needs {error.name}, which is missing. Run `pip install "
            '"sbi_boed_plugin[bench,plot]"`.'
        ) from error
    return write_report(Path(folder), output)
