"""Designs from few simulations: the share of the largest information, by method.

    make reproduce NAME=few-simulations

For each task, budget and seed the exact information of the design found, by searches in
rounds, joint and multi-start ones, and by what users would do instead:

- `npe_grid`: sbi's NPE, trained on nine tenths of the simulations, at designs all over
  the space; the designs of a grid (in more than two dimensions: random ones) are scored
  by the mean log-density of the parameters of the rest;
- `bayes_opt`: Bayesian optimisation by a Gaussian process of estimates that each take a
  tenth of the simulations (at most 200) at one design: the bound of a parabola.

The information of `sir` is interpolated from the brute-force curve of `sir-ablation`.
`share` is relative to the best design known; that of `ces` was found by climbing its
exact information.
"""

import contextlib
import io
import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from matplotlib.figure import Figure
from matplotlib.ticker import NullLocator
from sbi.inference import NPE
from sklearn.gaussian_process import GaussianProcessRegressor
from sklearn.gaussian_process.kernels import RBF, ConstantKernel, WhiteKernel
from torch import Tensor

from benchmarks.study import Job, Row, Study
from sbi_boed_plugin import tasks
from sbi_boed_plugin.benchmark.summary import mean_and_sem
from sbi_boed_plugin.experiment import NoOpTracker, find_design, make_trainer
from sbi_boed_plugin.plotting._style import LINES, despine
from sbi_boed_plugin.search.assessment import linear_bound

# Tasks with the number of measurements where that is free, and the largest information.
CASES = {
    ("gaussian_linear", 1): 3.407,
    ("noisy_linear", 1): 2.416,
    ("pharmacokinetic", 0): 1.200,
    ("sir", 0): 1.280,
    ("bmp", 0): 2.485,
    ("location_finding", 0): 0.827,
    ("ces", 0): 4.473,
    ("noisy_linear", 10): 5.133,
}
BUDGETS = (300, 1_000, 3_000, 10_000, 30_000)
METHODS = ("rounds", "joint", "multi_start", "npe_grid", "bayes_opt")
_CURVE = Path(__file__).parents[1] / "docs" / "results" / "sir-ablation.csv"
_GRID, _MOST_AT_ONE_DESIGN = 50, 200


def jobs(num_seeds: int, quick: bool) -> list[Job]:
    """Return one job for each seed, budget, task and method."""
    cases = list(CASES)[2:3] if quick else list(CASES)
    return [
        {"task": name, "size": size, "budget": budget, "method": method, "seed": seed}
        for budget in (BUDGETS[:1] if quick else BUDGETS)
        for seed in range(num_seeds)
        for name, size in cases
        for method in METHODS
    ]


def information(task: tasks.Task, design: Tensor) -> float:
    """Return the exact information of a design, in nats."""
    if task.has_exact_eig:
        return task.exact_eig(design)[0]
    curve = pd.read_csv(_CURVE)["curve"].dropna()[0]
    points = [tuple(map(float, pair.split(":"))) for pair in curve.split()]
    designs, values = zip(*points, strict=True)
    return float(np.interp(float(design[0]), designs, values))


def run(job: Job, quick: bool) -> Row:
    """Find a design with a budget, and evaluate it."""
    torch.manual_seed(job["seed"])
    np.random.seed(job["seed"])
    sizes = {"dim_design": job["size"]} if job["size"] else {}
    task = tasks.get_task(job["task"], **sizes)
    started = time.process_time()
    row: dict[str, object] = {"reported": None, "standard_error": None, "doubts": None}
    if job["method"] in _OTHERS:
        design = _OTHERS[job["method"]](task, job["budget"])
    else:
        trainer = make_trainer(task, show_progress_bars=False)
        settings = {"method": job["method"], "max_num_simulations": job["budget"]}
        result = find_design(trainer, task, **settings)
        design = result.design
        row["reported"] = round(result.eig.value, 3)
        row["standard_error"] = round(result.eig.standard_error, 3)
        row["doubts"] = len(result.doubts)
    seconds = time.process_time() - started
    exact = information(task, design)
    best = CASES[job["task"], job["size"]]
    return {
        "design": " ".join(f"{value:.4g}" for value in design.tolist()),
        "exact": round(exact, 3),
        "share": round(exact / best, 3),
        **row,
        "cpu_seconds": round(seconds, 1),
    }


def _npe_grid(task: tasks.Task, budget: int) -> Tensor:
    """Return the design that NPE on simulations all over the space thinks best."""
    num_scoring = max(_GRID, budget // 10)
    num_training = budget - num_scoring
    theta = task.prior.sample((num_training,))
    design = task.design_space.sample((num_training,))
    x = task.simulator(theta, design)
    trainer = NPE(task.prior, tracker=NoOpTracker(), show_progress_bars=False)
    with contextlib.redirect_stdout(io.StringIO()):
        trainer.append_simulations(theta, torch.cat([x, design], dim=1))
        estimator = trainer.train()
    designs = task.design_space.sample((_GRID,))
    if task.dim_design == 1:
        steps = torch.linspace(0.0, 1.0, _GRID).unsqueeze(1)
        designs = task.design_low + steps * (task.design_high - task.design_low)
    each = num_scoring // _GRID
    theta, rows = task.prior.sample((_GRID * each,)), designs.repeat_interleave(each, 0)
    data = torch.cat([task.simulator(theta, rows), rows], dim=1)
    with torch.no_grad():
        terms = estimator.log_prob(theta.unsqueeze(0), data)[0]
    terms = terms - task.prior.log_prob(theta)
    return designs[terms.reshape(_GRID, each).mean(dim=1).argmax()]


def _bayes_opt(task: tasks.Task, budget: int) -> Tensor:
    """Return the design that a Gaussian process of estimates thinks best."""
    each = min(_MOST_AT_ONE_DESIGN, budget // 10)
    width = task.design_high - task.design_low
    units, values = [], []
    pool = torch.rand(2_000, task.dim_design)
    kernel = ConstantKernel() * RBF(0.3, (0.05, 3.0)) + WhiteKernel(0.1)
    process = GaussianProcessRegressor(kernel, normalize_y=True)
    for index in range(budget // each):
        unit = torch.rand(task.dim_design)
        if index >= 4:
            mean, spread = process.predict(pool.numpy(), return_std=True)
            unit = pool[int((mean + 2.0 * spread).argmax())]
        design = task.design_low + unit * width
        theta = task.prior.sample((each,))
        x = task.simulator(theta, design.expand(each, -1))
        estimate = linear_bound(theta, x, task.prior, 0.0)
        units.append(unit.numpy())
        values.append(0.0 if estimate is None else max(-1.0, estimate.value))
        process.fit(np.stack(units), np.array(values))
    best = pool[int(process.predict(pool.numpy()).argmax())]
    return task.design_low + best * width


_OTHERS = {"npe_grid": _npe_grid, "bayes_opt": _bayes_opt}


def summary(rows: Sequence[Row]) -> Sequence[Row]:
    """Return means over seeds, the worst seed, and how far what is reported is off."""
    table = pd.DataFrame(list(rows))
    by = ["task", "size", "budget", "method"]
    table["below"] = table["exact"] - table["reported"]
    means = mean_and_sem(table, by, ["share", "below", "cpu_seconds"]).round(3)
    worst = table.groupby(by)["share"].min()
    keys = list(means[by].itertuples(index=False, name=None))
    means["worst"] = [worst.loc[key] for key in keys]
    return means.to_dict("records")


def figure(rows: Sequence[Row]) -> Figure:
    """Plot mean shares of the optimum against the budget, a panel for each task."""
    table = pd.DataFrame(list(rows))
    result = Figure((7.5, 7.0), layout="constrained")
    panels = result.subplots(3, 3, sharey=True, sharex=True).flat
    for panel, (name, size) in zip(panels, CASES, strict=False):
        part = table[(table["task"] == name) & (table["size"] == size)]
        for method, color in zip(METHODS, LINES, strict=False):
            own = part[part["method"] == method].groupby("budget")["share"].mean()
            panel.plot(own.index, own, "o-", color=color, markersize=4, label=method)
        panel.set_title(f"{name}, {size} values" if size > 1 else name, fontsize=9)
        panel.set_xscale("log")
        budgets = sorted(table["budget"].unique())
        labels = [f"{b // 1_000}k" if b >= 1_000 else str(b) for b in budgets]
        panel.set_xticks(budgets, labels)
        panel.xaxis.set_minor_locator(NullLocator())
        panel.set_ylim(0.0, 1.05)
        despine(panel)
    *_, last = result.axes
    result.axes[5].tick_params(labelbottom=True)  # Below it is the legend.
    last.axis("off")
    last.legend(*result.axes[0].get_legend_handles_labels(), loc="center")
    result.supxlabel("simulations", fontsize="medium")
    result.supylabel("information of the design, of the best", fontsize="medium")
    return result


STUDY = Study(
    name="few-simulations",
    title="Share of the largest information, by budget and method",
    jobs=jobs,
    run=run,
    summary=summary,
    figure=figure,
    num_seeds=10,
)
