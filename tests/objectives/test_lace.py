"""Contrasts from a learned posterior enclose the information of noisy lines."""

import pytest
import torch
from sbi.utils import BoxUniform
from torch.distributions import Independent, MultivariateNormal, Normal, Uniform

from sbi_boed_plugin import estimate_eig, tasks


class NormalPosterior:
    """The posterior of a line under Normal noise of variance 9; noise has mean 4."""

    def __init__(self, design):
        features = torch.stack([torch.ones_like(design), design], dim=1)
        covariance = torch.linalg.inv((features.T @ features + torch.eye(2)) / 9.0)
        self.slope, self.dim_x = features @ covariance / 9.0, len(design)
        self.scale_tril = torch.linalg.cholesky(covariance)

    def given(self, condition):
        x = condition[..., : self.dim_x] - 4.0
        return MultivariateNormal(x @ self.slope, scale_tril=self.scale_tril)

    def sample(self, sample_shape, condition):
        return self.given(condition).sample(sample_shape)

    def log_prob(self, input, condition):
        return self.given(condition).log_prob(input)


@pytest.mark.parametrize("dim_design", [1, 10])
def test_the_exact_information_of_noisy_lines_lies_between_the_bounds(dim_design):
    task = tasks.get_task("noisy_linear", dim_design=dim_design)
    design = torch.tensor([10.0, -10.0] * 5)[:dim_design]
    exact, _ = task.exact_eig(design)
    lower, upper = (
        estimate_eig(
            task.log_likelihood,
            task.simulator,
            prior=task.prior,
            design=design,
            bound=bound,
            posterior_estimator=NormalPosterior(design),
            num_samples=4_000,
            num_contrastive=256,
            seed=0,
        )
        for bound in ("lace", "lace_upper")
    )
    assert lower.value <= exact + 3.0 * lower.standard_error
    assert upper.value >= exact - 3.0 * upper.standard_error
    # A standard error of 0.025, and 0.02 of nested bias with 256 contrasts.
    assert abs(lower.value - exact) < 0.1 and abs(upper.value - exact) < 0.1


def test_draws_outside_of_the_prior_count_for_nothing():
    """A share of a twentieth of the draws is inside: so is the effective number."""
    prior = BoxUniform(torch.zeros(1), torch.ones(1))
    wide = Independent(Uniform(torch.zeros(1), torch.full((1,), 20.0)), 1)

    class Wide:
        def sample(self, sample_shape, condition):
            return wide.sample((*sample_shape, len(condition)))

        def log_prob(self, input, condition):
            return wide.log_prob(input)

    eig = estimate_eig(
        lambda x, theta, design: Normal(theta, 1.0).log_prob(x).sum(dim=-1),
        lambda theta, design: theta + torch.randn_like(theta),
        prior=prior,
        design=torch.ones(1),
        bound="lace",
        posterior_estimator=Wide(),
        num_samples=4_000,
        num_contrastive=1,
        seed=0,
    )
    assert eig.num_contrastive == 1
    assert eig.effective_sample_size == pytest.approx(0.05, abs=0.02)
