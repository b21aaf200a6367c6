r"""What rejection costs: how well a base fits against how many draws are accepted.

Samples of `HybridPosterior` are draws of a base that an energy ratio accepts. Here
bases of three kinds, one Normal (`mdn1`), a masked autoregressive flow (`maf`) and a
spline flow (`nsf`), each from few and from many simulations, are refined for five
posteriors: *two moons*; `bmp`, `location_finding` and `pharmacokinetic` of
`tasks.get_task` at one design each; and a Normal of five dimensions, which even the
simplest base can be.

- `base_log_prob`, `hybrid_log_prob`: held-out log-densities, normalized over the
  support of the prior (nats). Their difference, `gain`, estimates how far the base is
  from the posterior.
- `kept`: whether the energy improved held-out log-densities; otherwise the hybrid is
  its base, and accepts all draws in the support.
- `acceptance_rate`, `effective_share` (effective sample size as a share of draws),
  `truncated_mass`, `log_partition`: means over new observations of what
  `HybridPosterior.diagnostics` tells.

With a bound at the largest weight, neither acceptance rate nor effective share of an
observation can exceed :math:`e^{-D}`, where :math:`D` is the divergence from hybrid to
base; the figure shows :math:`e^{-\text{gain}}`. Means over observations, and a bound at
a quantile of the weights, which accepts more, may lie above it.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from sbi.neural_nets import posterior_nn
from torch import Tensor
from torch.distributions import Distribution

from benchmarks.papers import two_moons
from benchmarks.papers._hybrids import (
    hybrid_of,
    log_densities,
    refine_base,
    shares_below_one,
    train_base,
    weight_columns,
)
from benchmarks.papers._linear_gaussian import LinearGaussian
from benchmarks.study import Job, Row, Study, averages
from sbi_boed_plugin.plotting._style import GREY, LINES, despine
from sbi_boed_plugin.tasks import get_task
from sbi_boed_plugin.trainers._energy_training import EnergyConfig

__all__ = ["STUDY", "make_target"]

BASES = ("mdn1", "maf", "nsf")
BUDGETS = (1_000, 10_000)
# Of the tasks that have designs: a dose that half of the cells answer to, the middle of
# where the sources are, and samples while the drug is absorbed and eliminated.
DESIGNS = {
    "bmp": (10.0,),
    "location_finding": (0.0, 0.0),
    "pharmacokinetic": (1.0, 4.0, 12.0),
}
TARGETS = ("normal", "two_moons", *DESIGNS)
_DIM_NORMAL = 5
_LABELS = {"mdn1": "mdn, one Normal", "maf": "maf", "nsf": "nsf"}
_MARKERS = ("o", "s", "^", "D", "v")


@dataclass(frozen=True)
class _Target:
    """A prior with a simulator of `(batch_dim, dim_theta)`."""

    prior: Distribution
    simulate: Callable[[Tensor], Tensor]


@dataclass(frozen=True)
class _Size:
    base_epochs: int
    batch_size: int
    energy_epochs: int
    num_test: int = 500
    num_draws: int = 200
    num_observations: int = 5


_FULL = {
    1_000: _Size(base_epochs=40, batch_size=100, energy_epochs=40),
    10_000: _Size(base_epochs=20, batch_size=500, energy_epochs=20),
}
_QUICK = {
    "energy_epochs": 6,
    "num_test": 100,
    "num_draws": 200,
    "num_observations": 2,
}
_QUICK_BUDGETS = (200, 500)


def make_target(name: str) -> _Target:
    """Return prior and simulator of a target.

    Args:
        name: One of `TARGETS`.

    Returns:
        The target; those with designs are simulated at one of them.
    """
    if name == "two_moons":
        return _Target(two_moons.prior(), two_moons.simulate)
    if name == "normal":
        model = LinearGaussian(_DIM_NORMAL)
        return _Target(model.prior, model.simulate)
    design = torch.tensor(DESIGNS[name])
    settings = {"dim_design": len(design)} if name == "pharmacokinetic" else {}
    task = get_task(name, **settings)

    def simulate(theta: Tensor) -> Tensor:
        return task.simulator(theta, design.expand(len(theta), -1))

    return _Target(task.prior, simulate)


def jobs(num_seeds: int, quick: bool) -> list[Job]:
    """Return the jobs, few simulations first."""
    cells = [(t, b, n) for n in BUDGETS for t in TARGETS for b in BASES]
    if quick:
        few, many = _QUICK_BUDGETS
        cells = [("two_moons", "mdn1", few), ("two_moons", "maf", many)]
        cells += [("normal", "mdn1", many), ("bmp", "mdn1", many)]
        cells += [("location_finding", "mdn1", many), ("pharmacokinetic", "nsf", few)]
    return [
        {"task": task, "base": base, "num_simulations": number, "seed": seed}
        for seed in range(num_seeds)
        for task, base, number in cells
    ]


def run(job: Job, quick: bool) -> Row:
    """Train a base, refine it, and measure both on new simulations.

    Args:
        job: Target, kind of base, number of simulations, and seed.
        quick: Whether to train briefly.

    Returns:
        Held-out log-densities, what the weights tell, and whether the energy was kept.
    """
    torch.manual_seed(job["seed"])
    number = job["num_simulations"]
    size = _FULL.get(number, _FULL[1_000])
    if quick:
        size = _Size(base_epochs=8, batch_size=number // 10, **_QUICK)
    target = make_target(job["task"])
    theta = target.prior.sample(torch.Size((number,)))
    x = target.simulate(theta)
    test_theta = target.prior.sample(torch.Size((size.num_test,)))
    test_x = target.simulate(test_theta)
    base = train_base(
        target.prior,
        _builder(job["base"]),
        theta,
        x,
        batch_size=size.batch_size,
        learning_rate=2e-3,
        max_num_epochs=size.base_epochs,
    )
    config = EnergyConfig(max_num_epochs=size.energy_epochs)
    trainer = refine_base(base, target.prior, theta, x, config)
    posterior = hybrid_of(trainer)
    of_base, of_hybrid = log_densities(
        posterior.posterior_estimator, test_theta, test_x, size.num_draws
    )
    return {
        "base_log_prob": round(float(of_base.mean()), 4),
        "hybrid_log_prob": round(float(of_hybrid.mean()), 4),
        "gain": round(float((of_hybrid - of_base).mean()), 4),
        "kept": int(trainer.summary["energy_gain"][-1] > 0.0),
        **weight_columns(posterior.diagnostics(test_x[: size.num_observations])),
    }


def _builder(base: str) -> Any:
    if base == "mdn1":
        return posterior_nn("mdn", num_components=1)
    if base == "nsf":
        return posterior_nn("nsf", num_transforms=2)
    return posterior_nn(base)


def summary(rows: Sequence[Row]) -> list[Row]:
    """Return means over seeds of each setting."""
    return averages(
        rows,
        by=["task", "base", "num_simulations"],
        values=[
            "base_log_prob",
            "hybrid_log_prob",
            "gain",
            "kept",
            "acceptance_rate",
            "effective_share",
            "truncated_mass",
            "log_partition",
        ],
    )


def figure(rows: Sequence[Row]) -> Figure:
    """Return acceptance rate and effective share against the gain over the base."""
    table = summary(rows)
    budgets = sorted({row["num_simulations"] for row in table})
    made = Figure(figsize=(9.6, 4.4), layout="constrained")
    panels = made.subplots(1, 2, sharex=True, sharey=True)
    labels = ("acceptance rate", "effective sample size [share of draws]")
    for ax, name, label in zip(
        panels, ("acceptance_rate", "effective_share"), labels, strict=True
    ):
        for row in table:
            color = LINES[BASES.index(row["base"])]
            filled = row["num_simulations"] == budgets[-1]
            ax.errorbar(
                row["gain"],
                row[name],
                row[f"{name}_se"],
                row["gain_se"],
                color=color,
                marker=_MARKERS[TARGETS.index(row["task"])],
                markerfacecolor=color if filled else "none",
                linestyle="none",
                capsize=2,
            )
        _guide(ax, table)
        ax.set_xlabel("held-out gain of the hybrid over its base [nats]")
        ax.set_ylabel(label)
        despine(ax)
    shares_below_one(*panels)
    made.legend(
        handles=_legend(table, budgets), loc="outside right center", frameon=False
    )
    return made


def _guide(ax: Axes, table: Sequence[Row]) -> None:
    gains = torch.linspace(0.0, max(0.1, *(row["gain"] for row in table)), 50)
    ax.plot(gains, (-gains).exp(), color=GREY, linestyle="--", linewidth=1.0)


def _legend(table: Sequence[Row], budgets: Sequence[int]) -> list[Line2D]:
    """Return one entry for each colour, marker and filling that there is."""

    def entry(label: str, **style: Any) -> Line2D:
        return Line2D(
            [], [], **{"linestyle": "none", "color": GREY} | style, label=label
        )

    bases, targets = ({row[name] for row in table} for name in ("base", "task"))
    handles = [
        entry(_LABELS[base], marker="o", color=color)
        for base, color in zip(BASES, LINES, strict=False)
        if base in bases
    ]
    handles += [
        entry(target.replace("_", " "), marker=marker)
        for target, marker in zip(TARGETS, _MARKERS, strict=True)
        if target in targets
    ]
    for number in budgets:
        filling = GREY if number == budgets[-1] else "none"
        handles.append(
            entry(f"{number:,} simulations", marker="o", markerfacecolor=filling)
        )
    return [*handles, entry("exp(−gain)", linestyle="--")]


STUDY = Study(
    name="gkl-acceptance",
    title="Hybrids of five posteriors: fit of the base against acceptance",
    jobs=jobs,
    run=run,
    figure=figure,
    summary=summary,
    num_seeds=3,
)
