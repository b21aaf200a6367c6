"""Designs that are possible: any condition on the designs of another policy."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.distributions.constraints import Constraint

from sbi_boed_plugin._rng import isolated_rng
from sbi_boed_plugin.policies.policy import DesignPolicy

__all__ = ["ConstrainedPolicy"]

# Designs drawn at once and in all until there are enough that are possible.
_LEAST_DRAWS, _MOST_DRAWS = 1_024, 2**22
# Designs among which the mode is looked for where that of the policy is impossible.
_NUM_FOR_MODE = 4_096


class _Possible(Constraint):
    """Constrains vectors to those of another constraint that are possible."""

    event_dim = 1

    def __init__(
        self, constraint: Constraint, feasible: Callable[[Tensor], Tensor]
    ) -> None:
        self.constraint, self.feasible = constraint, feasible
        super().__init__()

    def __repr__(self) -> str:
        name = getattr(self.feasible, "__name__", type(self.feasible).__name__)
        return f"{self.constraint!r} where {name}(design)"

    def check(self, value: Tensor) -> Tensor:
        inside = self.constraint.check(value)
        rows = value.reshape(-1, value.shape[-1])
        return inside & _check(self.feasible, rows).reshape(inside.shape)


class ConstrainedPolicy(DesignPolicy):
    r"""The designs of another policy that are possible.

    .. math:: \pi_\psi(\xi) \propto \tilde\pi_\psi(\xi) \, 1[\xi \text{ is possible}].

    Impossible draws are drawn again. The log-density lacks its constant, which depends
    on :math:`\psi`; the score gradient of a search does not need it, since it compares
    each design with the others of its batch, and is the only gradient there is. Where
    possible designs are rare, as ordered ones of many values, use a policy that has
    no others: :class:`OrderedPolicy` or :class:`SimplexPolicy`.

    Args:
        policy: The policy, whose parameters are learned.
        feasible: Function from designs `(batch_dim, dim_design)` to truth values
            `(batch_dim,)`.

    Raises:
        TypeError: If `policy` is no policy, or `feasible` no function.
        ValueError: If `feasible` returns something else, or no design is possible.

    Example:
        >>> import torch
        >>> from sbi_boed_plugin import TruncatedNormalPolicy
        >>> square = TruncatedNormalPolicy(torch.zeros(2), torch.ones(2))
        >>> policy = ConstrainedPolicy(square, lambda design: design.sum(dim=1) <= 1.0)
        >>> bool((policy.sample((100,)).sum(dim=1) <= 1.0).all())
        True
    """

    has_rsample = False

    def __init__(
        self, policy: DesignPolicy, feasible: Callable[[Tensor], Tensor]
    ) -> None:
        if not isinstance(policy, DesignPolicy):
            raise TypeError(
                f"policy must be a DesignPolicy, got {type(policy).__name__}."
            )
        if not callable(feasible):
            raise TypeError(
                f"feasible={feasible!r} must be a function of designs (batch_dim, "
                "dim_design) that returns truth values (batch_dim,)."
            )
        super().__init__(policy.dim_design)
        self.policy, self.feasible = policy, feasible
        self.has_log_prob = policy.has_log_prob
        with isolated_rng(0):
            self.spread(1)
        self._keep()

    @property
    def support(self) -> Constraint:
        """The designs of the policy that are possible."""
        return _Possible(self.policy.support, self.feasible)

    @property
    def mode(self) -> Tensor:
        """Mode of the policy or, if that is impossible, its likeliest possible draw."""
        mode = self.policy.mode
        if self._mode_is_possible():
            return mode
        with isolated_rng(0):
            if not self.has_log_prob:  # All of its draws are the impossible one.
                return self.spread(1)[0].to(mode)
            designs = self.sample(torch.Size((_NUM_FOR_MODE,)))
        with torch.no_grad():
            return designs[self.policy.log_prob(designs).argmax()]

    @torch.no_grad()
    def sample(self, sample_shape: torch.Size = torch.Size()) -> Tensor:
        """Draw possible designs, of shape `(*sample_shape, dim_design)`."""
        num = torch.Size(sample_shape).numel()
        designs = self._possible(num, lambda n: self.policy.sample(torch.Size((n,))))
        return designs.reshape(*sample_shape, self.dim_design)

    def log_prob(self, design: Tensor) -> Tensor:
        """Return log-densities up to a constant, `-inf` where impossible."""
        log_prob = self.policy.log_prob(design)
        return torch.where(self.support.check(design), log_prob, -torch.inf)

    @property
    def box(self) -> None:
        """No box."""
        return None

    def spread(self, num_designs: int, *, at_random: bool = False) -> Tensor:
        """Return possible designs all over the space."""
        return self._possible(
            num_designs, lambda n: self.policy.spread(n, at_random=at_random)
        )

    @property
    def num_designs(self) -> int | None:
        """Number of designs of the policy, possible or not."""
        return self.policy.num_designs

    @property
    def width(self) -> Tensor:
        """Width of the space of the policy."""
        return self.policy.width

    @property
    def can_move(self) -> bool:
        """Whether designs of the policy can."""
        return self.policy.can_move

    def moved(self, design: Tensor, to: Tensor) -> Tensor:
        """Return designs moved to others, or single values of them if that is possible.

        Where a whole step leads out, values move one after the other, so that designs
        go on along a boundary.
        """
        moved = self.policy.moved(design, to).clone()
        stuck = ~_check(self.feasible, moved)
        if not stuck.any():
            return moved
        rest = design[stuck].clone()
        for column in torch.randperm(self.dim_design).tolist():
            tried = rest.clone()
            tried[:, column] = moved[stuck, column]
            possible = self.support.check(tried.to(self.policy.mode))
            rest = torch.where(possible.unsqueeze(1), tried, rest)
        moved[stuck] = rest.to(moved)
        return moved

    def anneal(self, progress: float) -> None:
        """Let the policy follow its schedule."""
        self.policy.anneal(progress)

    @torch.no_grad()
    def project(self) -> None:
        """Bring the parameters of the policy back.

        A step that makes the mode impossible is not taken: far outside, hardly any draw
        would be possible.
        """
        self.policy.project()
        if self._last and not self._mode_is_possible():
            pairs = zip(self.policy.parameters(), self._last, strict=True)
            for parameter, last in pairs:
                parameter.copy_(last)
        else:
            self._keep()

    def _keep(self) -> None:
        """Keep parameters with which the mode is possible, to come back to."""
        is_possible = self._mode_is_possible()
        values = self.policy.parameters() if is_possible else ()
        self._last = [value.detach().clone() for value in values]

    def load_state_dict(self, *args: Any, **kwargs: Any) -> Any:
        """Load parameters, and forget those before."""
        result = super().load_state_dict(*args, **kwargs)
        self._keep()
        return result

    def _mode_is_possible(self) -> bool:
        return bool(_check(self.feasible, self.policy.mode.unsqueeze(0)))

    def describe(self) -> dict[str, Tensor]:
        """Return what the policy describes, with the possible mode."""
        return {**self.policy.describe(), **super().describe()}

    def _possible(self, num: int, draw: Callable[[int], Tensor]) -> Tensor:
        """Return designs that are possible, or raise if they are too rare."""
        found, num_drawn, num_found = [], 0, 0
        while num_found < num:
            if num_drawn >= _MOST_DRAWS:
                raise ValueError(
                    f"feasible(design): only {num_found} of {num_drawn:,} designs of "
                    f"the {type(self.policy).__name__} are possible. Check it, or use "
                    "a policy whose designs are."
                )
            size = max(num, _LEAST_DRAWS, num_drawn)
            designs = draw(min(size, _MOST_DRAWS - num_drawn))
            num_drawn += len(designs)
            found.append(designs[_check(self.feasible, designs)])
            num_found += len(found[-1])
        return torch.cat(found)[:num]


@torch.no_grad()
def _check(feasible: Callable[[Tensor], Tensor], designs: Tensor) -> Tensor:
    """Return which designs are possible, or raise if that is not told."""
    # A copy: the function may change what it gets.
    found = torch.as_tensor(feasible(designs.clone()))
    if found.shape != (len(designs),) or found.dtype != torch.bool:
        raise ValueError(
            f"feasible(design) returned shape {tuple(found.shape)} and dtype "
            f"{found.dtype} for {len(designs)} designs, but must return truth values "
            f"of shape ({len(designs)},)."
        )
    return found.to(designs.device)
