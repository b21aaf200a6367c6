"""Contrasts from a learned posterior enclose the exact information of two tasks."""

import pytest
import torch
from torch.distributions import MultivariateNormal, Normal

from sbi_boed_plugin import estimate_eig, tasks

TASKS = {"gaussian_linear": (1.0, 0.0), "noisy_linear": (9.0, 4.0)}


class NormalPosterior:
    """The posterior of a straight line under Normal noise; a proposal elsewhere."""

    def __init__(self, design, variance=1.0, mean=0.0, width=1.0):
        features = torch.stack([torch.ones_like(design), design], dim=1)
        precision = features.T @ features / variance + torch.eye(2) / 9.0
        covariance = torch.linalg.inv(precision)
        self.slope = features @ covariance / variance
        self.mean, self.dim_x = mean, len(design)
        self.scale_tril = width * torch.linalg.cholesky(covariance)

    def given(self, condition):
        x = condition[..., : self.dim_x] - self.mean
        return MultivariateNormal(x @ self.slope, scale_tril=self.scale_tril)

    def sample(self, sample_shape, condition):
        return self.given(condition).sample(sample_shape)

    def log_prob(self, input, condition):
        return self.given(condition).log_prob(input)


def half_at_each_end(dim_design):
    return torch.tensor([10.0, -10.0] * 5)[:dim_design]


def estimate(name, dim_design, bound, **kwargs):
    task = tasks.get_task(name, dim_design=dim_design)
    design = half_at_each_end(dim_design)
    variance, mean = TASKS[name]
    settings = {
        "prior": task.prior,
        "posterior_estimator": NormalPosterior(design, variance, mean),
        "num_samples": 4_000,
        "num_contrastive": 256,
        "seed": 0,
        **kwargs,
    }
    return estimate_eig(
        settings.pop("estimator", task.log_likelihood),
        task.simulator,
        design=design,
        bound=bound,
        **settings,
    )


@pytest.mark.parametrize("dim_design", [1, 10])
@pytest.mark.parametrize("name", TASKS)
def test_the_exact_information_lies_between_the_bounds(name, dim_design):
    task = tasks.get_task(name, dim_design=dim_design)
    exact, _ = task.exact_eig(half_at_each_end(dim_design))
    lower = estimate(name, dim_design, "lace")
    upper = estimate(name, dim_design, "lace_upper")
    assert lower.value <= exact + 3.0 * lower.standard_error
    assert upper.value >= exact - 3.0 * upper.standard_error
    # A standard error of 0.025, and 0.02 of nested bias with 256 contrasts.
    assert abs(lower.value - exact) < 0.1 and abs(upper.value - exact) < 0.1
    assert lower.bound == "lace" and lower.value <= lower.cap


@pytest.mark.parametrize("width", [0.5, 3.0])
@pytest.mark.parametrize("scale", [0.5, 2.0])
def test_it_is_a_lower_bound_for_wrong_likelihoods_and_proposals(width, scale):
    task = tasks.get_task("gaussian_linear", dim_design=10)
    design = half_at_each_end(10)

    def wrong(x, theta, design):
        return Normal(theta[:, :1] + theta[:, 1:] * design, scale).log_prob(x).sum(-1)

    lower = estimate(
        "gaussian_linear",
        10,
        "lace",
        estimator=wrong,
        posterior_estimator=NormalPosterior(design, width=width),
        num_samples=1_000,
    )
    exact, _ = task.exact_eig(design)
    assert lower.value <= exact + 3.0 * lower.standard_error
