r"""Information about a part of the parameters, or a function of them.

The information about a target :math:`g(\theta)` is

.. math:: I(g; x \mid \xi) = E[\log r(g(\theta) \mid x, \xi) - \log p(g(\theta))]

where :math:`r` is the posterior of the target, and at least that with a network in its
place (Barber and Agakov, 2003). All other parameters are nuisance, which the likelihood
and the belief keep. The prior density :math:`p(g)` is known for parameters that are
independent of the others or jointly Normal; else it is fitted to draws, and what is
reported is an estimate, no bound.
"""

import math
from collections.abc import Callable, Sequence
from typing import Any, cast

import numpy as np
import torch
from sbi.neural_nets.estimators import ConditionalDensityEstimator
from sbi.utils import BoxUniform
from torch import Tensor
from torch.distributions import (
    Categorical,
    Distribution,
    Independent,
    MultivariateNormal,
)

from sbi_boed_plugin._mixture import fit_mixture
from sbi_boed_plugin._prior import draw_parameters, repeating_columns
from sbi_boed_plugin._rng import isolated_rng
from sbi_boed_plugin.estimators.noise import EstimatorView
from sbi_boed_plugin.objectives._eig_estimate import EIGEstimate, NoEstimateError

__all__ = [
    "Target",
    "TargetEstimator",
    "TargetFunction",
    "TargetLike",
    "estimate_target",
    "probed_target",
    "target_of",
]

TargetLike = Sequence[int] | int | Callable[[Tensor], Tensor]

# Draws that a density of the target is fitted to, and others that judge it.
_NUM_DRAWS, _SEED = 20_000, 20_261_130
_MOST_COMPONENTS, _MOST_VALUES = 8, 100


class TargetFunction:
    """What is asked for, as a function from parameters to a batch of targets.

    `columns` are those asked for, `None` for another function.
    """

    def __init__(self, asked: TargetLike, dim_theta: int) -> None:
        self._function = asked if callable(asked) else None
        self.columns = None if callable(asked) else _columns(asked, dim_theta)

    def __call__(self, theta: Tensor) -> Tensor:
        """Return targets `(batch_dim, dim_target)` of `(batch_dim, dim_theta)`."""
        if self.columns is not None:
            return theta[:, self.columns]
        assert self._function is not None
        made: Any = self._function(theta.clone())
        if made is None:
            raise ValueError("target(theta) returned None: let it return the targets.")
        found = torch.as_tensor(made)
        found = found.unsqueeze(1) if found.dim() == 1 else found
        if found.dim() != 2 or len(found) != len(theta):
            raise ValueError(
                f"target(theta) returned shape {tuple(found.shape)} for {len(theta)} "
                f"parameters, but must return ({len(theta)},) or ({len(theta)}, "
                "dim_target)."
            )
        if not torch.isfinite(found).all():
            num = int((~torch.isfinite(found).all(dim=1)).sum())
            raise ValueError(
                f"target(theta) is not finite for {num} of {len(theta)} draws of the "
                "parameters. Use a function that is finite on all of the prior."
            )
        return found.to(theta.dtype if theta.is_floating_point() else torch.float32)


def probed_target(asked: TargetLike, prior: Distribution | None) -> TargetFunction:
    """Return what is asked for as a function that has served draws of the prior."""
    if not isinstance(prior, Distribution):
        raise TypeError(f"prior must be a Distribution, got {type(prior).__name__}.")
    dim_theta = prior.event_shape.numel()
    target = TargetFunction(asked, dim_theta)
    with isolated_rng(_SEED):
        target(prior.sample(torch.Size((dim_theta + 1,))))
    return target


class Target:
    """What is asked for: some parameters by their columns, or a function of them.

    `distribution` is what is known of it before the experiment, over its values, or
    over their number in a list where they repeat. `is_exact` says whether that is
    known, rather than fitted to draws, `error` is the standard error of its mean
    log-density.
    """

    def __init__(self, asked: TargetLike, prior: Distribution) -> None:
        """Find out what is known of the target before the experiment.

        Raises:
            ValueError: If columns do not exist or repeat, or the function returns a
                wrong shape, values that are not finite, or always the same.
        """
        self._of = TargetFunction(asked, prior.event_shape.numel())
        self.values: Tensor | None = None
        self.is_exact, self.error = True, 0.0
        particles = getattr(prior, "particles", None)
        with isolated_rng(_SEED):
            theta = particles
            if theta is None:
                theta = draw_parameters(prior, 2 * _NUM_DRAWS)
            draws = self._of(theta).cpu().double()
            # Particles repeat each other, whatever is asked for.
            different = self._of(theta.unique(dim=0)).cpu().double()
            different = different[torch.randperm(len(different))]
        _check_varies(draws)
        columns = self._of.columns
        known = None if columns is None else _marginal(prior, columns)
        if repeating_columns(different).any():
            self._set_values(draws, known)
        elif known is not None:
            self.distribution: Distribution = known
        else:
            self.is_exact = False
            self.distribution, scores = fit_mixture(
                *different.chunk(2), _MOST_COMPONENTS, ("units", "tails", "log")
            )
            self.error = float(scores.std()) / math.sqrt(len(scores))

    def __call__(self, theta: Tensor) -> Tensor:
        """Return the target `(*batch_shape, dim_target)` of `(*batch, dim_theta)`.

        Where values repeat, their number in the list `values`.
        """
        rows = theta.reshape(-1, theta.shape[-1])
        found = self._of(rows).to(theta)
        if self.values is not None:
            values = self.values.to(found)
            # A product of matrices would round the differences of large values.
            exactly = "donot_use_mm_for_euclid_dist"
            distances = torch.cdist(found, values, compute_mode=exactly)
            found = distances.argmin(dim=1, keepdim=True).to(theta)
        return found.reshape(*theta.shape[:-1], -1)

    def log_prior(self, value: Tensor) -> Tensor:
        """Return the log-density of targets before the experiment, in nats."""
        known = self.distribution.log_prob(value.cpu()).to(value)
        return known.detach()

    def _set_values(self, draws: Tensor, known: Distribution | None) -> None:
        """Describe a target of few values by their probabilities."""
        values, counts = draws.unique(dim=0, return_counts=True)
        if len(values) > _MOST_VALUES:
            raise ValueError(
                f"target: some of its values repeat, and there are {len(values):,} "
                f"among {len(draws):,} draws: too many for probabilities (at most "
                f"{_MOST_VALUES}), and no density describes it. Ask for the part with "
                "a density alone, or use a function that groups the values."
            )
        self.values = values
        log_prob = (counts / counts.sum()).log()
        exact = None if known is None else known.log_prob(values.to(torch.float32))
        # By far most of the mass is in the list.
        if exact is not None and abs(float(exact.logsumexp(0))) < 1e-3:
            log_prob = exact.double()
        else:
            self.is_exact = False
            of_draws = log_prob.repeat_interleave(counts)
            self.error = float(of_draws.std()) / math.sqrt(len(of_draws))
        self.distribution = Independent(
            Categorical(logits=log_prob.reshape(1, -1).float()), 1
        )


class TargetEstimator(EstimatorView):
    """Posterior of a target, relative to what was known of it before.

    `log_prob` of parameters is what the data tell of their target, in nats: its
    log-density under `net` less that before the experiment.
    """

    def __init__(
        self, net: ConditionalDensityEstimator, target: Target, dim_theta: int
    ) -> None:
        super().__init__(net, torch.Size((dim_theta,)), net.condition_shape)
        self.target = target

    def input_of_net(self, input: Tensor, condition: Tensor) -> Tensor:
        """Return the targets of parameters."""
        return self.target(input)

    def log_abs_det(self, input: Tensor) -> Tensor:
        """Return minus the log-density of targets before the experiment."""
        return -self.target.log_prior(self.target(input))


def target_of(estimator: Any) -> Target:
    """Return the target of a `TargetEstimator`, or of an ensemble of them."""
    return getattr(estimator, "members", [estimator])[0].target


@torch.no_grad()
def estimate_target(
    estimator: Any, theta: Tensor, x: Tensor, design: Tensor, prior: Distribution
) -> EIGEstimate:
    """Return the information about a target from simulations of one design, in nats.

    `estimator` is a `TargetEstimator` or an ensemble of them.
    `x` is NaN where a simulation failed, which then tells nothing.
    """
    valid = torch.isfinite(x).all(dim=1)
    num_failed = int((~valid).sum())
    if num_failed == len(valid):
        raise NoEstimateError(
            f"All {len(valid)} simulations contain NaN or infinite values. Check the "
            "simulator at this design.",
            len(valid),
            num_failed,
        )
    device = next(estimator.parameters()).device
    data = torch.cat([x, design.to(x).expand(len(x), -1)], dim=1)[valid]
    rows = theta[valid].to(device).float().unsqueeze(0)
    terms = estimator.log_prob(rows, data.to(device).float())[0]
    values = torch.cat([terms.cpu().double(), torch.zeros(num_failed).double()])
    spread = float(values.std())
    target, num_particles = target_of(estimator), getattr(prior, "num_particles", None)
    errors = [spread / math.sqrt(len(values)), target.error]
    if num_particles is not None:
        errors.append(spread / math.sqrt(num_particles))
    bound = "barber_agakov" if target.is_exact else "target"
    mean, error = float(values.mean()), math.hypot(*errors)
    return EIGEstimate(mean, error, cast(Any, bound), None, len(values), num_failed)


def _columns(asked: Any, num: int) -> list[int]:
    """Return columns of `num` parameters, or raise if they are none."""
    try:
        columns = [asked] if isinstance(asked, int | np.integer) else list(asked)
    except TypeError:
        columns = []
    is_int = all(
        isinstance(c, int | np.integer) and not isinstance(c, bool) for c in columns
    )
    if not columns or not is_int or not all(-num <= c < num for c in columns):
        raise ValueError(
            f"target={asked!r}: give columns of the parameters, integers between 0 and "
            f"{num - 1}, or a function of parameters (batch_dim, {num})."
        )
    columns = [int(c) % num for c in columns]
    if len(set(columns)) < len(columns):
        raise ValueError(f"target={asked!r} names a parameter twice.")
    return columns


def _check_varies(draws: Tensor) -> None:
    constant = (draws == draws[0]).all(dim=0)
    if constant.any():
        which = int(constant.nonzero()[0])
        raise ValueError(
            f"target: value {which} is {float(draws[0, which]):.6g} for all draws of "
            "the prior, so that nothing can be learned about it. Leave it out."
        )


def _marginal(prior: Any, columns: list[int]) -> Distribution | None:
    """Return the marginal of some parameters, `None` where it is not known.

    A prior may know its own: `marginal(columns)`.
    """
    if hasattr(prior, "marginal"):
        return prior.marginal(columns)
    if isinstance(prior, MultivariateNormal):
        covariance = prior.covariance_matrix[columns][:, columns]
        return MultivariateNormal(prior.loc[columns].cpu(), covariance.cpu())
    if isinstance(prior, BoxUniform):
        base = prior.base_dist
        return BoxUniform(base.low[columns].cpu(), base.high[columns].cpu())
    independent = isinstance(prior, Independent)
    if independent and prior.reinterpreted_batch_ndims == 1:
        base: Any = prior.base_dist
        if base.event_shape or base.batch_shape != prior.event_shape:
            return None
        try:
            values = {n: getattr(base, n)[columns].cpu() for n in base.arg_constraints}
            if "logits" in values:  # Not both, of which one follows from the other.
                values.pop("probs", None)
            return Independent(type(base)(**values), 1)
        except (TypeError, AttributeError, ValueError):
            return None  # A kind that is not made of its parameters alone.
    return None
