"""What networks and bounds need to know of a prior: draws, kind and constant."""

import math
from collections.abc import Callable
from typing import Any, cast

import torch
from numpy.linalg import LinAlgError
from sbi.utils.sbiutils import within_support
from scipy.stats import gaussian_kde
from torch import Tensor
from torch.distributions import Distribution, biject_to, constraints
from torch.distributions.transforms import Transform, identity_transform

from sbi_boed_plugin._rng import isolated_rng

__all__ = [
    "discrete_columns",
    "draw_parameters",
    "finite_values",
    "log_normalization",
    "to_real_numbers",
]

_MAX_ATTEMPTS = 100
_SEED = 20_261_128
# Draws that tell the kind of a prior, and the share of them that may repeat others.
_NUM_DRAWS, _MAX_REPEATS = 1_000, 0.05
# Of a density that is fitted to draws of the prior, to integrate the prior's.
_NUM_CENTRES, _NUM_POINTS, _MIN_EFFECTIVE = 1_000, 5_000, 200.0
_MAX_DIM = 20
# Values of a parameter that a categorical network can tell apart.
_MAX_VALUES = 1_000
# Combinations of values whose probabilities are summed.
_MAX_GRID = 100_000


def draw_parameters(
    prior: Distribution, num_samples: int, dtype: torch.dtype | None = None
) -> Tensor:
    """Draw parameters whose density is finite.

    In single precision a uniform draw can be rounded onto the open end of its interval,
    where the density is zero. Few rows, but one is enough to spoil a loss.

    Args:
        prior: Distribution of the parameters.
        num_samples: Number of draws.
        dtype: Precision of the draws; that of the prior if `None`.

    Returns:
        Parameters of shape `(num_samples, *event_shape)`.

    Raises:
        ValueError: If the prior gives hardly any of its own draws a density.
    """
    theta = prior.sample(torch.Size((num_samples,)))
    theta = theta.to(dtype or theta.dtype, copy=True)  # A prior may keep what it drew.
    if theta.dim() != 2 or getattr(prior, "has_finite_draws", False):
        return theta
    for _ in range(_MAX_ATTEMPTS):
        bad = ~torch.isfinite(prior.log_prob(theta))
        if not bad.any():
            return theta
        theta[bad] = prior.sample(torch.Size((int(bad.sum()),))).to(theta)
    raise ValueError(
        f"prior.log_prob is not finite for {int(bad.sum())} of {num_samples} of the "
        "prior's own draws. Check that sample and log_prob of the prior agree."
    )


def to_real_numbers(prior: Distribution) -> Transform:
    """Return the transform from the prior's support to all real numbers."""
    try:
        transform = biject_to(prior.support).inv
        same_shape = transform.forward_shape(prior.event_shape) == prior.event_shape
    except (NotImplementedError, AttributeError):
        # torch knows no transform of this support, or the prior names none.
        return identity_transform
    # The one of a simplex changes the number of values, and with it the density.
    return transform if same_shape and transform.bijective else identity_transform


def discrete_columns(prior: Distribution) -> Tensor:
    """Return which parameters take values that repeat, which no density describes.

    Told from draws, since few priors name their support: a column is discrete where
    more than 5 % of 1,000 draws repeat another one in single precision.

    Args:
        prior: Distribution of the parameters.

    Returns:
        Booleans of shape `(dim_theta,)`.
    """
    with isolated_rng(_SEED):
        theta = prior.sample(torch.Size((_NUM_DRAWS,))).float().cpu()
    num_values = torch.tensor([len(column.unique()) for column in theta.T])
    return num_values < (1.0 - _MAX_REPEATS) * len(theta)


def finite_values(prior: Distribution) -> list[Tensor] | None:
    """Return the values of each parameter where the prior's support names them.

    Args:
        prior: Distribution of the parameters.

    Returns:
        Sorted values for each parameter, or `None` if a support is not finite (a
        Poisson distribution) or not one of torch's `boolean`, `integer_interval` and
        combinations of them.
    """
    shape = getattr(prior, "event_shape", torch.Size())
    values = _values(getattr(prior, "support", None), shape.numel())
    if values is None or max(map(len, values)) > _MAX_VALUES:
        return None
    return values


def _values(support: Any, num_columns: int) -> list[Tensor] | None:
    """Return the values of the columns of a support, `None` where it is not finite."""
    if isinstance(support, constraints.independent):
        return _values(support.base_constraint, num_columns)
    if isinstance(support, constraints.cat):
        parts = zip(support.cseq, support.lengths, strict=True)
        columns = [_values(part, length) for part, length in parts]
        if any(part is None for part in columns):
            return None
        return [values for part in columns for values in cast(list[Tensor], part)]
    if support is constraints.boolean:
        return [torch.tensor([0.0, 1.0])] * num_columns
    if not isinstance(support, constraints.integer_interval):
        return None
    bounds = torch.as_tensor(support.lower_bound), torch.as_tensor(support.upper_bound)
    low, high = (bound.cpu().expand(num_columns).tolist() for bound in bounds)
    return [torch.arange(a, b + 1).float() for a, b in zip(low, high, strict=True)]


def log_normalization(prior: Distribution) -> tuple[float, float]:
    r"""Return the logarithm of what a prior's density integrates to, if it can be told.

    A kernel density of draws of the prior, a little wider than the prior, is the
    proposal: with :math:`\theta_i \sim g` the mean of
    :math:`\tilde p(\theta_i) / g(\theta_i)` is the integral.

    Args:
        prior: Distribution of the parameters.

    Returns:
        Logarithm and its standard error; `(0.0, 0.0)` if the integral is one, or
        cannot be told from the draws (many dimensions, atoms beside a density).
    """
    with isolated_rng(_SEED):
        values = finite_values(prior)
        if values is not None and math.prod(map(len, values)) <= _MAX_GRID:
            grid = torch.cartesian_prod(*values).reshape(-1, len(values))
            log_prob = prior.log_prob(grid.to(prior.sample(torch.Size((1,))).device))
            total = float(torch.logsumexp(log_prob.cpu().double(), 0))
            return (total, 0.0) if abs(total) > 0.02 else (0.0, 0.0)
        if prior.event_shape.numel() > _MAX_DIM or bool(discrete_columns(prior).any()):
            return 0.0, 0.0
        log_weights = _log_weights(prior)
    if not torch.isfinite(log_weights.max()):
        return 0.0, 0.0
    ratios = (log_weights - log_weights.max()).exp()
    effective = float(ratios.sum() ** 2 / ratios.square().sum())
    if not effective >= _MIN_EFFECTIVE:
        return 0.0, 0.0
    error = math.sqrt((len(ratios) / effective - 1.0) / len(ratios))
    value = float(log_weights.logsumexp(0)) - math.log(len(ratios))
    return (value, error) if abs(value) > max(0.02, 5.0 * error) else (0.0, 0.0)


def _log_weights(prior: Distribution) -> Tensor:
    """Return log-ratios of a prior's density to that of a proposal, at its draws."""
    transform = to_real_numbers(prior)
    to_real = cast(Callable[[Tensor], Tensor], transform)
    to_theta = cast(Callable[[Tensor], Tensor], transform.inv)
    theta = draw_parameters(prior, _NUM_CENTRES)
    centres = to_real(theta).cpu().double()
    centres = centres[torch.isfinite(centres).all(dim=-1)]
    nothing = torch.full((1,), -torch.inf, dtype=torch.float64)
    if len(centres) < _NUM_CENTRES // 2:
        return nothing
    try:
        proposal = gaussian_kde(centres.T.numpy())
    except LinAlgError:  # Parameters that depend on each other: nothing can be told.
        return nothing
    points = proposal.resample(_NUM_POINTS, seed=_SEED)
    real = torch.from_numpy(points.T).to(theta)
    theta = to_theta(real)
    inside = torch.isfinite(theta).all(dim=-1)
    inside[inside.clone()] = within_support(prior, theta[inside])
    theta, real = theta[inside], real[inside]
    log_det = transform.log_abs_det_jacobian(theta, real)
    log_det = log_det.sum(dim=-1) if log_det.dim() > 1 else log_det
    log_prior = (prior.log_prob(theta) - log_det).cpu().double()
    log_weights = torch.full((_NUM_POINTS,), -torch.inf, dtype=torch.float64)
    log_proposal = torch.from_numpy(proposal.logpdf(points))[inside.cpu()]
    log_weights[inside.cpu()] = log_prior - log_proposal
    return log_weights.nan_to_num(nan=-torch.inf)
