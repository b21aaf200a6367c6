"""Hybrid posteriors against their own bases and other methods, on sbibm's tasks.

    make reproduce NAME=hybrid-two-moons
    make reproduce NAME=hybrid-tasks

C2ST to sbibm's reference posteriors, mean over its observations, with two classifiers
that must not be compared with each other: sbi's random forest on 1,000 samples, and
sbibm's multilayer perceptron on 10,000. A base is what sbi's NPE trains, with sbi's
defaults; its hybrid is what NPE_GKL makes of it, from the same simulations.

`hybrid-two-moons` takes both classifiers and ratio estimators beside, with three seeds;
`hybrid-tasks` the forest alone, the maf base and one seed.
"""

import contextlib
import io
import time
from collections.abc import Sequence
from typing import Any

import torch
from matplotlib.figure import Figure
from sbi.inference import NRE_B, NRE_C
from sbi.inference.posteriors import DirectPosterior
from sbi.inference.posteriors.posterior_parameters import MCMCPosteriorParameters
from sbi.utils.metrics import c2st
from sbibm.metrics.c2st import c2st as c2st_of_sbibm
from torch import Tensor

from benchmarks.study import Job, Row, Study, averages
from sbi_boed_plugin import NPE_GKL, NRE_GKL
from sbi_boed_plugin.experiment import NoOpTracker
from sbi_boed_plugin.sbibm import get_task

NUM_OBSERVATIONS = 10
NUM_FOREST, NUM_MLP = 1_000, 10_000

RATIOS = {"NRE_GKL": NRE_GKL, "NRE_B": NRE_B, "NRE_C": NRE_C}
BASES = ("maf", "nsf")
BASE, HYBRID, OTHER = "#888888", "#0072b2", "#d55e00"

TASKS = (
    "two_moons",
    "slcp",
    "gaussian_linear",
    "gaussian_linear_uniform",
    "gaussian_mixture",
    "bernoulli_glm",
    "sir",
    "lotka_volterra",
)

COLUMNS = [
    "c2st_forest_base",
    "c2st_forest",
    "c2st_mlp_base",
    "c2st_mlp",
    "gain",
    "acceptance_rate",
]


def train(job: Job, theta: Tensor, x: Tensor, prior: Any) -> dict[str, Any]:
    """Return posteriors by name, and what is known of the training."""
    settings = {"tracker": NoOpTracker(), "show_progress_bars": False}
    # sbi prints how each training ends.
    with contextlib.redirect_stdout(io.StringIO()):
        if job["method"] in RATIOS:
            trainer = RATIOS[job["method"]](prior, **settings)
            trainer.append_simulations(theta, x).train()
            parameters = MCMCPosteriorParameters(
                method="slice_np_vectorized", num_chains=100, warmup_steps=50, thin=5
            )
            posterior = trainer.build_posterior(posterior_parameters=parameters)
            return {"posterior": posterior, "gain": "", "error": ""}
        trainer = NPE_GKL(prior, job["method"], **settings)
        hybrid = trainer.append_simulations(theta, x).train()
    return {
        "posterior": trainer.build_posterior(),
        "base": DirectPosterior(hybrid.base, prior),
        "gain": trainer.summary["energy_gain"][0],
        "error": trainer.summary["energy_gain_standard_error"][0],
    }


def distances(posterior: Any, task: Any, mlp: bool) -> dict[str, float]:
    """Return the mean C2ST over observations, of each classifier."""
    num_samples = NUM_MLP if mlp else NUM_FOREST
    forest, perceptron = [], []
    for number in range(1, NUM_OBSERVATIONS + 1):
        reference = task.get_reference_posterior_samples(number)
        samples = posterior.sample(
            (num_samples,), x=task.get_observation(number), show_progress_bars=False
        )
        few = reference[:NUM_FOREST], samples[:NUM_FOREST]
        forest.append(float(c2st(*few)))
        if mlp:
            perceptron.append(float(c2st_of_sbibm(reference[:NUM_MLP], samples)))
    made: dict[str, Any] = {"forest": sum(forest) / len(forest), "mlp": ""}
    if mlp:
        made["mlp"] = sum(perceptron) / len(perceptron)
    return made


def run(job: Job, quick: bool) -> Row:
    """Train, draw given every observation, and compare with the references."""
    torch.manual_seed(job["seed"])
    task = get_task(job["task"])
    prior, simulator = task.get_prior_dist(), task.get_simulator()
    theta = prior.sample((job["num_simulations"],))
    x = simulator(theta)
    started = time.process_time()
    trained = train(job, theta, x, prior)
    seconds = time.process_time() - started
    mlp = job["classifiers"] == "both"
    ours = distances(trained["posterior"], task, mlp)
    base = {"forest": "", "mlp": ""}
    acceptance = ""
    if "base" in trained:
        base = distances(trained["base"], task, mlp)
        x_o = [task.get_observation(i) for i in range(1, NUM_OBSERVATIONS + 1)]
        measured = trained["posterior"].diagnostics(torch.cat(x_o))
        acceptance = float(measured.acceptance_rate.mean())
    return {
        "c2st_forest_base": base["forest"],
        "c2st_forest": ours["forest"],
        "c2st_mlp_base": base["mlp"],
        "c2st_mlp": ours["mlp"],
        "gain": trained["gain"],
        "gain_standard_error": trained["error"],
        "acceptance_rate": acceptance,
        "training_cpu_seconds": round(seconds, 1),
    }


def two_moons(num_seeds: int, quick: bool) -> list[Job]:
    return [
        {
            "task": "two_moons",
            "num_simulations": 10_000,
            "method": method,
            "classifiers": "both",
            "seed": seed,
        }
        for seed in range(num_seeds)
        for method in (*BASES, *RATIOS)
    ]


def tasks(num_seeds: int, quick: bool) -> list[Job]:
    return [
        {
            "task": task,
            "num_simulations": budget,
            "method": "maf",
            "classifiers": "forest",
            "seed": seed,
        }
        for seed in range(num_seeds)
        for budget in (1_000, 10_000)
        for task in TASKS
    ]


def summary(rows: Sequence[Row]) -> Sequence[Row]:
    """Return means over seeds, without columns that have no numbers."""
    made = []
    by = ["task", "num_simulations", "method"]
    for method in dict.fromkeys(row["method"] for row in rows):
        of_method = [row for row in rows if row["method"] == method]
        values = [c for c in COLUMNS if of_method[0][c] != ""]
        for line in averages(of_method, by=by, values=values):
            made.append({**dict.fromkeys(_header(by), ""), **line})
    return made


def _header(by: list[str]) -> list[str]:
    return [*by, "seeds", *(n for c in COLUMNS for n in (c, f"{c}_se"))]


def figure(rows: Sequence[Row]) -> Figure:
    """Return C2ST with the forest, of bases, of their hybrids and of other methods."""
    lines = list(reversed(summary(rows)))
    made = Figure(figsize=(7.0, 1.2 + 0.35 * len(lines)), layout="constrained")
    axis = made.subplots()
    labels = []
    for height, row in enumerate(lines):
        labels.append(f"{row['task']}, {row['num_simulations']:,}, {row['method']}")
        has_base = row["c2st_forest_base"] != ""
        color = HYBRID if has_base else OTHER
        axis.plot(row["c2st_forest"], height, "o", color=color)
        if has_base:
            ends = [row["c2st_forest_base"], row["c2st_forest"]]
            axis.plot(ends, [height, height], color="#bbbbbb", zorder=0)
            axis.plot(ends[0], height, "o", color=BASE)
    axis.axvline(0.5, color=BASE, linestyle="--", linewidth=1.0)
    axis.set_ylim(-0.5, len(lines) - 0.5)
    axis.set_yticks(range(len(labels)), labels)
    axis.set_xlabel("C2ST, random forest on 1,000 samples")
    kinds = {"base": BASE, "hybrid": HYBRID}
    if any(row["c2st_forest_base"] == "" for row in lines):
        kinds["ratio estimator"] = OTHER
    for label, color in kinds.items():
        axis.plot([], [], "o", color=color, label=label)
    made.legend(loc="outside upper center", ncols=len(kinds), frameon=False)
    for side in ("top", "right"):
        axis.spines[side].set_visible(False)
    return made


STUDY_OF_TWO_MOONS = Study(
    name="hybrid-two-moons",
    title="Two moons: hybrids, their bases and ratio estimators",
    jobs=two_moons,
    run=run,
    summary=summary,
    figure=figure,
    num_seeds=3,
)
STUDY_OF_TASKS = Study(
    name="hybrid-tasks",
    title="Tasks of sbibm: maf bases and their hybrids",
    jobs=tasks,
    run=run,
    summary=summary,
    figure=figure,
)
