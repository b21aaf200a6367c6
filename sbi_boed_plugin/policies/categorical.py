"""A choice among given designs."""

import torch
from torch import Tensor, nn
from torch.distributions import Categorical
from torch.distributions.constraints import Constraint

from sbi_boed_plugin.policies.policy import DesignPolicy, as_finite, check_width

__all__ = ["CategoricalPolicy"]

# Designs that agree in single precision, in which networks see them, are the same.
_TOLERANCE = 1e-6


class _OneOf(Constraint):
    """Constrains vectors to a list of candidates, up to single precision."""

    is_discrete = True
    event_dim = 1

    def __init__(self, candidates: Tensor) -> None:
        self.candidates = candidates
        super().__init__()

    def __repr__(self) -> str:
        return f"OneOf({self.candidates.tolist()})"

    def check(self, value: Tensor) -> Tensor:
        return _agree(value, self.candidates).any(dim=-1)


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

    Raises:
        ValueError: If candidates are not finite, or the same in single precision.

    Example:
        >>> import torch
        >>> policy = CategoricalPolicy(torch.tensor([[1.0], [2.0], [5.0], [10.0]]))
        >>> policy.log_prob(torch.tensor([[5.0], [6.0]])).exp()
        tensor([0.2500, 0.0000], grad_fn=<ExpBackward0>)
    """

    has_rsample = False

    candidates: Tensor

    def __init__(self, candidates: Tensor) -> None:
        candidates = _check_candidates(candidates)
        super().__init__(dim_design=candidates.shape[1])
        self.register_buffer("candidates", candidates)
        self.logits = nn.Parameter(candidates.new_zeros(len(candidates)))

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
        return self.candidates[self.logits.argmax(dim=0, keepdim=True)][0]

    @torch.no_grad()
    def sample(self, sample_shape: torch.Size = torch.Size()) -> Tensor:
        """Draw candidates, of shape `(*sample_shape, dim_design)`."""
        index = Categorical(logits=self.logits, validate_args=False)
        return self.candidates[index.sample(sample_shape)]

    def log_prob(self, design: Tensor) -> Tensor:
        """Return the log-probability of the candidate that each design agrees with."""
        check_width(design, self.dim_design)
        agrees = _agree(design, self.candidates)
        # At most one candidate agrees. Infinite terms would have NaN gradients.
        log_prob = torch.where(agrees, self.logits.log_softmax(dim=-1), 0.0)
        return torch.where(agrees.any(dim=-1), log_prob.sum(dim=-1), -torch.inf)

    @property
    def num_designs(self) -> int:
        """Number of candidates."""
        return len(self.candidates)

    def spread(self, num_designs: int, *, at_random: bool = False) -> Tensor:
        """Return candidates, each as often as any other or once more."""
        num_candidates = len(self.candidates)
        order = torch.randperm(num_candidates)
        index = torch.arange(num_designs).remainder(num_candidates)
        return self.candidates[order[index].to(self.candidates.device)].float()

    def describe(self) -> dict[str, Tensor]:
        """Return the most probable candidate (the mode) and all probabilities."""
        return {**super().describe(), "probabilities": self.probabilities.detach()}


def _check_candidates(candidates: Tensor) -> Tensor:
    """Return a copy of different designs of finite numbers, or raise."""
    candidates = as_finite("candidates", candidates, "(num_candidates, dim_design)", 2)
    # Wide enough that no design can agree with two candidates.
    same = _agree(candidates, candidates, 4 * _TOLERANCE).triu(diagonal=1)
    if same.any():
        row, other = same.nonzero()[0].tolist()
        raise ValueError(
            f"candidates[{row}]={candidates[row].tolist()} and candidates[{other}]="
            f"{candidates[other].tolist()} are the same in single precision, in which "
            "networks see designs. Give each design once, or rescale or shift them."
        )
    return candidates


def _agree(design: Tensor, candidates: Tensor, tolerance: float = _TOLERANCE) -> Tensor:
    """Return which candidate each design agrees with, `(*batch, num_candidates)`."""
    design = design.unsqueeze(-2).to(candidates.dtype)
    return torch.isclose(design, candidates, rtol=tolerance, atol=0.0).all(dim=-1)
