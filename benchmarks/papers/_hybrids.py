"""What the studies of hybrid posteriors share: bases, refinements, measures of both."""

import math
from collections.abc import Callable

import torch
from matplotlib.axes import Axes
from matplotlib.ticker import LogLocator
from sbi.inference import NPE
from sbi.neural_nets.estimators import ConditionalDensityEstimator
from torch import Tensor
from torch.distributions import Distribution

from sbi_boed_plugin._rng import isolated_rng
from sbi_boed_plugin.estimators.energy import energy_nn
from sbi_boed_plugin.estimators.hybrid import HybridEstimator
from sbi_boed_plugin.estimators.rejection import WeightDiagnostics
from sbi_boed_plugin.experiment import NoOpTracker
from sbi_boed_plugin.posteriors.hybrid_posterior import HybridPosterior
from sbi_boed_plugin.trainers._energy_training import EnergyConfig
from sbi_boed_plugin.trainers.npe_gkl import NPE_GKL

__all__ = [
    "shares_below_one",
    "hybrid_of",
    "log_densities",
    "refine_base",
    "train_base",
    "uncorrected",
    "weight_columns",
]

# Draws of a base at a time: what fits into the cache of a processor.
_CHUNK = 20_000
# The same draws for hybrids of the same base, whatever random numbers came before.
_SEED = 2_000


def train_base(
    prior: Distribution,
    build: str | Callable[[Tensor, Tensor], ConditionalDensityEstimator],
    theta: Tensor,
    x: Tensor,
    *,
    batch_size: int,
    learning_rate: float,
    max_num_epochs: int,
) -> ConditionalDensityEstimator:
    """Train a base by NPE.

    Args:
        prior: Distribution of the parameters.
        build: Name or builder of the network.
        theta: Parameters of shape `(num_simulations, dim_theta)`.
        x: Data of shape `(num_simulations, dim_x)`.
        batch_size: Simulations per step.
        learning_rate: Learning rate.
        max_num_epochs: Number of epochs, unless validation stops training before.

    Returns:
        The estimator.
    """
    trainer = NPE(prior, build, tracker=NoOpTracker(), show_progress_bars=False)
    return trainer.append_simulations(theta, x).train(
        training_batch_size=batch_size,
        learning_rate=learning_rate,
        max_num_epochs=max_num_epochs,
    )


def refine_base(
    base: ConditionalDensityEstimator,
    prior: Distribution,
    theta: Tensor,
    x: Tensor,
    energy: EnergyConfig,
    *,
    latent_features: bool | None = None,
) -> NPE_GKL:
    """Train an energy for a base.

    Args:
        base: The base; it stays as it is.
        prior: Distribution of the parameters.
        theta: Parameters of shape `(num_simulations, dim_theta)`.
        x: Data of shape `(num_simulations, dim_x)`.
        energy: How to train the energy.
        latent_features: Whether the energy is shown the base's noise.

    Returns:
        The trainer, with what it reports.
    """
    return NPE_GKL.refine(
        base,
        theta,
        x,
        prior=prior,
        energy=energy,
        latent_features=latent_features,
        tracker=NoOpTracker(),
        show_progress_bars=False,
    )


def hybrid_of(trainer: NPE_GKL) -> HybridPosterior:
    """Return the posterior of a trainer.

    Raises:
        TypeError: If it is none of a base and an energy.
    """
    posterior = trainer.build_posterior()
    if not isinstance(posterior, HybridPosterior):
        raise TypeError(f"a {type(posterior).__name__} is no hybrid posterior.")
    return posterior


def uncorrected(
    base: ConditionalDensityEstimator, prior: Distribution, theta: Tensor, x: Tensor
) -> HybridPosterior:
    """Return a base as a hybrid whose energy is zero.

    Args:
        base: The base.
        prior: Distribution outside whose support the posterior is zero.
        theta: Some parameters of shape `(num, dim_theta)`.
        x: Their data of shape `(num, dim_x)`.

    Returns:
        The posterior.
    """
    energy = energy_nn()(theta, x)
    hybrid = HybridEstimator(base, energy, prior=prior, frozen_base=True)
    return HybridPosterior(hybrid, prior)


@torch.no_grad()
def log_densities(
    hybrid: HybridEstimator, theta: Tensor, x: Tensor, num_draws: int
) -> tuple[Tensor, Tensor]:
    r"""Return log-densities of a base and of its hybrid.

    Both are normalized over the support of the prior, with the same draws. The
    logarithm of an estimate is too small on average, by half of its relative variance.

    Args:
        hybrid: Base and energy.
        theta: Parameters of shape `(num, dim_theta)`, in the support.
        x: Their data of shape `(num, dim_x)`.
        num_draws: Draws of the base for each normalization.

    Returns:
        Log-densities of base and hybrid, each of shape `(num,)`, in nats.
    """
    hybrid.eval()
    chunks = torch.arange(len(theta)).split(max(1, _CHUNK // num_draws))
    with isolated_rng(_SEED):
        parts = [_log_densities(hybrid, theta[c], x[c], num_draws) for c in chunks]
    of_base, of_hybrid = zip(*parts, strict=True)
    return torch.cat(of_base), torch.cat(of_hybrid)


def _log_densities(
    hybrid: HybridEstimator, theta: Tensor, x: Tensor, num_draws: int
) -> tuple[Tensor, Tensor]:
    draws = hybrid.base.sample(torch.Size((num_draws,)), x)
    ratio = hybrid.log_ratio(draws, x)
    weight = torch.zeros_like(ratio).masked_fill(~hybrid.inside(draws), -torch.inf)
    # Of the base, the share of its draws in the support; then relative to it.
    log_share = weight.logsumexp(dim=0)
    log_partition = (ratio + weight).logsumexp(dim=0) - log_share
    own = theta.unsqueeze(0)
    log_base = hybrid.base.log_prob(own, x)[0] - log_share + math.log(num_draws)
    return log_base, log_base + hybrid.log_ratio(own, x)[0] - log_partition


def weight_columns(measured: WeightDiagnostics) -> dict[str, float]:
    """Return means over observations of what the weights tell.

    Args:
        measured: Diagnostics of some observations.

    Returns:
        Acceptance rate, effective sample size as a share of the draws, truncated mass
        and log Z (nats).
    """
    return {
        "acceptance_rate": round(float(measured.acceptance_rate.mean()), 5),
        "effective_share": round(
            float(measured.effective_sample_size.mean()) / measured.num_draws, 5
        ),
        "truncated_mass": round(float(measured.truncated_mass.mean()), 5),
        "log_partition": round(float(measured.log_partition.mean()), 4),
    }


def shares_below_one(*axes: Axes) -> None:
    """Set the same logarithmic vertical axis of shares, up to one, for all.

    Args:
        axes: Axes with all that is to be seen.
    """
    lowest = min(max(min(ax.dataLim.y0 for ax in axes), 1e-6), 0.99)
    decade = 10.0 ** math.floor(math.log10(lowest))
    step = max(step for step in (1, 2, 5) if step * decade <= lowest)
    for ax in axes:
        ax.set_yscale("log")
        ax.set_ylim(step * decade, 1.2)
        ax.yaxis.set_minor_locator(LogLocator(subs=(2, 5)))
        ax.yaxis.set_major_formatter("{x:g}")
        ax.yaxis.set_minor_formatter("{x:g}")
