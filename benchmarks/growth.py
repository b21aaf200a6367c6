"""Time and peak memory of searches, posteriors and campaigns as problems grow.

    make reproduce NAME=growth

One thing grows at a time. The simulator is linear with Normal noise: `dim_theta`
coefficients, one datum for each of `dim_design` measurements, whose design is the first
coefficient's factor. Memory is what the process needed beyond what it had after a
training of ten simulations; time and memory of workers are not in it.
"""

import time
from collections.abc import Callable
from typing import Any

import torch
from matplotlib.figure import Figure
from torch import Tensor
from torch.distributions import Independent, Normal

from benchmarks.study import Job, Row, Study
from benchmarks.training_growth import peak_mb
from sbi_boed_plugin import NLE_INCE, TruncatedNormalPolicy, simulate_for_boed
from sbi_boed_plugin.experiment import NoOpTracker
from sbi_boed_plugin.plotting._style import despine

__all__ = ["STUDY"]

QUIET: dict[str, Any] = {"tracker": NoOpTracker(), "show_progress_bars": False}
# What grows, for which path, and how far; the others have the first value.
GROWS = {
    ("search in rounds", "simulations"): (300, 1_000, 3_000, 10_000),
    ("search in rounds", "measurements"): (1, 2, 5),
    ("search in rounds", "parameters"): (2, 5, 20),
    ("20 joint steps", "contrasts"): (15, 63, 255),
    ("20 joint steps", "measurements"): (1, 10, 30),
    ("20 joint steps", "parameters"): (2, 10, 50),
    ("1,000 samples of each, hybrid", "observations"): (1, 10, 100),
    ("campaign", "experiments"): (1, 2, 4, 8),
    ("4,000 simulations of 5 ms", "workers"): (1, 2, 4),
}
_BASIS = {"simulations": 300, "measurements": 1, "parameters": 2, "contrasts": 15}
# What comes before a posterior and a campaign.
_SHORT = {"num_steps": 50, "num_eig_samples": 256}


def _problem(
    parameters: int, measurements: int
) -> tuple[Independent, TruncatedNormalPolicy, Callable[[Tensor, Tensor], Tensor]]:
    """Return prior, policy and simulator of these sizes."""
    prior = Independent(Normal(torch.zeros(parameters), 1.0), 1)
    policy = TruncatedNormalPolicy(torch.zeros(measurements), torch.ones(measurements))

    def simulator(theta: Tensor, design: Tensor) -> Tensor:
        others = theta[:, 1:].mean(dim=1, keepdim=True)
        return theta[:, :1] * design + others + 0.5 * torch.randn_like(design)

    return prior, policy, simulator


def _slow(theta: Tensor, design: Tensor) -> Tensor:
    time.sleep(0.005 * len(theta))
    return theta[:, :1] * design + 0.5 * torch.randn_like(design)


def _searched(sizes: dict[str, int], **settings: Any) -> tuple[NLE_INCE, Any, Any]:
    """Return a trainer after a search, its result and its simulator."""
    prior, policy, simulator = _problem(sizes["parameters"], sizes["measurements"])
    trainer = NLE_INCE(prior, "mdn", design_policy=policy, **QUIET)
    return trainer, trainer.optimize_design(simulator, **settings), simulator


def _rounds(sizes: dict[str, int]) -> Callable[[], Any]:
    return lambda: _searched(sizes, max_num_simulations=sizes["simulations"])


def _joint(sizes: dict[str, int]) -> Callable[[], Any]:
    settings = {"objective": "info_nce", "num_contrastive": sizes["contrasts"]}
    settings |= {"training_batch_size": 256, "num_eig_samples": 256, "num_steps": 20}
    return lambda: _searched(sizes, **settings)


def _posterior(sizes: dict[str, int]) -> Callable[[], Any]:
    trainer, result, simulator = _searched(_BASIS, **_SHORT)
    theta = torch.randn(sizes["observations"], 2)
    x = simulator(theta, result.design.expand(len(theta), -1))
    posterior = trainer.build_posterior(design=result.design)
    bars = {"show_progress_bars": False}
    return lambda: posterior.sample_batched((1_000,), x=x, **bars)


def _campaign(sizes: dict[str, int]) -> Callable[[], Any]:
    trainer, result, simulator = _searched(_BASIS, **_SHORT)

    def experiments() -> None:
        truth = torch.zeros(1, 2)
        for _ in range(sizes["experiments"]):
            trainer.observe(result.design, simulator(truth, result.design[None]))

    return experiments


def _workers(sizes: dict[str, int]) -> Callable[[], Any]:
    prior, policy, _ = _problem(2, 1)
    settings = {"num_workers": sizes["workers"], "show_progress_bar": False}

    def simulate(num: int) -> None:
        simulate_for_boed(_slow, prior, policy, num, **settings)

    simulate(64)  # Workers start once, in some seconds.
    return lambda: simulate(4_000)


_PATHS = {
    "search in rounds": _rounds,
    "20 joint steps": _joint,
    "1,000 samples of each, hybrid": _posterior,
    "campaign": _campaign,
    "4,000 simulations of 5 ms": _workers,
}


def jobs(num_seeds: int, quick: bool) -> list[Job]:
    """Return one job for each path, what grows, and its size."""
    return [
        {"path": path, "grows": grows, "size": size, "seed": seed}
        for seed in range(num_seeds)
        for (path, grows), sizes in GROWS.items()
        for size in (sizes[:1] if quick else sizes)
        if not quick or grows not in ("measurements", "parameters")
    ]


def run(job: Job, quick: bool) -> Row:
    """Measure one path at one size."""
    torch.manual_seed(job["seed"])
    prior, policy, simulator = _problem(2, 1)
    warm = NLE_INCE(prior, "mdn", **QUIET)
    theta, design = torch.randn(10, 2), torch.rand(10, 1)
    warm.append_simulations(theta, simulator(theta, design), design=design)
    warm.train(max_num_epochs=1)
    sizes = {**_BASIS, job["grows"]: job["size"]}
    walk = _PATHS[job["path"]](sizes)
    before, cpu, wall = peak_mb(), time.process_time(), time.perf_counter()
    walk()
    return {
        "cpu_s": round(time.process_time() - cpu, 2),
        "wall_s": round(time.perf_counter() - wall, 2),
        "memory_mb": round(peak_mb() - before, 1),
    }


def figure(rows: list[Row]) -> Figure:
    """Draw processor time and memory against what grows, on logarithmic axes."""
    fig = Figure(figsize=(8.0, 3.6), layout="constrained")
    axes = fig.subplots(1, 2)
    labels = {"cpu_s": "processor time [s]", "memory_mb": "further memory [MB]"}
    least = {"cpu_s": 0.01, "memory_mb": 1.0}  # Less is as good as nothing.
    for ax, (column, label) in zip(axes, labels.items(), strict=True):
        for path, grows in GROWS:
            if grows == "workers":
                continue
            of = [r for r in rows if (r["path"], r["grows"]) == (path, grows)]
            of.sort(key=lambda row: row["size"])
            values = [max(row[column], least[column]) for row in of]
            line = f"{path}: {grows}"
            ax.plot([row["size"] for row in of], values, marker="o", ms=3, label=line)
        ax.set(xscale="log", yscale="log", xlabel="size", ylabel=label)
        despine(ax)
    axes[1].legend(fontsize=6, loc="upper left", bbox_to_anchor=(1.0, 1.0))
    return fig


STUDY = Study(
    name="growth",
    title="Time and memory of searches, posteriors and campaigns as problems grow",
    jobs=jobs,
    run=run,
    figure=figure,
)
