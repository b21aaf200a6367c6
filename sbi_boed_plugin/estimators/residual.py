"""Estimators of what a linear regression of the first simulations leaves."""

import torch
from sbi.neural_nets.estimators import ConditionalDensityEstimator
from torch import Tensor, nn

from sbi_boed_plugin.estimators.noise import EstimatorView

__all__ = ["LinearRegression", "ResidualEstimator"]

# With products, at most as many features as the 256 simulations of a step can fit:
# those that begin with zeros learn more slowly than a network does.
_MAX_FEATURES = 51
# Rows for each feature that is fitted.
_ROWS_PER_FEATURE = 5
# Ridge and least variance of a residual, relative to the variance of each column.
_RIDGE, _LEAST_VARIANCE = 1e-3, 1e-6
# Relative spread of a column that rounding may give a constant.
_CONSTANT = 1e-6


class LinearRegression(nn.Module):
    r"""Linear regression of rows on their conditions, fitted and then trainable.

    Predictions are :math:`\bar x + L W \phi(c)`, whose features :math:`\phi` are the
    condition and, if it ends with a design, its products with that. First simulations
    give :math:`W` by ridge regression where there are five for each feature; else it
    starts with zeros. `centre` is :math:`\bar x`, and `factor` is :math:`L`, the
    Cholesky factor of the covariance of the residuals.
    """

    mean: Tensor
    scale: Tensor
    centre: Tensor
    factor: Tensor

    def __init__(self, rows: Tensor, condition: Tensor, dim_design: int = 0) -> None:
        """Fit simulations `(batch_dim, dim)` and `(batch_dim, dim_condition)`.

        Rows that are not finite do not count.
        """
        super().__init__()
        self._dim_design = dim_design
        finite = torch.cat([rows, condition], dim=-1).isfinite().all(dim=-1)
        rows, condition = rows[finite], condition[finite]
        self.register_buffer("mean", condition.mean(dim=0))
        self.register_buffer("scale", _spread(condition))
        self.register_buffer("centre", rows.mean(dim=0))
        # On the CPU: not every device has double precision.
        features = self._features(condition).cpu().double()
        unit = _spread(rows).cpu().double()
        targets = (rows - self.centre).cpu().double() / unit
        weight = features.new_zeros(features.shape[1], targets.shape[1])
        num_linear = 1 + condition.shape[1]
        for num in (features.shape[1], num_linear):
            if len(rows) >= _ROWS_PER_FEATURE * num:
                used = features[:, :num]
                ridge = _RIDGE * len(rows) * torch.eye(num).double()
                weight[:num] = torch.linalg.solve(
                    used.T @ used + ridge, used.T @ targets
                )
                break
        residual = targets - features @ weight
        variance = residual.var(dim=0, correction=0).clamp_min(_LEAST_VARIANCE)
        factor = torch.diag(variance.sqrt())
        if len(rows) >= _ROWS_PER_FEATURE * targets.shape[1]:
            covariance = torch.atleast_2d(torch.cov(residual.T, correction=0))
            least = _LEAST_VARIANCE * torch.eye(len(covariance)).double()
            factor = torch.linalg.cholesky(covariance + least)
        # In units of the noise, in which a step of an optimizer is small.
        standard = torch.linalg.solve_triangular(factor, weight.T, upper=False).T
        self.weight = nn.Parameter(standard.to(rows))
        self.register_buffer("factor", (unit.unsqueeze(1) * factor).to(rows))

    def _features(self, condition: Tensor) -> Tensor:
        standard = (condition - self.mean) / self.scale
        features = [torch.ones_like(standard[..., :1]), standard]
        dim_others = standard.shape[-1] - self._dim_design
        num_products = dim_others * self._dim_design
        if 0 < num_products <= _MAX_FEATURES - 1 - standard.shape[-1]:
            others, design = standard.split([dim_others, self._dim_design], dim=-1)
            products = others.unsqueeze(-1) * design.unsqueeze(-2)
            features.append(products.flatten(start_dim=-2))
        return torch.cat(features, dim=-1)

    def forward(self, condition: Tensor) -> Tensor:
        """Return predictions of shape `(batch_dim, dim)`."""
        return self.from_residuals(torch.zeros_like(self.centre), condition)

    def residuals(self, rows: Tensor, condition: Tensor) -> Tensor:
        """Return what is left of rows, uncorrelated and of variance one."""
        columns = (rows - self.centre).flatten(end_dim=-2).T
        standard = torch.linalg.solve_triangular(self.factor, columns, upper=False)
        return standard.T.reshape(rows.shape) - self._features(condition) @ self.weight

    def from_residuals(self, residuals: Tensor, condition: Tensor) -> Tensor:
        """Return the rows of which residuals are left."""
        standard = residuals + self._features(condition) @ self.weight
        return self.centre + standard @ self.factor.T


class ResidualEstimator(EstimatorView):
    r"""A density estimator whose network describes the residuals of a regression.

    The network sees :math:`L^{-1} (x - \hat x(c))`, with the factor :math:`L` of their
    covariance. Alone, it takes thousands of steps to learn what is nearly linear.
    """

    def __init__(
        self, net: ConditionalDensityEstimator, regression: LinearRegression
    ) -> None:
        """Initialize with the network of the residuals, and their regression."""
        super().__init__(net, net.input_shape, net.condition_shape)
        self.regression = regression

    def input_of_net(self, input: Tensor, condition: Tensor) -> Tensor:
        """Return the residuals that the net is given."""
        return self.regression.residuals(input, condition)

    def log_abs_det(self, input: Tensor) -> Tensor:
        """Return the log-determinant, the same for all inputs."""
        return -self.regression.factor.diagonal().log().sum()

    def sample(self, sample_shape: torch.Size, condition: Tensor, **kwargs) -> Tensor:
        """Draw samples of shape `(*sample_shape, batch_dim, dim)`."""
        draws = super().sample(sample_shape, condition, **kwargs)
        return self.regression.from_residuals(draws, condition)


def _spread(rows: Tensor) -> Tensor:
    """Return the standard deviation of each column, one where it does not vary."""
    if len(rows) < 2:
        return torch.ones_like(rows[0])
    spread = rows.std(dim=0)
    return spread.where(spread > _CONSTANT * rows.abs().amax(dim=0), 1.0)
