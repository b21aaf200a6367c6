r"""The generalized Kullback-Leibler divergence of unnormalized posteriors.

For an unnormalized :math:`q(\theta \mid x)` with partition function :math:`Z(x)` the
generalized divergence is, up to a constant,

.. math:: D = E_{p(\theta, x)}[-\log q(\theta \mid x)] + E_{p(x)}[Z(x)],

which is least where :math:`q` is the posterior and :math:`Z = 1`. Where :math:`q` is
normalized it is the loss of neural posterior estimation. Two more surrogates:

- *ratio-only*, :math:`q = p(\theta) \, e^{\rho(\theta, x)}`: the prior, corrected,
- *hybrid*, :math:`q = b(\theta \mid x) \, e^{\rho(\theta, x)}`: a normalized base,
  corrected by an energy ratio, with :math:`Z(x) = E_{b(\theta \mid x)}[e^{\rho}]`.

A partition function is estimated from draws of any density :math:`r`, with weights
:math:`b / r` where :math:`r` is not the base itself. Since
:math:`\log Z \leq Z - 1`, the divergence is never below that of :math:`q / Z`: the
validation loss is a fair judge of a hybrid, if its :math:`Z` is not too noisy.

All losses and ratios are in nats.

References:
    Miller, Federici, Weniger and Forré, *Simulation-based Inference with the
    Generalized Kullback-Leibler Divergence*, 2023, https://arxiv.org/abs/2310.01808.
"""

import math

import torch
from torch import Tensor

__all__ = [
    "atomic_hybrid_loss",
    "draw_by_ratio",
    "hybrid_loss",
    "partition_by_draws",
    "partition_function",
    "ratio_loss",
]

# Where exp() gives way to its tangent: half of the range of float32 in the exponent.
_LARGEST_EXPONENT = 40.0


def partition_function(
    log_ratio: Tensor,
    inside: Tensor | None = None,
    *,
    log_weight: Tensor | None = None,
) -> Tensor:
    r"""Return estimates of :math:`Z(x) = \int b \, 1(\theta \in \Theta) \, e^{\rho}`.

    Args:
        log_ratio: Energy ratio at draws, of shape `(num_draws, batch_dim)`.
        inside: Which draws lie in the support of the prior, of the same shape. All
            if `None`.
        log_weight: Logarithms of importance weights
            :math:`w_k = b(\theta_k \mid x) / r(\theta_k)` for draws of another density
            :math:`r` than the base, of the same shape.

    Returns:
        Unbiased estimates of the partition function, of shape `(batch_dim,)`. Weights
        above :math:`e^{40}` grow linearly, lest they overflow.
    """
    if log_weight is not None:
        log_ratio = log_ratio + log_weight
    excess = (log_ratio - _LARGEST_EXPONENT).clamp(min=0.0)
    weights = log_ratio.clamp(max=_LARGEST_EXPONENT).exp()
    weights = weights + math.exp(_LARGEST_EXPONENT) * excess
    if inside is not None:
        weights = weights * inside
    return weights.mean(dim=0)


def draw_by_ratio(log_ratio: Tensor, num_draws: int) -> Tensor:
    r"""Return which draws have a say in the gradient of the partition function.

    Args:
        log_ratio: Energy ratio at draws, of shape `(num_candidates, batch_dim)`.
        num_draws: How many to choose for each row.

    Returns:
        Indices of candidates, drawn with probabilities proportional to
        :math:`e^{\rho}`, with replacement, of shape `(num_draws, batch_dim)`.

    Raises:
        RuntimeError: If a ratio is not finite.
    """
    probabilities = torch.softmax(log_ratio.detach().clamp(max=_LARGEST_EXPONENT), 0)
    return torch.multinomial(probabilities.T, num_draws, replacement=True).T


def partition_by_draws(log_ratio: Tensor, drawn: Tensor) -> Tensor:
    r"""Return estimates of :math:`Z(x)` from many draws, with a gradient of few.

    The gradient is :math:`\nabla \frac{1}{K} \sum_k e^{\rho_k} = \hat Z \sum_k w_k
    \nabla \rho_k` with weights :math:`w_k \propto e^{\rho_k}`. The mean over draws from
    these weights has it as its expectation, whatever their number: where few candidates
    carry all of the weight, it is as good as the gradient of all, which costs a
    backward pass through each.

    Args:
        log_ratio: Energy ratio at candidates, of shape `(num_candidates, batch_dim)`;
            no gradient passes through it.
        drawn: Energy ratio at those that `draw_by_ratio` chose, of shape
            `(num_draws, batch_dim)`.

    Returns:
        The estimates of `partition_function`, of shape `(batch_dim,)`.
    """
    log_ratio = log_ratio.detach()
    slope = log_ratio.clamp(max=_LARGEST_EXPONENT).exp().mean(dim=0)
    mean = drawn.mean(dim=0)
    return partition_function(log_ratio) + slope * (mean - mean.detach())


def ratio_loss(log_ratio: Tensor, marginal_log_ratio: Tensor) -> Tensor:
    r"""Return :math:`-\rho(\theta, x) + E_k[e^{\rho(\theta_k, x)}]` of each row.

    Its minimum is at :math:`\rho = \log p(\theta \mid x) / p(\theta)`, where the mean
    loss is one minus the mutual information.

    Args:
        log_ratio: Energy ratio of simulated pairs, of shape `(batch_dim,)`.
        marginal_log_ratio: Energy ratio of the same data with parameters that are
            independent of them, of shape `(num_draws, batch_dim)`.

    Returns:
        Losses of shape `(batch_dim,)`.
    """
    return partition_function(marginal_log_ratio) - log_ratio


def hybrid_loss(log_base: Tensor, log_ratio: Tensor, partition: Tensor) -> Tensor:
    r"""Return :math:`-\log b(\theta|x) - \rho(\theta, x) + Z(x)` of each row.

    Args:
        log_base: Log-density of the base, of shape `(batch_dim,)`.
        log_ratio: Energy ratio :math:`\rho`, of shape `(batch_dim,)`.
        partition: Estimate of the partition function from draws of the base that carry
            no gradient: the base then learns from its likelihood alone.

    Returns:
        Losses of shape `(batch_dim,)`.
    """
    return partition - log_base - log_ratio


def atomic_hybrid_loss(log_unnormalized: Tensor) -> Tensor:
    r"""Return :math:`-\log` of the share of the first of some atoms, for each row.

    For parameters from a proposal :math:`\tilde p(\theta)` in the place of the prior.
    Atoms are parameters of other rows; among them and its own, the row's parameter has
    posterior probability proportional to :math:`q(\theta \mid x) / p(\theta)`, whatever
    the proposal was (Greenberg et al., 2019, https://arxiv.org/abs/1905.07488).

    Args:
        log_unnormalized: :math:`\log b + \rho - \log p` of shape
            `(num_atoms, batch_dim)`, the row's own parameter first.

    Returns:
        Losses of shape `(batch_dim,)`, never negative.
    """
    return torch.logsumexp(log_unnormalized, dim=0) - log_unnormalized[0]
