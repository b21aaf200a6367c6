"""What is known from earlier data, as a density in the place of the prior."""

import warnings
from typing import Any

import torch
from scipy.stats import ks_2samp
from torch import Tensor
from torch.distributions import Distribution

from sbi_boed_plugin._mixture import fit_mixture
from sbi_boed_plugin._prior import (
    determine_each_other,
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


class FittedPrior(Distribution):
    r"""A density fitted to draws of what is known, in the place of the prior.

    For experiments that come after data that exist: draws of any posterior, of sbi or
    not, become the prior of a trainer, and information is that beyond them. The
    density is a mixture of at most 16 Normals, in units of the draws' spread or in
    logarithms of them far out, over the real numbers that the prior's support maps to.
    Half of the draws choose it, by the mean log-density of the other half.

    A search learns from draws of this density, so that what it reports is right for
    it. There is a warning where it differs from the draws.

    Args:
        samples: Draws of shape `(num_samples, dim_theta)`, at least 200, better 10,000.
        prior: Prior of these parameters, whose support the density keeps. `None` for
            parameters that may be any real numbers.

    Raises:
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
        samples = samples.detach()
        _check(samples, prior)
        super().__init__(event_shape=samples.shape[1:], validate_args=False)
        self.prior = prior
        self._to_real: Any = None if prior is None else to_real_numbers(prior)
        self._device = samples.device
        with isolated_rng(_SEED):
            real = self._real(samples)[0][torch.randperm(len(samples))]
            self._mixture, self.error = fit_mixture(
                real, _MOST_COMPONENTS, ("units", "tails")
            )
            self._warn_of_misfit(real)

    @property
    def support(self) -> Any:
        """Support of the prior."""
        return self._mixture.support if self.prior is None else self.prior.support

    @torch.no_grad()
    def sample(self, sample_shape: torch.Size = torch.Size()) -> Tensor:
        """Draw parameters, of shape `(*sample_shape, dim_theta)`."""
        real = self._mixture.sample(torch.Size(sample_shape)).to(self._device)
        return real if self._to_real is None else self._to_real.inv(real)

    def log_prob(self, value: Tensor) -> Tensor:
        """Return log-densities `(*batch_shape,)` in nats, `-inf` out of the support."""
        value = torch.as_tensor(value)
        inside = value.isfinite().all(dim=-1) & self.support.check(value)
        # Any draw will do where there is no density.
        allowed = torch.where(inside.unsqueeze(-1), value, self.sample().to(value))
        real, log_det = self._real(allowed)
        log_prob = self._mixture.log_prob(real) + log_det
        return torch.where(inside & log_prob.isfinite(), log_prob, -torch.inf)

    def _real(self, value: Tensor) -> tuple[Tensor, Tensor]:
        """Return unbounded values, and the log-determinant of the map to them."""
        if self._to_real is None:
            return value, value.new_zeros(value.shape[:-1])
        real = self._to_real(value)
        log_det = self._to_real.log_abs_det_jacobian(value, real)
        return real, log_det.sum(-1) if log_det.dim() == value.dim() else log_det

    def _warn_of_misfit(self, real: Tensor) -> None:
        """Warn if draws of the fit differ from the draws along some direction."""
        real = real.cpu()
        own = self._mixture.sample(torch.Size((len(real),)))
        directions = torch.randn(real.shape[1], _NUM_DIRECTIONS)
        directions = torch.cat([torch.eye(real.shape[1]), directions], dim=1)
        directions = directions / real.std(dim=0).unsqueeze(1)
        pairs = zip((real @ directions).T, (own @ directions).T, strict=True)
        tests: list[Any] = [
            ks_2samp(one.numpy(), other.numpy()) for one, other in pairs
        ]
        most = max(tests, key=lambda test: test.statistic)
        if most.statistic > _LEAST_DIFFERENCE and most.pvalue < _MOST_P_VALUE:
            warnings.warn(
                "The density that was fitted to the samples differs from them: "
                f"distribution functions by up to {most.statistic:.2f} along some "
                "direction. What is reported is right for the density, not for them. "
                "Pass more samples, or parameters in other units.",
                stacklevel=4,
            )


def _check(samples: Tensor, prior: Distribution | None) -> None:
    """Raise if a density cannot be fitted to draws."""
    if samples.dim() != 2 or len(samples) < _LEAST_DRAWS:
        raise ValueError(
            f"samples has shape {tuple(samples.shape)}, but a density needs at least "
            f"{_LEAST_DRAWS} rows (num_samples, dim_theta). Draw more."
        )
    if not samples.isfinite().all():
        raise ValueError("samples contains NaN or infinite values. Leave them out.")
    different = samples.unique(dim=0).cpu()
    with isolated_rng(_SEED):  # They are sorted.
        different = different[torch.randperm(len(different))]
    repeating = repeating_columns(different).nonzero().flatten().tolist()
    if len(different) < _LEAST_DRAWS or repeating:
        raise ValueError(
            f"samples has {len(different)} different rows, with values that repeat in "
            f"columns {repeating}, which no density describes. Draw different ones."
        )
    if determine_each_other(different[:_NUM_COMPARED]):
        raise ValueError(
            "columns of samples determine each other: a density needs parameters that "
            "vary by themselves. Leave out those that follow from others."
        )
    if prior is None:
        return
    if samples.shape[1:] != prior.event_shape:
        raise ValueError(
            f"samples has {samples.shape[1]} columns, but prior.event_shape is "
            f"{tuple(prior.event_shape)}."
        )
    support: Any = prior.support
    outside = int((~support.check(samples)).sum())
    if outside:
        raise ValueError(
            f"{outside} of {len(samples)} samples lie outside the support of the prior."
        )
