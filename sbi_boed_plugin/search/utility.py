"""What a search maximizes: the information of a design, or a utility with its cost."""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor

from sbi_boed_plugin.policies.policy import DesignPolicy

__all__ = ["Maximize", "Utility"]

Maximize = Literal["eig", "eig_per_cost", "eig_minus_cost"]
Rule = Callable[[Tensor, Tensor], Tensor]

_RULES: dict[str, Rule] = {
    "eig": lambda eig, cost: eig,
    "eig_per_cost": lambda eig, cost: eig / cost,
    "eig_minus_cost": lambda eig, cost: eig - cost,
}
_NUM_CHECKED = 64


@dataclass(frozen=True)
class Utility:
    r"""A function of the information of designs and their cost.

    It must be linear in the information at each cost, :math:`u(I, c) = a(c) I + b(c)`:
    the utility of the mean information of a design is then the mean over simulations,
    and gradients stay unbiased.
    """

    cost: Callable[[Tensor], Tensor] | None = None
    maximize: str | Rule = "eig"

    def __call__(self, information: Tensor, design: Tensor) -> Tensor:
        """Return utilities `(num_designs,)` of designs `(num_designs, dim_design)`."""
        if self.cost is None or self.maximize == "eig":
            return information
        return self._rule(information, self.costs(design).to(information))

    @property
    def _rule(self) -> Any:
        known: Any = self.maximize
        return known if callable(known) else _RULES[str(known)]

    @property
    def unit(self) -> str:
        """Unit of utilities."""
        if self.cost is None or self.maximize in ("eig", "eig_minus_cost"):
            return "nats"
        return "nats per cost" if self.maximize == "eig_per_cost" else "of utility"

    def costs(self, design: Tensor) -> Tensor:
        """Return the cost of designs, of shape `(num_designs,)`, or raise."""
        assert self.cost is not None
        # A copy: the function may change what it gets.
        cost = torch.as_tensor(self.cost(design.clone()))
        if cost.shape != (len(design),):
            raise ValueError(
                f"cost(design) returned shape {tuple(cost.shape)} for {len(design)} "
                f"designs, but must return one number for each, ({len(design)},)."
            )
        bad = ~torch.isfinite(cost)
        if self.maximize == "eig_per_cost":
            bad |= cost <= 0.0
        if bad.any():
            most = "positive and " if self.maximize == "eig_per_cost" else ""
            raise ValueError(
                f"cost(design)={float(cost[bad][0])} at design="
                f"{design[bad.to(design.device)][0].tolist()}, but must be {most}"
                "finite."
            )
        return cost

    def _check_gradient(self, policy: DesignPolicy, designs: Tensor) -> None:
        """Raise if the cost changes with the design, but has no gradient."""
        assert self.cost is not None
        told = "cannot be differentiated"
        try:
            if torch.as_tensor(
                self.cost(designs.clone().requires_grad_())
            ).requires_grad:
                return
        except RuntimeError as error:
            told = f"fails for designs that carry a gradient ({error})"
        step = 1e-3 * policy.width * torch.rand_like(designs)
        others = policy.moved(designs, designs + step)
        # Steps of a cost are rare, slopes are everywhere.
        if (self.costs(others) != self.costs(designs)).double().mean() > 0.5:
            raise ValueError(
                f"cost(design) {told}, though designs climb along it. Compute it with "
                "torch."
            )

    def check(self, policy: DesignPolicy) -> None:
        """Raise if there is something wrong with cost or utility in the design space.

        Where designs climb, the cost must let their gradient through.
        """
        if not (callable(self.maximize) or self.maximize in _RULES):
            raise ValueError(
                f"maximize={self.maximize!r} is unknown. Use one of {sorted(_RULES)}, "
                "or a function of information and cost that is linear in the first."
            )
        if self.cost is None:
            if self.maximize != "eig":
                raise ValueError(
                    f"maximize={self.maximize!r} needs cost=..., a function of designs."
                )
            return
        designs = policy.spread(_NUM_CHECKED, at_random=True)
        cost = self.costs(designs)
        if policy.can_move and self.maximize != "eig":
            self._check_gradient(policy, designs)
        points = [torch.full_like(cost, value) for value in (0.0, 1.0, 3.0)]
        low, middle, high = (self._rule(point, cost) for point in points)
        excess = (high - low - 3.0 * (middle - low)).abs().max()
        if float(excess) > 1e-4 * (1.0 + float((high - low).abs().max())):
            raise ValueError(
                "maximize(eig, cost) is not linear in eig: the utility of the expected "
                "information is then not what is expected, and its gradient is wrong. "
                "Use a(cost) * eig + b(cost)."
            )
        if not math.isfinite(float(high.sum())):
            raise ValueError("maximize(eig, cost) is not finite. Check it.")
