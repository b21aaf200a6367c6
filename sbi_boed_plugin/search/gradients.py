r"""Gradients of the information with respect to the design policy.

All estimate :math:`\nabla_\psi E_{\pi_\psi(\xi)} E[g(\theta, x, \xi)]`, where :math:`g`
is a row's term of a bound. The score function needs the values of :math:`g` alone. The
others differentiate :math:`g` at reparameterised designs and differ in how the data
follow the design; each is a *path*, a function that returns the data of a batch
attached to its designs.
"""

from collections.abc import Callable

import torch
from sbi.neural_nets.estimators import ConditionalDensityEstimator
from torch import Tensor

from sbi_boed_plugin.estimators.noise import reparameterize
from sbi_boed_plugin.search.batch import Batch
from sbi_boed_plugin.search.estimators import DesignEstimators

__all__ = ["DATA_PATHS", "POLICY_GRADIENTS", "draw_data", "score_loss"]


def score_loss(information: Tensor, log_prob: Tensor) -> Tensor:
    r"""Return minus :math:`E[(g - b) \log \pi_\psi(\xi)]`, with :math:`g, b` constant.

    From the terms of at least two designs and their log-densities under the policy. The
    gradient is unbiased for any simulator: the baseline :math:`b`, the mean over all
    other designs, is independent of the design's own draw and reduces the variance.
    """
    information = information.detach()
    baseline = (information.sum() - information) / (len(information) - 1)
    return -((information - baseline) * log_prob).mean()


def draw_data(likelihood: ConditionalDensityEstimator, condition: Tensor) -> Tensor:
    """Return a datum for each condition, moving with it if that carries a gradient."""
    with torch.no_grad():
        x = likelihood.sample(torch.Size((1,)), condition)[0]
    return reparameterize(likelihood, x, condition) if condition.requires_grad else x


def _partial_path(batch: Batch, estimators: DesignEstimators) -> Tensor:
    r"""Return the data as they are: the gradient is :math:`\partial_\xi g` at fixed x.

    As the code published with SBI-BOED does. It leaves out how the data depend on the
    design: with the true likelihood the expectation for the contrastive bound is
    exactly zero, by the score identity for its first term and by exchangeability of
    :math:`\theta_0, \dots, \theta_L` for the second. Offered to reproduce the paper.
    """
    return batch.x.detach()


def _pathwise_path(batch: Batch, estimators: DesignEstimators) -> Tensor:
    """Return the data of a differentiable simulator, with its own gradient."""
    if not batch.x.requires_grad:
        raise ValueError(
            "gradient='pathwise' differentiates through the simulator, but its x has "
            "no gradient of the design. Compute x from `design` with torch alone, or "
            "use gradient='score', which takes any simulator."
        )
    return batch.x


def _implicit_path(batch: Batch, estimators: DesignEstimators) -> Tensor:
    r"""Return the simulated data, moving with the design at fixed noise of the flow.

    :math:`dx/d\xi = -(\partial T / \partial x)^{-1} \partial T / \partial \xi`, with
    :math:`T` the transform of the learned likelihood to noise. Exact where the
    likelihood is, whatever the simulator.
    """
    condition = torch.cat([batch.theta, batch.design], dim=-1)
    return reparameterize(estimators.likelihood, batch.x, condition)


def _surrogate_path(batch: Batch, estimators: DesignEstimators) -> Tensor:
    """Return new data, drawn from the learned likelihood and moving with the design."""
    condition = torch.cat([batch.theta, batch.design], dim=-1)
    return draw_data(estimators.likelihood, condition)


DATA_PATHS: dict[str, Callable[[Batch, DesignEstimators], Tensor]] = {
    "implicit": _implicit_path,
    "partial": _partial_path,
    "pathwise": _pathwise_path,
    "surrogate": _surrogate_path,
}

POLICY_GRADIENTS: tuple[str, ...] = ("score", *DATA_PATHS)
