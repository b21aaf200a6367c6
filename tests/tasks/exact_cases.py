"""Checks that the tests of several tasks share."""

import math

import pytest
import torch

from sbi_boed_plugin import estimate_eig
from sbi_boed_plugin.tasks import Task


def assert_exact_eig_agrees_with_nested_monte_carlo(
    task: Task, design: list[float], num_contrastive: int = 2_000, **kwargs
) -> None:
    """Compare with an estimate that shares neither samples nor code with the task's."""

    def simulator(theta, design):
        return task.simulator(theta.double(), design.double())

    def log_likelihood(x, theta, design):
        return task.log_likelihood(x, theta.double(), design.double())

    value, error = task.exact_eig(torch.tensor(design), **kwargs)
    nested = estimate_eig(
        log_likelihood,
        simulator,
        prior=task.prior,
        design=torch.tensor(design),
        bound="exact",
        num_samples=1_000,
        num_contrastive=num_contrastive,
        seed=0,
    )
    combined = math.hypot(error, nested.standard_error)
    assert combined < 0.1
    assert value == pytest.approx(nested.value, abs=4.0 * combined)


def assert_on_the_device_of_the_data(task: Task, num: int = 4) -> None:
    """Torch's meta device stands for any that is not the CPU."""
    theta = task.prior.sample((num,)).to("meta")
    design = torch.empty(num, task.dim_design, device="meta")
    x = torch.empty(num, task.dim_x, device="meta")
    log_likelihood = task.log_likelihood(x, theta, design)
    assert log_likelihood.device.type == "meta"
    assert log_likelihood.shape == (num,)


def kolmogorov_smirnov(probabilities: torch.Tensor) -> float:
    """Return the distance from the uniform distribution over its 0.1 % quantile."""
    num = len(probabilities)
    ordered = probabilities.double().sort().values
    steps = torch.arange(1, num + 1, dtype=torch.float64) / num
    distance = torch.maximum(
        (ordered - steps).abs(), (ordered - steps + 1.0 / num).abs()
    )
    return float(distance.max()) * math.sqrt(num) / 1.95
