r"""The InfoNCE-λ objective and what it is made of.

For a joint draw :math:`(\theta_0, \xi, x)` and :math:`L` further parameters
:math:`\theta_1, \dots, \theta_L` from the marginal of :math:`\theta`, the objective of
SBI-BOED [1]_ is

.. math::
    J = E\Big[(1 + \lambda) \log q(x \mid \theta_0, \xi)
        - \log \frac{1}{L + 1} \sum_{l=0}^{L} q(x \mid \theta_l, \xi)\Big].

At :math:`\lambda = 0` it is the prior contrastive estimate, a lower bound of the mutual
information that never exceeds :math:`\log(L + 1)` nats. It is blind to any factor of
:math:`q` that depends on :math:`(x, \xi)` alone; maximum likelihood is not.

Log-likelihoods are matrices of shape ``(L + 1, batch_dim)`` whose first row holds the
parameters that generated the data.

.. [1] Zaballa and Hui, *Optimizing Likelihoods via Mutual Information: Bridging
    Simulation-Based Inference and Bayesian Optimal Experimental Design*, UAI 2026,
    https://arxiv.org/abs/2502.08004
"""

import math
from collections.abc import Callable

import torch
from torch import Tensor
from torch.distributions import Distribution
from torch.utils.checkpoint import checkpoint

from sbi_boed_plugin._memory import rows_at_once

__all__ = [
    "contrastive_bound",
    "fresh_contrast",
    "in_batch_contrast",
    "info_nce_loss",
    "log_likelihood_matrix",
    "nan_to_zero_density",
]

# Weight from which on a pair always has a gradient, and number of pairs of a column
# from which on the others pay a pass over all pairs.
_CERTAIN_WEIGHT, _MIN_SAMPLED = 0.5, 4


def in_batch_contrast(theta: Tensor, num_contrastive: int) -> Tensor:
    """Return other rows as contrasts, `(num_contrastive, batch_dim, *event_shape)`.

    Those of a row follow it at distinct random shifts: draws from the marginal of
    theta, as long as it is independent of the design.
    """
    batch_dim = theta.shape[0]
    if not 0 <= num_contrastive < batch_dim:
        raise ValueError(
            f"num_contrastive={num_contrastive} must be between 0 and "
            f"{batch_dim - 1}, the number of other rows of the batch. Use a larger "
            "batch or fewer contrastive samples."
        )
    shifts = torch.randperm(batch_dim - 1, device=theta.device)[:num_contrastive] + 1
    rows = torch.arange(batch_dim, device=theta.device)
    return theta[(rows + shifts.unsqueeze(1)) % batch_dim]


def fresh_contrast(
    distribution: Distribution, num_contrastive: int, batch_dim: int
) -> Tensor:
    """Return draws of a distribution, `(num_contrastive, batch_dim, *event_shape)`."""
    # One flat draw: priors that users wrap for sbi may not take two sample dimensions.
    theta = distribution.sample(torch.Size((num_contrastive * batch_dim,)))
    return theta.reshape(num_contrastive, batch_dim, *theta.shape[1:])


def log_likelihood_matrix(
    log_prob: Callable[[Tensor, Tensor], Tensor],
    x: Tensor,
    conditions: Tensor,
    *,
    max_pairs: int | None = None,
    sampled: bool = False,
) -> Tensor:
    r"""Return :math:`\log q(x_b \mid c_{lb})`, `(num_contrastive + 1, batch_dim)`.

    `x` has shape `(batch_dim, ...)`, `conditions` `(num_contrastive + 1, batch_dim,
    ...)`, and `log_prob` is that of an estimator of sbi. At most `max_pairs` (by
    default what takes 256 MB) are evaluated at once; where there are more, they are
    evaluated again in the backward pass rather than kept.

    In the gradient of the contrastive bound, pair :math:`(l, b)` has the weight
    :math:`w_{lb} = q(x_b \mid c_{lb}) / \sum_k q(x_b \mid c_{kb})`. Where pairs are
    `sampled`, each has a gradient with probability :math:`\min(1, 2 w_{lb})`, at most
    about three of a column, and it is divided by this probability: the values are the
    same, and the gradient is that of all pairs in expectation.
    """
    num_rows, batch_dim = conditions.shape[:2]
    if max_pairs is None:
        network = getattr(log_prob, "__self__", None)
        num_values = x[0].numel() + conditions[0, 0].numel()
        max_pairs = rows_at_once(network, num_values)
    pairs = conditions.flatten(0, 1)
    columns = torch.arange(batch_dim, device=x.device).repeat(num_rows)
    if sampled and num_rows >= _MIN_SAMPLED and torch.is_grad_enabled():
        with torch.no_grad():
            values = _evaluate_pairs(log_prob, x, columns, pairs, max_pairs)
        weights = torch.softmax(values.reshape(num_rows, batch_dim), dim=0)
        kept = (weights / _CERTAIN_WEIGHT).clamp(max=1.0)
        kept[0] = 1.0  # The pair that was simulated also has the weight 1 + λ.
        (chosen,) = (torch.rand_like(kept) < kept).flatten().nonzero(as_tuple=True)
        again = _evaluate_pairs(log_prob, x, columns[chosen], pairs[chosen], max_pairs)
        # With batch normalization or dropout, densities of one pass cannot be compared
        # with those of another: then all are evaluated in one.
        if torch.allclose(values[chosen], again, rtol=1e-3, atol=1e-3):
            gradient = (again - again.detach()) / kept.flatten()[chosen]
            values = values.index_put((chosen,), values[chosen] + gradient)
            return values.reshape(num_rows, batch_dim)
    values = _evaluate_pairs(log_prob, x, columns, pairs, max_pairs)
    return values.reshape(num_rows, batch_dim)


def _evaluate_pairs(
    log_prob: Callable[[Tensor, Tensor], Tensor],
    x: Tensor,
    columns: Tensor,
    conditions: Tensor,
    max_pairs: int,
) -> Tensor:
    """Return `log_prob` of row `columns[i]` of `x` given row `i` of `conditions`."""

    def evaluate(x: Tensor, columns: Tensor, conditions: Tensor) -> Tensor:
        return log_prob(x[columns].unsqueeze(0), conditions).squeeze(0)

    if len(columns) <= max_pairs:
        return evaluate(x, columns, conditions)
    chunks = zip(columns.split(max_pairs), conditions.split(max_pairs), strict=True)
    return torch.cat(
        [checkpoint(evaluate, x, *chunk, use_reentrant=False) for chunk in chunks]
    )


def nan_to_zero_density(values: Tensor) -> Tensor:
    """Return log-densities in which what is undefined is impossible."""
    return torch.where(values.isnan(), -torch.inf, values)


def contrastive_bound(log_likelihoods: Tensor) -> Tensor:
    """Return each column's term of the prior contrastive estimate, `(batch_dim,)`."""
    num_rows = log_likelihoods.shape[0]
    marginal = torch.logsumexp(log_likelihoods, dim=0) - math.log(num_rows)
    return log_likelihoods[0] - marginal


def info_nce_loss(log_likelihoods: Tensor, regularization_strength: float) -> Tensor:
    """Return the InfoNCE-λ loss of each column, of shape `(batch_dim,)`."""
    bound = contrastive_bound(log_likelihoods)
    return -bound - regularization_strength * log_likelihoods[0]
