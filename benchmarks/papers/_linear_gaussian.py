"""A linear model with Gaussian noise, whose posterior is known in any dimension."""

import torch
from torch import Tensor
from torch.distributions import Independent, MultivariateNormal, Normal

__all__ = ["LinearGaussian"]

# Of neighbouring rows of the matrix: each parameter shows in all data.
_DECAY = 0.5


class LinearGaussian:
    r"""Parameters seen through a dense matrix.

    .. math:: \theta \sim N(0, I), \quad x = A \theta + \epsilon, \quad
        \epsilon \sim N(0, I), \quad A_{jk} = 2^{-|j - k|}.

    Args:
        dim: Number of parameters, and of data.

    Example:
        >>> import torch
        >>> target = LinearGaussian(3)
        >>> target.posterior(torch.zeros(5, 3)).mean.shape
        torch.Size([5, 3])
    """

    def __init__(self, dim: int) -> None:
        """Initialize the model."""
        index = torch.arange(dim, dtype=torch.float64)
        matrix = _DECAY ** (index.unsqueeze(1) - index).abs()
        identity = torch.eye(dim, dtype=torch.float64)
        covariance = torch.linalg.inv(identity + matrix.T @ matrix)
        self.prior = Independent(Normal(torch.zeros(dim), torch.ones(dim)), 1)
        self.matrix = matrix.float()
        self._to_mean = (covariance @ matrix.T).float()
        self._factor = torch.linalg.cholesky(covariance).float()

    def simulate(self, theta: Tensor) -> Tensor:
        """Draw data.

        Args:
            theta: Parameters of shape `(batch_dim, dim)`.

        Returns:
            Data of shape `(batch_dim, dim)`.
        """
        return theta @ self.matrix.T + torch.randn_like(theta)

    def posterior(self, x: Tensor) -> MultivariateNormal:
        """Return the exact posterior.

        Args:
            x: Data of shape `(batch_dim, dim)`.

        Returns:
            Distribution of batch shape `(batch_dim,)`.
        """
        return MultivariateNormal(x @ self._to_mean.T, scale_tril=self._factor)
