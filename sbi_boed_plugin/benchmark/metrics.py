"""How far samples are from the reference posterior, measured as sbibm measures it.

Smaller is better for all metrics. They draw from the global generators.
"""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

__all__ = ["CLASSIFIER_METRICS", "METRICS"]

# Accuracies: from one half, where a classifier tells nothing, to one.
CLASSIFIER_METRICS = ("c2st", "c2st_forest")

# Simulators of differential equations take memory per trajectory.
_SIMULATION_BATCH = 1_000
_NUM_FOREST = 1_000


def _paired(task: Any, samples: Tensor, number: int) -> tuple[Tensor, Tensor]:
    """Return as many reference samples as samples.

    Classes of different size would shift the accuracy of a classifier that tells
    nothing away from one half.
    """
    reference = task.get_reference_posterior_samples(number)
    num_samples = min(len(reference), len(samples))
    return _some(reference, num_samples), _some(samples, num_samples)


def _some(samples: Tensor, number: int) -> Tensor:
    """Return so many of the samples, at random, or all.

    sbi orders samples of MCMC chain by chain: the first would be those of few chains.
    """
    if len(samples) <= number:
        return samples
    return samples[torch.randperm(len(samples))[:number]]


def _c2st(task: Any, samples: Tensor, number: int) -> float:
    from sbibm.metrics import c2st

    return float(c2st(*_paired(task, samples, number), z_score=True))


def _c2st_forest(task: Any, samples: Tensor, number: int) -> float:
    from sbi.utils.metrics import c2st

    reference, samples = _paired(task, _some(samples, _NUM_FOREST), number)
    return float(c2st(reference, samples, classifier="rf", z_score=True))


def _mmd(task: Any, samples: Tensor, number: int) -> float:
    from sbibm.metrics import mmd

    return float(mmd(*_paired(task, samples, number)))


def _ppc(task: Any, samples: Tensor, number: int) -> float:
    from sbibm.metrics import median_distance

    simulator = task.get_simulator()
    batches = samples.split(_SIMULATION_BATCH)
    predicted = torch.cat([simulator(batch) for batch in batches])
    return float(median_distance(predicted, task.get_observation(number)))


# Functions of a task, samples of shape `(num_samples, dim_parameters)`, and the number
# of an observation.
METRICS: dict[str, Callable[[Any, Tensor, int], float]] = {
    "c2st": _c2st,
    "c2st_forest": _c2st_forest,
    "mmd": _mmd,
    "ppc": _ppc,
}
