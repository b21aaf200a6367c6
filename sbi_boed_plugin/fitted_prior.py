"""What is known from earlier data, as a density in the place of the prior."""

import warnings
from typing import Any

import torch
from scipy.stats import ks_2samp
from torch import Tensor
from torch.distributions import Distribution, constraints
from torch.distributions.transforms import identity_transform

from sbi_boed_plugin._mixture import FittedMixture, fit_mixture
from sbi_boed_plugin._prior import (
    determine_each_other,
    log_det_of_rows,
    repeating_columns,
    to_real_numbers,
)
from sbi_boed_plugin._rng import isolated_rng

__all__ = ["FittedPrior"]

_MOST_COMPONENTS, _LEAST_DRAWS, _SEED = 16, 200, 20_261_130
# Draws that tell whether columns follow from others.
_NUM_COMPARED = 1_000
# Directions along which draws of the fit are compared with the others: the difference
# of distribution functions that is told, and how unlikely it must be.
_NUM_DIRECTIONS, _LEAST_DIFFERENCE, _MOST_P_VALUE = 50, 0.05, 1e-4
# Nats by which a fit may describe its own draws better than others.
_MOST_OVERFIT = 0.2
# Shares of the draws that may have the same value or lie on a bound; a value repeats
# that is so much more frequent than others.
_MOST_SAME, _MOST_AT_BOUNDS, _TIMES_MORE = 0.02, 0.01, 100
_MOST_ATTEMPTS = 100


class FittedPrior(Distribution):
    r"""A density fitted to draws of what is known, in the place of the prior.

    For experiments that come after data that exist: draws of any posterior, of sbi or
    not, become the prior of a trainer. The reported information is what the new
    experiment adds to the earlier data. The density is a mixture of at most 16 Normals
    over the real numbers that the prior's support maps to, there in units of the
    draws' spread, or on a scale that is logarithmic in the tails. Half of the draws say
    which, by the mean log-density of the other half; all are fitted then.

    A search learns from draws of this density, so that what it reports is right for
    it. There is a warning where it differs from the draws along one of 50 directions,
    or where there are too few draws for it. Thin curved shapes may go untold: compare
    `sample` with the draws.

    Args:
        samples: Draws of shape `(num_samples, dim_theta)`, at least 200, better 10,000.
            Those on a bound of the support are left out.
        prior: Prior of these parameters, whose support the density keeps. `None` for
            parameters that may be any real numbers.

    Raises:
        TypeError: If `samples` is no tensor, or `prior` no distribution.
        ValueError: If there are too few draws, they are not finite, lie outside the
            support of the prior, or have values that repeat.

    Example:
        >>> import torch
        >>> from sbi.utils import BoxUniform
        >>> prior = BoxUniform(torch.zeros(2), torch.ones(2))
        >>> draws = 0.1 + 0.2 * torch.rand(2_000, 2)  # posterior.sample((2_000,))
        >>> FittedPrior(draws, prior).sample((5,)).shape
        torch.Size([5, 2])
    """

    arg_constraints = {}  # type: ignore[assignment]
    has_finite_draws = True

    def __init__(self, samples: Tensor, prior: Distribution | None = None) -> None:
        if not isinstance(samples, Tensor):
            raise TypeError(
                f"samples must be a tensor of draws, got {type(samples).__name__}. Of "
                "a posterior pass posterior.sample((10_000,), x=x_o)."
            )
        if prior is not None and not isinstance(prior, Distribution):
            raise TypeError(
                f"prior must be a torch Distribution, got {type(prior).__name__}."
            )
        # The networks of sbi are in single precision.
        samples = samples.detach().float()
        self.prior = prior
        self._to_real: Any = identity_transform
        if prior is not None:
            self._to_real = to_real_numbers(prior)
        samples = self._checked(samples)
        super().__init__(event_shape=samples.shape[1:], validate_args=False)
        self._device = samples.device
        with isolated_rng(_SEED):
            self._fit(self._to_real(samples).cpu())
        # What log_prob computes with where there is no density.
        self._inner = samples[:1]

    @property
    def support(self) -> Any:
        """Support of the prior."""
        try:
            return constraints.real_vector if self.prior is None else self.prior.support
        except NotImplementedError:  # The prior names none.
            return constraints.real_vector

    @torch.no_grad()
    def sample(self, sample_shape: torch.Size = torch.Size()) -> Tensor:
        """Draw parameters, of shape `(*sample_shape, dim_theta)`."""
        theta = self._drawn(torch.Size(sample_shape).numel())
        for _ in range(_MOST_ATTEMPTS):
            # Single precision rounds some onto the bounds.
            bad = ~self._is_inside(theta)
            if not bad.any():
                return theta.reshape(*sample_shape, *self.event_shape)
            theta[bad] = self._drawn(int(bad.sum()))
        raise RuntimeError(
            f"{int(bad.sum())} draws lie on a bound of the support after "
            f"{_MOST_ATTEMPTS} attempts. Pass parameters in other units."
        )

    def log_prob(self, value: Tensor) -> Tensor:
        """Return log-densities `(*batch_shape,)` in nats.

        `-inf` out of the support and on its bounds.

        Raises:
            ValueError: If the last dimension is not `dim_theta`.
        """
        value = torch.as_tensor(value)
        value = value if value.is_floating_point() else value.float()
        if value.shape[-1:] != self.event_shape:
            raise ValueError(
                f"value has shape {tuple(value.shape)}, but the last dimension must be "
                f"{self.event_shape.numel()}, the number of parameters."
            )
        rows = value.reshape(-1, *self.event_shape)
        inside = self._is_inside(rows)
        allowed = torch.where(inside.unsqueeze(-1), rows, self._inner.to(rows))
        real = self._to_real(allowed)
        log_det = log_det_of_rows(self._to_real, allowed, real)
        log_prob = self._mixture.log_prob(real) + log_det
        log_prob = torch.where(inside, log_prob, -torch.inf)
        return log_prob.reshape(value.shape[:-1])

    def _drawn(self, num: int) -> Tensor:
        real = self._mixture.sample(torch.Size((num,))).to(self._device)
        return self._to_real.inv(real)

    def _is_inside(self, rows: Tensor) -> Tensor:
        """Return which rows lie inside the support, and not on a bound of it."""
        rows = rows.detach()
        ends = (torch.full_like(rows, end) for end in (-torch.inf, torch.inf))
        nearby = [rows, *(torch.nextafter(rows, end) for end in ends)]
        return torch.stack(
            [one.isfinite().all(dim=-1) & self.support.check(one) for one in nearby]
        ).all(dim=0)

    def _fit(self, real: Tensor) -> None:
        """Fit to half of the draws, choose by the others, and fit to all."""
        # Copies of a row must not judge each other.
        different, index = real.unique(dim=0, return_inverse=True)
        half = torch.randperm(len(different)) < len(different) // 2
        fitted, others = real[half[index]], real[~half[index]]
        chosen, scores = fit_mixture(
            fitted, others, _MOST_COMPONENTS, ("units", "tails")
        )
        overfit = float(chosen.log_prob(fitted.double()).mean() - scores.mean())
        of_choice = chosen.num_components, chosen.kind
        self._mixture = FittedMixture(real.double(), *of_choice)
        own = self._mixture.sample(torch.Size((len(real),)))
        directions = torch.randn(real.shape[1], _NUM_DIRECTIONS)
        directions = torch.cat([torch.eye(real.shape[1]), directions], dim=1)
        directions = directions / real.std(dim=0).unsqueeze(1)
        pairs = zip((real @ directions).T, (own @ directions).T, strict=True)
        tests: list[Any] = [
            ks_2samp(one.numpy(), other.numpy()) for one, other in pairs
        ]
        most = max(tests, key=lambda test: test.statistic)
        reasons = []
        if most.statistic > _LEAST_DIFFERENCE and most.pvalue < _MOST_P_VALUE:
            reasons.append(
                "differs from them, distribution functions by up to "
                f"{most.statistic:.2f} along some direction"
            )
        if overfit > _MOST_OVERFIT:
            reasons.append(
                f"describes draws that it does not know by {overfit:.2g} "
                "nats worse than its own"
            )
        if reasons:
            warnings.warn(
                f"The density that was fitted to the samples {' and '.join(reasons)}. "
                "What is reported is right for the density, not for them. Pass more "
                "samples, or parameters in other units.",
                stacklevel=4,
            )

    def _checked(self, samples: Tensor) -> Tensor:
        """Return the draws that are not on a bound, or raise if no density fits."""
        if samples.dim() != 2 or len(samples) < _LEAST_DRAWS:
            raise ValueError(
                f"samples has shape {tuple(samples.shape)}, but a density needs at "
                f"least {_LEAST_DRAWS} rows (num_samples, dim_theta). Draw more."
            )
        if not samples.isfinite().all():
            raise ValueError("samples contains NaN or infinite values. Leave them out.")
        if self.prior is not None:
            self._check_support(samples, self.prior)
        # Whole rows may repeat, as those of chains do; values of one column may not.
        different = samples.unique(dim=0).cpu()
        with isolated_rng(_SEED):  # They are sorted.
            different = different[torch.randperm(len(different))]
        repeating = repeating_columns(different)
        for i, column in enumerate(samples.T):
            counts = column.unique(return_counts=True)[1]
            most = max(_MOST_SAME * len(samples), _TIMES_MORE * float(counts.median()))
            repeating[i] |= float(counts.max()) > most
        columns = repeating.nonzero().flatten().tolist()
        if len(different) < _LEAST_DRAWS or columns:
            raise ValueError(
                f"samples has {len(different)} different rows, with values that repeat "
                f"in columns {columns}, which no density describes. Leave out such "
                f"columns, and draw at least {_LEAST_DRAWS} different rows."
            )
        if determine_each_other(different[:_NUM_COMPARED]):
            raise ValueError(
                "columns of samples determine each other: a density needs parameters "
                "that vary by themselves. Leave out those that follow from others, "
                "with a prior of the rest or prior=None."
            )
        inside = self._is_inside(samples)
        at_bounds = int((~inside).sum())
        if at_bounds > _MOST_AT_BOUNDS * len(samples):
            raise ValueError(
                f"{at_bounds} of {len(samples)} samples lie on a bound of the support "
                "of the prior, where there is no density. Leave out such parameters, "
                "or draw without rounding."
            )
        return samples[inside]

    def _check_support(self, samples: Tensor, prior: Distribution) -> None:
        """Raise if draws are none of a prior's parameters."""
        if samples.shape[1:] != prior.event_shape:
            raise ValueError(
                f"samples has {samples.shape[1]} columns, but prior.event_shape is "
                f"{tuple(prior.event_shape)}. Pass the prior of these parameters; one "
                "of a single number as Independent, of event_shape (1,)."
            )
        outside = int((~self.support.check(samples)).sum())
        if outside:
            raise ValueError(
                f"{outside} of {len(samples)} samples lie outside the support of the "
                "prior. Leave them out, or pass the prior that they belong to."
            )
