"""A study: jobs that each make one row of a table, a summary and a figure of them."""

import functools
import sys
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd
from matplotlib.figure import Figure

from sbi_boed_plugin.benchmark.runner import run_jobs
from sbi_boed_plugin.benchmark.store import Record, Store
from sbi_boed_plugin.benchmark.summary import mean_and_sem

__all__ = ["Job", "Row", "Study", "averages", "run_study"]

Job = Mapping[str, Any]
Row = Mapping[str, Any]


@dataclass(frozen=True)
class Study:
    """A table that many independent jobs make.

    Attributes:
        name: Name for the command line.
        title: One line that says what the table shows.
        jobs: Function from the number of seeds and whether the run is a quick one to
            the jobs, flat mappings of names to numbers or strings, `"seed"` among them.
        run: Function from a job and whether the run is a quick one to the further
            columns of its row. All randomness follows from the job's seed.
        summary: Function from all rows to the rows of a summary, `None` for none.
        figure: Function from all rows to a figure, `None` for none.
        num_seeds: Number of seeds of a complete run.
    """

    name: str
    title: str
    jobs: Callable[[int, bool], Sequence[Job]]
    run: Callable[[Job, bool], Row]
    summary: Callable[[Sequence[Row]], Sequence[Row]] | None = None
    figure: Callable[[Sequence[Row]], Figure] | None = None
    num_seeds: int = 1


def run_study(
    study: Study,
    output: Path,
    *,
    num_seeds: int | None = None,
    quick: bool = False,
    num_workers: int = 1,
    show_progress: bool = True,
) -> int:
    """Run what is missing of a study, and write its table, summary and figure.

    Each job has a file in `output/NAME/jobs`. A run that was stopped goes on from
    there; jobs that failed are tried again.

    Args:
        study: The study.
        output: Folder of `NAME.csv`, `NAME_summary.csv` and `NAME.png`; a quick run
            writes `NAME_quick.csv` and so on.
        num_seeds: Number of seeds. If `None`, that of the study, and one if quick.
        quick: Whether to run the study's quick version.
        num_workers: Number of processes, each with one thread.
        show_progress: Whether to show progress and the summary.

    Returns:
        Number of jobs that failed.
    """
    jobs = study.jobs(num_seeds or (1 if quick else study.num_seeds), quick)
    stem = f"{study.name}_quick" if quick else study.name
    store = Store(output / stem)
    records = run_jobs(
        functools.partial(_run, study.run, quick),
        jobs,
        store,
        num_workers=num_workers,
        retry_failed=True,
        show_progress=show_progress,
    )
    # Rows of jobs of more seeds, which an earlier run has finished, stay in the table.
    others = [record for record in store.read_all() if record not in records]
    table = _result_table([*records, *others])
    if len(table):
        _write(study, output / stem, table, show_progress)
    failed = [record for record in records if record["error"]]
    for record in failed:
        print(f"\n{record['job']}\n{record['traceback']}", file=sys.stderr)
    return len(failed)


def averages(
    rows: Sequence[Row], by: Sequence[str], values: Sequence[str]
) -> list[Row]:
    """Return means and standard errors over seeds, in the order of the settings.

    Example:
        >>> rows = [{"D": 1, "seed": 0, "eig": 2.0}, {"D": 1, "seed": 1, "eig": 4.0}]
        >>> averages(rows, by=["D"], values=["eig"])
        [{'D': 1, 'seeds': 2, 'eig': 3.0, 'eig_se': 1.0}]
    """
    table = pd.DataFrame(list(rows)).sort_values(list(by), kind="stable")
    return mean_and_sem(table, by, values).to_dict("records")


def _result_table(records: Sequence[Record]) -> pd.DataFrame:
    """Return settings, results and costs of all jobs with a result, one row a job."""
    rows = []
    for record in records:
        if record["status"] == "done":
            costs = {name: record[name] for name in ("seconds", "load")}
            costs["version"] = record["versions"].get("sbi_boed_plugin")
            rows.append({**record["job"], **record["result"], **costs})
    return pd.DataFrame(rows)


def _run(run: Callable[[Job, bool], Row], quick: bool, job: Job) -> Row:
    # Hundreds of jobs would repeat the same warnings.
    warnings.simplefilter("ignore")
    row = run(job, quick)
    if repeated := sorted(set(row) & set(job)):
        raise ValueError(f"the row repeats the columns {repeated}.")
    return row


def _write(study: Study, stem: Path, table: pd.DataFrame, show: bool) -> None:
    rows = table.to_dict("records")
    table.to_csv(f"{stem}.csv", index=False)
    if study.summary is not None:
        summary = pd.DataFrame(list(study.summary(rows)))
        summary.to_csv(f"{stem}_summary.csv", index=False)
        if show:
            text = summary.to_string(index=False, float_format="{:.4g}".format)
            print(f"\n{study.title}\n\n{text}\n")
    if study.figure is not None:
        study.figure(rows).savefig(f"{stem}.png", dpi=150)
    if show:
        print(f"Wrote {stem}.csv and what belongs to it.")
