"""Linear regression with Gaussian noise: every quantity has a closed form."""

import torch
from torch import Tensor
from torch.distributions import Independent, Normal

from sbi_boed_plugin.tasks._gaussian import HALF_LOG_2PI
from sbi_boed_plugin.tasks.task import Task

__all__ = ["GaussianLinear", "regression_mean", "regressors"]

PRIOR_SCALE = 3.0


def regression_mean(theta: Tensor, design: Tensor) -> Tensor:
    """Return intercept plus slope times design; leading dimensions broadcast."""
    return theta[..., :1] + theta[..., 1:] * design


def regressors(design: Tensor) -> Tensor:
    """Return the matrix `(dim_design, 2)` whose rows are `(1, design_j)`."""
    return torch.stack([torch.ones_like(design), design], dim=-1)


class GaussianLinear(Task):
    r"""Where to measure a straight line, with Gaussian noise.

    .. math:: x_j = \theta_0 + \theta_1 \xi_j + \epsilon_j, \quad
        \epsilon_j \sim N(0, 1), \quad \theta \sim N(0, 9 I), \quad
        \xi_j \in [-10, 10].

    With :math:`X = [1, \xi]` the expected information gain is
    :math:`\frac12 \log\det(I + 9 X^\top X)`; it is largest with one half of the
    `dim_design` measurements at each end.

    Example:
        >>> value, standard_error = GaussianLinear().exact_eig(torch.tensor([10.0]))
        >>> f"{value:.3f} nats"
        '3.407 nats'
    """

    name = "gaussian_linear"
    parameter_names = ("intercept θ₀", "slope θ₁")

    def __init__(self, *, dim_design: int = 1) -> None:
        scale = torch.full((2,), PRIOR_SCALE)
        self.prior = Independent(Normal(torch.zeros(2), scale), 1)
        # Within one standard deviation of the prior and two: neither special nor rare.
        self.true_parameters = torch.tensor([[2.0, 5.0]])
        self._measure(dim_design, -10.0, 10.0, "position ξ{}", "measurement x{}")

    def _simulate(self, theta: Tensor, design: Tensor) -> Tensor:
        mean = regression_mean(theta, design)
        return mean + torch.randn_like(mean)

    def log_likelihood(self, x: Tensor, theta: Tensor, design: Tensor) -> Tensor:
        """Return `log p(x | theta, design)` in nats."""
        residual = x - regression_mean(theta, design)
        return (-0.5 * residual.square() - HALF_LOG_2PI).sum(dim=-1)

    def exact_eig(self, design: Tensor) -> tuple[float, float]:
        """Return the expected information gain of a design, and zero as its error."""
        matrix = regressors(self._single_design(design).detach().cpu().double())
        identity = torch.eye(2, dtype=matrix.dtype)
        precision = identity + PRIOR_SCALE**2 * matrix.T @ matrix
        return 0.5 * float(torch.logdet(precision)), 0.0
