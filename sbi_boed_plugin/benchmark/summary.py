"""Results of a benchmark as tables: all jobs, means, and paired differences."""

import json
from collections.abc import Sequence
from dataclasses import dataclass, fields
from functools import cached_property
from pathlib import Path
from typing import Any

import pandas as pd

from sbi_boed_plugin.benchmark.jobs import Job, hyper_text
from sbi_boed_plugin.benchmark.metrics import METRICS
from sbi_boed_plugin.benchmark.store import Record, Store
from sbi_boed_plugin.sbibm import TASKS, check_hyper

__all__ = ["CELL", "SECONDS", "Results", "mean_and_sem", "read_results"]

# What jobs that are averaged have in common.
CELL = ["task", "method", "num_simulations", "num_rounds", "num_samples", "hyper"]
CELL += ["tag"]
SECONDS = ["training_seconds", "sampling_seconds", "metric_seconds"]
_MEASURED = [*SECONDS, "num_simulations_used", "log_prob_true_parameters", "from_cache"]

# Which of sbi's methods ours are variants of.
_VARIANT_OF = {"nle_ince": "nle", "npe_gkl": "npe", "nre_gkl": "nre"}


@dataclass(frozen=True)
class Results:
    """What the folder of a benchmark holds.

    Records are in the order of the tables; `metrics` occur in some of them.
    """

    records: list[Record]
    metrics: list[str]

    @cached_property
    def jobs(self) -> pd.DataFrame:
        """One row per job: settings, `label`, metrics, times and more."""
        rows: list[dict[str, Any]] = []
        for record in self.records:
            job, result = record["job"], record["result"]
            said, versions = result.get("diagnostics", {}), record["versions"]
            row = {"label": Job(**job).label, **job}
            row |= {"hyper": hyper_text(job["hyper"]), **result.get("metrics", {})}
            row |= {name: result.get(name) for name in _MEASURED}
            row |= {f"diagnostic_{name}": value for name, value in said.items()}
            row |= {f"version_{name}": value for name, value in versions.items()}
            row |= {name: record[name] for name in ("status", "load", "error")}
            rows.append(row)
        names = sorted({name for row in rows for name in row})
        more = [name for name in names if name.startswith(("diagnostic_", "version_"))]
        columns = ["label", *CELL, "seed", "num_observation", "status", *self.metrics]
        columns += [*_MEASURED, "load", *more, "error"]
        return pd.DataFrame(rows, dtype=object).reindex(columns=columns)

    @cached_property
    def cells(self) -> pd.DataFrame:
        """One row per task, method, budget and other settings.

        Means and standard errors of metrics and times are over observations, of which
        each is the mean over its seeds; those of the time of training are over
        trainings, which observations share. Further columns tell how many jobs are
        behind them, and whether they are comparable with others.
        """
        by, place = ["label", *CELL], ["task", "num_simulations"]
        jobs = self.jobs.assign(is_done=self.jobs["status"] == "done")
        done = jobs[jobs["is_done"]]
        cells = jobs.groupby(by, sort=False, as_index=False).agg(
            num_done=("is_done", "sum"), num_jobs=("is_done", "size")
        )
        cells["num_failed"] = cells["num_jobs"] - cells["num_done"]
        trainings = done.drop_duplicates([*by, "seed", SECONDS[0]])
        for table in (
            done.groupby(by, as_index=False).agg(
                num_seeds=("seed", "nunique"), used=("num_simulations_used", "max")
            ),
            _over_observations(done, by, [*self.metrics, *SECONDS[1:]]),
            mean_and_sem(trainings, by, SECONDS[:1], "_"),
        ):
            cells = cells.merge(table, how="left", on=by)
        for name in ("num_observations", "num_seeds"):
            cells[name] = cells[name].fillna(0).astype(int)
        # Pairs of seed and observation that any method has had.
        pairs = jobs.drop_duplicates([*place, "seed", "num_observation"])
        expected = pairs.groupby(place).size().rename("num_expected")
        cells = cells.join(expected, on=place)
        # Classifiers tell fewer samples apart less well.
        most = done.groupby(place)["num_samples"].max().rename("most_samples")
        cells = cells.join(most, on=place)
        cells["caveats"] = [_caveats(row) for row in cells.to_dict("records")]
        # Only such means may be ranked: who fails where it is hard would win.
        is_complete = cells["num_done"] == cells["num_expected"]
        cells["is_comparable"] = is_complete & (cells["caveats"] == "")
        return cells

    @cached_property
    def differences(self) -> pd.DataFrame:
        """Metrics of our methods minus those of sbi's that they are variants of.

        Both are judged by the same observations and, in their first round, see the same
        simulations, so that their difference varies less than either of them. The other
        method is the one with the same rounds, samples, tag and those hyperparameters
        that it knows. Who uses more simulations than the budget is left out.
        """
        within = self.cells.loc[~(self.cells["used"] > self.cells["num_simulations"])]
        values = self.jobs.merge(within[CELL], on=CELL).melt(
            id_vars=["label", *CELL, "seed", "num_observation"],
            value_vars=self.metrics,
            var_name="metric",
        )
        values = values.dropna(subset=["value"])
        ours = values[values["method"].isin(list(_VARIANT_OF))].copy()
        ours["reference"] = ours["method"].map(_VARIANT_OF).astype(object)
        known = map(_known_hyper, ours["reference"], ours["hyper"])
        ours["reference_hyper"] = pd.Series(list(known), ours.index, dtype=object)
        new = {"method": "reference", "hyper": "reference_hyper"}
        new |= {"label": "reference_label", "value": "reference_value"}
        keys = [name for name in values if name not in new]
        keys += ["reference", "reference_hyper"]
        pairs = ours.merge(values.rename(columns=new), on=keys)
        pairs["difference"] = pairs["value"] - pairs["reference_value"]
        by = ["label", "reference_label", *CELL, "reference", "reference_hyper"]
        by.append("metric")
        seeds = pairs.groupby(by, as_index=False).agg(num_seeds=("seed", "nunique"))
        return _over_observations(pairs, by, ["difference"]).merge(seeds, on=by)

    @property
    def tasks(self) -> list[str]:
        """Names of the tasks, in sbibm's order."""
        return list(self.jobs["task"].unique())

    @property
    def labels(self) -> list[str]:
        """Methods with what is unusual about each, each beside its variants."""
        return list(self.jobs["label"].unique())

    @property
    def budgets(self) -> list[int]:
        """Numbers of simulations, ascending."""
        return sorted(self.jobs["num_simulations"].unique())


def read_results(folder: Path) -> Results:
    """Read all records of a benchmark; those of other jobs are left out."""
    names = {field.name for field in fields(Job)}
    found = Store(folder).read_all()
    records = sorted((r for r in found if set(r["job"]) == names), key=_order)
    if not records:
        raise ValueError(
            f"{folder} holds no results of a benchmark. Run `sbi-boed bench --output "
            f"{folder}` first, or name the folder of one."
        )
    present = {name for r in records for name in r["result"].get("metrics", {})}
    return Results(records, [name for name in METRICS if name in present])


def mean_and_sem(
    table: pd.DataFrame, by: Sequence[str], values: Sequence[str], count: str = "seeds"
) -> pd.DataFrame:
    """Return means and standard errors of columns, over the rows of each group.

    A value that is missing in one row makes the mean of its group missing: a mean over
    some of the rows would be compared with means over all. Groups keep the order of
    their first row; `count` is the number of their rows.

    Example:
        >>> rows = pd.DataFrame({"D": [1, 1], "seed": [0, 1], "eig": [2.0, 4.0]})
        >>> print(mean_and_sem(rows, by=["D"], values=["eig"]).to_string(index=False))
         D  seeds  eig  eig_se
         1      2  3.0     1.0
    """
    numbers = table[list(values)].astype(float)
    groups = numbers.groupby([table[name] for name in by], sort=False, dropna=False)
    sizes, found, present = groups.size(), groups.agg(["mean", "sem"]), groups.count()
    summary = pd.DataFrame({count: sizes})
    for name in values:
        is_whole = present[name] == sizes
        summary[name] = found[name]["mean"].where(is_whole)
        summary[f"{name}_se"] = found[name]["sem"].where(is_whole)
    return summary.reset_index()


def _order(record: Record) -> tuple[Any, ...]:
    """Return a key that sorts by task, budget, settings, observation and seed."""
    job = record["job"]
    return (
        TASKS.index(job["task"]) if job["task"] in TASKS else len(TASKS),
        job["task"],
        job["num_simulations"],
        # Ours in alphabetical order, which puts each beside what it is a variant of.
        ":" in job["method"],
        *(job[name] for name in ("method", "num_rounds", "num_samples")),
        hyper_text(job["hyper"]),
        *(job[name] for name in ("tag", "num_observation", "seed")),
    )


def _over_observations(
    table: pd.DataFrame, by: Sequence[str], values: Sequence[str]
) -> pd.DataFrame:
    """Average over seeds, then over observations."""
    each = mean_and_sem(table, [*by, "num_observation"], values)
    return mean_and_sem(each, by, values, "num_observations")


def _caveats(cell: dict[str, Any]) -> str:
    """Say where a method was given more, or judged by less, than others."""
    caveats = []
    if cell["num_samples"] < cell["most_samples"]:
        caveats.append(f"{cell['num_samples']:,} samples")
    if cell["used"] > cell["num_simulations"]:
        caveats.append(f"uses {cell['used']:,.0f} simulations")
    return ", ".join(caveats)


def _known_hyper(method: str, hyper: str) -> str:
    """Return the hyperparameters that a method knows, as text."""
    known = check_hyper(method)
    given = json.loads(hyper or "{}")
    return hyper_text({name: value for name, value in given.items() if name in known})
