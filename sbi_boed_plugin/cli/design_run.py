"""What `sbi-boed design` does, once its input is checked."""

import math
import sys
import time
from typing import Any

import torch
from torch import Tensor

from sbi_boed_plugin import plotting
from sbi_boed_plugin._results import ResultFolder
from sbi_boed_plugin._rng import isolated_rng
from sbi_boed_plugin.cli import design_report
from sbi_boed_plugin.cli.comparison import (
    design_grid,
    eig_over_designs,
    has_log_designs,
    reference_eig,
)
from sbi_boed_plugin.experiment import (
    find_design,
    infer_parameters,
    make_trainer,
    measure,
    simulate_predictions,
)
from sbi_boed_plugin.search.result import DesignResult
from sbi_boed_plugin.tasks import Task

__all__ = ["run_design"]

SUMMARY, TRACE, SAMPLES = "summary.json", "trace.csv", "posterior_samples.csv"
CURVE = "eig_over_design.csv"
FIGURES = [
    f"{name}.png"
    for name in ("trace", "policy", "posterior", "predictive", "eig_over_design")
]


def run_design(
    task: Task,
    folder: ResultFolder,
    *,
    density_estimator: str | None,
    policy: str,
    search: dict[str, Any],
    seed: int,
    show_progress: bool,
) -> None:
    """Run all stages, print what they find and write it as soon as it is known.

    `search` holds arguments of `optimize_design`. Progress goes to standard error; the
    global random state is left as it was.
    """
    started = time.perf_counter()

    def say(message: str) -> None:
        if show_progress:
            print(message, file=sys.stderr, flush=True)

    with isolated_rng(seed):
        say(f"Searching the best design of {task.name} ...")
        trainer = make_trainer(
            task,
            density_estimator=density_estimator,
            policy=policy,
            show_progress_bars=show_progress,
        )
        result = find_design(trainer, task, **search)
        # Saved at once: whatever interrupts the rest, the search is not lost.
        summary = design_report.design_summary(task, seed, result)
        summary["policy"] = policy
        summary["seconds"] = time.perf_counter() - started
        _save_design(folder, task, result, summary)
        print(design_report.describe_design(result, summary), flush=True)

        say("Measuring there and sampling the posterior ...")
        x_o = measure(task, result.design)
        samples = infer_parameters(
            trainer, result.design, x_o, show_progress_bars=show_progress
        )
        summary["x_o"] = x_o[0].tolist()
        summary["posterior_mean"] = samples.mean(dim=0).tolist()
        summary["posterior_std"] = samples.std(dim=0).tolist()
        summary |= {"seconds": time.perf_counter() - started, "complete": True}
        _save_posterior(folder, task, result.design, x_o, samples, summary)
        print(design_report.describe_posterior(task, summary), flush=True)

        # A map of two measurements would only be one half and its mirror image.
        if task.dim_design == 1 or (task.dim_design == 2 and task.dim_x == 1):
            say("Comparing with other designs ...")
            summary["reference_eig"] = _compare_designs(
                folder, task, result, search["num_workers"]
            )
            summary["seconds"] = time.perf_counter() - started
            folder.save_json(SUMMARY, summary)


def _save_design(
    folder: ResultFolder, task: Task, result: DesignResult, summary: dict[str, Any]
) -> None:
    """Write what the search found, in the place of an earlier run's results."""
    folder.remove([SUMMARY, SAMPLES, CURVE, *FIGURES])
    folder.save_table(TRACE, *design_report.trace_table(result.history))
    folder.save_json(SUMMARY, summary)
    objective, cap = result.config.objective, None
    if objective == "info_nce":
        cap = math.log((result.config.num_contrastive or 0) + 1)
    exact = summary["exact_eig"]
    figure = plotting.plot_trace(
        result.history, eig=result.eig, objective=objective, cap=cap, exact=exact
    )
    folder.save_figure("trace.png", figure)
    if result.config.method == "joint":
        # A multi-start search does not move its policy.
        figure = plotting.plot_policy(
            result.history, task.design_low, task.design_high, task.design_names
        )
        folder.save_figure("policy.png", figure)


def _save_posterior(
    folder: ResultFolder,
    task: Task,
    design: Tensor,
    x_o: Tensor,
    samples: Tensor,
    summary: dict[str, Any],
) -> None:
    """Write posterior samples, the summary that is now complete, and figures."""
    folder.save_table(SAMPLES, task.parameter_names, samples.tolist())
    folder.save_json(SUMMARY, summary)
    prior_samples = task.prior.sample(torch.Size((len(samples),)))
    figure = plotting.plot_posterior(
        samples,
        prior_samples,
        task.true_parameters,
        task.parameter_names,
        log=_spans_decades(prior_samples),
    )
    folder.save_figure("posterior.png", figure)
    figure = plotting.plot_predictive(
        x_o,
        [simulate_predictions(task, samples, design)],
        [simulate_predictions(task, prior_samples, design)],
        names=task.x_names,
    )
    folder.save_figure("predictive.png", figure)


def _spans_decades(samples: Tensor) -> list[bool]:
    """Return which parameters are positive with a ratio of 1,000 in their bulk."""
    low, high = samples.quantile(torch.tensor([0.05, 0.95]), dim=0)
    return ((samples > 0).all(dim=0) & (high > 1_000.0 * low)).tolist()


def _compare_designs(
    folder: ResultFolder, task: Task, result: DesignResult, num_workers: int
) -> dict[str, float] | None:
    """Score designs of a grid, write and print it; return a reference if known."""
    designs = design_grid(task)
    estimates = eig_over_designs(result, task, designs, num_workers)
    reference = reference_eig(task, torch.cat([designs, result.design.unsqueeze(0)]))
    at_design = None if reference is None else reference.pop()
    header = ["design"]
    if task.dim_design > 1:
        header = [f"design_{j + 1}" for j in range(task.dim_design)]
    header += ["eig", "standard_error"]
    rows = [
        [*design.tolist(), estimate.value, estimate.standard_error]
        for design, estimate in zip(designs, estimates, strict=True)
    ]
    if reference is not None:
        header += ["reference_eig", "reference_standard_error"]
        rows = [[*row, *known] for row, known in zip(rows, reference, strict=True)]
    folder.save_table(CURVE, header, rows)

    visited = None
    if result.config.method == "joint":
        # Designs of a multi-start search do not come from its policy.
        ends = task.design_low, task.design_high
        visited = plotting.visited_designs(result.history, designs, *ends)
    shared: dict[str, Any] = {
        "eig": result.eig,
        "candidates": result.candidates,
        "reference": reference,
        "visited": visited,
        "log": has_log_designs(task),
    }
    if task.dim_design == 1:
        place, name = result.design.item(), task.design_names[0]
        figure = plotting.plot_eig_over_design(
            designs, estimates, design=place, name=name, **shared
        )
    else:
        names = task.design_names
        figure = plotting.plot_eig_map(
            designs, estimates, design=result.design, names=names, **shared
        )
    folder.save_figure("eig_over_design.png", figure)
    text = design_report.describe_comparison(designs, estimates, result.eig, at_design)
    print(text, flush=True)
    if at_design is None:
        return None
    return {"value": at_design[0], "standard_error": at_design[1]}
