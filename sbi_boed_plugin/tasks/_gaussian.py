r"""Information of measurements that are Gaussian given the parameters, in nats.

Parameters are scrambled Sobol points, in replicates that tell the error. With one value
measured, the marginal density of the data is a mixture with one component per
parameter, and its entropy is a quadrature over the data: nothing is nested. With
several, the estimate is nested Monte Carlo.
"""

import math
from collections.abc import Callable
from typing import Any, cast

import numpy as np
import torch
from torch import Tensor
from torch.distributions import Normal
from torch.quasirandom import SobolEngine

from sbi_boed_plugin._numbers import check_integer
from sbi_boed_plugin.tasks.task import Task, check_rows

__all__ = [
    "HALF_LOG_2PI",
    "GaussianTask",
    "GridTask",
    "gaussian_information",
    "mixture_density",
    "nodes_for",
    "pool",
    "share_among_nodes",
    "sobol_replicates",
    "with_pooled",
]

HALF_LOG_2PI = 0.5 * math.log(2.0 * math.pi)
_NUM_REPLICATES = 8

# The trapezoidal rule is exact to all digits for Gaussians this finely resolved.
_POINTS_PER_SCALE = 8
# Each component is shared among neighbouring nodes 1/32 of a standard deviation of the
# noise apart. This widens the noise by 0.01 % and costs less than 1e-4 nats.
_NODES_PER_POINT = 4
# How many standard deviations a Gaussian is taken to reach.
_REACH = 9.0

# These limit the memory: numbers in one block of a matrix, and means held at once.
_MAX_BLOCK = 500_000
_POINTS_PER_BLOCK = 64
_MAX_MEANS = 1_000_000


class GridTask(Task):
    """A task that knows the information of many designs at once.

    A subclass implements `_grid_information`.
    """

    def exact_eig(
        self, design: Tensor, *, num_samples: int = 8_192, seed: int = 0
    ) -> tuple[float, float]:
        """Return the expected information gain and its standard error, in nats.

        It comes from `num_samples` parameters, a power of two at best, in each of eight
        replicates. The global random state is neither used nor changed.
        """
        designs = self._single_design(design).unsqueeze(0)
        grid = self.exact_eig_grid(designs, num_samples=num_samples, seed=seed)
        return float(grid[0]), float(grid[1])

    def exact_eig_grid(
        self, designs: Tensor, *, num_samples: int = 8_192, seed: int = 0
    ) -> tuple[Tensor, Tensor]:
        """Return values and standard errors `(num_designs,)` of many designs, in nats.

        All designs share their random parameters: differences between neighbours are
        more accurate than the values.
        """
        check_rows("designs", designs, self.dim_design)
        num_samples = check_integer("num_samples", num_samples, 2)
        designs = designs.detach().to("cpu", torch.float64)
        self._check_domain(designs)
        if not self.has_exact_eig:
            super().exact_eig(designs)  # It raises.
        with torch.no_grad():
            results = [
                self._grid_information(chunk, num_samples, seed)
                for chunk in designs.split(max(1, _MAX_MEANS // num_samples))
            ]
        values, errors = zip(*results, strict=True)
        return torch.cat(values), torch.cat(errors)

    def _grid_information(
        self, designs: Tensor, num_samples: int, seed: int
    ) -> tuple[Tensor, Tensor]:
        """Return values and standard errors of a chunk of designs."""
        raise NotImplementedError

    def _prior_quantiles(self, points: Tensor) -> Tensor:
        """Map points of the unit cube to parameters, as the prior distributes them."""
        return cast(Any, self.prior).base_dist.icdf(points)


class GaussianTask(GridTask):
    """A task whose measurements are independent and Gaussian given the parameters.

    A subclass implements `_mean`, `_mean_range`, and `_scale` or else `noise`.
    """

    noise: float

    def _mean(self, theta: Tensor, design: Tensor) -> Tensor:
        """Return means `(..., dim_x)`; leading dimensions broadcast."""
        raise NotImplementedError

    def _scale(self, mean: Tensor) -> Tensor:
        """Return the standard deviations of measurements with these means."""
        return torch.full_like(mean, self.noise)

    def _mean_range(self, theta: Tensor) -> tuple[float, float]:
        """Return the least and the largest mean of these parameters at any design."""
        raise NotImplementedError

    def _simulate(self, theta: Tensor, design: Tensor) -> Tensor:
        self._check_domain(design, theta)
        mean = self._mean(theta, design)
        return mean + self._scale(mean) * torch.randn_like(mean)

    def log_likelihood(self, x: Tensor, theta: Tensor, design: Tensor) -> Tensor:
        """Return `log p(x | theta, design)` in nats."""
        if not self.has_log_likelihood:
            return super().log_likelihood(x, theta, design)
        mean = self._mean(theta, design)
        likelihood = Normal(mean, self._scale(mean), validate_args=False)
        return likelihood.log_prob(x).sum(dim=-1)

    def _grid_information(
        self, designs: Tensor, num_samples: int, seed: int
    ) -> tuple[Tensor, Tensor]:
        if self.dim_x > 1:
            # It needs more parameters for the same accuracy than quadrature does.
            rows = [self._nested_information(d, 4 * num_samples, seed) for d in designs]
            values, errors = torch.tensor(rows, dtype=designs.dtype).T
            return values, errors
        cubes = sobol_replicates(self.dim_theta, num_samples, seed)
        thetas = [self._prior_quantiles(points) for points in cubes]
        nodes = nodes_for(*self._mean_range(torch.cat(thetas)), self._scale)
        shares = [
            share_among_nodes(self._mean(theta, designs[:, None]).squeeze(-1), nodes)
            for theta in thetas
        ]
        rows = with_pooled(shares).flatten(0, 1)
        values = gaussian_information(rows, nodes, self._scale(nodes))
        return pool(values.view(-1, len(designs)))

    def _nested_information(
        self, design: Tensor, num_samples: int, seed: int
    ) -> tuple[float, float]:
        """Return the information in several measurements and its standard error.

        The mean of a lower bound, where the parameters behind the data are among those
        that stand for the marginal, and an upper bound, where they are not. Half of the
        gap counts in the error, in squares.
        """
        num_outer = max(2, num_samples // 32)
        # Different scrambling, not only different points, for data and contrast.
        outer = sobol_replicates(self.dim_theta + self.dim_x, num_outer, 2 * seed)
        inner = sobol_replicates(self.dim_theta, num_samples, 2 * seed + 1)
        lower, upper, control = [], [], []
        for points, contrast in zip(outer, inner, strict=True):
            theta = self._prior_quantiles(points[:, : self.dim_theta])
            mean = self._mean(theta, design)
            scale = self._scale(mean)
            noise = torch.special.ndtri(points[:, self.dim_theta :])
            own = (-0.5 * noise.square() - scale.log()).sum(dim=1)
            others = self._mean(self._prior_quantiles(contrast), design)
            sums = _log_sums(mean + scale * noise, others, self._scale(others))
            with_own = torch.logaddexp(sums, own) - math.log(num_samples + 1)
            lower.append(own - with_own)
            upper.append(own - sums + math.log(num_samples))
            control.append(0.5 * (noise.square() - 1.0).sum(dim=1))
        # The squared noise has a known mean, and explains much of the terms' spread.
        terms = 0.5 * (torch.stack(lower) + torch.stack(upper))
        mean_free = torch.stack(control)
        centred = terms - terms.mean()
        slope = (centred * mean_free).mean() / mean_free.square().mean()
        replicates = (terms - slope * mean_free).mean(dim=1)
        half_gap = 0.5 * float((torch.stack(upper) - torch.stack(lower)).mean())
        error = float(replicates.std()) / math.sqrt(_NUM_REPLICATES)
        return float(replicates.mean()), math.hypot(error, half_gap)


def _log_sums(x: Tensor, mean: Tensor, scale: Tensor) -> Tensor:
    """Return `log sum_l p(x | theta_l)` of each row, up to the Gaussians' constant."""
    # The squares written out make one matrix product of all pairs.
    precision = scale.square().reciprocal()
    constant = (0.5 * mean.square() * precision + scale.log()).sum(dim=1, keepdim=True)
    theta_features = torch.cat([-0.5 * precision, mean * precision, -constant], dim=1)
    x_features = torch.cat([x.square(), x, torch.ones_like(x[:, :1])], dim=1)
    rows = max(1, _MAX_BLOCK // mean.shape[0])
    return torch.cat(
        [(chunk @ theta_features.T).logsumexp(1) for chunk in x_features.split(rows)]
    )


def sobol_replicates(dim: int, num_samples: int, seed: int) -> list[Tensor]:
    """Return independently scrambled Sobol points in the open unit cube."""
    engines = (
        SobolEngine(dim, scramble=True, seed=_NUM_REPLICATES * seed + replicate)
        for replicate in range(_NUM_REPLICATES)
    )
    # The points are multiples of 2^-30; half a step keeps them away from zero.
    return [
        engine.draw(num_samples, dtype=torch.float64) + 2**-31 for engine in engines
    ]


def nodes_for(low: float, high: float, scale: Callable[[Tensor], Tensor]) -> Tensor:
    """Return means from `low` to `high`, spaced at a constant fraction of the noise."""
    fine = torch.linspace(low, high, 20_001, dtype=torch.float64)
    depth = torch.zeros_like(fine)
    depth[1:] = torch.cumulative_trapezoid(1.0 / scale(fine), fine)
    num_points = max(1, math.ceil(float(depth[-1]) * _POINTS_PER_SCALE))
    wanted = np.linspace(0.0, float(depth[-1]), _NODES_PER_POINT * num_points + 1)
    return torch.from_numpy(np.interp(wanted, depth.numpy(), fine.numpy()))


def share_among_nodes(values: Tensor, nodes: Tensor) -> Tensor:
    """Return a histogram of each row, every value shared by the two nodes around it.

    The mean of each value is kept; values beyond the nodes go to the last one.
    """
    right = torch.searchsorted(nodes, values).clamp(1, len(nodes) - 1)
    left_node = nodes[right - 1]
    part = ((values - left_node) / (nodes[right] - left_node)).clamp(0.0, 1.0)
    shares = values.new_zeros(values.shape[0], len(nodes))
    shares.scatter_add_(1, right - 1, 1.0 - part)
    shares.scatter_add_(1, right, part)
    return shares / values.shape[1]


def mixture_density(
    shares: Tensor, nodes: Tensor, scales: Tensor, points: Tensor
) -> Tensor:
    """Return densities `(rows, points)` of mixtures with weights `(rows, nodes)`.

    The points increase; components that do not reach a block of them are left out.
    """
    reach = _REACH * scales
    blocks = []
    for block in points.split(_POINTS_PER_BLOCK):
        near = (nodes + reach >= block[0]) & (nodes - reach <= block[-1])
        z = (block[:, None] - nodes[near]) / scales[near]
        kernel = torch.exp(-0.5 * z.square() - HALF_LOG_2PI) / scales[near]
        blocks.append(shares[:, near] @ kernel.T)
    return torch.cat(blocks, dim=1)


def gaussian_information(shares: Tensor, nodes: Tensor, scales: Tensor) -> Tensor:
    r"""Return the information in one measurement, :math:`H[x] - H[x|\theta]`, per row.

    `shares` are the probabilities `(rows, nodes)` of the means that `nodes_for` made.
    """
    points = nodes[::_NODES_PER_POINT]
    # The spacing goes on into the tails: the trapezoidal rule owes its accuracy to it.
    tails = []
    for start, step, scale in (
        (points[0], points[0] - points[1], scales[0]),
        (points[-1], points[-1] - points[-2], scales[-1]),
    ):
        num = math.ceil(_REACH * float(scale / step.abs()))
        tails.append(start + step * torch.arange(1, num + 1, dtype=start.dtype))
    points = torch.cat([tails[0].flip(0), points, tails[1]])
    density = mixture_density(shares, nodes, scales, points)
    data_entropy = -torch.trapezoid(torch.special.xlogy(density, density), points)
    return data_entropy - shares @ (scales.log() + HALF_LOG_2PI + 0.5)


def with_pooled(replicates: list[Tensor]) -> Tensor:
    """Return replicates and, last, their mean: what all samples together give."""
    return torch.stack([*replicates, torch.stack(replicates).mean(dim=0)])


def pool(values: Tensor) -> tuple[Tensor, Tensor]:
    """Return the last row of estimates, from all samples, and its standard error.

    The other rows are the replicates. Estimates have a bias of one over their number of
    samples: that of the replicates tells what is left of it in the last row, and counts
    in the error, in squares.
    """
    replicates, pooled = values[:-1], values[-1]
    error = replicates.std(dim=0) / math.sqrt(len(replicates))
    bias = (pooled - replicates.mean(dim=0)) / (len(replicates) - 1)
    return pooled, torch.hypot(error, bias)
