"""What a study is: jobs that each make one row of a table, and a figure of all rows."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from matplotlib.figure import Figure

__all__ = ["Job", "Row", "Study"]

Job = Mapping[str, Any]
Row = Mapping[str, Any]


@dataclass(frozen=True)
class Study:
    """A table that many independent jobs make, with a figure.

    Functions rather than a class to inherit from: jobs travel to worker processes.

    Attributes:
        name: Name for the command line.
        title: One line that says what the table shows.
        jobs: Function from the number of seeds and whether the run is a quick one to
            the jobs. A job is a flat mapping of names to numbers or strings, `"seed"`
            among them, that identifies its row: rows that exist already are not made
            again.
        run: Function from a job and whether the run is a quick one to the further
            columns of its row, numbers or strings. All randomness follows from the
            job's seed.
        figure: Function from all rows to a figure.
        summary: Function from all rows to a table to print, one row per setting with
            means and standard errors over seeds.
        num_seeds: Number of seeds of a complete run.
    """

    name: str
    title: str
    jobs: Callable[[int, bool], Sequence[Job]]
    run: Callable[[Job, bool], Row]
    figure: Callable[[Sequence[Row]], Figure]
    summary: Callable[[Sequence[Row]], Sequence[Row]]
    num_seeds: int
