"""A trainer with designs, its simulator, and simulators that fail."""

import random
import re

import numpy as np
import torch
from sbi.utils import BoxUniform

from sbi_boed_plugin import NLE_INCE, TruncatedNormalPolicy
from sbi_boed_plugin.simulation import CheckedSimulator
from tests.conftest import NoOpTracker
from tests.oracles import LinearGaussian

LOW, HIGH = torch.tensor([0.5]), torch.tensor([2.0])
QUIET = {"show_progress_bars": False}
SCORING = {"num_eig_samples": 12, "num_eig_contrastive": 15}
SEARCH = {
    "num_steps": 6,
    "training_batch_size": 16,
    "num_contrastive": 7,
    **SCORING,
}


def simulator(theta, design):
    """Noise from every generator that a simulator may use."""
    mean = torch.cat([theta * design, theta.sum(dim=1, keepdim=True)], dim=1)
    noise = torch.from_numpy(np.random.randn(*mean.shape)).to(mean)
    return mean + 0.3 * noise + 0.1 * torch.randn_like(mean) + 0.1 * random.random()


# Rows that a simulator is checked with before its first use.
CHECK = CheckedSimulator(simulator).num_check_calls


class FailsAt:
    """Simulates until its n-th batch, and raises an error from then on."""

    def __init__(self, error, call):
        self.error, self.call, self.num_calls = error, call, 0

    def __call__(self, theta, design):
        self.num_calls += len(theta) > 3  # fewer rows are a check of the simulator.
        x = simulator(theta, design)  # random numbers are used up before it fails.
        if self.num_calls >= self.call:
            raise self.error
        return x


def make(**kwargs):
    """A trainer with a design policy; arguments replace the defaults."""
    defaults = {
        "prior": BoxUniform(-2 * torch.ones(2), 2 * torch.ones(2)),
        "density_estimator": "mdn",
        "tracker": NoOpTracker(),
        "design_policy": TruncatedNormalPolicy(LOW, HIGH),
    }
    return NLE_INCE(**{**defaults, **QUIET, **kwargs})


def simulations():
    """Arguments of `append_simulations` that are right."""
    theta, design = 4 * torch.rand(60, 2) - 2, 0.5 + 1.5 * torch.rand(60, 1)
    return {"theta": theta, "x": simulator(theta, design), "design": design}


def message(*parts):
    """A pattern of literal parts in this order, with anything between them."""
    return r"(?s)" + ".*".join(re.escape(part) for part in parts)


def make_trainer(prior=LinearGaussian.prior, design_policy=None, model="mdn", **kwargs):
    """A trainer with a mixture of Gaussians and, by default, a policy on a box."""
    low, high = torch.tensor([0.1]), torch.tensor([4.0])
    policy = design_policy or TruncatedNormalPolicy(low, high, loc=torch.ones(1))
    options = {"design_policy": policy, "tracker": NoOpTracker(), **QUIET, **kwargs}
    return NLE_INCE(prior, model, **options)


def on_box(
    low, high, prior=LinearGaussian.prior, model="mdn", *, policy=None, **kwargs
):
    """A trainer with a policy on an interval, of which `policy` are arguments."""
    box = torch.tensor([float(low)]), torch.tensor([float(high)])
    return make_trainer(
        prior, TruncatedNormalPolicy(*box, **(policy or {})), model, **kwargs
    )
