"""Networks trained by sbi's loop and by the averaged schedule, on tasks of sbibm.

    make reproduce NAME=training

For each task, method, flow, number of simulations and seed: the log-density of 4,000
new simulations, in nats, and the processor time of the training. Both loops get the
same simulations, networks and split. The data of `sir` are counts, which have no
density: likelihoods see them with uniform noise in [0, 1) added, and their
log-densities are then lower bounds of log-probabilities.
"""

import contextlib
import io
import time
import warnings
from collections.abc import Sequence
from typing import Any

import pandas as pd
import torch
from matplotlib.figure import Figure
from sbi.inference import NLE, NPE
from sbi.inference.trainers.npe.npe_c import NPE_C
from sbi.neural_nets import likelihood_nn, posterior_nn
from torch import Tensor

from benchmarks.study import Job, Row, Study
from sbi_boed_plugin import AveragedSchedule, sbibm
from sbi_boed_plugin._sbi_compat import LikelihoodEstimatorTrainer
from sbi_boed_plugin.benchmark.summary import mean_and_sem
from sbi_boed_plugin.experiment import NoOpTracker
from sbi_boed_plugin.plotting._style import BLUE, GREY, LINES, despine
from sbi_boed_plugin.trainers._scheduled import ScheduledTrainer

TASKS = (
    "two_moons",
    "slcp",
    "gaussian_mixture",
    "gaussian_linear_uniform",
    "sir",
    "lotka_volterra",
)
NUM_TEST = 4_000
CELL = ["task", "method", "model", "num_simulations"]


class ScheduledNPE(ScheduledTrainer, NPE_C):
    """The base of `NPE_GKL` without its energy."""

    _schedule = AveragedSchedule()


class ScheduledNLE(ScheduledTrainer, LikelihoodEstimatorTrainer):
    """`NLE_INCE` without contrast."""

    _schedule = AveragedSchedule()


TRAINERS: dict[tuple[str, str], Any] = {
    ("npe", "sbi"): NPE,
    ("npe", "averaged"): ScheduledNPE,
    ("nle", "sbi"): NLE,
    ("nle", "averaged"): ScheduledNLE,
}
NETWORKS = {"npe": posterior_nn, "nle": likelihood_nn}


def simulate(job: Job, seed: int, num: int) -> tuple[Tensor, Tensor]:
    """Draw parameters and simulate them."""
    torch.manual_seed(seed + job["seed"])
    task: Any = sbibm.get_task(job["task"])
    theta = task.get_prior()(num_samples=num)
    x = task.get_simulator()(theta)
    if (job["task"], job["method"]) == ("sir", "nle"):
        x = x + torch.rand_like(x)
    return theta, x


def jobs(num_seeds: int, quick: bool) -> list[Job]:
    """Return one job for each loop, flow, method, task, size and seed."""
    return [
        {**cell, "loop": loop}
        for num_simulations in ((300,) if quick else (1_000, 10_000))
        for seed in range(num_seeds)
        for model in ("maf", "nsf")
        for method in ("npe", "nle")
        for task in (TASKS[:2] if quick else TASKS)
        for cell in [
            {
                "task": task,
                "method": method,
                "model": model,
                "num_simulations": num_simulations,
                "seed": seed,
            }
        ]
        for loop in ("sbi", "averaged")
    ]


def run(job: Job, quick: bool) -> Row:
    """Train a network and evaluate it on new simulations."""
    theta, x = simulate(job, 1_000, job["num_simulations"])
    torch.manual_seed(job["seed"])
    build = NETWORKS[job["method"]](job["model"])
    trainer = TRAINERS[job["method"], job["loop"]](
        density_estimator=build, show_progress_bars=False, tracker=NoOpTracker()
    )
    trainer.append_simulations(theta, x)
    started = time.process_time()
    with contextlib.redirect_stdout(io.StringIO()), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        network = trainer.train(**({"max_num_epochs": 5} if quick else {}))
    seconds = time.process_time() - started
    network.eval()
    theta, x = simulate(job, 2_000, 200 if quick else NUM_TEST)
    rows = (x, theta) if job["method"] == "nle" else (theta, x)
    with torch.no_grad():
        parts = zip(*(values.split(1_000) for values in rows), strict=True)
        values = torch.cat([network.log_prob(a.unsqueeze(0), b)[0] for a, b in parts])
    return {
        "log_density": round(values.mean().item(), 4),
        "median_log_density": round(values.median().item(), 4),
        "cpu_seconds": round(seconds, 2),
        "num_epochs": trainer.summary["epochs_trained"][-1],
    }


def compare(rows: Sequence[Row]) -> pd.DataFrame:
    """Return both loops side by side, and their difference, for each cell and seed."""
    table = pd.DataFrame(list(rows)).set_index([*CELL, "seed", "loop"])
    names = ["log_density", "median_log_density", "cpu_seconds"]
    table = table[names].unstack("loop").dropna()
    table.columns = [f"{name}_{loop}" for name, loop in table.columns]
    table["gain"] = table["log_density_averaged"] - table["log_density_sbi"]
    of_median = "median_log_density_averaged", "median_log_density_sbi"
    table["median_gain"] = table[of_median[0]] - table[of_median[1]]
    table["time"] = table["cpu_seconds_averaged"] / table["cpu_seconds_sbi"]
    return table.reset_index()


def summary(rows: Sequence[Row]) -> Sequence[Row]:
    """Return means over seeds, and the time of all cells together last."""
    table = compare(rows)
    if not len(table):
        return []
    values = [name for name in table.columns if name not in (*CELL, "seed")]
    cells = mean_and_sem(table, CELL, values).round(4).to_dict("records")
    total = table[["cpu_seconds_averaged", "cpu_seconds_sbi"]].sum()
    ratio = round(float(total.iloc[0] / total.iloc[1]), 3)
    return [*cells, {"task": "all", "seeds": len(table), **total, "time": ratio}]


def figure(rows: Sequence[Row]) -> Figure:
    """Plot gains in nats and ratios of times, one row for each cell."""
    table = compare(rows).groupby(CELL, sort=False)[["median_gain", "gain", "time"]]
    table = table.mean().reset_index()
    labels = [f"{task} {m} {f} {n:,}" for task, m, f, n in table[CELL].to_numpy()]
    result = Figure((8.0, 1.0 + 0.2 * len(labels)), layout="constrained")
    gains, times = result.subplots(1, 2, sharey=True)
    places = range(len(labels))
    gains.plot(table["gain"], places, "o", color=BLUE, ms=4, label="mean")
    gains.plot(table["median_gain"], places, "|", color=LINES[1], label="median")
    gains.set_xscale("symlog", linthresh=1.0)
    gains.set_yticks(places, labels, fontsize="x-small")
    gains.set_xlabel("gain in held-out log-density [nats]")
    gains.legend(frameon=False, fontsize="small")
    times.plot(table["time"], places, "o", color=BLUE, ms=4)
    times.set_xscale("log")
    ratios = [0.125, 0.25, 0.5, 1.0, 2.0, 4.0]
    times.set_xticks(ratios, [f"{ratio:g}" for ratio in ratios])
    times.minorticks_off()
    times.set_ylim(len(labels) - 0.5, -0.5)
    times.set_xlabel("processor time, to that of sbi's loop")
    for ax, at in ((gains, 0.0), (times, 1.0)):
        ax.axvline(at, color=GREY, linewidth=0.8)
        despine(ax)
    return result


STUDY = Study(
    name="training",
    title="Held-out log-densities and times of sbi's loop and the averaged schedule",
    jobs=jobs,
    run=run,
    summary=summary,
    figure=figure,
    num_seeds=3,
)
