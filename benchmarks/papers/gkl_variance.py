r"""How many draws the partition function of an energy needs, and what it is shown.

`NPE_GKL` trains an energy beside a base that is there already. In each step, K draws
of the base estimate the partition function of each simulation; the energy is shown
parameters and data, and may be shown the noise that the base made the parameters of.
Here, on *two moons*, whose posterior is known, the same masked autoregressive flow is
refined with every setting. K = 0 is the flow alone.

- `gain`: held-out log-density of the hybrid, normalized, minus that of its base, both
  on the support of the prior (nats). `promised_gain` and `promised_error` are what
  `NPE_GKL` reported of it after training; it promises a lower bound.
- `loss_deviation`: standard deviation of the training loss over the last epochs, by
  which a training that has settled still varies.
- `c2st`: accuracy of a random forest that tells samples from those of the exact
  posterior, 0.5 at best, mean over the same observations for all settings.
- `acceptance_rate`, `effective_share`, `truncated_mass`, `log_partition`: what
  `HybridPosterior.diagnostics` tells of these observations.
- `refinement_seconds`: time that the energy took.
"""

import math
import statistics
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from sbi.utils.metrics import c2st
from torch import Tensor

from benchmarks.papers import two_moons
from benchmarks.papers._hybrids import (
    hybrid_of,
    log_densities,
    refine_base,
    train_base,
    uncorrected,
    weight_columns,
)
from benchmarks.study import Job, Row, Study, averages
from sbi_boed_plugin._rng import isolated_rng
from sbi_boed_plugin.plotting._style import BLUE, GREY, VERMILLION, despine
from sbi_boed_plugin.posteriors.hybrid_posterior import HybridPosterior
from sbi_boed_plugin.trainers._energy_training import EnergyConfig

__all__ = ["STUDY", "exact_samples"]

NUM_PARTITION_SAMPLES = (1, 2, 8, 32)
_LAST_EPOCHS = 10
# The same observations and exact samples for every setting and seed.
_OBSERVATION_SEED = 1_000
_BATCH = 200_000


@dataclass(frozen=True)
class _Size:
    num_simulations: int = 10_000
    base_epochs: int = 25
    energy_epochs: int = 24
    num_test: int = 500
    num_draws: int = 400
    num_observations: int = 4
    num_samples: int = 1_000
    num_trees: int = 100


_FULL = _Size()
_QUICK = _Size(
    num_simulations=500,
    base_epochs=6,
    energy_epochs=8,
    num_test=100,
    num_draws=200,
    num_observations=1,
    num_samples=100,
    num_trees=10,
)


def exact_samples(x: Tensor, num_samples: int) -> Tensor:
    """Draw from the posterior of two moons, by rejection from the prior.

    Args:
        x: An observation of shape `(2,)`.
        num_samples: Number of samples.

    Returns:
        Samples of shape `(num_samples, 2)`.
    """
    prior = two_moons.prior()
    # The same for all parameters, and largest at one radius in every direction.
    radii = torch.linspace(0.26, 0.45, 20_001)
    across = torch.stack([radii, torch.zeros_like(radii)], dim=-1)
    log_bound = two_moons.log_likelihood(across, torch.zeros(2)).max()
    kept, missing = [], num_samples
    while missing > 0:
        theta = prior.sample(torch.Size((_BATCH,)))
        log_accept = two_moons.log_likelihood(x, theta) - log_bound
        accepted = theta[torch.rand(_BATCH).log() < log_accept][:missing]
        kept.append(accepted)
        missing -= len(accepted)
    return torch.cat(kept)


def jobs(num_seeds: int, quick: bool) -> list[Job]:
    """Return the jobs: the base alone, then each number with and without its noise."""
    numbers = (1, 8) if quick else NUM_PARTITION_SAMPLES
    settings = [(0, 0), *((number, shown) for shown in (0, 1) for number in numbers)]
    return [
        {"num_partition_samples": number, "latent_features": shown, "seed": seed}
        for seed in range(num_seeds)
        for number, shown in settings
    ]


def run(job: Job, quick: bool) -> Row:
    """Train a base, refine it, and compare both with the exact posterior.

    Args:
        job: Draws for the partition function, whether the energy is shown the noise of
            the base, and seed.
        quick: Whether to train briefly on few simulations.

    Returns:
        Gains, spread of the training loss, distance to the exact posterior, what the
        weights tell, and the time that the energy took.
    """
    size = _QUICK if quick else _FULL
    torch.manual_seed(job["seed"])
    prior = two_moons.prior()
    theta = prior.sample(torch.Size((size.num_simulations,)))
    x = two_moons.simulate(theta)
    test_theta = prior.sample(torch.Size((size.num_test,)))
    test_x = two_moons.simulate(test_theta)
    base = train_base(
        prior,
        "maf",
        theta,
        x,
        batch_size=min(500, size.num_simulations // 10),
        learning_rate=2e-3,
        max_num_epochs=size.base_epochs,
    )
    torch.manual_seed(job["seed"])
    posterior = uncorrected(base, prior, theta, x)
    promised, error, deviation, seconds = 0.0, 0.0, math.nan, 0.0
    if job["num_partition_samples"]:
        config = EnergyConfig(
            num_partition_samples=job["num_partition_samples"],
            max_num_epochs=size.energy_epochs,
        )
        started = time.perf_counter()
        trainer = refine_base(
            base,
            prior,
            theta,
            x,
            config,
            latent_features=bool(job["latent_features"]),
        )
        seconds = time.perf_counter() - started
        posterior = hybrid_of(trainer)
        report = trainer.summary
        promised = report["energy_gain"][-1]
        error = report["energy_gain_standard_error"][-1]
        deviation = statistics.stdev(report["energy_training_loss"][-_LAST_EPOCHS:])
    of_base, of_hybrid = log_densities(
        posterior.posterior_estimator, test_theta, test_x, size.num_draws
    )
    observations, truth = _observations(size)
    return {
        "gain": round(float((of_hybrid - of_base).mean()), 4),
        "promised_gain": round(promised, 4),
        "promised_error": round(error, 4),
        "base_log_prob": round(float(of_base.mean()), 4),
        "loss_deviation": round(deviation, 5),
        "c2st": round(_mean_c2st(posterior, observations, truth, size.num_trees), 4),
        **weight_columns(posterior.diagnostics(observations)),
        "refinement_seconds": round(seconds, 1),
    }


def _observations(size: _Size) -> tuple[Tensor, Tensor]:
    """Return observations and samples of `(num_observations, num_samples, 2)`."""
    with isolated_rng(_OBSERVATION_SEED):
        theta = two_moons.prior().sample(torch.Size((size.num_observations,)))
        x = two_moons.simulate(theta)
        return x, torch.stack([exact_samples(row, size.num_samples) for row in x])


def _mean_c2st(
    posterior: HybridPosterior, x: Tensor, truth: Tensor, num_trees: int
) -> float:
    shape = truth.shape[1:2]
    samples = posterior.sample_batched(shape, x, show_progress_bars=False)
    forest = {"n_estimators": num_trees}
    scores = [
        c2st(exact, samples[:, row], classifier_kwargs=forest)
        for row, exact in enumerate(truth)
    ]
    return float(torch.stack(scores).mean())


def summary(rows: Sequence[Row]) -> list[Row]:
    """Return means over seeds of each setting."""
    return averages(
        rows,
        by=["latent_features", "num_partition_samples"],
        values=[
            "gain",
            "promised_gain",
            "loss_deviation",
            "c2st",
            "acceptance_rate",
            "truncated_mass",
            "refinement_seconds",
        ],
    )


def figure(rows: Sequence[Row]) -> Figure:
    """Return gain, distance, spread of the loss and acceptance against K."""
    table = summary(rows)
    alone = [row for row in table if not row["num_partition_samples"]]
    made = Figure(figsize=(9.0, 6.4), layout="constrained")
    panels = made.subplots(2, 2, sharex=True)
    for ax, name, unit in (
        (panels[0, 0], "gain", "held-out gain over the base [nats]"),
        (panels[0, 1], "c2st", "C2ST to the exact posterior"),
        (panels[1, 0], "loss_deviation", "deviation of the last losses [nats]"),
        (panels[1, 1], "acceptance_rate", "acceptance rate"),
    ):
        for shown, color in ((0, BLUE), (1, VERMILLION)):
            what = "θ, x and noise" if shown else "θ and x"
            label = f"energy shown {what}" if name == "gain" else "_"
            mean = {"color": color, "marker": "o", "label": label}
            _line(ax, _shown(table, shown), name, mean)
            if name == "gain":
                promised = {"color": color, "linestyle": "--"}
                _line(ax, _shown(table, shown), "promised_gain", promised)
            # Bases differ more than settings do: a thin line for each.
            thin = {"color": color, "linewidth": 0.8, "alpha": 0.5}
            for seed in sorted({row["seed"] for row in rows}):
                of_seed = [row for row in rows if row["seed"] == seed]
                _line(ax, _shown(of_seed, shown), name, thin)
        if alone and name in ("c2st", "acceptance_rate"):
            ax.axhline(alone[0][name], color=GREY, linestyle=":")
        ax.set_ylabel(unit)
        ax.set_xscale("log", base=2)
        ticks = sorted({row["num_partition_samples"] for row in table} - {0})
        ax.set_xticks(ticks, [str(tick) for tick in ticks])
        ax.minorticks_off()
        despine(ax)
    thin = {"color": GREY, "linewidth": 0.8, "alpha": 0.5}
    panels[0, 0].plot([], [], color=GREY, linestyle="--", label="promised (validation)")
    panels[0, 0].plot([], [], label="one base", **thin)
    panels[0, 0].plot([], [], color=GREY, linestyle=":", label="bases alone")
    for ax in panels[:, 0]:
        limits = 1.1 * ax.dataLim.y0, 1.1 * ax.dataLim.y1
        ax.set_ylim(min(0.0, limits[0]), max(0.01, limits[1]))
    panels[1, 1].set_ylim(0.0, 1.05)
    made.legend(
        *panels[0, 0].get_legend_handles_labels(),
        loc="outside upper center",
        ncols=3,
        frameon=False,
    )
    for ax in panels[1]:
        ax.set_xlabel("draws for the partition function K")
    return made


def _shown(rows: Sequence[Row], shown: int) -> list[Row]:
    """Return the rows of refined bases with or without noise shown."""
    return [
        row
        for row in rows
        if row["num_partition_samples"] and row["latent_features"] == shown
    ]


def _line(ax: Axes, rows: Sequence[Row], name: str, style: Mapping[str, Any]) -> None:
    rows = sorted(rows, key=lambda row: row["num_partition_samples"])
    numbers = [row["num_partition_samples"] for row in rows]
    ax.plot(numbers, [row[name] for row in rows], **style)


STUDY = Study(
    name="gkl-variance",
    title="Two moons, a refined flow: draws for the partition function, and features",
    jobs=jobs,
    run=run,
    figure=figure,
    summary=summary,
    num_seeds=3,
)
