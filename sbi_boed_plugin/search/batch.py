"""Simulations of one step of a design search."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor
from torch.distributions import Distribution

from sbi_boed_plugin._prior import draw_parameters
from sbi_boed_plugin.policies.policy import DesignPolicy
from sbi_boed_plugin.simulation import Simulator, run_simulator

__all__ = ["Batch", "Designs", "DesignsAtMode", "check_finite", "simulate_batch"]


@dataclass(frozen=True)
class Batch:
    """Simulations of one step, those that failed included.

    Attributes:
        theta: Parameters of shape `(batch_dim, dim_theta)`.
        x: Data of shape `(batch_dim, dim_x)`.
        designs: Different designs, of shape `(num_designs, dim_design)`.
        design: Design of each row, of shape `(batch_dim, dim_design)`.
        valid: Rows without NaN and infinite values, of shape `(batch_dim,)`.
        num_calls: Number of rows that the simulator got, those repeated included.
        is_complete: Whether its limit of calls left every row its chance.
        information: What each row told, in nats, of shape `(batch_dim,)`, if the policy
            learned from it.
    """

    theta: Tensor
    x: Tensor
    designs: Tensor
    design: Tensor
    valid: Tensor
    num_calls: int = 0
    is_complete: bool = True
    information: Tensor | None = None

    @classmethod
    def join(cls, batches: "Sequence[Batch]") -> "Batch":
        """Return all rows of several batches as one, without what they told."""
        names = ("theta", "x", "designs", "design", "valid")
        return cls(*(torch.cat([getattr(b, name) for b in batches]) for name in names))

    def finite(self) -> "Batch":
        """Return the simulations that did not fail."""
        rows = self.valid
        return replace(
            self,
            theta=self.theta[rows],
            x=self.x[rows],
            design=self.design[rows],
            valid=rows[rows],
        )


class DesignsAtMode:
    """Designs of which every other one is the policy's mode, the rest its draws.

    For networks that are to know one design well and not to forget its surroundings.
    """

    def __init__(self, policy: DesignPolicy) -> None:
        self.policy = policy

    def sample(self, sample_shape: torch.Size) -> Tensor:
        """Return designs of shape `(*sample_shape, dim_design)`."""
        designs = self.policy.sample(sample_shape).clone()
        designs[::2] = self.policy.mode.to(designs)
        return designs


Designs = DesignPolicy | Distribution | DesignsAtMode


def simulate_batch(
    simulator: Simulator,
    policy: Designs,
    prior: Distribution,
    *,
    num_simulations: int,
    num_simulations_per_design: int,
    gradient: str,
    device: str,
    num_workers: int | None = 1,
    warn: bool = True,
) -> Batch:
    """Draw designs and parameters and simulate them.

    The designs carry the policy's gradient unless `gradient` is the score function. A
    `ValueError` says if hardly any value is finite.
    """
    shape = torch.Size((num_simulations // num_simulations_per_design,))
    if gradient == "score" or isinstance(policy, DesignsAtMode):
        designs = policy.sample(shape)
    else:
        designs = policy.rsample(shape)
    designs = designs.clone()  # A policy may return a view of what it keeps.
    # The networks of sbi are in single precision, whatever prior and policy are.
    theta = draw_parameters(prior, num_simulations, torch.float32).to(device)
    design = designs.repeat_interleave(num_simulations_per_design, dim=0).to(theta)
    pathwise = gradient == "pathwise"
    made = run_simulator(
        simulator,
        theta,
        design if pathwise else design.detach(),
        num_workers=num_workers,
        keep_gradient=pathwise,
        warn=warn,
    )
    num_valid, is_complete = int(made.valid.sum()), bool(made.tried.all())
    if is_complete and num_valid * 10 < len(theta):
        raise ValueError(
            f"Only {num_valid} of {len(theta)} simulations are free of NaN and "
            f"infinite values, at designs between {designs.min().item():.4g} and "
            f"{designs.max().item():.4g}. Check the simulator there, or restrict the "
            "support of the design policy."
        )
    return Batch(
        theta, made.x, designs, design, made.valid, made.num_calls, is_complete
    )


def check_finite(
    step: int,
    losses: dict[str, Tensor],
    gradients: Iterable[Tensor | None],
    batch: Batch,
    prior: Distribution,
) -> None:
    """Raise if a loss or gradient is not finite, with what may stand out in a batch."""
    values = [*losses.values(), *(g for g in gradients if g is not None)]
    if all(bool(torch.isfinite(value).all()) for value in values):
        return
    described = ", ".join(f"{key} {loss.item()}" for key, loss in losses.items())
    parts = {"theta": batch.theta, "x": batch.x.detach()}
    parts |= {"design": batch.design.detach(), "log prior": prior.log_prob(batch.theta)}
    sizes = ", ".join(
        f"{name} {values.abs().max():.3g} ({values.abs().median():.3g})"
        for name, values in parts.items()
    )
    raise ValueError(
        f"A loss at step {step} or its gradient is not finite ({described}). The state "
        f"before it is kept. Largest sizes in its batch, and medians: {sizes}. Where "
        "theta or the log prior stands out, use a prior with shorter tails; where x "
        "does, transform it or check the simulator; else lower learning_rate."
    )
