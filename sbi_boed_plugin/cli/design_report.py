"""What is told about a designed experiment: numbers for files, and text for people."""

import textwrap
from typing import Any

import sbi
import torch
from torch import Tensor

from sbi_boed_plugin.objectives.eig import LOWER_BOUNDS, EIGEstimate
from sbi_boed_plugin.search.result import DesignResult
from sbi_boed_plugin.tasks import Task

__all__ = [
    "describe_comparison",
    "describe_design",
    "describe_posterior",
    "design_summary",
    "trace_table",
]

_TRACE_COLUMNS = (
    "eig",
    "eig_standard_error",
    "loss",
    "log_likelihood",
    "num_simulations",
    "seconds",
)

# More design values than this are printed without their names.
_MAX_NAMED = 10


def trace_table(history: dict[str, list[Any]]) -> tuple[list[str], list[list[Any]]]:
    """Return header and rows of the training history, one row per step.

    Vectors have a column for each value: `design_1` and so on for the mode of the
    policy, `loc_1_1` for the first component and design value of a mixture.
    """
    described = [name for name in history if name not in _TRACE_COLUMNS]
    names, rows = [], []
    for index in range(len(history["loss"])):
        row = [("step", index + 1)]
        row += [(name, history[name][index]) for name in _TRACE_COLUMNS]
        for name in described:
            prefix = "design" if name == "mode" else name
            row += _flatten(prefix, history[name][index])
        names, values = zip(*row, strict=True)
        rows.append(list(values))
    return list(names), rows


def _flatten(name: str, value: Any) -> list[tuple[str, Any]]:
    """Return numbers with the names of their columns."""
    if not isinstance(value, list):
        return [(name, value)]
    parts = enumerate(value, start=1)
    return [pair for j, part in parts for pair in _flatten(f"{name}_{j}", part)]


def design_summary(task: Task, seed: int, result: DesignResult) -> dict[str, Any]:
    """Return what is known once the design is found, still without a posterior."""
    exact, exact_error = None, None
    if task.has_exact_eig:
        exact, exact_error = task.exact_eig(result.design)
    return {
        "task": task.name,
        "seed": seed,
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
        "parameter_names": list(task.parameter_names),
        "true_parameters": task.true_parameters[0].tolist(),
        "x_o": None,
        "posterior_mean": None,
        "posterior_std": None,
        "seconds": None,
        "seconds_training": result.seconds,
        "versions": {"sbi": sbi.__version__, "torch": torch.__version__},
    }


def describe_design(result: DesignResult, summary: dict[str, Any]) -> str:
    """Return the design and its information gain as text."""
    lines = [
        f"\nBest design of {summary['task']} after {summary['num_steps']:,} steps, "
        f"{result.num_simulations:,} simulations and {result.seconds:.0f} s"
        + (" (time limit)" if result.stop_reason == "max_seconds" else "")
    ]
    values, names = summary["design"], summary["design_names"]
    if len(values) > _MAX_NAMED:
        text = (
            f"{len(values)} values, in order: {_numbers(result.design.sort().values)}"
        )
        lines.append(textwrap.indent(textwrap.fill(text, width=78), "  "))
    else:
        lines += _aligned([(n, f"{v:.4g}") for n, v in zip(names, values, strict=True)])
    eig = result.eig
    cap = "" if eig.cap is None else f", cap {eig.cap:.2f} nats"
    kind = "lower bound" if eig.bound in LOWER_BOUNDS else eig.bound
    rows = [("EIG", f"{_nats(eig)} ({kind}{cap})")]
    if summary["exact_eig"] is not None:
        exact = summary["exact_eig"], summary["exact_eig_standard_error"]
        rows.append(("exact EIG", _nats(exact)))
    for rank, (design, estimate) in enumerate(result.candidates, start=1):
        text = f"{_nats(estimate)}, at {_numbers(design[:_MAX_NAMED])}"
        rows.append((f"candidate {rank}", text))
    return "\n".join(lines + _aligned(rows))


def describe_posterior(task: Task, summary: dict[str, Any]) -> str:
    """Return the measurement and the posterior as text."""
    lines = ["\nMeasured there at the true parameters"]
    if len(summary["x_o"]) > _MAX_NAMED:
        lines.append(f"  {len(summary['x_o'])} values, see summary.json")
    else:
        pairs = zip(task.x_names, summary["x_o"], strict=True)
        lines += _aligned([(name, f"{value:.4g}") for name, value in pairs])
    lines.append("\nPosterior, mean ± standard deviation")
    columns = ("parameter_names", "posterior_mean", "posterior_std", "true_parameters")
    rows = [
        (name, f"{mean:.3g} ± {std:.2g}  (truth {truth:.3g})")
        for name, mean, std, truth in zip(*(summary[c] for c in columns), strict=True)
    ]
    return "\n".join(lines + _aligned(rows))


def describe_comparison(
    designs: Tensor,
    estimates: list[EIGEstimate],
    found: EIGEstimate,
    reference: tuple[float, float] | None,
) -> str:
    """Return how the design found compares with those of a grid, as text."""
    values = [estimate.value for estimate in estimates]
    best = values.index(max(values))
    rows = [("design found", _nats(found))]
    if reference is not None:
        rows.append(("  reference", f"{_nats(reference)}, without learned networks"))
    rows.append((f"best, at {_numbers(designs[best])}", _nats(estimates[best])))
    rows.append(("average", f"{sum(values) / len(values):.2f} nats"))
    num_negative = sum(value < 0.0 for value in values)
    if num_negative:
        text = f"{num_negative} designs: the networks were hardly trained there"
        rows.append(("negative", text))
    header = f"\nEIG beside {len(estimates)} designs of a grid"
    return "\n".join([header, *_aligned(rows)])


def _aligned(rows: list[tuple[str, str]]) -> list[str]:
    """Return lines of two columns."""
    width = max(len(name) for name, _ in rows)
    return [f"  {name:<{max(width, 24)}}  {text}" for name, text in rows]


def _nats(estimate: EIGEstimate | tuple[float, float]) -> str:
    """Return a value with its standard error, if it has one."""
    if isinstance(estimate, EIGEstimate):
        estimate = estimate.value, estimate.standard_error
    value, error = estimate
    return f"{value:.3f} nats" if error == 0.0 else f"{value:.3f} ± {error:.3f} nats"


def _numbers(values: Tensor) -> str:
    """Return a list of numbers."""
    return ", ".join(f"{value:.4g}" for value in values.tolist())
