r"""How well experiments were designed and learned from.

Three questions about a finished sequence of experiments:

- Do data that the posterior predicts look like the observed ones?
  :func:`median_predictive_distance`.
- Is the posterior at the observation the true one? :func:`lc2st_statistic`.
- How much did the experiments tell about the parameters? :func:`total_information`,
  a lower and an upper bound under the true likelihood.

References:
    Linhart, Gramfort and Rodrigues, *L-C2ST: Local Diagnostics for Posterior
    Approximations in Simulation-Based Inference*, NeurIPS 2023,
    https://arxiv.org/abs/2306.03580. Foster et al., *Deep Adaptive Design: Amortizing
    Sequential Bayesian Experimental Design*, ICML 2021,
    https://arxiv.org/abs/2103.02438 (the bounds of the total information).
"""

import math
from collections.abc import Callable

import torch
from sbi.diagnostics.lc2st import LC2ST
from torch import Tensor
from torch.distributions import Distribution

from sbi_boed_plugin._numbers import check_integer
from sbi_boed_plugin._rng import isolated_rng

__all__ = [
    "lc2st_statistic",
    "median_predictive_distance",
    "total_information",
]

# Densities evaluated at once: bounds the memory.
_MAX_ROWS = 500_000

# Far from seeds that people choose: with the same one, parameters drawn as the truth
# would come again as contrastive draws.
_CONTRASTIVE_STREAM = 7_360_911_425


@torch.no_grad()
def median_predictive_distance(
    simulator: Callable[[Tensor, Tensor], Tensor],
    posterior_samples: Tensor,
    designs: Tensor,
    x_o: Tensor,
) -> float:
    r"""Return the median distance of posterior-predictive data from the observed ones.

    All experiments are repeated for each posterior draw, each with noise of its own.
    The data of one draw are one vector :math:`x`, as the observed are; the distance is
    :math:`\lVert x_o - x \rVert_2`.

    Args:
        simulator: Function from `theta` of shape `(batch_dim, dim_theta)` and `design`
            of shape `(batch_dim, dim_design)` to `x` of shape `(batch_dim, dim_x)`.
        posterior_samples: Draws given all experiments, of shape
            `(num_samples, dim_theta)`.
        designs: Designs of the experiments, of shape `(num_experiments, dim_design)`.
        x_o: Observed data of shape `(num_experiments, dim_x)`.

    Returns:
        The median, in units of the data. Predictions that fail (NaN or infinite) are
        left out; NaN if all fail.

    Example:
        >>> simulator = lambda theta, design: theta * design
        >>> samples = torch.tensor([[0.0], [1.0], [3.0]])
        >>> designs, x_o = torch.tensor([[3.0], [4.0]]), torch.zeros(2, 1)
        >>> median_predictive_distance(simulator, samples, designs, x_o)
        5.0
    """
    predicted = [
        simulator(posterior_samples, design.expand(len(posterior_samples), -1))
        for design in designs
    ]
    difference = torch.cat(predicted, dim=1) - x_o.flatten()
    distances = torch.linalg.vector_norm(difference, dim=1)
    distances = distances[distances.isfinite()]
    return float(distances.median()) if len(distances) else math.nan


def lc2st_statistic(
    theta: Tensor,
    x: Tensor,
    posterior_samples: Tensor,
    *,
    theta_o: Tensor,
    x_o: Tensor,
    seed: int = 0,
    num_ensemble: int = 1,
) -> float:
    r"""Return the statistic of the local classifier two-sample test at an observation.

    sbi's L-C2ST: a classifier learns to tell :math:`(\theta, x)` of the joint
    distribution from pairs with :math:`\theta` drawn from the estimated posterior of
    :math:`x`. The statistic is the mean of :math:`(c - 1/2)^2` over its probabilities
    :math:`c` for the estimated posterior at :math:`x_o`: 0 if it cannot tell, 0.25 at
    most.

    Args:
        theta: Parameters of simulated pairs, of shape `(num_pairs, dim_theta)`, in
            coordinates that suit a network.
        x: Their data of shape `(num_pairs, dim_x)`, likewise. Data of several
            experiments are one row.
        posterior_samples: One draw from the estimated posterior of each `x`, of shape
            `(num_pairs, dim_theta)`.
        theta_o: Draws from the estimated posterior of `x_o`, of shape
            `(num_samples, dim_theta)`.
        x_o: Observed data of shape `(1, dim_x)`.
        seed: Seed of the classifier; global random states are left as they were.
        num_ensemble: Number of classifiers to average.

    Returns:
        The statistic.

    Example:
        >>> _ = torch.manual_seed(0)
        >>> theta, other = torch.randn(2, 1_000, 1)
        >>> x, x_o = torch.randn(1_000, 1), torch.zeros(1, 1)
        >>> good = lc2st_statistic(theta, x, other, theta_o=other, x_o=x_o)
        >>> bad = lc2st_statistic(theta, x, other + 2, theta_o=other + 2, x_o=x_o)
        >>> good < 0.05 < bad
        True
    """
    with isolated_rng(seed):
        test = LC2ST(
            theta,
            x,
            posterior_samples,
            seed=seed,
            num_ensemble=num_ensemble,
            z_score=True,
        )
        _ = test.train_on_observed_data(verbosity=0)
        return float(test.get_statistic_on_observed_data(theta_o=theta_o, x_o=x_o))


@torch.no_grad()
def total_information(
    log_likelihood: Callable[[Tensor, Tensor, Tensor], Tensor],
    prior: Distribution,
    theta_0: Tensor,
    designs: Tensor,
    x: Tensor,
    *,
    num_contrastive: int = 10**6,
    seed: int = 0,
) -> tuple[float, float]:
    r"""Return a lower and an upper bound of the information of a sequence.

    With the history :math:`h = (\xi_t, x_t)_{t \leq T}` and :math:`\theta_l` from the
    prior, the lower one (sPCE) is

    .. math:: \log p(h \mid \theta_0)
        - \log \frac{1}{L + 1} \sum_{l=0}^{L} p(h \mid \theta_l), \qquad
        p(h \mid \theta) = \prod_t p(x_t \mid \theta, \xi_t).

    The upper one (sNMC) leaves out :math:`l = 0` and divides by :math:`L`. Their means
    over sequences with :math:`\theta_0` from the prior bound the information of all
    experiments together, and both meet as :math:`L` grows. The lower one is at most
    :math:`\log(L + 1)`. Sums are in double precision.

    Args:
        log_likelihood: *True* likelihood, a function `log_likelihood(x, theta, design)`
            of rows to nats of shape `(batch_dim,)`.
        prior: Distribution of the parameters.
        theta_0: Parameters that the data were simulated with, of shape `(dim_theta,)`.
        designs: Designs of shape `(num_rounds, dim_design)`.
        x: Data of shape `(num_rounds, dim_x)`.
        num_contrastive: Number :math:`L` of draws from the prior.
        seed: Seed of these draws; global random states are left as they were.

    Returns:
        Lower and upper bound, in nats. The upper one is infinite if no draw explains
        the data at all.

    Example:
        >>> from sbi_boed_plugin.tasks import get_task
        >>> task = get_task("location_finding")
        >>> theta, designs = task.true_parameters[0], torch.zeros(3, 2)
        >>> x = task.simulator(theta.expand(3, -1), designs)
        >>> lower, upper = total_information(
        ...     task.log_likelihood, task.prior, theta, designs, x, num_contrastive=1000
        ... )
        >>> lower < upper
        True
    """
    num_contrastive = check_integer("num_contrastive", num_contrastive, 1)
    seed = check_integer("seed", seed, 0, 2**32 - 1)
    num_rounds = len(designs)

    def of_history(theta: Tensor) -> Tensor:
        rows = theta.repeat_interleave(num_rounds, dim=0)
        terms = log_likelihood(
            x.repeat(len(theta), 1), rows, designs.repeat(len(theta), 1)
        )
        return terms.cpu().double().reshape(len(theta), num_rounds).sum(dim=1)

    own = of_history(theta_0.reshape(1, -1))
    total = own.new_tensor(-torch.inf)
    chunk = max(1, _MAX_ROWS // num_rounds)
    with isolated_rng(_CONTRASTIVE_STREAM + seed):
        for start in range(0, num_contrastive, chunk):
            size = min(chunk, num_contrastive - start)
            theta = prior.sample(torch.Size((size,))).to(theta_0)
            total = torch.logaddexp(total, of_history(theta).logsumexp(dim=0))
    with_own = torch.logaddexp(total, own[0]) - math.log(num_contrastive + 1)
    without = total - math.log(num_contrastive)
    return float(own[0] - with_own), float(own[0] - without)
