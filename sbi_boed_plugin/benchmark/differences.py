"""Differences between our methods and those of sbi that they are variants of.

Both see the same simulations and observations, so that their difference varies less
than either of them.
"""

import math
from collections.abc import Iterable
from dataclasses import dataclass

from sbi_boed_plugin._statistics import mean_and_error
from sbi_boed_plugin.benchmark.jobs import Job
from sbi_boed_plugin.benchmark.store import Record
from sbi_boed_plugin.benchmark.summary import Results

__all__ = ["VARIANT_OF", "Difference", "paired_differences"]

VARIANT_OF = {"nle_ince": "nle", "npe_gkl": "npe", "nre_gkl": "nre"}


@dataclass(frozen=True)
class Difference:
    """A metric of a method minus that of the method that it is a variant of.

    Attributes:
        job: A job of the method.
        metric: Name of the metric.
        mean: Mean difference over the observations that both have, each the mean over
            seeds; negative where the variant is better.
        error: Standard error over observations, NaN for a single one.
        num_observations: Number of observations that both have.
        num_seeds: Number of seeds that both have.
    """

    job: Job
    metric: str
    mean: float
    error: float
    num_observations: int
    num_seeds: int

    @property
    def reference(self) -> str:
        """Name of the method that it is a variant of."""
        return VARIANT_OF[self.job.method]


def paired_differences(results: Results, metric: str) -> list[Difference]:
    """Return the differences of all variants, in the order of the results.

    The other method is the one with the same rounds, samples and hyperparameters, or
    else without hyperparameters.

    Args:
        results: Results of a benchmark.
        metric: Name of a metric.
    """
    measured: dict[tuple[str, str, int], dict[tuple[int, int], float]] = {}
    jobs: dict[tuple[str, str, int], Job] = {}
    for record in results.records:
        job = Job(**record["job"])
        cell = (job.task, job.setting_key, job.num_simulations)
        jobs.setdefault(cell, job)
        value = _value(record, metric)
        if value is not None:
            pair = (job.num_observation, job.seed)
            measured.setdefault(cell, {})[pair] = value
    found = []
    for (task, setting, budget), job in jobs.items():
        if job.method not in VARIANT_OF:
            continue
        ours = measured.get((task, setting, budget), {})
        theirs = next(
            (
                measured[cell]
                for key in _references(job)
                if (cell := (task, key, budget)) in measured
            ),
            {},
        )
        shared = ours.keys() & theirs.keys()
        if not shared:
            continue
        mean, error = _over_observations(
            (number, ours[number, seed] - theirs[number, seed])
            for number, seed in sorted(shared)
        )
        counts = (len(set(column)) for column in zip(*shared, strict=True))
        found.append(Difference(job, metric, mean, error, *counts))
    return found


def _value(record: Record, metric: str) -> float | None:
    value = record["metrics"].get(metric)
    return value if value is not None and math.isfinite(value) else None


def _references(job: Job) -> Iterable[str]:
    """Yield keys of the settings that a variant is compared with, the best first."""
    for hyper in (job.hyper, {}):
        reference = {**job.to_plain(), "method": VARIANT_OF[job.method], "hyper": hyper}
        yield Job(**reference).setting_key


def _over_observations(values: Iterable[tuple[int, float]]) -> tuple[float, float]:
    gathered: dict[int, list[float]] = {}
    for number, value in values:
        gathered.setdefault(number, []).append(value)
    return mean_and_error([mean_and_error(v)[0] for v in gathered.values()])
