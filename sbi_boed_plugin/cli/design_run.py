"""What `sbi-boed design` does, once its input is checked, and what it tells."""

import math
import sys
import time
import warnings
from collections.abc import Sequence
from typing import Any

import sbi
import torch
from torch import Tensor
from torch.distributions.transforms import ExpTransform

from sbi_boed_plugin import plotting
from sbi_boed_plugin._results import ResultFolder
from sbi_boed_plugin._rng import isolated_rng
from sbi_boed_plugin.experiment import (
    find_design,
    infer_parameters,
    make_trainer,
    measure,
    simulate_predictions,
)
from sbi_boed_plugin.search.result import DesignResult
from sbi_boed_plugin.tasks import SIR, Task, brute_force_eig
from sbi_boed_plugin.trainers.nle_ince import NLE_INCE

__all__ = ["design_grid", "run_design"]

SUMMARY, TRACE, SAMPLES = "summary.json", "trace.csv", "posterior_samples.csv"
CURVE = "eig_over_design.csv"
FIGURES = ["trace.png", "policy.png", "posterior.png", "predictive.png"]
FIGURES += ["eig_over_design.png"]

_TRACE_COLUMNS = ["eig", "eig_standard_error", "loss", "log_likelihood"]
_TRACE_COLUMNS += ["num_simulations", "seconds"]
# More values than this are not printed.
_MAX_PRINTED = 10
# Designs that a search compared, the best ones, that a figure shows.
_MAX_CANDIDATES = 10
_GRID_SIZE = 21


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

    def save_summary() -> None:
        summary["seconds"] = time.perf_counter() - started
        folder.save_json(SUMMARY, summary)

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
        summary = {"seed": seed, "policy": policy, **_summary(task, result)}
        folder.remove([SUMMARY, SAMPLES, CURVE, *FIGURES])
        save_summary()
        _save_search(folder, task, result, summary["exact_eig"])
        print(_describe_design(task, result, summary), flush=True)

        say("Measuring there and sampling the posterior ...")
        x_o = measure(task, result.design)
        samples = infer_parameters(
            trainer, result.design, x_o, show_progress_bars=show_progress
        )
        summary |= {
            "x_o": x_o.flatten().tolist(),
            "posterior_mean": samples.mean(dim=0).tolist(),
            "posterior_std": samples.std(dim=0).tolist(),
        }
        _save_posterior(folder, task, result.design, x_o, samples)
        save_summary()
        print(_describe_posterior(summary), flush=True)

        if task.dim_design == 1:
            say("Comparing with other designs ...")
            summary["reference_eig"] = _compare_designs(folder, task, result, trainer)
        # Said last: all tables and figures are there.
        summary["complete"] = True
        save_summary()


def _summary(task: Task, result: DesignResult) -> dict[str, Any]:
    """Return what is known once the design is found, still without a posterior."""
    exact, exact_error = None, None
    if task.has_exact_eig:
        exact, exact_error = task.exact_eig(result.design)
    return {
        "task": task.name,
        "complete": False,
        "method": result.config.method,
        "objective": result.config.objective,
        "gradient": result.config.gradient,
        "design": result.design.tolist(),
        "design_names": list(task.design_names),
        "eig": result.eig.to_dict(),
        "bounds": {name: eig.to_dict() for name, eig in result.bounds.items()},
        "doubts": list(result.doubts),
        "candidates": [
            {"design": design.tolist(), "eig": eig.to_dict()}
            for design, eig in result.candidates
        ],
        "exact_eig": exact,
        "exact_eig_standard_error": exact_error,
        "stop_reason": result.stop_reason,
        "num_steps": len(result.history["loss"]),
        "num_simulations": result.num_simulations,
        "num_invalid_simulations": result.num_invalid_simulations,
        "x_names": list(task.x_names),
        "parameter_names": list(task.parameter_names),
        "true_parameters": task.true_parameters[0].tolist(),
        "seconds_training": result.seconds,
        "versions": {"sbi": sbi.__version__, "torch": torch.__version__},
    }


def _save_search(
    folder: ResultFolder, task: Task, result: DesignResult, exact: float | None
) -> None:
    """Write the training history as a table and as figures."""
    history, config = result.history, result.config
    # Without a likelihood there is none of its columns.
    columns = [name for name in _TRACE_COLUMNS if name in history]
    columns += [name for name in history if name not in _TRACE_COLUMNS]
    header, rows = [], []
    for index in range(len(history["loss"])):
        row = [("step", index + 1)]
        for name in columns:
            prefix = "design" if name == "mode" else name
            row += _flatten(prefix, history[name][index])
        header, values = zip(*row, strict=True)
        rows.append(values)
    folder.save_table(TRACE, header, rows)
    cap = None
    if config.objective == "info_nce" and config.num_contrastive is not None:
        cap = math.log(config.num_contrastive + 1)
    figure = plotting.plot_trace(
        history, eig=result.eig, objective=config.objective, cap=cap, exact=exact
    )
    folder.save_figure("trace.png", figure)
    if config.method == "joint":
        # A multi-start search does not move its policy.
        figure = plotting.plot_policy(
            history, task.design_low, task.design_high, task.design_names
        )
        folder.save_figure("policy.png", figure)


def _flatten(name: str, value: Any) -> list[tuple[str, Any]]:
    """Return numbers with the names of their columns, such as `loc_1_1`."""
    if not isinstance(value, list):
        return [(name, value)]
    parts = enumerate(value, start=1)
    return [pair for j, part in parts for pair in _flatten(f"{name}_{j}", part)]


def _describe_design(task: Task, result: DesignResult, summary: dict[str, Any]) -> str:
    """Return the design and its information gain as text."""
    header = (
        f"\nBest design of {task.name}, after {summary['num_steps']:,} steps in "
        f"{result.seconds:.0f} s ({result.stop_reason})\n{result}"
    )
    rows = _printed(task.design_names, summary["design"])
    if summary["exact_eig"] is not None:
        error = summary["exact_eig_standard_error"]
        rows.append(("exact EIG", _nats(summary["exact_eig"], error)))
    return _table(header, rows)


def _describe_posterior(summary: dict[str, Any]) -> str:
    """Return the measurement and the posterior as text."""
    rows = _printed(summary["x_names"], summary["x_o"])
    measured = _table("\nMeasured there at the true parameters", rows)
    columns = ("parameter_names", "posterior_mean", "posterior_std", "true_parameters")
    rows = [
        (name, f"{mean:.3g} ± {std:.2g}  (truth {truth:.3g})")
        for name, mean, std, truth in zip(*(summary[c] for c in columns), strict=True)
    ]
    return _table(f"{measured}\n\nPosterior, mean ± standard deviation", rows)


def _printed(names: Sequence[str], values: Sequence[float]) -> list[tuple[str, str]]:
    """Return rows of named values, unless there are too many of them."""
    if len(values) > _MAX_PRINTED:
        return [(f"{len(values)} values", f"see {SUMMARY}")]
    return [(name, f"{value:.4g}") for name, value in zip(names, values, strict=True)]


def _table(header: str, rows: list[tuple[str, str]]) -> str:
    """Return a header and lines of two columns."""
    width = max(24, *(len(name) for name, _ in rows)) if rows else 0
    return "\n".join([header, *(f"  {name:<{width}}  {text}" for name, text in rows)])


def _nats(value: float, error: float) -> str:
    """Return a value with its standard error, if it has one."""
    return f"{value:.3f} nats" if error == 0.0 else f"{value:.3f} ± {error:.3f} nats"


def _save_posterior(
    folder: ResultFolder, task: Task, design: Tensor, x_o: Tensor, samples: Tensor
) -> None:
    """Write posterior samples and figures."""
    folder.save_table(SAMPLES, task.parameter_names, samples.tolist())
    prior_samples = task.prior.sample(torch.Size((len(samples),)))
    # Parameters that are positive with a ratio of 1,000 in their bulk.
    low, high = prior_samples.quantile(torch.tensor([0.05, 0.95]), dim=0)
    log = ((prior_samples > 0).all(dim=0) & (high > 1_000.0 * low)).tolist()
    names = task.parameter_names
    figure = plotting.plot_posterior(
        samples, prior_samples, task.true_parameters, names, log=log
    )
    folder.save_figure("posterior.png", figure)
    figure = plotting.plot_predictive(
        x_o.flatten(1),
        [simulate_predictions(task, samples, design)],
        [simulate_predictions(task, prior_samples, design)],
        names=task.x_names,
    )
    folder.save_figure("predictive.png", figure)


def _compare_designs(
    folder: ResultFolder, task: Task, result: DesignResult, trainer: NLE_INCE
) -> dict[str, float] | None:
    """Score designs of a grid, write and print it; return a reference if known."""
    designs, objective = design_grid(task), result.config.objective
    with warnings.catch_warnings():
        # The same remarks for many designs tell less than the values themselves.
        warnings.filterwarnings("ignore", "The .*estimate", UserWarning)
        estimates = [
            trainer.estimate_eig(
                task.simulator,
                design,
                objective=objective or "barber_agakov",
                # This bound contrasts its simulations with nothing.
                num_samples=1_000 if objective == "barber_agakov" else 300,
                num_contrastive=255,
                num_workers=result.config.num_workers,
                seed=0,
            )
            for design in designs
        ]
    # Like with like: by the bound of the objective.
    found = result.bounds.get(estimates[0].bound, result.eig)
    reference = _reference_eig(task, torch.cat([designs, result.design.unsqueeze(0)]))
    at_design = None if reference is None else reference.pop()
    header = ["design", "eig", "standard_error"]
    rows = [
        [design.item(), estimate.value, estimate.standard_error]
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
    figure = plotting.plot_eig_over_design(
        designs,
        estimates,
        design=result.design.item(),
        eig=found,
        # After rounds, there are also designs that came far behind.
        candidates=result.candidates[:_MAX_CANDIDATES],
        reference=reference,
        visited=visited,
        name=task.design_names[0],
        # Designs are logarithms for the networks where they span decades.
        log=isinstance(task.design_transform.inv, ExpTransform),
    )
    folder.save_figure("eig_over_design.png", figure)

    best, value, error, *_ = max(rows, key=lambda row: row[1])
    lines = [("design found", _nats(found.value, found.standard_error))]
    lines.append((f"best, at {best:.4g}", _nats(value, error)))
    if at_design is not None:
        lines.append(("without learned networks", _nats(*at_design)))
    print(_table(f"\nEIG beside {len(designs)} designs of a grid", lines), flush=True)
    if at_design is None:
        return None
    return {"value": at_design[0], "standard_error": at_design[1]}


def design_grid(task: Task) -> Tensor:
    """Return designs `(num, 1)` that cover the space.

    They are evenly spaced in the coordinates of the task's `design_transform`:
    geometrically where designs span decades.
    """
    ends = torch.stack([task.design_low, task.design_high])
    low, high = torch.as_tensor(task.design_transform(ends))
    part = torch.linspace(0.0, 1.0, _GRID_SIZE).unsqueeze(1)
    designs = task.design_transform.inv(low + part * (high - low))
    # What rounding leaves outside is brought back.
    return torch.as_tensor(designs).clamp(task.design_low, task.design_high)


def _reference_eig(task: Task, designs: Tensor) -> list[tuple[float, float]] | None:
    """Return the information without learned networks and its standard error, in nats.

    It is exact where the task has an exact answer, and for one count of the SIR model
    comes from brute-force simulation. For other tasks it is `None`.
    """
    if task.has_exact_eig:
        return [task.exact_eig(design) for design in designs]
    if not isinstance(task, SIR):
        return None
    # Enough for a standard error of about 0.01 nats, in a few seconds.
    values, errors = brute_force_eig(
        designs[:, 0], num_parameters=256, num_trajectories=2_048, num_replicates=4
    )
    return list(zip(values.tolist(), errors.tolist(), strict=True))
