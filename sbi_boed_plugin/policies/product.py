"""Designs of several parts, each with a policy of its own."""

import math
from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn
from torch.distributions.constraints import Constraint

from sbi_boed_plugin.policies.policy import DesignPolicy, check_width

__all__ = ["Parts", "ProductPolicy"]


class Parts(Constraint):
    """Constrains consecutive parts of vectors, each in its own way."""

    event_dim = 1

    def __init__(self, constraints: Sequence[Constraint], sizes: Sequence[int]) -> None:
        self.constraints, self.sizes = constraints, list(sizes)
        super().__init__()

    def __repr__(self) -> str:
        return " x ".join(map(repr, self.constraints))

    def check(self, value: Tensor) -> Tensor:
        """Return which vectors, along the last dimension, are allowed."""
        parts = value.split(self.sizes, dim=-1)
        pairs = zip(self.constraints, parts, strict=True)
        return torch.stack([one.check(part) for one, part in pairs]).all(dim=0)


class ProductPolicy(DesignPolicy):
    r"""Independent policies of consecutive parts of a design.

    .. math:: \pi_\psi(\xi) = \prod_k \pi_{\psi_k}(\xi_k), \quad
        \xi = (\xi_1, \dots, \xi_K).

    For a time and an instrument, several measurements of such kind, or any mixture of
    numbers and choices.

    Args:
        policies: Policies of the parts, in the order of the values of a design.

    Raises:
        ValueError: If there are no parts.
        TypeError: If one is no policy.

    Example:
        When, between 0 and 12, and with which of two instruments.

        >>> import torch
        >>> from sbi_boed_plugin import CategoricalPolicy, TruncatedNormalPolicy
        >>> times = TruncatedNormalPolicy(torch.zeros(1), torch.full((1,), 12.0))
        >>> instruments = CategoricalPolicy(torch.tensor([[0.0], [1.0]]))
        >>> policy = ProductPolicy([times, instruments])
        >>> policy.mode
        tensor([6., 0.])
    """

    def __init__(self, policies: Sequence[DesignPolicy]) -> None:
        policies = list(policies)
        if not policies:
            raise ValueError("policies=[]: a product needs at least one policy.")
        for policy in policies:
            if not isinstance(policy, DesignPolicy):
                raise TypeError(
                    f"policies must be DesignPolicy, got {type(policy).__name__}."
                )
        super().__init__(sum(policy.dim_design for policy in policies))
        self.policies = nn.ModuleList(policies)
        self.has_rsample = all(policy.has_rsample for policy in policies)
        self.has_log_prob = all(policy.has_log_prob for policy in policies)

    @property
    def _sizes(self) -> list[int]:
        return [policy.dim_design for policy in self._parts]

    @property
    def _parts(self) -> list[DesignPolicy]:
        return list(self.policies)  # type: ignore[arg-type]

    def _joined(self, of_part: Callable[[DesignPolicy], Tensor]) -> Tensor:
        """Return what each part gives, as values of one design."""
        parts = [of_part(policy) for policy in self._parts]
        dtype = self._parts[0].mode.dtype
        return torch.cat([part.to(dtype) for part in parts], dim=-1)

    @property
    def support(self) -> Constraint:
        """The product of the supports."""
        return Parts([policy.support for policy in self._parts], self._sizes)

    @property
    def mode(self) -> Tensor:
        """The modes of all parts."""
        return self._joined(lambda policy: policy.mode)

    def rsample(self, sample_shape: torch.Size = torch.Size()) -> Tensor:
        """Draw designs with gradient, if all parts can."""
        if not self.has_rsample:
            return super().rsample(sample_shape)
        return self._joined(lambda policy: policy.rsample(sample_shape))

    @torch.no_grad()
    def sample(self, sample_shape: torch.Size = torch.Size()) -> Tensor:
        """Draw designs, of shape `(*sample_shape, dim_design)`."""
        return self._joined(lambda policy: policy.sample(sample_shape))

    def log_prob(self, design: Tensor) -> Tensor:
        """Return the sum of the log-probabilities of the parts."""
        check_width(design, self.dim_design)
        parts = design.split(self._sizes, dim=-1)
        pairs = zip(self._parts, parts, strict=True)
        return torch.stack([one.log_prob(part) for one, part in pairs]).sum(dim=0)

    @property
    def box(self) -> tuple[Tensor, Tensor] | None:
        """The corners, if all parts are boxes."""
        boxes = [policy.box for policy in self._parts]
        if any(box is None for box in boxes):
            return None
        low, high = (torch.cat(corners) for corners in zip(*boxes, strict=True))  # type: ignore[arg-type]
        return low, high

    @property
    def num_designs(self) -> int | None:
        """Number of combinations, if each part is one of a list."""
        numbers = [policy.num_designs for policy in self._parts]
        return None if None in numbers else math.prod(numbers)  # type: ignore[arg-type]

    def spread(self, num_designs: int, *, at_random: bool = False) -> Tensor:
        """Return designs all over the space: any part goes with any other.

        All combinations of lists, if so many are asked for.
        """
        if self.box is not None:
            return super().spread(num_designs, at_random=at_random)
        if self.num_designs is not None and self.num_designs <= num_designs:
            return self._combinations(num_designs)

        def shuffled(policy: DesignPolicy) -> Tensor:
            designs = policy.spread(num_designs, at_random=at_random)
            return designs[torch.randperm(num_designs).to(designs.device)]

        return self._joined(shuffled)

    def _combinations(self, num_designs: int) -> Tensor:
        """Return all combinations, each as often as any other or once more."""
        sizes = [policy.num_designs or 1 for policy in self._parts]
        rows = torch.cartesian_prod(*(torch.arange(size) for size in sizes))
        rows = rows.reshape(-1, len(sizes))
        index = torch.arange(num_designs).remainder(len(rows))
        rows = rows[torch.randperm(len(rows))[index]]
        # Once each, in an order of their own.
        pairs = zip(self._parts, sizes, strict=True)
        lists = [policy.spread(size) for policy, size in pairs]
        parts = [all_[row] for all_, row in zip(lists, rows.unbind(dim=1), strict=True)]
        return torch.cat(parts, dim=1)

    @property
    def width(self) -> Tensor:
        """The widths of all parts."""
        return self._joined(lambda policy: policy.width)

    @property
    def can_move(self) -> bool:
        """Whether any part can."""
        return any(policy.can_move for policy in self._parts)

    def moved(self, design: Tensor, to: Tensor) -> Tensor:
        """Return designs whose parts have moved, those that can."""
        parts = [value.split(self._sizes, dim=-1) for value in (design, to)]
        moved = map(lambda one, *of_part: one.moved(*of_part), self._parts, *parts)
        return torch.cat(list(moved), dim=-1)

    def anneal(self, progress: float) -> None:
        """Let all parts follow their schedules."""
        for policy in self._parts:
            policy.anneal(progress)

    def project(self) -> None:
        """Bring the parameters of all parts back."""
        for policy in self._parts:
            policy.project()
