"""Differences between our methods and those of sbi that they are variants of.

Both are judged by the same observations and, in their first round, see the same
simulations, so that their difference varies less than either of them.
"""

import math
from collections.abc import Iterable
from dataclasses import dataclass, fields, replace

from sbi_boed_plugin._statistics import mean_and_error
from sbi_boed_plugin.benchmark.jobs import Job
from sbi_boed_plugin.benchmark.summary import Group, Results
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
            cell = (job.task, job.setting_key, job.num_simulations)
            measured.setdefault(cell, {})[job.num_observation, job.seed] = value
    found = []
    for group in results.groups:
        job = group.job
        if job.method not in VARIANT_OF:
            continue
        reference = _reference(job)
        place = (job.task, job.num_simulations)
        beside = results.group(place[0], reference.setting_key, place[1])
        if beside is None or _is_over(group) or _is_over(beside):
            continue
        ours = measured.get((place[0], job.setting_key, place[1]), {})
        theirs = measured.get((place[0], reference.setting_key, place[1]), {})
        shared = sorted(ours.keys() & theirs.keys())
        if not shared:
            continue
        values = ((pair[0], ours[pair] - theirs[pair]) for pair in shared)
        counts = (len(set(column)) for column in zip(*shared, strict=True))
        found.append(
            Difference(job, reference, metric, *_over_observations(values), *counts)
        )
    return found


def _reference(job: Job) -> Job:
    """Return a job of the method that the one of this job is a variant of."""
    method = VARIANT_OF[job.method]
    known = {field.name for field in fields(check_hyper(method))}
    hyper = {name: value for name, value in job.hyper.items() if name in known}
    return replace(job, method=method, hyper=hyper)


def _is_over(group: Group) -> bool:
    """Tell whether a method has used more simulations than its budget."""
    return any(caveat.startswith("uses") for caveat in group.caveats)


def _over_observations(values: Iterable[tuple[int, float]]) -> tuple[float, float]:
    gathered: dict[int, list[float]] = {}
    for number, value in values:
        gathered.setdefault(number, []).append(value)
    return mean_and_error([mean_and_error(v)[0] for v in gathered.values()])
