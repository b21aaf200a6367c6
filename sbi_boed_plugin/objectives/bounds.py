r"""Bounds of the mutual information beside the contrastive one.

Each function returns one term per simulation :math:`(\theta, \xi, x)`, of shape
`(batch_dim,)` in nats, whose mean estimates the mutual information of :math:`\theta`
and :math:`x` at the designs. Arguments are log-densities of the same shape, in nats,
unless they say otherwise. The contrastive bound is in
:mod:`~sbi_boed_plugin.objectives.info_nce`. Two further ones are plain differences:

- Barber and Agakov's, :math:`\log q(\theta \mid x, \xi) - \log p(\theta)`, is a lower
  bound for any normalized :math:`q`, loose by the divergence of :math:`q` from the
  posterior, and without a cap.
- :math:`\log q(x \mid \theta, \xi) - \log r(x \mid \xi)` is an upper bound if
  :math:`q` is the true likelihood, a lower bound if :math:`r` is the true marginal, and
  of no fixed sign if both are learned.

References:
    Barber and Agakov, *The IM Algorithm*, NeurIPS 2003. Nguyen, Wainwright and Jordan,
    *Estimating Divergence Functionals and the Likelihood Ratio by Convex Risk
    Minimization*, 2010. Foster et al., *Variational Bayesian Optimal Experimental
    Design*, NeurIPS 2019, https://arxiv.org/abs/1903.05480. Miller et al.,
    *Simulation-based Inference with the Generalized Kullback-Leibler Divergence*,
    2023, https://arxiv.org/abs/2310.01808.
"""

import math

import torch
from torch import Tensor

__all__ = ["generalized_kl_bound", "nwj_bound", "proposal_contrastive_bounds"]


def proposal_contrastive_bounds(
    log_likelihood: Tensor, log_weights: Tensor
) -> tuple[Tensor, Tensor]:
    r"""Return lower and upper terms with contrasts from a learned posterior.

    With :math:`\theta_1, \dots, \theta_L` from a proposal :math:`r(\theta \mid x)` and
    weights :math:`f_l = q(x \mid \theta_l) \, p(\theta_l) / r(\theta_l \mid x)`,

    .. math:: \log q(x \mid \theta_0) - \log \frac{1}{L + 1} \sum_{l=0}^L f_l
        \quad \text{and} \quad
        \log q(x \mid \theta_0) - \log \frac1L \sum_{l=1}^L f_l .

    The first is a lower bound in expectation for any :math:`q` and :math:`r`: averaged
    over the contrasts, :math:`r(\theta_0 \mid x) \, f_0` divided by the mean of the
    :math:`f_l` is a normalized density of :math:`\theta_0`. It is at most
    :math:`\log(L + 1)` above the Barber-Agakov bound of :math:`r`, so that a good
    proposal needs few contrasts. The second is an upper bound if :math:`q` is the true
    likelihood. With the prior as :math:`r` they are the prior contrastive estimate and
    nested Monte Carlo. `log_weights`, of shape `(num_contrastive + 1, batch_dim)`, are
    logarithms of :math:`f_l`, those of the simulations first.
    """
    num_rows = len(log_weights)
    lower = torch.logsumexp(log_weights, dim=0) - math.log(num_rows)
    upper = torch.logsumexp(log_weights[1:], dim=0) - math.log(num_rows - 1)
    return log_likelihood - lower, log_likelihood - upper


def nwj_bound(
    log_likelihood: Tensor, contrasts: Tensor, log_marginal: Tensor
) -> Tensor:
    r"""Return :math:`T(\theta_0, x) - \frac1L \sum_l e^{T(\theta_l, x) - 1}`.

    A lower bound in expectation for any critic :math:`T` that does not depend on the
    :math:`\theta_l`, with a variance that grows with the exponential of the
    information, and without a cap. The critic here is
    :math:`T = 1 + \log q(x \mid \theta) - \log r(x)`, the best of all if both densities
    are the true ones. `contrasts`, of shape `(num_contrastive, batch_dim)`, are the
    log-likelihoods of independent parameters.
    """
    penalty = (contrasts - log_marginal).exp().mean(dim=0)
    return 1.0 + log_likelihood - log_marginal - penalty


def generalized_kl_bound(
    log_base: Tensor, log_ratio: Tensor, log_prior: Tensor, partition: Tensor
) -> Tensor:
    r"""Return :math:`\log b(\theta|x) + \rho(\theta, x) - \log p(\theta) + 1 - Z(x)`.

    A lower bound in expectation from the unnormalized posterior :math:`b \, e^\rho`
    and an unbiased estimate of :math:`Z(x) = E_{b(\theta \mid x)}[e^{\rho(\theta,
    x)}]`, because :math:`\log Z \leq Z - 1`. With :math:`\rho = 0` it is the bound of
    Barber and Agakov, with the prior as :math:`b` the one of Nguyen, Wainwright and
    Jordan.
    """
    return log_base + log_ratio - log_prior + 1.0 - partition
