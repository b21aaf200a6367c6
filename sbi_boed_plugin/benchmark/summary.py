"""Results of a folder, and their means over observations and seeds."""

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from sbi_boed_plugin._statistics import grouped_mean_and_error, mean_and_error
from sbi_boed_plugin.benchmark._old_store import (
    DamagedFileError,
    Record,
    Store,
    read_record,
)
from sbi_boed_plugin.benchmark.jobs import Job
from sbi_boed_plugin.benchmark.metrics import METRICS
from sbi_boed_plugin.benchmark.published import PUBLISHED_C2ST

__all__ = [
    "SECONDS",
    "Failure",
    "Group",
    "Results",
    "describe_versions",
    "read_results",
    "summarize",
]

SECONDS = ("training_seconds", "sampling_seconds", "metric_seconds")


@dataclass(frozen=True)
class Group:
    """Jobs that differ in observation and seed only.

    Attributes:
        job: One of them.
        values: Mean and standard error of each metric and time, over observations,
            of which each is the mean over its seeds; of the time of training, over
            trainings, which observations share. NaN where one is not known.
        num_observations: Number of observations with a result.
        num_seeds: Number of seeds with a result.
        num_done: Number of jobs with a result.
        num_failed: Number of jobs that failed.
        num_expected: Number of pairs of observation and seed that any method has had
            at the task and budget.
        num_simulations_used: Largest number of simulations that a job used.
        most_samples: Largest number of samples that any method is judged by there.
    """

    job: Job
    values: dict[str, tuple[float, float]]
    num_observations: int
    num_seeds: int
    num_done: int
    num_failed: int
    num_expected: int
    num_simulations_used: int
    most_samples: int

    @property
    def exceeds_budget(self) -> bool:
        """Whether a job used more simulations than it was to."""
        return self.num_simulations_used > self.job.num_simulations

    @property
    def caveats(self) -> list[str]:
        """Where it was given more, or judged by less, than others, in words."""
        caveats = []
        # Classifiers tell fewer samples apart less well.
        if self.job.num_samples < self.most_samples:
            caveats.append(f"{self.job.num_samples:,} samples")
        if self.exceeds_budget:
            caveats.append(f"uses {self.num_simulations_used:,} simulations")
        return caveats

    @property
    def is_comparable(self) -> bool:
        """Whether its means are of all posteriors, at the price that others pay.

        Only such means may be ranked: who fails where it is hard would win.
        """
        is_complete = self.num_done == self.num_expected and not self.num_failed
        return is_complete and not self.caveats

    def value(self, name: str) -> tuple[float, float]:
        """Return mean and standard error of a metric or time, NaN if not known."""
        return self.values.get(name, (math.nan, math.nan))


@dataclass(frozen=True)
class Failure:
    """What went wrong with a job, or with a metric of a job that has a posterior.

    Attributes:
        job: The job.
        error: What went wrong, in one line.
        trace: Where, in many.
        output: What the method printed before.
    """

    job: Job
    error: str
    trace: str
    output: str


@dataclass(frozen=True)
class Results:
    """What a folder holds.

    Attributes:
        records: Records of all jobs.
        groups: Their means.
        metrics: Names of the metrics that occur.
        damaged: What is wrong with files that hold no record.
    """

    records: list[Record]
    groups: list[Group]
    metrics: list[str]
    damaged: list[str]

    @property
    def tasks(self) -> list[str]:
        """Names of the tasks, in sbibm's order."""
        return list(dict.fromkeys(group.job.task for group in self.groups))

    @property
    def settings(self) -> list[str]:
        """Keys of the methods with their settings, in a fixed order."""
        jobs = sorted((group.job for group in self.groups), key=_setting_order)
        return list(dict.fromkeys(job.setting_key for job in jobs))

    @property
    def shared(self) -> list[str]:
        """What is unusual about all jobs alike, in words."""
        jobs = [group.job for group in self.groups]
        return [
            text for text in jobs[0].unusual if all(text in job.unusual for job in jobs)
        ]

    @cached_property
    def labels(self) -> dict[str, str]:
        """Names of the settings by their keys, without what all of them share."""
        shared = self.shared
        return {
            group.job.setting_key: ", ".join(
                [
                    group.job.method,
                    *(text for text in group.job.unusual if text not in shared),
                ]
            )
            for group in self.groups
        }

    @property
    def budgets(self) -> list[int]:
        """Numbers of simulations, ascending."""
        return sorted({group.job.num_simulations for group in self.groups})

    def jobs(self, task: str | None = None, budget: int | None = None) -> list[Job]:
        """Return one job of each group, of a task or budget if it is given."""
        return [
            group.job
            for group in self.groups
            if task in (None, group.job.task)
            and budget in (None, group.job.num_simulations)
        ]

    @property
    def failed(self) -> list[Record]:
        """Records of jobs that failed."""
        return [record for record in self.records if record["status"] == "failed"]

    @property
    def failures(self) -> list[Failure]:
        """All that went wrong, with jobs or with metrics."""
        found = []
        for record in self.records:
            errors = record.get("metric_errors", {})
            parts = [("", record)] if record["status"] == "failed" else errors.items()
            found += [
                Failure(
                    Job(**record["job"]),
                    f"{name}: {part['error']}" if name else part["error"],
                    part["traceback"],
                    part["output"],
                )
                for name, part in parts
            ]
        return found

    def group(self, task: str, setting: str, budget: int) -> Group | None:
        """Return the group of a cell in a table, if there is one."""
        return self._by_cell.get((task, setting, budget))

    def num_tasks(self, budget: int) -> int:
        """Return the number of tasks that any method has a result on at a budget."""
        return len(
            {
                group.job.task
                for group in self.groups
                if group.num_done and group.job.num_simulations == budget
            }
        )

    def seconds(self, name: str, setting: str, budget: int) -> list[float]:
        """Return a time of a method on each task that has one."""
        groups = [self.group(task, setting, budget) for task in self.tasks]
        means = [group.value(name)[0] for group in groups if group is not None]
        return [mean for mean in means if math.isfinite(mean)]

    @cached_property
    def _by_cell(self) -> dict[tuple[str, str, int], Group]:
        return {group.job.cell: group for group in self.groups}


def describe_versions(versions: Mapping[str, str | None]) -> str:
    """Return the versions that results depend on most, as a text.

    Example:
        >>> describe_versions({"sbi_boed_plugin": "0.1", "sbi": "0.27", "torch": "2"})
        'sbi_boed_plugin 0.1, sbi 0.27, sbibm unknown, torch 2'
    """
    names = ["sbi_boed_plugin", "sbi", "sbibm", "torch"]
    # Results of before it was noted have none.
    names += ["code"] if "code" in versions else []
    return ", ".join(f"{name} {versions.get(name) or 'unknown'}" for name in names)


def read_results(folder: Path) -> Results:
    """Read all results of a benchmark, and change none.

    Args:
        folder: Folder of the benchmark.

    Returns:
        Its results, in a fixed order.

    Raises:
        ValueError: If there are none.
    """
    records, damaged = [], []
    for path in sorted(Store(folder).results.rglob("*.json")):
        if path.name.startswith("."):
            continue
        try:
            record = read_record(path)
            expected = Job(**record["job"]).path("json")
            if path.relative_to(Store(folder).results) != expected:
                # A copy would count as another posterior.
                raise DamagedFileError(f"{path} is not where its job's result belongs.")
            records.append(record)
        except DamagedFileError as error:
            name = str(path.relative_to(folder))
            damaged.append(str(error).replace(str(path), name))
    if not records:
        raise ValueError(
            f"{folder} holds no results of a benchmark. Run `sbi-boed bench --output "
            f"{folder}` first, or name the folder of one."
        )
    records.sort(key=lambda record: _order(Job(**record["job"])))
    present = {name for record in records for name in record["metrics"]}
    metrics = [name for name in METRICS if name in present]
    metrics += sorted(present - set(metrics))
    return Results(records, summarize(records, metrics), metrics, damaged)


def summarize(records: Sequence[Record], metrics: Sequence[str]) -> list[Group]:
    """Average over seeds, then over observations.

    Args:
        records: Records, sorted.
        metrics: Names of metrics.

    Returns:
        One group per task, method, budget and other settings.
    """
    gathered: dict[tuple[str, str, int], list[Record]] = {}
    pairs: dict[tuple[str, int], set[tuple[int, int]]] = {}
    most_samples: dict[tuple[str, int], int] = {}
    for record in records:
        job = Job(**record["job"])
        gathered.setdefault(job.cell, []).append(record)
        place = (job.task, job.num_simulations)
        pairs.setdefault(place, set()).add((job.num_observation, job.seed))
        if record["status"] == "done":
            most_samples[place] = max(most_samples.get(place, 0), job.num_samples)
    groups = []
    for (task, _, budget), members in gathered.items():
        done = [record for record in members if record["status"] == "done"]
        values = {
            name: _over_observations(done, lambda record, n=name: record["metrics"][n])
            for name in metrics
            # A mean over some of the jobs would be compared with means over all.
            if done and all(name in record["metrics"] for record in done)
        }
        for name in SECONDS:
            values[name] = _over_observations(done, lambda record, n=name: record[n])
        values["training_seconds"] = _over_trainings(done)
        job = Job(**members[0]["job"])
        groups.append(
            Group(
                job,
                values,
                len({record["job"]["num_observation"] for record in done}),
                len({record["job"]["seed"] for record in done}),
                len(done),
                len(members) - len(done),
                len(pairs[task, budget]),
                max((r["num_simulations_used"] or 0 for r in done), default=0),
                most_samples.get((task, budget), 0),
            )
        )
    return groups


def _over_observations(records: Sequence[Record], value: Any) -> tuple[float, float]:
    numbers = ((record["job"]["num_observation"], value(record)) for record in records)
    return grouped_mean_and_error(
        (place, math.nan if number is None else number) for place, number in numbers
    )


def _over_trainings(records: Sequence[Record]) -> tuple[float, float]:
    """Average the time of trainings, of which observations may share each."""
    times = {
        (record["job"]["seed"], record["training_seconds"]): record["training_seconds"]
        for record in records
    }
    return mean_and_error([math.nan if t is None else t for t in times.values()])


def _order(job: Job) -> tuple[Any, ...]:
    tasks = list(PUBLISHED_C2ST)
    place = tasks.index(job.task) if job.task in tasks else len(tasks)
    setting = _setting_order(job)
    return (
        place,
        job.task,
        job.num_simulations,
        *setting,
        job.num_observation,
        job.seed,
    )


def _setting_order(job: Job) -> tuple[Any, ...]:
    # Ours in alphabetical order, which puts each beside what it is a variant of.
    hyper = json.dumps(job.hyper, sort_keys=True) if job.hyper else ""
    return (":" in job.method, job.method, job.num_rounds, job.num_samples, hyper)
