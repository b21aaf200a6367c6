"""What tasks with Gaussian measurements have in common."""

import math

import torch
from torch import Tensor

from sbi_boed_plugin._numbers import check_integer
from sbi_boed_plugin.tasks._entropy import (
    gaussian_information,
    nested_information,
    nodes_for,
    pool,
    share_among_nodes,
    sobol_replicates,
    with_pooled,
)
from sbi_boed_plugin.tasks.task import Task, _check_rows

__all__ = ["GaussianTask", "GridTask", "check_not_negative"]

_HALF_LOG_2PI = 0.5 * math.log(2.0 * math.pi)

# Bounds the memory of `exact_eig_grid`: means held at once.
_MAX_MEANS = 1_000_000

# Nested estimates need more parameters for the same accuracy than quadrature does.
_NESTED_FACTOR = 4


def check_not_negative(name: str, value: Tensor, what: str, remedy: str) -> None:
    """Refuse negative values where the model has none.

    Args:
        name: Name of the argument.
        value: Its value, of any shape.
        what: What the argument holds, in the plural.
        remedy: What to do instead.

    Raises:
        ValueError: If a value is negative.
    """
    if (value < 0).any():
        raise ValueError(
            f"`{name}` holds {what}, which are not negative, got "
            f"{float(value.min()):g}: {remedy}."
        )


class GridTask(Task):
    """A task that knows the information of many designs at once."""

    def exact_eig(
        self, design: Tensor, *, num_samples: int = 8_192, seed: int = 0
    ) -> tuple[float, float]:
        """Return the expected information gain of a design and its standard error.

        Args:
            design: One design, of shape `(dim_design,)` or `(1, dim_design)`.
            num_samples: Number of parameters in each of eight replicates, a power of
                two at best.
            seed: Seed of the parameters; global random state is neither used nor
                changed.

        Returns:
            Value and standard error, in nats.

        Raises:
            ValueError: If `design` has another shape or is not finite, or if there are
                fewer than two samples.
        """
        designs = self._single_design(design).unsqueeze(0)
        self._check_design("design", designs)
        values, errors = self.exact_eig_grid(
            designs, num_samples=num_samples, seed=seed
        )
        return float(values), float(errors)

    def exact_eig_grid(
        self, designs: Tensor, *, num_samples: int = 8_192, seed: int = 0
    ) -> tuple[Tensor, Tensor]:
        """Return the expected information gain of many designs.

        All designs share their random parameters: differences between neighbours are
        more accurate than the values.

        Args:
            designs: Designs of shape `(num_designs, dim_design)`.
            num_samples: Number of parameters in each of eight replicates, a power of
                two at best.
            seed: Seed of the parameters; global random state is neither used nor
                changed.

        Returns:
            Values and standard errors of shape `(num_designs,)`, in nats and double
            precision, on the CPU.

        Raises:
            ValueError: If `designs` has another shape or is not finite, or if there
                are fewer than two samples.
        """
        _check_rows("designs", designs, self.dim_design)
        num_samples = check_integer("num_samples", num_samples, 2)
        designs = designs.detach().to("cpu", torch.float64)
        self._check_design("designs", designs)
        if len(designs) == 0:
            return designs.new_zeros(0), designs.new_zeros(0)
        with torch.no_grad():
            results = [
                self._grid_information(chunk, num_samples, seed)
                for chunk in designs.split(max(1, _MAX_MEANS // num_samples))
            ]
        values, errors = zip(*results, strict=True)
        return torch.cat(values), torch.cat(errors)

    def _check_design(self, name: str, design: Tensor) -> None:
        """Refuse designs at which the model is not defined."""

    def _grid_information(
        self, designs: Tensor, num_samples: int, seed: int
    ) -> tuple[Tensor, Tensor]:
        """Return values and standard errors of a chunk of designs."""
        raise NotImplementedError

    def _prior_quantiles(self, points: Tensor) -> Tensor:
        """Return parameters `(num, dim_theta)` that are uniform points of a cube."""
        raise NotImplementedError


class GaussianTask(GridTask):
    """A task whose measurements are independent and Gaussian given the parameters.

    A subclass implements `_mean`, `_scale`, `_mean_range` and `_prior_quantiles`.
    """

    def _mean(self, theta: Tensor, design: Tensor) -> Tensor:
        """Return means `(..., dim_x)`; leading dimensions broadcast."""
        raise NotImplementedError

    def _scale(self, mean: Tensor) -> Tensor:
        """Return the standard deviations of measurements with these means."""
        raise NotImplementedError

    def _mean_range(self, theta: Tensor) -> tuple[float, float]:
        """Return bounds of the means of these parameters, over all designs."""
        raise NotImplementedError

    def _check_theta(self, theta: Tensor) -> None:
        """Refuse parameters at which the model is not defined."""

    def _simulate(self, theta: Tensor, design: Tensor) -> Tensor:
        self._check_theta(theta)
        self._check_design("design", design)
        mean = self._mean(theta, design)
        return mean + self._scale(mean) * torch.randn_like(mean)

    def log_likelihood(self, x: Tensor, theta: Tensor, design: Tensor) -> Tensor:
        """Return `log p(x | theta, design)`; leading dimensions broadcast.

        Args:
            x: Data of shape `(..., dim_x)`.
            theta: Parameters of shape `(..., dim_theta)`.
            design: Designs of shape `(..., dim_design)`.

        Returns:
            Log-densities of the broadcast leading shape `(...)`, in nats.
        """
        mean = self._mean(theta, design)
        scale = self._scale(mean)
        z = (x - mean) / scale
        return (-0.5 * z.square() - scale.log() - _HALF_LOG_2PI).sum(dim=-1)

    def _grid_information(
        self, designs: Tensor, num_samples: int, seed: int
    ) -> tuple[Tensor, Tensor]:
        if self.dim_x > 1:
            rows = [self._nested(design, num_samples, seed) for design in designs]
            values, errors = torch.tensor(rows, dtype=designs.dtype).T
            return values, errors
        cubes = sobol_replicates(self.dim_theta, num_samples, seed)
        thetas = [self._prior_quantiles(points) for points in cubes]
        nodes = nodes_for(*self._mean_range(torch.cat(thetas)), self._scale)
        scales = self._scale(nodes)
        shares = [
            share_among_nodes(self._mean(theta, designs[:, None]).squeeze(-1), nodes)
            for theta in thetas
        ]
        values = gaussian_information(with_pooled(shares).flatten(0, 1), nodes, scales)
        return pool(values.view(-1, len(designs)))

    def _nested(
        self, design: Tensor, num_samples: int, seed: int
    ) -> tuple[float, float]:
        def moments(theta: Tensor) -> tuple[Tensor, Tensor]:
            mean = self._mean(theta, design)
            return mean, self._scale(mean)

        return nested_information(
            moments,
            self._prior_quantiles,
            dim_theta=self.dim_theta,
            dim_x=self.dim_x,
            num_samples=_NESTED_FACTOR * num_samples,
            seed=seed,
        )
