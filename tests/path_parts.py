"""What the main paths are made of: small budgets, and a model on a device."""

import pytest
import torch
from torch import Tensor
from torch.distributions import Independent, Normal

from sbi_boed_plugin import NLE_INCE, EnergyConfig, TruncatedNormalPolicy
from tests.oracles import LinearGaussian as Model

PATHS = []
EPOCHS = {"max_num_epochs": 2, "training_batch_size": 32}
BRIEF = {"energy": EnergyConfig(max_num_epochs=1)}
STEPS = {"num_steps": 4, "training_batch_size": 32, "num_eig_samples": 40}
ROUNDS = {"max_num_simulations": 160, "num_rounds": 2, "num_networks": 2}
QUIET = {"show_progress_bars": False}


def path(function, marks=()):
    PATHS.append(pytest.param(function, id=function.__name__, marks=marks))
    return function


def slow_path(function):
    """Take more than a second on a CPU."""
    return path(function, pytest.mark.slow)


def normal(device: str, dim: int = 1) -> Independent:
    ones = torch.ones(dim, device=device)
    return Independent(Normal(0.0 * ones, ones), 1)


def box(device: str, dim: int = 1) -> TruncatedNormalPolicy:
    ones = torch.ones(dim, device=device)
    return TruncatedNormalPolicy(0.1 * ones, 2.0 * ones)


def trainer(device: str, model: object = "mdn", **kwargs) -> NLE_INCE:
    given = {"design_policy": box(device), "device": device, **QUIET, **kwargs}
    return NLE_INCE(normal(device), model, **given)


def rows(device: str, num: int = 200) -> tuple[Tensor, Tensor, Tensor]:
    """Parameters, designs and data."""
    theta = normal(device).sample((num,))
    design = 0.1 + 1.9 * torch.rand(num, 1, device=device)
    return theta, design, simulate(theta, design)


def data(device: str, num: int = 1) -> Tensor:
    return torch.full((num, 1), 0.5, device=device)


def simulate(theta: Tensor, design: Tensor) -> Tensor:
    """Simulate, if what is given is as a simulator for one device needs it."""
    assert theta.device == design.device
    assert theta.dtype == design.dtype == torch.float32
    return Model.simulate(theta, design)


def of_result(result) -> dict[str, Tensor]:
    """Return the tensors of the result of a search."""
    made = {"design": result.design, "mode": result.policy.mode}
    made |= {f"candidate {i}": one for i, (one, _) in enumerate(result.candidates)}
    for name in ("likelihood", "posterior", "marginal", "target"):
        network = getattr(result, f"{name}_estimator")
        weights = {} if network is None else network.state_dict()
        # A count, which is read alone, may be anywhere.
        made |= {f"{name} {key}": v for key, v in weights.items() if v.dim()}
    return made


def drawn(posterior, x: Tensor | None = None) -> dict[str, Tensor]:
    """Return samples of a posterior and their potential."""
    samples = posterior.sample((8,), x=x, **QUIET)
    return {"samples": samples, "potential": posterior.potential(samples, x=x)}
