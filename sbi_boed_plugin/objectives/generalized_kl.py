r"""The generalized Kullback-Leibler divergence of unnormalized posteriors.

For an unnormalized :math:`q(\theta \mid x)` with partition function :math:`Z(x)` the
generalized divergence is, up to a constant,

.. math:: D = E_{p(\theta, x)}[-\log q(\theta \mid x)] + E_{p(x)}[Z(x)],

which is least where :math:`q` is the posterior and :math:`Z = 1`. The hybrid surrogate
is :math:`q = b(\theta \mid x) \, e^{\rho(\theta, x)}`: a normalized base and an energy
ratio that corrects it, with :math:`Z(x) = E_{b(\theta \mid x)}[e^{\rho(\theta, x)}]`.

References:
    Miller, Federici, Weniger and Forré, *Simulation-based Inference with the
    Generalized Kullback-Leibler Divergence*, 2023, https://arxiv.org/abs/2310.01808.
"""

from torch import Tensor

__all__ = ["hybrid_loss", "partition_function"]


def partition_function(log_ratio: Tensor, inside: Tensor | None = None) -> Tensor:
    r"""Return :math:`\frac1K \sum_k 1(\theta_k \in \Theta) \, e^{\rho(\theta_k, x)}`.

    Args:
        log_ratio: Energy ratio at draws of the base, of shape
            `(num_draws, batch_dim)`.
        inside: Which draws lie in the support of the prior, of the same shape. All
            if `None`.

    Returns:
        Unbiased estimates of the partition function, of shape `(batch_dim,)`.
    """
    weights = log_ratio.exp()
    if inside is not None:
        weights = weights * inside.to(weights)
    return weights.mean(dim=0)


def hybrid_loss(log_base: Tensor, log_ratio: Tensor, partition: Tensor) -> Tensor:
    r"""Return :math:`-\log b(\theta|x) - \rho(\theta, x) + Z(x)` of each row.

    Args:
        log_base: Log-density of the base, of shape `(batch_dim,)`.
        log_ratio: Energy ratio :math:`\rho`, of shape `(batch_dim,)`.
        partition: Estimate of the partition function from draws of the base that carry
            no gradient: the base then learns from its likelihood alone.

    Returns:
        Losses of shape `(batch_dim,)`, in nats.
    """
    return partition - log_base - log_ratio
