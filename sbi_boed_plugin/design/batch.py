"""Simulations of one step of a design search."""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.distributions import Distribution

from sbi_boed_plugin._simulation import run_simulator
from sbi_boed_plugin.design.config import DesignOptimizerConfig
from sbi_boed_plugin.design.policy import DesignPolicy

__all__ = ["Batch", "simulate_batch"]


@dataclass(frozen=True)
class Batch:
    """Simulations of one step, those that failed included.

    Attributes:
        theta: Parameters of shape `(batch_dim, dim_theta)`.
        x: Data of shape `(batch_dim, dim_x)`.
        designs: Different designs, of shape `(num_designs, dim_design)`.
        design: Design of each row, of shape `(batch_dim, dim_design)`.
        valid: Rows without NaN and infinite values, of shape `(batch_dim,)`.
    """

    theta: Tensor
    x: Tensor
    designs: Tensor
    design: Tensor
    valid: Tensor


def simulate_batch(
    simulator: Callable[[Tensor, Tensor], Tensor],
    policy: DesignPolicy,
    prior: Distribution,
    config: DesignOptimizerConfig,
    *,
    device: str,
) -> Batch:
    """Draw designs and parameters and simulate them.

    Args:
        simulator: Function from `theta` and `design` to `x`.
        policy: Distribution of the designs. They carry its gradient if the gradient
            estimator of `config` needs it.
        prior: Distribution of the parameters.
        config: Numbers of simulations and designs.
        device: Device of the tensors.

    Returns:
        The simulations.

    Raises:
        TypeError: If `simulator` does not return an array of numbers.
        ValueError: If it returns another shape, or hardly any finite value.
    """
    num_repeats = config.num_simulations_per_design
    shape = torch.Size((config.training_batch_size // num_repeats,))
    if config.gradient == "score":
        designs = policy.sample(shape)
    else:
        designs = policy.rsample(shape)
    theta = prior.sample(torch.Size((config.training_batch_size,)))
    # The networks of sbi are in single precision, whatever prior and policy are.
    theta = theta.to(device, torch.float32)
    design = designs.repeat_interleave(num_repeats, dim=0).to(theta)
    x, valid = run_simulator(simulator, theta, design.detach())
    num_valid = int(valid.sum())
    if num_valid * 10 < len(theta):
        raise ValueError(
            f"Only {num_valid} of {len(theta)} simulations are free of NaN and "
            f"infinite values, at designs between {designs.min().item():.4g} and "
            f"{designs.max().item():.4g}. Check the simulator there, or restrict the "
            "support of the design policy."
        )
    return Batch(theta, x, designs, design, valid)
