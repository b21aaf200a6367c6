"""Learned likelihoods of one number are densities: they integrate to one."""

import pytest
import torch

from sbi_boed_plugin import NLE_INCE, TruncatedNormalPolicy, tasks
from tests.conftest import NoOpTracker


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:In one-dimensional output space")
@pytest.mark.parametrize("model", ["nsf", "maf", "zuko_nsf"])
@pytest.mark.parametrize("regularization_strength", [0.0, 0.1])
def test_learned_likelihood_integrates_to_one(model, regularization_strength):
    task = tasks.get_task("noisy_linear")
    policy = TruncatedNormalPolicy(task.design_low, task.design_high)
    quiet = {"tracker": NoOpTracker(), "show_progress_bars": False}
    inference = NLE_INCE(task.prior, model, design_policy=policy, **quiet)
    likelihood = inference.optimize_design(
        task.simulator,
        num_steps=30,
        training_batch_size=128,
        num_contrastive=7,
        num_eig_contrastive=1,
        regularization_strength=regularization_strength,
        num_eig_samples=10,
    ).likelihood_estimator

    theta, design = task.prior.sample((5,)), task.design_space.sample((5,))
    condition = torch.cat([theta, design], dim=-1)
    # The mean and far more than every standard deviation that 30 steps may leave.
    grid = torch.linspace(-400.0, 400.0, 8_001)
    for row in condition.split(1):
        with torch.no_grad():
            density = likelihood.log_prob(grid.reshape(-1, 1, 1), row).exp()[:, 0]
        assert torch.trapezoid(density, grid).item() == pytest.approx(1.0, abs=0.01)
