"""What `sbi-boed design` does, once its input is checked."""

import inspect
import math
import sys
import time
from typing import Any

import torch
from torch import Tensor

from sbi_boed_plugin import _report, plotting
from sbi_boed_plugin._results import ResultFolder
from sbi_boed_plugin._rng import isolated_rng
from sbi_boed_plugin.design.config import DesignResult
from sbi_boed_plugin.experiment import (
    design_grid,
    eig_over_designs,
    find_design,
    infer_parameters,
    make_trainer,
    measure,
    reference_eig,
)
from sbi_boed_plugin.tasks.task import Task
from sbi_boed_plugin.trainers.nle_ince import NLE_INCE

__all__ = ["library_default", "run_design"]

SUMMARY, TRACE, SAMPLES = "summary.json", "trace.csv", "posterior_samples.csv"
CURVE = "eig_over_design.csv"
FIGURES = ("trace.png", "policy.png", "posterior.png", "eig_over_design.png")


def library_default(argument: str) -> Any:
    """Return the default of an argument of `NLE_INCE.optimize_design`."""
    return inspect.signature(NLE_INCE.optimize_design).parameters[argument].default


def run_design(
    task: Task,
    folder: ResultFolder,
    *,
    seed: int,
    density_estimator: str | None,
    num_steps: int | None,
    max_seconds: float | None,
    show_progress: bool,
) -> None:
    """Run all stages, print what they find and write it as soon as it is known.

    Args:
        task: The task.
        folder: Where to write.
        seed: Seed of the whole run; the global random state is left as it was.
        density_estimator: Name of a model of `sbi.neural_nets.likelihood_nn`; that
            of `make_trainer` if `None`.
        num_steps: Number of training steps; the library's default if `None`.
        max_seconds: Time in seconds after which no further step is started.
        show_progress: Whether to show progress, on standard error.
    """
    started = time.perf_counter()

    def say(message: str) -> None:
        if show_progress:
            print(message, file=sys.stderr, flush=True)

    with isolated_rng(seed):
        say(f"Searching the best design of {task.name} ...")
        trainer = make_trainer(
            task, density_estimator=density_estimator, show_progress_bars=show_progress
        )
        result = find_design(
            trainer, task, num_steps=num_steps, max_seconds=max_seconds
        )
        # Saved at once: whatever interrupts the rest, the search is not lost.
        summary = _report.design_summary(task, seed, result)
        summary["seconds"] = time.perf_counter() - started
        _save_design(folder, task, result, summary)
        print(_report.describe_design(result, summary), flush=True)

        say("Measuring there and sampling the posterior ...")
        x_o = measure(task, result.design)
        samples = infer_parameters(
            trainer, result.design, x_o, show_progress_bars=show_progress
        )
        summary |= {"x_o": x_o[0].tolist(), **_report.posterior_summary(samples)}
        summary |= {"seconds": time.perf_counter() - started, "complete": True}
        _save_posterior(folder, task, samples, summary)
        print(_report.describe_posterior(task, summary), flush=True)

        if task.dim_design == 1:
            say("Comparing with other designs ...")
            summary["reference_eig"] = _compare_designs(folder, task, result)
            summary["seconds"] = time.perf_counter() - started
            folder.save_json(SUMMARY, summary)


def _save_design(
    folder: ResultFolder, task: Task, result: DesignResult, summary: dict[str, Any]
) -> None:
    """Write what the search found, in the place of an earlier run's results."""
    folder.remove([SUMMARY, SAMPLES, CURVE, *FIGURES])
    folder.save_table(TRACE, *_report.trace_table(result.history, task.dim_design))
    folder.save_json(SUMMARY, summary)
    figure = plotting.plot_trace(
        result.history,
        eig=result.eig,
        cap=(
            math.log(result.config.num_contrastive + 1)
            if result.config.objective == "info_nce"
            else None
        ),
        exact=summary["exact_eig"],
    )
    folder.save_figure("trace.png", figure)
    figure = plotting.plot_policy(
        result.history, task.design_low, task.design_high, task.design_names
    )
    folder.save_figure("policy.png", figure)


def _save_posterior(
    folder: ResultFolder, task: Task, samples: Tensor, summary: dict[str, Any]
) -> None:
    """Write posterior samples, the summary that is now complete, and a figure."""
    folder.save_table(SAMPLES, task.parameter_names, samples.tolist())
    folder.save_json(SUMMARY, summary)
    prior_samples = task.prior.sample(torch.Size((len(samples),)))
    figure = plotting.plot_posterior(
        samples, prior_samples, task.true_parameters, task.parameter_names
    )
    folder.save_figure("posterior.png", figure)


def _compare_designs(
    folder: ResultFolder, task: Task, result: DesignResult
) -> dict[str, float] | None:
    """Score evenly spaced designs, write and print it; return a reference if known."""
    designs = design_grid(task)
    estimates = eig_over_designs(result.likelihood_estimator, task, designs)
    reference = reference_eig(task, torch.cat([designs, result.design.unsqueeze(0)]))
    header = ["design", "eig", "standard_error"]
    rows = [
        [design.item(), estimate.value, estimate.standard_error]
        for design, estimate in zip(designs, estimates, strict=True)
    ]
    if reference is not None:
        header += ["reference_eig", "reference_standard_error"]
        rows = [[*row, *known] for row, known in zip(rows, reference, strict=False)]
    folder.save_table(CURVE, header, rows)
    figure = plotting.plot_eig_over_design(
        designs,
        estimates,
        design=result.design.item(),
        eig=result.eig,
        reference=None if reference is None else reference[:-1],
        name=task.design_names[0],
    )
    folder.save_figure("eig_over_design.png", figure)
    at_design = None if reference is None else reference[-1]
    text = _report.describe_comparison(designs, estimates, result.eig, at_design)
    print(text, flush=True)
    if at_design is None:
        return None
    return {"value": at_design[0], "standard_error": at_design[1]}
