r"""The hybrid posterior: a normalized base times an energy ratio, by rejection."""

from functools import partial
from typing import Any

import torch
from sbi.inference.posteriors import DirectPosterior
from sbi.inference.potentials.posterior_based_potential import PosteriorBasedPotential
from sbi.neural_nets.estimators import ConditionalDensityEstimator
from sbi.neural_nets.estimators.shape_handling import (
    reshape_to_batch_event,
    reshape_to_sample_batch_event,
)
from sbi.sbi_types import Shape
from sbi.utils.sbiutils import warn_if_outside_prior_support
from sbi.utils.torchutils import ensure_theta_batched
from torch import Tensor
from torch.distributions import Distribution

from sbi_boed_plugin._numbers import check_integer, check_real
from sbi_boed_plugin._sbi_compat import finite_check_of
from sbi_boed_plugin.estimators.hybrid import HybridEstimator, UnnormalizedHybrid
from sbi_boed_plugin.estimators.likelihood_hybrid import LikelihoodHybrid
from sbi_boed_plugin.estimators.rejection import (
    DEFAULT_QUANTILE,
    MIN_ACCEPTANCE_RATE,
    WeightDiagnostics,
    draws_at_once,
)
from sbi_boed_plugin.posteriors._particles import (
    covering_hybrid,
    hybrid_of_estimators,
    joint_hybrid,
)

__all__ = ["HybridPosterior"]

# Relative standard error of a normalization, and the draws that it may take, those of
# all observations together; where draws are dear, so many evaluations of the base.
_PARTITION_ERROR = 0.006
_MAX_DRAWS, _MAX_EVALUATIONS = 200_000, 16


class HybridPosterior(DirectPosterior):
    r"""Posterior :math:`q \propto b(\theta \mid x) \, e^{\rho(\theta, x)}`.

    Samples are draws of the base :math:`b`, each accepted with probability
    :math:`\min(1, e^{\rho} / M)`. What `diagnostics` tells about them is measured once
    for the last observations, from draws of a fixed seed.

    Example:
    --------
    ::

        inference = NPE_GKL(prior)
        inference.append_simulations(theta, x).train()
        posterior = inference.build_posterior()
        posterior.set_default_x(x_o)
        samples = posterior.sample((1000,))
        print(posterior.diagnostics().acceptance_rate)
    """

    posterior_estimator: HybridEstimator
    # Observations, weights of networks and settings, and what was measured of them.
    _measured: tuple[list, list[Tensor], dict] | None = None

    def __init__(  # noqa: D417
        self,
        posterior_estimator: HybridEstimator,
        prior: Distribution,
        max_sampling_batch_size: int = 10_000,
        device: str | torch.device | None = None,
        x_shape: torch.Size | None = None,
        enable_transform: bool = True,
        *,
        ceiling_quantile: float = DEFAULT_QUANTILE,
        min_acceptance_rate: float = MIN_ACCEPTANCE_RATE,
        **of_sbi: Any,
    ):
        r"""Initialize the posterior. The rest is as for `DirectPosterior`.

        Args:
            posterior_estimator: The trained hybrid.
            prior: Prior distribution; the posterior is zero outside of its support.
            max_sampling_batch_size: Number of draws of the base at a time.
            ceiling_quantile: Quantile of the weights :math:`e^{\rho}` to take for the
                ceiling :math:`M`: 1 is the largest weight of 10,000 draws. The lower,
                the faster, and the more mass is lost, but no more than 2 %.
            min_acceptance_rate: Rate of acceptance below which samples are drawn by
                sampling-importance-resampling instead.

        Raises:
            TypeError: If the estimator is not a hybrid.
            ValueError: If a number is out of range.
        """
        if not isinstance(posterior_estimator, HybridEstimator):
            raise TypeError(
                "posterior_estimator must be a HybridEstimator, got "
                f"{type(posterior_estimator).__name__}. For other estimators use "
                "DirectPosterior, or correct them by NPE_GKL.refine()."
            )
        share = partial(check_real, least=0.0, most=1.0)
        self.ceiling_quantile = share("ceiling_quantile", ceiling_quantile)
        self.min_acceptance_rate = share("min_acceptance_rate", min_acceptance_rate)
        if posterior_estimator.prior is not prior:
            # Not set on the estimator, which other posteriors may share.
            posterior_estimator = posterior_estimator.with_prior(prior)
        super().__init__(
            posterior_estimator,
            prior,
            check_integer("max_sampling_batch_size", max_sampling_batch_size, 1),
            device,
            x_shape,
            enable_transform,
            **of_sbi,
        )
        self._use_unnormalized_potential()
        self._purpose = """It samples a base and accepts draws by their energy ratio,
            within the prior bounds."""

    @classmethod
    def from_estimators(
        cls,
        posterior_estimator: ConditionalDensityEstimator | DirectPosterior,
        likelihood_estimator: ConditionalDensityEstimator,
        prior: Distribution,
        **kwargs: Any,
    ) -> "HybridPosterior":
        r"""Return the posterior of a likelihood, which a posterior estimator proposes.

        Draws weigh :math:`q(x | \theta) p(\theta) / b(\theta | x)`: samples and
        densities are those of the likelihood, as by MCMC, in a fraction of the time.
        `diagnostics` tells how the draws weigh, and its `log_partition` is the
        logarithm of the evidence. Where few draws count for nearly all, which is a
        warning, sequential Monte Carlo makes a base of particles, in seconds. A mode
        where the base has no draw at all stays unseen. Given several rows of `x`,
        `sample` and `log_prob` take them for independent observations of one
        experiment, on particles; `diagnostics` is of each row alone.

        Args:
            posterior_estimator: Of sbi's `NPE`, or a posterior that it has built.
            likelihood_estimator: Of sbi's `NLE`, trained with the same simulations or
                others of the same simulator.
            prior: Prior distribution; its density may lack its constant.
            **kwargs: Those of the class.

        Raises:
            TypeError: If one of the estimators is another object.
            ValueError: If they are not of the same data and parameters.
        """
        given = posterior_estimator, likelihood_estimator, prior
        hybrid = hybrid_of_estimators(*given)
        return cls(hybrid, hybrid.prior, **kwargs)

    def to(self, device: str | torch.device) -> None:
        """Move estimator, prior and x_o to a device."""
        super().to(device)
        self._use_unnormalized_potential()

    def _use_unnormalized_potential(self) -> None:
        self._measured = None
        self.potential_fn = PosteriorBasedPotential(
            UnnormalizedHybrid(self.posterior_estimator),
            self.prior,
            device=self.potential_fn.device,
        )

    def diagnostics(self, x: Tensor | None = None) -> WeightDiagnostics:
        r"""Return how well the base fits the hybrid, given each observation.

        Observations have shape `(batch_dim, *x_event_shape)`; `None` stands for the
        default `x`.
        """
        return self._measure(self._rows(x), self.max_sampling_batch_size)

    def sample(
        self,
        sample_shape: Shape = torch.Size(),
        x: Tensor | None = None,
        *args: Any,
        **kwargs: Any,
    ) -> Tensor:
        r"""Draw samples `(*sample_shape, dim_theta)` from :math:`p(\theta|x)`.

        Arguments are those of `DirectPosterior`. With `reject_outside_prior=False`
        samples outside of the prior's support are those of the base; draws inside are
        still corrected. The posterior of a likelihood has none outside.

        Raises:
            ValueError: If there are several observations, and no likelihood.
            RuntimeError: If the time is over, or the base has no draws in the support
                of the prior.
        """
        posterior, row = self._of_one(x, ".sample()", ".sample_batched()")
        return posterior.sample_batched(sample_shape, row, *args, **kwargs)[..., 0, :]

    def sample_batched(
        self,
        sample_shape: Shape,
        x: Tensor,
        max_sampling_batch_size: int | None = None,
        show_progress_bars: bool = True,
        reject_outside_prior: bool = True,
        max_sampling_time: float | None = None,
        return_partial_on_timeout: bool = False,
    ) -> Tensor:
        r"""Draw samples from the posteriors of several observations at once.

        Of observations `(batch_dim, *x_event_shape)` samples have shape
        `(*sample_shape, batch_dim, dim_theta)`. Arguments are those of `sample`;
        `max_sampling_batch_size` counts draws for each observation.
        """
        rows, batch_size = self._rows(x), self.max_sampling_batch_size
        if max_sampling_batch_size is not None:
            name = "max_sampling_batch_size"
            batch_size = check_integer(name, max_sampling_batch_size, 1)
        samples = self._serving(rows).sample(
            torch.Size(sample_shape),
            rows,
            weights=self._measure(rows, batch_size, None, reject_outside_prior),
            reject_outside_prior=reject_outside_prior,
            min_acceptance_rate=self.min_acceptance_rate,
            max_sampling_batch_size=batch_size,
            show_progress_bars=show_progress_bars,
            max_sampling_time=max_sampling_time,
            return_partial_on_timeout=return_partial_on_timeout,
        )
        if not reject_outside_prior:
            warn_if_outside_prior_support(self.prior, samples, stacklevel=3)
        return samples

    def log_prob(
        self, theta: Tensor, x: Tensor | None = None, *args: Any, **kwargs: Any
    ) -> Tensor:
        r"""Return log-densities `(num,)` of :math:`p(\theta|x)` in nats.

        They are `-inf` outside the support of the prior. Arguments are those of
        `DirectPosterior`. The density is normalized by draws of the base; of
        `leakage_correction_params` their number is used, `num_rejection_samples`.
        """
        posterior, row = self._of_one(x, ".log_prob()", ".log_prob_batched()")
        theta = ensure_theta_batched(torch.as_tensor(theta)).unsqueeze(1)
        return posterior.log_prob_batched(theta, row, *args, **kwargs)[:, 0]

    def log_prob_batched(
        self,
        theta: Tensor,
        x: Tensor,
        norm_posterior: bool = True,
        track_gradients: bool = False,
        leakage_correction_params: dict | None = None,
    ) -> Tensor:
        r"""Return log-densities of parameters, each given its own observation.

        Of parameters `(*sample_shape, batch_dim, dim_theta)` log-densities have shape
        `(sample_dim, batch_dim)`, in nats. Arguments are those of `log_prob`.
        """
        rows = self._rows(x)
        hybrid = self._serving(rows)
        theta = ensure_theta_batched(torch.as_tensor(theta)).to(self._device)
        several = theta.dim() > 1 + len(hybrid.input_shape)
        theta = reshape_to_sample_batch_event(theta, hybrid.input_shape, several)
        num_draws = (leakage_correction_params or {}).get("num_rejection_samples")
        with torch.set_grad_enabled(track_gradients):
            log_prob = hybrid.log_unnormalized(theta, rows)
            if norm_posterior:
                num_draws = num_draws or self._draws_for_density(rows)
                weights = self._measure(rows, self.max_sampling_batch_size, num_draws)
                log_prob = log_prob - hybrid.log_partition(rows, weights)
            return log_prob.masked_fill(~hybrid.inside(theta), -torch.inf)

    @torch.no_grad()
    def leakage_correction(
        self,
        x: Tensor,
        num_rejection_samples: int = 10_000,
        force_update: bool = False,
        show_progress_bars: bool = False,
        rejection_sampling_batch_size: int = 10_000,
    ) -> Tensor:
        """Return the share of the hybrid's mass inside, of shape `(batch_dim,)`.

        The draws are the same at each call, which is why `force_update` has no effect.
        """
        given = self._rows(x), rejection_sampling_batch_size, num_rejection_samples
        inside, everywhere = (self._measure(*given, reject) for reject in (True, False))
        return (inside.log_partition - everywhere.log_partition).exp()

    def _rows(self, x: Tensor | None) -> Tensor:
        """Return observations in rows, on the right device and of the right shape."""
        x = self._x_else_default_x(x).to(self._device)
        shape = self.posterior_estimator.condition_shape
        if x.shape[-len(shape) :] != shape:
            raise ValueError(
                f"x has shape {tuple(x.shape)}, but each observation must have shape "
                f"{tuple(shape)}, as those that the posterior was trained with."
            )
        self.posterior_estimator.eval()
        return reshape_to_batch_event(x, event_shape=shape)

    def _of_one(
        self, x: Tensor | None, method: str, batched: str
    ) -> tuple["HybridPosterior", Tensor]:
        """Return the posterior of one experiment, and its data in one row."""
        rows, hybrid = self._rows(x), self.posterior_estimator
        if len(rows) == 1:
            return self, rows
        if not isinstance(hybrid, LikelihoodHybrid):
            raise ValueError(
                f"{method} takes one observation, and x has {len(rows)}: use {batched}."
                " For one posterior of several i.i.d. observations, train with a "
                "permutation invariant embedding net, or correct by a likelihood with "
                "HybridPosterior.from_estimators()."
            )
        known = self._known(rows)
        if "joint" not in known:
            known["joint"] = HybridPosterior(
                joint_hybrid(hybrid, rows),
                self.prior,
                self.max_sampling_batch_size,
                ceiling_quantile=self.ceiling_quantile,
                min_acceptance_rate=self.min_acceptance_rate,
                **finite_check_of(self),
            )
        return known["joint"], rows.unsqueeze(0)

    def _known(self, rows: Tensor) -> dict:
        """Return what is known of observations, nothing if anything has changed."""
        hybrid, quantile = self.posterior_estimator, self.ceiling_quantile
        # Observations and weights of networks may be changed in place.
        tensors = [rows.detach(), *hybrid.state_dict().values()]
        parts = [hybrid.energy, hybrid.prior, hybrid.corrects, quantile]
        before = self._measured
        if before is None or before[0] != parts or not _are_same(before[1], tensors):
            before = parts, [tensor.clone() for tensor in tensors], {}
            self._measured = before
        return before[2]

    def _serving(self, rows: Tensor) -> HybridEstimator:
        """Return the estimator, with a base that covers each observation's posterior.

        Unless a likelihood corrects it, that is the base as it was trained.
        """
        hybrid, known = self.posterior_estimator, self._known(rows)
        if not isinstance(hybrid, LikelihoodHybrid):
            return hybrid
        if "serving" not in known:
            weights = hybrid.measure_weights(
                rows,
                ceiling_quantile=self.ceiling_quantile,
                max_batch_size=self.max_sampling_batch_size,
            )
            known["serving"] = covering_hybrid(hybrid, rows, weights)
            if known["serving"] is hybrid:
                known[None, True] = weights
        return known["serving"]

    def _measure(
        self,
        rows: Tensor,
        batch_size: int,
        num_draws: int | None = None,
        reject_outside_prior: bool = True,
    ) -> WeightDiagnostics:
        """Return the weights given observations, measured if anything has changed."""
        hybrid, known = self._serving(rows), self._known(rows)
        how = num_draws, reject_outside_prior
        if how not in known:
            known[how] = hybrid.measure_weights(
                rows,
                num_draws=num_draws,
                reject_outside_prior=reject_outside_prior,
                ceiling_quantile=self.ceiling_quantile,
                max_batch_size=batch_size,
            )
            if hybrid.trained_partition and how == (None, True):
                known[how].warn_if_far()
        return known[how]

    def _draws_for_density(self, rows: Tensor) -> int | None:
        """Return how many draws the error of Z asks for, `None` for as many as ever.

        Weights by a likelihood have no bound: among many draws one may find a spike of
        the network, of which samples have none.
        """
        if isinstance(self.posterior_estimator, LikelihoodHybrid):
            return None
        weights = self._measure(rows, self.max_sampling_batch_size)
        weights.check_not_empty()
        variance = weights.num_draws / weights.effective_sample_size - 1.0
        at_once = draws_at_once(self._serving(rows), rows)
        most = min(_MAX_DRAWS, _MAX_EVALUATIONS * at_once) // len(rows)
        needed = int((variance.max() / _PARTITION_ERROR**2).clamp(max=most))
        return needed if needed > weights.num_draws else None


def _are_same(tensors: list[Tensor], others: list[Tensor]) -> bool:
    pairs = zip(tensors, others, strict=True)
    return all(a.dtype == b.dtype and torch.equal(a, b) for a, b in pairs)
