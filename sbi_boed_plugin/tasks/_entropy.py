r"""Information of data that are Gaussian given the parameters, by quadrature.

Parameters are scrambled Sobol points, in replicates that tell the error. With one value
measured, the marginal density of the data is a mixture with one component per
parameter, and its entropy is a quadrature over the data: nothing is nested. With
several, the estimate is nested Monte Carlo. Everything is in double precision and in
nats, and the global random state is neither used nor changed.
"""

import math
from collections.abc import Callable

import torch
from torch import Tensor
from torch.quasirandom import SobolEngine

__all__ = [
    "NUM_REPLICATES",
    "gaussian_information",
    "mixture_density",
    "nested_information",
    "nodes_for",
    "pool",
    "share_among_nodes",
    "sobol_replicates",
    "with_pooled",
]

NUM_REPLICATES = 8

# Components closer than the noise are told apart by nobody: sharing each among
# neighbouring nodes 1/32 of a standard deviation apart widens the noise by 0.01 % and
# costs less than 1e-4 nats.
_NODES_PER_SCALE = 32
# The trapezoidal rule is exact to all digits for Gaussians this finely resolved.
_POINTS_PER_SCALE = 8
# How many standard deviations a Gaussian is taken to reach.
_REACH = 9.0
_HALF_LOG_2PI = 0.5 * math.log(2.0 * math.pi)

# Bounds of the memory, within the cache: numbers in one block of a matrix.
_MAX_BLOCK = 500_000
_POINTS_PER_BLOCK = 64


def sobol_replicates(dim: int, num_samples: int, seed: int) -> list[Tensor]:
    """Return independently scrambled Sobol points in the open unit cube.

    Args:
        dim: Dimension of the cube.
        num_samples: Number of points of each replicate, a power of two at best.
        seed: Seed of the scrambling.

    Returns:
        `NUM_REPLICATES` tensors of shape `(num_samples, dim)`, in double precision.

    Example:
        >>> points = sobol_replicates(2, 4, seed=0)
        >>> len(points), points[0].shape
        (8, torch.Size([4, 2]))
    """
    engines = (
        SobolEngine(dim, scramble=True, seed=NUM_REPLICATES * seed + replicate)
        for replicate in range(NUM_REPLICATES)
    )
    # The points are multiples of 2^-30; half a step keeps them away from zero.
    return [
        engine.draw(num_samples, dtype=torch.float64) + 2**-31 for engine in engines
    ]


def nodes_for(low: float, high: float, scale: Callable[[Tensor], Tensor]) -> Tensor:
    """Return means from `low` to `high` at a constant fraction of the noise.

    Args:
        low: Smallest mean.
        high: Largest mean.
        scale: Function from means to standard deviations of the noise.

    Returns:
        Increasing means of shape `(num_nodes,)`, in double precision.
    """
    fine = torch.linspace(low, high, 20_001, dtype=torch.float64)
    depth = torch.zeros_like(fine)
    depth[1:] = torch.cumulative_trapezoid(1.0 / scale(fine), fine)
    stride = _NODES_PER_SCALE // _POINTS_PER_SCALE
    num_strides = max(1, math.ceil(float(depth[-1]) * _POINTS_PER_SCALE))
    wanted = torch.linspace(
        0.0, float(depth[-1]), stride * num_strides + 1, dtype=fine.dtype
    )
    right = torch.searchsorted(depth, wanted).clamp(1, len(fine) - 1)
    part = (wanted - depth[right - 1]) / (depth[right] - depth[right - 1])
    return torch.lerp(fine[right - 1], fine[right], part)


def share_among_nodes(values: Tensor, nodes: Tensor) -> Tensor:
    """Return a histogram in which each value is shared by the two nodes around it.

    The mean of each value is kept; values beyond the nodes go to the last one.

    Args:
        values: Values of shape `(num_rows, num_values)`.
        nodes: Increasing nodes of shape `(num_nodes,)`.

    Returns:
        Shares of shape `(num_rows, num_nodes)`; each row sums to one.

    Example:
        >>> nodes = torch.tensor([0.0, 1.0, 2.0])
        >>> share_among_nodes(torch.tensor([[0.25, 2.0]]), nodes)
        tensor([[0.3750, 0.1250, 0.5000]])
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
    """Return the densities of Gaussian mixtures.

    Args:
        shares: Weights of shape `(num_rows, num_nodes)`.
        nodes: Means of shape `(num_nodes,)`.
        scales: Standard deviations of shape `(num_nodes,)`.
        points: Increasing points of shape `(num_points,)`.

    Returns:
        Densities of shape `(num_rows, num_points)`.
    """
    blocks = []
    for block in points.split(_POINTS_PER_BLOCK):
        reach = _REACH * scales
        near = (nodes + reach >= block[0]) & (nodes - reach <= block[-1])
        z = (block[:, None] - nodes[near]) / scales[near]
        kernel = torch.exp(-0.5 * z.square() - _HALF_LOG_2PI) / scales[near]
        blocks.append(shares[:, near] @ kernel.T)
    return torch.cat(blocks, dim=1)


def gaussian_information(shares: Tensor, nodes: Tensor, scales: Tensor) -> Tensor:
    r"""Return the information in one Gaussian measurement, :math:`H[x] - H[x|\theta]`.

    Args:
        shares: Probabilities of the means, of shape `(num_rows, num_nodes)`.
        nodes: Means from `nodes_for`, of shape `(num_nodes,)`.
        scales: Standard deviations of the noise, of shape `(num_nodes,)`.

    Returns:
        Information of shape `(num_rows,)`, in nats.
    """
    points = nodes[:: _NODES_PER_SCALE // _POINTS_PER_SCALE]
    # The spacing goes on into the tails: the trapezoidal rule owes its accuracy to it.
    points = torch.cat(
        [
            _tail(points[0], points[0] - points[1], scales[0]).flip(0),
            points,
            _tail(points[-1], points[-1] - points[-2], scales[-1]),
        ]
    )
    density = mixture_density(shares, nodes, scales, points)
    data_entropy = -torch.trapezoid(torch.special.xlogy(density, density), points)
    return data_entropy - shares @ (scales.log() + _HALF_LOG_2PI + 0.5)


def _tail(start: Tensor, step: Tensor, scale: Tensor) -> Tensor:
    num = math.ceil(_REACH * float(scale / step.abs()))
    return start + step * torch.arange(1, num + 1, dtype=start.dtype)


def with_pooled(replicates: list[Tensor]) -> Tensor:
    """Return replicates and, last, their mean: what all samples together give.

    Args:
        replicates: Averages over the samples of each replicate, of equal shape.

    Returns:
        Tensor of shape `(num_replicates + 1, *shape)`.
    """
    return torch.stack([*replicates, torch.stack(replicates).mean(dim=0)])


def pool(values: Tensor) -> tuple[Tensor, Tensor]:
    """Return values and standard errors of estimates that are biased as 1 / samples.

    Replicates with a fraction of the samples show how much bias is left in the
    estimate from all of them; it counts in the error, in squares.

    Args:
        values: Estimates of the replicates and, last, from all samples, of shape
            `(num_replicates + 1, num_rows)`.

    Returns:
        The estimates and their standard errors, each of shape `(num_rows,)`, in nats.
    """
    replicates, pooled = values[:-1], values[-1]
    num = len(replicates)
    error = replicates.std(dim=0) / math.sqrt(num)
    bias = (pooled - replicates.mean(dim=0)) / (num - 1)
    return pooled, torch.hypot(error, bias)


def nested_information(
    moments: Callable[[Tensor], tuple[Tensor, Tensor]],
    parameters: Callable[[Tensor], Tensor],
    *,
    dim_theta: int,
    dim_x: int,
    num_samples: int,
    seed: int,
) -> tuple[float, float]:
    r"""Return the information in several measurements and its standard error.

    Nested Monte Carlo with the true likelihood: the mean of a lower bound, where the
    parameters behind the data are among those that stand for the marginal, and an
    upper bound, where they are not. Half of the gap counts in the error, in squares.

    Args:
        moments: Function from parameters `(batch, dim_theta)` to means and standard
            deviations of the measurements, each `(batch, dim_x)`.
        parameters: Function from points of the unit cube to parameters of the prior.
        dim_theta: Number of parameters.
        dim_x: Number of measurements.
        num_samples: Number of parameters that stand for the marginal, per replicate;
            there are a 32nd as many simulations.
        seed: Seed of the Sobol points.

    Returns:
        Value and standard error, in nats.
    """
    num_outer = max(2, num_samples // 32)
    # Different scrambling, not only different points, for data and contrast.
    outer = sobol_replicates(dim_theta + dim_x, num_outer, 2 * seed)
    inner = sobol_replicates(dim_theta, num_samples, 2 * seed + 1)
    lower, upper, control = [], [], []
    for points, contrast in zip(outer, inner, strict=True):
        mean, scale = moments(parameters(points[:, :dim_theta]))
        noise = torch.special.ndtri(points[:, dim_theta:])
        own = (-0.5 * noise.square() - scale.log()).sum(dim=1)
        sums = _log_sums(mean + scale * noise, *moments(parameters(contrast)))
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
    error = float(replicates.std()) / math.sqrt(NUM_REPLICATES)
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
