"""A choice among given designs."""

from typing import Any

import torch
from torch import Tensor, nn
from torch.distributions import Categorical
from torch.distributions.constraints import Constraint

from sbi_boed_plugin.policies.policy import DesignPolicy, as_finite, check_width

__all__ = ["CategoricalPolicy"]

# Networks see designs in single precision: designs that agree in it are the same.
_RELATIVE_TOLERANCE = 8 * torch.finfo(torch.float32).eps


class _OneOf(Constraint):
    """Constrains vectors to a list of candidates, up to single precision."""

    is_discrete = True
    event_dim = 1

    def __init__(self, candidates: Tensor) -> None:
        self.candidates = candidates
        super().__init__()

    def __repr__(self) -> str:
        return f"OneOf({self.candidates.tolist()})"

    def check(self, value: Any) -> Tensor:
        return _matches(value, self.candidates).any(dim=-1)


class CategoricalPolicy(DesignPolicy):
    r"""A distribution over given candidate designs, with learned weights.

    .. math:: \pi_\psi(\xi) = \sum_k w_k \, 1[\xi = \xi_k], \quad
        w = \operatorname{softmax}(\psi).

    For instruments with fixed settings, or any list of experiments that can be done.
    The weights start equal and end, if training is long enough, at the best candidate:
    nothing is annealed. Designs are discrete and carry no gradient; the score does. A
    design is the candidate that it agrees with in single precision.

    Args:
        candidates: Designs to choose from, of shape `(num_candidates, dim_design)`, all
            different in single precision.
        logits: Initial log-weights up to a constant, of shape `(num_candidates,)`, in
            nats. If `None`, equal.

    Raises:
        ValueError: If shapes are wrong, values are not finite or candidates agree in
            single precision.

    Example:
        >>> import torch
        >>> policy = CategoricalPolicy(torch.tensor([[1.0], [2.0], [5.0], [10.0]]))
        >>> policy.log_prob(torch.tensor([[5.0], [6.0]])).exp()
        tensor([0.2500, 0.0000], grad_fn=<ExpBackward0>)
    """

    has_rsample = False

    candidates: Tensor

    def __init__(self, candidates: Tensor, *, logits: Tensor | None = None) -> None:
        candidates = _check_candidates(candidates)
        super().__init__(dim_design=candidates.shape[1])
        self.register_buffer("candidates", candidates)
        if logits is None:
            logits = candidates.new_zeros(len(candidates))
        logits = torch.as_tensor(logits).to(candidates).detach().clone()
        if logits.shape != (len(candidates),) or not torch.isfinite(logits).all():
            raise ValueError(
                f"logits={logits.tolist()} must be finite and have shape "
                f"({len(candidates)},), one per candidate. Leave out a candidate that "
                "must never be chosen."
            )
        self.logits = nn.Parameter(logits)

    @property
    def probabilities(self) -> Tensor:
        """Weights of the candidates, of shape `(num_candidates,)`, with gradient."""
        return self.logits.softmax(dim=-1)

    @property
    def support(self) -> Constraint:
        """The candidates."""
        return _OneOf(self.candidates)

    @property
    def mode(self) -> Tensor:
        """Most probable candidate."""
        best = self.logits.argmax(dim=0, keepdim=True)
        return self.candidates.index_select(0, best).squeeze(0)

    @torch.no_grad()
    def sample(self, sample_shape: torch.Size = torch.Size()) -> Tensor:
        """Draw candidates, of shape `(*sample_shape, dim_design)`."""
        index = Categorical(logits=self.logits, validate_args=False)
        drawn = index.sample(sample_shape).flatten()
        drawn = self.candidates.index_select(0, drawn)
        return drawn.reshape(*sample_shape, self.dim_design)

    def log_prob(self, design: Tensor) -> Tensor:
        """Return the log-probability of the candidate that each design agrees with."""
        check_width(design, self.dim_design)
        matches = _matches(design, self.candidates)
        # At most one candidate matches. Infinite terms would have NaN gradients.
        log_prob = torch.where(matches, self.logits.log_softmax(dim=-1), 0.0)
        return torch.where(matches.any(dim=-1), log_prob.sum(dim=-1), -torch.inf)

    def describe(self) -> dict[str, Tensor]:
        """Return the most probable candidate (the mode) and all probabilities."""
        probabilities = self.probabilities.detach().clone()
        return {**super().describe(), "probabilities": probabilities}


def _check_candidates(candidates: Tensor) -> Tensor:
    """Return a copy of different designs of finite numbers, or raise."""
    candidates = as_finite("candidates", candidates, "(num_candidates, dim_design)", 2)
    # Wide enough that no design can match two candidates.
    same = _matches(candidates, candidates, 4 * _RELATIVE_TOLERANCE)
    first, second = same.triu(diagonal=1).nonzero(as_tuple=True)
    if len(first):
        row, other = int(first[0]), int(second[0])
        raise ValueError(
            f"candidates[{row}]={candidates[row].tolist()} and candidates[{other}]="
            f"{candidates[other].tolist()} are the same in single precision, in which "
            "networks see designs. Give each design once, or rescale or shift them."
        )
    return candidates


def _matches(
    design: Tensor, candidates: Tensor, tolerance: float = _RELATIVE_TOLERANCE
) -> Tensor:
    """Return which candidate each design agrees with, `(*batch, num_candidates)`."""
    design = design.unsqueeze(-2)
    largest = torch.maximum(design.abs(), candidates.abs())
    return ((design - candidates).abs() <= tolerance * largest).all(dim=-1)
