r"""The generalized Kullback-Leibler divergence of unnormalized posteriors.

For an unnormalized :math:`q(\theta \mid x)` with partition function :math:`Z(x)` the
generalized divergence is, up to a constant,

.. math:: D = E_{p(\theta, x)}[-\log q(\theta \mid x)] + E_{p(x)}[Z(x)],

which is least where :math:`q` is the posterior and :math:`Z = 1`. There are two forms:

- *ratio-only*, :math:`q = p(\theta) \, e^{\rho(\theta, x)}`: the prior, corrected,
- *hybrid*, :math:`q = b(\theta \mid x) \, e^{\rho(\theta, x)}`: a normalized base,
  corrected by an energy ratio, with :math:`Z(x) = E_{b(\theta \mid x)}[e^{\rho}]`.

Since :math:`\log Z \leq Z - 1`, the divergence is never below that of :math:`q / Z`.

Log-ratios of draws have shape `(num_draws, batch_dim)`, losses and partition functions
`(batch_dim,)`; all are in nats.

Source: Miller, Federici, Weniger and Forré, *Simulation-based Inference with the
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


def partition_function(log_ratio: Tensor, inside: Tensor | None = None) -> Tensor:
    r"""Return unbiased estimates of :math:`Z(x)` from ratios at draws of the base.

    Draws that are not `inside` the support of the prior count as nothing. Weights above
    :math:`e^{40}` grow linearly, lest they overflow.
    """
    excess = (log_ratio - _LARGEST_EXPONENT).clamp(min=0.0)
    weights = log_ratio.clamp(max=_LARGEST_EXPONENT).exp()
    weights = weights + math.exp(_LARGEST_EXPONENT) * excess
    if inside is not None:
        weights = weights * inside
    return weights.mean(dim=0)


def draw_by_ratio(log_ratio: Tensor, num_draws: int) -> Tensor:
    r"""Return indices `(num_draws, batch_dim)`, drawn in proportion to :math:`e^\rho`.

    They are drawn with replacement; a `RuntimeError` says if a ratio is not finite.
    """
    probabilities = torch.softmax(log_ratio.detach().clamp(max=_LARGEST_EXPONENT), 0)
    return torch.multinomial(probabilities.T, num_draws, replacement=True).T


def partition_by_draws(log_ratio: Tensor, drawn: Tensor) -> Tensor:
    r"""Return estimates of :math:`Z(x)` from many candidates, with a gradient of few.

    The gradient of the mean over candidates is :math:`\hat Z \sum_k w_k \nabla \rho_k`
    with weights :math:`w_k \propto e^{\rho_k}`. That of the mean over those `drawn` by
    `draw_by_ratio` has the same expectation, whatever their number.
    """
    log_ratio = log_ratio.detach()
    slope = log_ratio.clamp(max=_LARGEST_EXPONENT).exp().mean(dim=0)
    mean = drawn.mean(dim=0)
    return partition_function(log_ratio) + slope * (mean - mean.detach())


def ratio_loss(log_ratio: Tensor, marginal_log_ratio: Tensor) -> Tensor:
    r"""Return :math:`-\rho(\theta, x) + E_k[e^{\rho(\theta_k, x)}]` of each row.

    Its minimum is at :math:`\rho = \log p(\theta \mid x) / p(\theta)`, where the mean
    loss is one minus the mutual information.
    """
    return partition_function(marginal_log_ratio) - log_ratio


def hybrid_loss(log_base: Tensor, log_ratio: Tensor, partition: Tensor) -> Tensor:
    r"""Return :math:`-\log b(\theta|x) - \rho(\theta, x) + Z(x)` of each row.

    One minus this and the log-density of the prior is a lower bound of the mutual
    information, with any unbiased estimate of :math:`Z`; the one of Barber and Agakov
    where :math:`\rho = 0`.
    """
    return partition - log_base - log_ratio


def atomic_hybrid_loss(log_unnormalized: Tensor) -> Tensor:
    r"""Return :math:`-\log` of the share of the first of some atoms, for each row.

    For parameters from a proposal in the place of the prior. Atoms, of which the first
    is the row's own parameter, are given as :math:`\log b + \rho - \log p`. Their
    posterior probabilities are proportional to :math:`q(\theta \mid x) / p(\theta)`,
    whatever the proposal was (Greenberg et al., 2019, https://arxiv.org/abs/1905.07488).
    """
    return torch.logsumexp(log_unnormalized, dim=0) - log_unnormalized[0]
