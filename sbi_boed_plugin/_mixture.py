"""Densities fitted to draws: mixtures of Normals, in units that suit the draws."""

import math
from typing import Any

import torch
from sklearn.mixture import GaussianMixture
from torch import Tensor
from torch.distributions import (
    Categorical,
    Distribution,
    MixtureSameFamily,
    MultivariateNormal,
    constraints,
)

__all__ = ["FittedMixture", "fit_mixture"]


class FittedMixture(Distribution):
    """A mixture of Normals that is fitted to draws, in one of several units.

    In `"units"` of their spread, on a scale that is logarithmic far out (`"tails"`), or
    in logarithms of positive values (`"log"`).
    """

    arg_constraints = {}  # type: ignore[assignment]

    def __init__(self, draws: Tensor, num_components: int, kind: str) -> None:
        """Fit to draws of shape `(num_draws, dim)`, in double precision on the CPU."""
        self.num_components, self.kind = num_components, kind
        values = draws.log() if kind == "log" else draws
        self.middle = values.median(dim=0).values
        spread = (values - self.middle).abs().median(dim=0).values
        self.spread = spread.where(spread > 0, values.std(dim=0))
        fit = GaussianMixture(num_components, random_state=0)
        fit.fit(self._in_units(draws)[0].numpy())
        self.weights = torch.from_numpy(fit.weights_)
        self.means = torch.from_numpy(fit.means_)
        self.lower = torch.linalg.cholesky(torch.from_numpy(fit.covariances_))
        super().__init__(event_shape=draws.shape[1:], validate_args=False)

    @property
    def support(self) -> Any:
        return constraints.real_vector

    def _in_units(self, value: Tensor) -> tuple[Tensor, Tensor]:
        """Return values in units, and the log-determinant of the map for each row."""
        middle, spread = self.middle.to(value.device), self.spread.to(value.device)
        log_det = -spread.log().sum().expand(len(value))
        if self.kind == "log":
            # What is not positive has no density.
            logarithm = torch.where(value > 0, value.log(), torch.inf)
            log_det = log_det - logarithm.sum(dim=1)
            value = value.clamp_min(torch.finfo(value.dtype).tiny).log()
        units = (value - middle) / spread
        if self.kind == "tails":
            units = units.asinh()
            log_det = log_det - units.cosh().log().sum(dim=1)
        return units, log_det

    @torch.no_grad()
    def sample(self, sample_shape: torch.Size = torch.Size()) -> Tensor:
        num = torch.Size(sample_shape).numel()
        chosen = torch.multinomial(self.weights, num, replacement=True)
        noise = torch.randn(num, self.means.shape[1], 1).double()
        units = self.means[chosen] + (self.lower[chosen] @ noise).squeeze(-1)
        units = units.sinh() if self.kind == "tails" else units
        draws = self.middle + self.spread * units
        draws = draws.exp() if self.kind == "log" else draws
        return draws.float().reshape(*sample_shape, *self.event_shape)

    def log_prob(self, value: Tensor) -> Tensor:
        rows = value.reshape(-1, self.event_shape[0]).double()
        units, log_det = self._in_units(rows)
        of_mixture = (self.weights, self.means, self.lower)
        weights, means, lower = (tensor.to(rows.device) for tensor in of_mixture)
        normals = MultivariateNormal(means, scale_tril=lower, validate_args=False)
        mixture = MixtureSameFamily(Categorical(weights), normals, validate_args=False)
        log_prob = mixture.log_prob(units) + log_det
        return log_prob.to(value).reshape(value.shape[:-1])


def fit_mixture(
    draws: Tensor, others: Tensor, most_components: int, kinds: tuple[str, ...]
) -> tuple[FittedMixture, Tensor]:
    """Fit a mixture to draws `(num_draws, dim)`, judged by others.

    Returns the one with the largest mean log-density of the others, and their
    log-densities in nats. Logarithms are tried of positive draws only.
    """
    draws, others = (rows.detach().cpu().double() for rows in (draws, others))
    best, scores = None, torch.tensor(-math.inf)
    for kind in kinds:
        if kind == "log" and not ((draws > 0).all() and (others > 0).all()):
            continue
        before = -math.inf
        for num_components in range(1, most_components + 1):
            made = FittedMixture(draws, num_components, kind)
            found = made.log_prob(others)
            score = float(found.mean())
            if score > float(scores.mean()):
                best, scores = made, found
            if num_components > 2 and score < before:
                break
            before = score
    assert best is not None
    return best, scores
