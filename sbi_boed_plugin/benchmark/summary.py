"""Results of a benchmark as tables: all jobs, means, and paired differences."""

import json
from collections.abc import Sequence
from dataclasses import dataclass, fields
from functools import cached_property
from pathlib import Path
from typing import Any

import pandas as pd

from sbi_boed_plugin.benchmark.frames import mean_and_sem
from sbi_boed_plugin.benchmark.jobs import Job
from sbi_boed_plugin.benchmark.metrics import METRICS
from sbi_boed_plugin.benchmark.sbibm_jobs import benchmark_store
from sbi_boed_plugin.benchmark.store import Record
from sbi_boed_plugin.sbibm import TASKS, check_hyper

__all__ = ["CELL", "SECONDS", "Results", "read_results"]

# What jobs that are averaged have in common, and what of it is a column of a report.
CELL = [
    "task",
    "method",
    "num_simulations",
    "num_rounds",
    "num_samples",
    "hyper",
    "tag",
]
SECONDS = ["training_seconds", "sampling_seconds", "metric_seconds"]
_MEASURED = [*SECONDS, "num_simulations_used", "log_prob_true_parameters", "from_cache"]

# Which of sbi's methods ours are variants of.
_VARIANT_OF = {"nle_ince": "nle", "npe_gkl": "npe", "nre_gkl": "nre"}


@dataclass(frozen=True)
class Results:
    """What the folder of a benchmark holds.

    Attributes:
        records: Records of all jobs, in the order of the tables.
        metrics: Names of the metrics that occur.
        set_aside: Names of files that hold no record.
    """

    records: list[Record]
    metrics: list[str]
    set_aside: list[str]

    @cached_property
    def jobs(self) -> pd.DataFrame:
        """One row per job: settings, `label`, metrics, times and more."""
        names = {key: None for record in self.records for key in record["versions"]}
        said = {
            key: None
            for record in self.records
            for key in record["result"].get("diagnostics", {})
        }
        rows = []
        for record, label in zip(self.records, self._labels(), strict=True):
            job, result = record["job"], record["result"]
            hyper = json.dumps(job["hyper"], sort_keys=True) if job["hyper"] else ""
            row = {"label": label, **job, "hyper": hyper, "status": record["status"]}
            row |= {name: result.get("metrics", {}).get(name) for name in self.metrics}
            row |= {name: result.get(name) for name in _MEASURED}
            row["load"] = record["load"]
            spoken = result.get("diagnostics", {})
            row |= {f"diagnostic_{name}": spoken.get(name) for name in sorted(said)}
            versions = record["versions"]
            row |= {f"version_{name}": versions.get(name) for name in sorted(names)}
            rows.append({**row, "error": record["error"]})
        table = pd.DataFrame(rows, dtype=object)
        first = ["label", *CELL, "seed", "num_observation"]
        return table.reindex(columns=list(dict.fromkeys([*first, *table])))

    @cached_property
    def cells(self) -> pd.DataFrame:
        """One row per task, method, budget and other settings.

        Means and standard errors of metrics and times are over observations, of which
        each is the mean over its seeds; those of the time of training are over
        trainings, which observations share. Further columns tell how many jobs are
        behind them, and whether they are comparable with others.
        """
        by = ["label", *CELL]
        jobs = self.jobs.assign(is_done=self.jobs["status"] == "done")
        done = jobs[jobs["is_done"]]
        place = ["task", "num_simulations"]
        cells = jobs.groupby(by, sort=False, as_index=False).agg(
            num_done=("is_done", "sum"), num_jobs=("is_done", "size")
        )
        cells["num_failed"] = cells["num_jobs"] - cells["num_done"]
        more = [
            done.groupby(by, sort=False, as_index=False).agg(
                num_seeds=("seed", "nunique"), used=("num_simulations_used", "max")
            ),
            _over_observations(done, by, [*self.metrics, *SECONDS[1:]]),
            mean_and_sem(
                done.drop_duplicates([*by, "seed", SECONDS[0]]), by, SECONDS[:1], "_"
            ),
            # Pairs of observation and seed that any method has had.
            jobs.drop_duplicates([*place, "seed", "num_observation"])
            .groupby(place, as_index=False)
            .agg(num_expected=("seed", "size")),
            # Classifiers tell fewer samples apart less well.
            done.groupby(place, as_index=False).agg(
                most_samples=("num_samples", "max")
            ),
        ]
        for table in more:
            shared = by if "label" in table else place
            cells = cells.merge(table, how="left", on=shared)
        for name in ("num_observations", "num_seeds"):
            cells[name] = cells[name].fillna(0).astype(int)
        cells["caveats"] = [_caveats(row) for row in cells.to_dict("records")]
        # Only such means may be ranked: who fails where it is hard would win.
        is_complete = cells["num_jobs"] == cells["num_expected"]
        is_complete &= cells["num_failed"] == 0
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
        keys = ["task", "num_simulations", "num_rounds", "num_samples", "tag"]
        within = self.cells.loc[~(self.cells["used"] > self.cells["num_simulations"])]
        values = self.jobs.merge(within[CELL], on=CELL).melt(
            id_vars=["label", *CELL, "seed", "num_observation"],
            value_vars=self.metrics,
            var_name="metric",
        )
        values = values.dropna(subset=["value"])
        ours = values[values["method"].isin(list(_VARIANT_OF))].copy()
        ours["reference"] = ours["method"].map(_VARIANT_OF).astype(object)
        pairs = zip(ours["reference"], ours["hyper"], strict=True)
        hyper = [_known_hyper(*pair) for pair in pairs]
        ours["reference_hyper"] = pd.Series(hyper, ours.index, dtype=object)
        theirs = values.rename(
            columns={
                "method": "reference",
                "hyper": "reference_hyper",
                "label": "reference_label",
                "value": "reference_value",
            }
        )
        keys += ["reference", "reference_hyper", "metric", "seed", "num_observation"]
        pairs = ours.merge(theirs, on=keys)
        pairs["difference"] = pairs["value"] - pairs["reference_value"]
        by = ["label", "reference_label", *CELL, "reference", "reference_hyper"]
        by.append("metric")
        means = _over_observations(pairs, by, ["difference"])
        seeds = pairs.groupby(by, as_index=False).agg(num_seeds=("seed", "nunique"))
        return means.merge(seeds, on=by)

    @property
    def tasks(self) -> list[str]:
        """Names of the tasks, in sbibm's order."""
        return list(self.jobs["task"].unique())

    @property
    def labels(self) -> list[str]:
        """Methods with what is unusual about each, in a fixed order."""
        order = sorted(range(len(self.records)), key=self._setting_order)
        return list(dict.fromkeys(self.jobs["label"].iloc[order]))

    @property
    def budgets(self) -> list[int]:
        """Numbers of simulations, ascending."""
        return sorted(self.jobs["num_simulations"].unique())

    @cached_property
    def shared(self) -> list[str]:
        """What is unusual about all jobs alike, in words."""
        unusual = [Job(**record["job"]).unusual for record in self.records]
        return [text for text in unusual[0] if all(text in each for each in unusual)]

    def _labels(self) -> list[str]:
        labels = []
        for record in self.records:
            job = Job(**record["job"])
            own = [text for text in job.unusual if text not in self.shared]
            labels.append(", ".join([job.method, *own]))
        return labels

    def _setting_order(self, index: int) -> tuple[Any, ...]:
        return _order(self.records[index])[3:-2]


def read_results(folder: Path) -> Results:
    """Read all records of a benchmark; files that hold none are set aside.

    Raises:
        ValueError: If there are no records.
    """
    store = benchmark_store(folder)
    records = store.read_all()
    if not records:
        raise ValueError(
            f"{folder} holds no results of a benchmark. Run `sbi-boed bench --output "
            f"{folder}` first, or name the folder of one."
        )
    records.sort(key=_order)
    present = {
        name for record in records for name in record["result"].get("metrics", {})
    }
    metrics = [name for name in METRICS if name in present]
    metrics += sorted(present - set(metrics))
    return Results(records, metrics, store.set_aside())


def _order(record: Record) -> tuple[Any, ...]:
    """Return a key that sorts by task, budget, settings, observation and seed."""
    job = record["job"]
    place = TASKS.index(job["task"]) if job["task"] in TASKS else len(TASKS)
    # Ours in alphabetical order, which puts each beside what it is a variant of.
    hyper = json.dumps(job["hyper"], sort_keys=True) if job["hyper"] else ""
    return (
        place,
        job["task"],
        job["num_simulations"],
        ":" in job["method"],
        *(job[name] for name in ("method", "num_rounds", "num_samples")),
        hyper,
        job["tag"],
        job["num_observation"],
        job["seed"],
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
    known = {field.name for field in fields(check_hyper(method))}
    given = json.loads(hyper or "{}")
    kept = {name: value for name, value in given.items() if name in known}
    return json.dumps(kept, sort_keys=True) if kept else ""
