"""What networks and bounds need to know of a prior: draws, kind and constant."""

import math
from typing import Any

import torch
from numpy.linalg import LinAlgError
from sbi.utils.sbiutils import within_support
from scipy.stats import gaussian_kde
from torch import Tensor
from torch.distributions import Distribution, biject_to, constraints
from torch.distributions.transforms import Transform, identity_transform

from sbi_boed_plugin._rng import isolated_rng

__all__ = [
    "determine_each_other",
    "discrete_columns",
    "draw_parameters",
    "finite_values",
    "log_det_of_rows",
    "log_normalization",
    "repeating_columns",
    "to_real_numbers",
    "why_no_density",
]

_MAX_ATTEMPTS = 100
_SEED = 20_261_128
# Draws that tell the kind of a prior; the share of them that may repeat others, and how
# many may be the same, in single precision.
_NUM_DRAWS, _MAX_REPEATS, _MAX_SAME = 1_000, 0.05, 4
# Smallest share of the variance that is left once the other parameters are known.
_MIN_FREEDOM = 1e-5
# Of a density that is fitted to draws of the prior, to integrate the prior's.
_NUM_CENTRES, _NUM_POINTS, _MIN_EFFECTIVE, _MAX_DIM = 1_000, 5_000, 200.0, 20
# Values of a parameter that a categorical network can tell apart, and combinations of
# values whose probabilities are summed.
_MAX_VALUES, _MAX_GRID = 1_000, 100_000
# Logarithms of constants that rounding alone may give.
_NEGLIGIBLE = 0.02


def draw_parameters(
    prior: Distribution, num_samples: int, dtype: torch.dtype | None = None
) -> Tensor:
    """Draw parameters of shape `(num_samples, *event_shape)` with a finite density.

    In single precision a uniform draw can be rounded to the open end of its interval.
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


def log_det_of_rows(to_real: Any, theta: Tensor, real: Tensor) -> Tensor:
    """Return the log-determinant of the map to real numbers, one for each row."""
    log_det = to_real.log_abs_det_jacobian(theta, real)
    return log_det.sum(dim=-1) if log_det.dim() == theta.dim() else log_det


def _draws(prior: Distribution) -> Tensor:
    """Draw the same parameters each time, on the CPU."""
    with isolated_rng(_SEED):
        return prior.sample(torch.Size((_NUM_DRAWS,))).cpu()


def discrete_columns(prior: Distribution) -> Tensor:
    """Return which parameters take values that repeat, which no density describes."""
    return repeating_columns(_draws(prior).float())


def repeating_columns(draws: Tensor) -> Tensor:
    """Return which columns of at most 1,000 draws have values that repeat."""
    columns = draws[:_NUM_DRAWS].T
    counts = [column.unique(return_counts=True)[1] for column in columns]
    most = (1.0 - _MAX_REPEATS) * columns.shape[1]
    return torch.tensor([len(c) < most or int(c.max()) > _MAX_SAME for c in counts])


def determine_each_other(draws: Tensor) -> bool:
    """Return whether a column of draws follows from the others."""
    # More columns always seem to depend on each other.
    if draws.shape[1] > len(draws) // 2:
        return False
    theta = draws.double()
    # Ranks tell dependence along a curve, and despite heavy tails.
    for values in (theta, theta.argsort(dim=0).argsort(dim=0).double()):
        correlations = torch.atleast_2d(torch.corrcoef(values.T))
        if float(torch.linalg.eigvalsh(correlations).min()) < _MIN_FREEDOM:
            return True
    return False


def why_no_density(prior: Distribution) -> str | None:
    """Return why no density describes the parameters, or `None` where one does."""
    discrete = discrete_columns(prior).nonzero().flatten().tolist()
    if discrete:
        return f"parameters {discrete} of the prior take values that repeat"
    if determine_each_other(_draws(prior)):
        return "the parameters of the prior determine each other"
    return None


def finite_values(prior: Distribution) -> list[Tensor] | None:
    """Return the sorted values of each parameter where the prior's support names them.

    `None` if it is not torch's `boolean`, `integer_interval` or a combination of them.
    """
    shape = getattr(prior, "event_shape", torch.Size())
    values = _values(getattr(prior, "support", None), shape.numel())
    is_finite = all(0 < len(column) <= _MAX_VALUES for column in values)
    return values if is_finite else None


def _values(support: Any, num_columns: int) -> list[Tensor]:
    """Return the values of the columns of a support, none where it is not finite."""
    if isinstance(support, constraints.independent):
        return _values(support.base_constraint, num_columns)
    if isinstance(support, constraints.cat):
        parts = zip(support.cseq, support.lengths, strict=True)
        return [column for part in parts for column in _values(*part)]
    if support is constraints.boolean:
        return [torch.tensor([0.0, 1.0])] * num_columns
    if not isinstance(support, constraints.integer_interval):
        return [torch.empty(0)] * num_columns
    bounds = torch.as_tensor(support.lower_bound), torch.as_tensor(support.upper_bound)
    low, high = (bound.cpu().expand(num_columns).tolist() for bound in bounds)
    return [torch.arange(a, b + 1).float() for a, b in zip(low, high, strict=True)]


def log_normalization(prior: Distribution) -> tuple[float, float]:
    """Return the logarithm of what a prior's density integrates to, and its error.

    `(0.0, 0.0)` if the density is normalized, or draws cannot tell (many dimensions,
    atoms beside a density).
    """
    value, error, values = 0.0, 0.0, finite_values(prior)
    with isolated_rng(_SEED):
        if values is not None and math.prod(map(len, values)) <= _MAX_GRID:
            grid = torch.cartesian_prod(*values).reshape(-1, len(values))
            log_prob = prior.log_prob(grid.to(prior.sample(torch.Size((1,))).device))
            value = float(torch.logsumexp(log_prob.cpu().double(), 0))
        elif (
            prior.event_shape.numel() <= _MAX_DIM and not discrete_columns(prior).any()
        ):
            value, error = _log_integral(prior)
    is_told = abs(value) > max(_NEGLIGIBLE, 5.0 * error)
    return (value, error) if is_told else (0.0, 0.0)


def _log_integral(prior: Distribution) -> tuple[float, float]:
    """Return the logarithm of a density's integral, and its error.

    The integral is the mean ratio to a kernel density of its draws, at draws of that.
    """
    to_real: Any = to_real_numbers(prior)
    centres = to_real(draw_parameters(prior, _NUM_CENTRES)).cpu().double()
    centres = centres[torch.isfinite(centres).all(dim=-1)]
    try:
        proposal = gaussian_kde(centres.T.numpy())
    except (LinAlgError, ValueError):  # Too few, or they depend on each other.
        return 0.0, 0.0
    points = proposal.resample(_NUM_POINTS, seed=_SEED)
    real = torch.from_numpy(points.T).to(prior.sample(torch.Size((1,))))
    theta = to_real.inv(real)
    inside = torch.isfinite(theta).all(dim=-1)
    inside &= within_support(prior, theta.nan_to_num())
    theta, real = theta[inside], real[inside]
    log_det = log_det_of_rows(to_real, theta, real)
    log_prior = (prior.log_prob(theta) - log_det).cpu().double()
    log_weights = log_prior - torch.from_numpy(proposal.logpdf(points))[inside.cpu()]
    log_weights = log_weights[log_weights.isfinite()]
    if len(log_weights) == 0:
        return 0.0, 0.0
    ratios = (log_weights - log_weights.max()).exp()
    effective = float(ratios.sum() ** 2 / ratios.square().sum())
    if effective < _MIN_EFFECTIVE:
        return 0.0, 0.0
    error = math.sqrt((_NUM_POINTS / effective - 1.0) / _NUM_POINTS)
    return float(log_weights.logsumexp(0)) - math.log(_NUM_POINTS), error
