"""Differences between our methods and those of sbi that they are variants of.

Both are judged by the same observations and, in their first round, see the same
simulations, so that their difference varies less than either of them.
"""

import math
from dataclasses import dataclass, fields, replace

from sbi_boed_plugin._statistics import grouped_mean_and_error
from sbi_boed_plugin.benchmark.jobs import Job
from sbi_boed_plugin.benchmark.summary import Results
from sbi_boed_plugin.sbibm import check_hyper

__all__ = ["VARIANT_OF", "Difference", "paired_differences"]

VARIANT_OF = {"nle_ince": "nle", "npe_gkl": "npe", "nre_gkl": "nre"}


@dataclass(frozen=True)
class Difference:
    """A metric of a method minus that of the method that it is a variant of.

    Attributes:
        job: A job of the method.
        reference: A job of the method that it is a variant of.
        metric: Name of the metric.
        mean: Mean difference over the observations that both have, each the mean over
            seeds; negative where the variant is better.
        error: Standard error over observations, NaN for a single one.
        num_observations: Number of observations that both have.
        num_seeds: Number of seeds that both have.
    """

    job: Job
    reference: Job
    metric: str
    mean: float
    error: float
    num_observations: int
    num_seeds: int


def paired_differences(results: Results, metric: str) -> list[Difference]:
    """Return the differences of all variants, in the order of the results.

    The other method is the one with the same rounds, samples and those hyperparameters
    that it knows. Who uses more simulations than the budget is left out.

    Args:
        results: Results of a benchmark.
        metric: Name of a metric.
    """
    measured: dict[tuple[str, str, int], dict[tuple[int, int], float]] = {}
    for record in results.records:
        job = Job(**record["job"])
        value = record["metrics"].get(metric)
        if value is not None and math.isfinite(value):
            pairs = measured.setdefault(job.cell, {})
            pairs[job.num_observation, job.seed] = value
    found = []
    for group in results.groups:
        job = group.job
        if job.method not in VARIANT_OF:
            continue
        reference = _reference(job)
        beside = results.group(*reference.cell)
        if beside is None or group.exceeds_budget or beside.exceeds_budget:
            continue
        ours = measured.get(job.cell, {})
        theirs = measured.get(reference.cell, {})
        shared = sorted(ours.keys() & theirs.keys())
        if not shared:
            continue
        mean, error = grouped_mean_and_error(
            (number, ours[number, seed] - theirs[number, seed])
            for number, seed in shared
        )
        counts = (len(set(column)) for column in zip(*shared, strict=True))
        found.append(Difference(job, reference, metric, mean, error, *counts))
    return found


def _reference(job: Job) -> Job:
    """Return a job of the method that the one of this job is a variant of."""
    method = VARIANT_OF[job.method]
    known = {field.name for field in fields(check_hyper(method))}
    hyper = {name: value for name, value in job.hyper.items() if name in known}
    return replace(job, method=method, hyper=hyper)
