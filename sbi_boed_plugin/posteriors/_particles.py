"""Posteriors of likelihoods, and bases of particles where a network covers little."""

import warnings
from copy import deepcopy
from typing import Any

import torch
from sbi.inference.posteriors import DirectPosterior
from sbi.neural_nets.estimators import ConditionalDensityEstimator
from sbi.utils.user_input_checks import process_prior
from torch import Tensor
from torch.distributions import Distribution

from sbi_boed_plugin._prior import discrete_columns
from sbi_boed_plugin._rng import isolated_rng
from sbi_boed_plugin.estimators.likelihood_hybrid import (
    JointLikelihood,
    LikelihoodHybrid,
)
from sbi_boed_plugin.estimators.particle_density import ParticleDensity, PatchedBase
from sbi_boed_plugin.estimators.rejection import WeightDiagnostics
from sbi_boed_plugin.objectives.info_nce import log_likelihood_matrix
from sbi_boed_plugin.search.belief import ParticleBelief

__all__ = ["covering_hybrid", "hybrid_of_estimators", "joint_hybrid"]

_SEED, _NUM_PARTICLES = 20_261_131, 4_096
# Effective share of draws below which, and tail index of their weights above which, a
# posterior needs another base.
_MIN_SHARE, _MAX_TAIL_INDEX = 0.01, 0.6


def hybrid_of_estimators(
    posterior: Any, likelihood: Any, prior: Distribution
) -> LikelihoodHybrid:
    """Return the posterior of a likelihood on a base, of copies of both, or raise."""
    if isinstance(posterior, DirectPosterior):
        posterior = posterior.posterior_estimator
    for name, estimator in (
        ("posterior_estimator", posterior),
        ("likelihood_estimator", likelihood),
    ):
        if not isinstance(estimator, ConditionalDensityEstimator):
            raise TypeError(
                f"{name} must be a density estimator of sbi, as train() returns it, "
                f"got {type(estimator).__name__}."
            )
    prior, *_ = process_prior(prior)
    return LikelihoodHybrid(deepcopy(posterior), deepcopy(likelihood), prior)


def covering_hybrid(
    hybrid: LikelihoodHybrid, x: Tensor, weights: WeightDiagnostics
) -> LikelihoodHybrid:
    """Return the same posteriors, with a base that covers those of all rows of `x`.

    It is the hybrid's own, but for rows of which few draws count for nearly all. Of
    discrete parameters there is no other.
    """
    is_made = isinstance(hybrid.base, (ParticleDensity, PatchedBase))
    if is_made or discrete_columns(hybrid.prior).any():
        return hybrid
    lost = (weights.effective_share < _MIN_SHARE) | (
        weights.tail_index > _MAX_TAIL_INDEX
    )
    if not lost.any():
        return hybrid
    row = int(weights.effective_share.where(lost, 1.0).argmin())
    warnings.warn(
        "The posterior estimator covers too little of the likelihood's posterior: of "
        f"{weights.num_draws:,} draws given row {row} of x the effective sample size "
        f"is {weights.effective_sample_size[row].item():.3g}, with a tail index of "
        f"{weights.tail_index[row].item():.2f} ({int(lost.sum())} of {len(lost)} "
        "rows). Particles of sequential Monte Carlo take its place there, once for "
        "each row.",
        stacklevel=6,
    )
    patched, densities = [], []
    for row in lost.nonzero().flatten().tolist():
        one = x[row : row + 1]
        try:
            densities.append(_density(hybrid, one))
        except ValueError as error:
            # No particle has a likelihood: the network's draws are as good.
            warnings.warn(f"Not given row {row} of x: {error}", stacklevel=6)
        else:
            patched.append(one)
    if not densities:
        return hybrid
    return hybrid.on_base(PatchedBase(hybrid.base, torch.cat(patched), densities))


def joint_hybrid(hybrid: LikelihoodHybrid, x: Tensor) -> LikelihoodHybrid:
    """Return the posterior of all rows of `x` together, with a base of its own."""
    if hybrid.earlier is not None:
        raise ValueError(
            f"x has {len(x)} rows, but this is the posterior of one more experiment "
            "after those that were observed: leave x out, or pass one row."
        )
    if discrete_columns(hybrid.prior).any():
        raise ValueError(
            f"x has {len(x)} rows, and no hybrid takes several observations of "
            "parameters whose values repeat: use sample_with='mcmc'."
        )
    likelihood = JointLikelihood(hybrid.likelihood, len(x))
    return LikelihoodHybrid(
        _density(hybrid, x), likelihood, hybrid.prior, hybrid.earlier
    )


@torch.no_grad()
def _density(hybrid: LikelihoodHybrid, x: Tensor) -> ParticleDensity:
    """Return the density of particles of the posterior of all rows of `x`.

    Sequential Monte Carlo takes them there from the prior.
    """
    joint = JointLikelihood(hybrid.likelihood, len(x))

    def log_likelihood(theta: Tensor) -> Tensor:
        rows = x.unsqueeze(0).expand(len(theta), *x.shape)
        return log_likelihood_matrix(joint.log_prob, rows, theta.unsqueeze(0))[0]

    prior, device = hybrid.prior, str(x.device)
    with isolated_rng(_SEED):
        belief = ParticleBelief(prior, num_particles=_NUM_PARTICLES, device=device)
        for observed in (hybrid.earlier, log_likelihood):
            if observed is not None:
                belief.update(observed)
    shape = hybrid.condition_shape if len(x) == 1 else x.shape
    return ParticleDensity(belief.particles, prior, shape)
