"""How far samples are from the reference posterior, measured as sbibm measures it."""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

__all__ = ["CLASSIFIER_METRICS", "METRICS", "check_metrics", "compute_metric"]

# Accuracies: from one half, where a classifier tells nothing, to one.
CLASSIFIER_METRICS = ("c2st", "c2st_forest")

# Simulators of differential equations take memory per trajectory.
_SIMULATION_BATCH = 1_000
_NUM_FOREST = 1_000


def compute_metric(
    name: str, task: Any, samples: Tensor, num_observation: int
) -> float:
    """Compare samples with a task's reference posterior or observation.

    Smaller is better for all metrics. They draw from the global generators.

    Args:
        name: One of `METRICS`.
        task: A task of sbibm.
        samples: Posterior samples of shape `(num_samples, dim_parameters)`.
        num_observation: Number of the observation.
    """
    return float(METRICS[name](task, samples, num_observation))


def check_metrics(names: Sequence[str]) -> None:
    """Raise a `ValueError` if there are no metrics, or one is unknown."""
    known = ", ".join(METRICS)
    if isinstance(names, str) or not names:
        raise ValueError(f"metrics={names!r} must name at least one of {known}.")
    for name in names:
        if name not in METRICS:
            raise ValueError(f"metrics={name!r} is unknown; there are {known}.")


def _paired(task: Any, samples: Tensor, number: int) -> tuple[Tensor, Tensor]:
    """Return as many reference samples as samples.

    Classes of different size would shift the accuracy of a classifier that tells
    nothing away from one half.
    """
    reference = task.get_reference_posterior_samples(number)
    num_samples = min(len(reference), len(samples))
    return _some(reference, num_samples), _some(samples, num_samples)


def _some(samples: Tensor, number: int) -> Tensor:
    """Return so many of the samples, or all.

    Drawn at random: sbi orders samples of MCMC chain by chain, and the first thousand
    of ten thousand would be those of a few chains.
    """
    if len(samples) <= number:
        return samples
    return samples[torch.randperm(len(samples))[:number]]


def _c2st(task: Any, samples: Tensor, number: int) -> Tensor:
    from sbibm.metrics import c2st

    return c2st(*_paired(task, samples, number), z_score=True)


def _c2st_forest(task: Any, samples: Tensor, number: int) -> Tensor:
    from sbi.utils.metrics import c2st

    reference, samples = _paired(task, _some(samples, _NUM_FOREST), number)
    return c2st(reference, samples, classifier="rf", z_score=True)


def _mmd(task: Any, samples: Tensor, number: int) -> Tensor:
    from sbibm.metrics import mmd

    return mmd(*_paired(task, samples, number))


def _ppc(task: Any, samples: Tensor, number: int) -> Tensor:
    from sbibm.metrics import median_distance

    simulator = task.get_simulator()
    predicted = torch.cat(
        [simulator(batch) for batch in samples.split(_SIMULATION_BATCH)]
    )
    return median_distance(predicted, task.get_observation(number))


METRICS: dict[str, Callable[[Any, Tensor, int], Tensor]] = {
    "c2st": _c2st,
    "c2st_forest": _c2st_forest,
    "mmd": _mmd,
    "ppc": _ppc,
}
