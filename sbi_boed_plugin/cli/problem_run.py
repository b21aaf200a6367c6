"""What `sbi-boed design` does for a problem of the user."""

from typing import Any

import torch
from torch import Tensor

from sbi_boed_plugin import plotting
from sbi_boed_plugin._results import ResultFolder
from sbi_boed_plugin._rng import isolated_rng
from sbi_boed_plugin.problem import Problem
from sbi_boed_plugin.search.result import DesignResult

__all__ = ["design_problem"]

SUMMARY, CANDIDATES, SIMULATIONS = "summary.json", "candidates.csv", "simulations.csv"
CURVE = "eig_over_design.png"


def design_problem(
    problem: Problem,
    folder: ResultFolder,
    *,
    search: dict[str, Any],
    rows: tuple[Tensor, Tensor, Tensor] | None,
    seed: int,
    show_progress: bool,
) -> DesignResult:
    """Find a design, print it and write what is known of it, and all simulations.

    With `rows` of earlier simulations and without a budget, these alone are used.
    """
    with isolated_rng(seed):
        trainer = problem.make_trainer(show_progress_bars=show_progress)
        simulator = problem.simulator
        if rows is not None:
            theta, design, x = rows
            trainer.append_simulations(theta, x, design=design)
            if search.get("max_num_simulations") is None:
                simulator = None
        result = trainer.optimize_design(simulator, **search, **problem.settings)
    folder.remove([SUMMARY, CANDIDATES, SIMULATIONS, CURVE])
    summary = {
        "problem": problem.name,
        "seed": seed,
        "method": result.config.method,
        "objective": result.config.objective,
        "design": result.design.tolist(),
        "design_names": list(problem.design_names or ()),
        "eig": result.eig.to_dict(),
        "about_target": problem.target is not None,
        "cost": result.cost,
        "utility": result.utility,
        "bounds": {name: eig.to_dict() for name, eig in result.bounds.items()},
        "doubts": list(result.doubts),
        "stop_reason": result.stop_reason,
        "num_simulations": result.num_simulations,
        "num_invalid_simulations": result.num_invalid_simulations,
    }
    folder.save_json(SUMMARY, summary)
    names = [f"design_{i + 1}" for i in range(len(result.design))]
    values = [
        [*design.tolist(), eig.value, eig.standard_error]
        for design, eig in result.candidates
    ]
    folder.save_table(CANDIDATES, [*names, "eig", "standard_error"], values)
    theta, design, x = trainer.simulations
    parts = {"theta": theta, "design": design, "x": x.flatten(1)}
    header = [f"{n}_{i + 1}" for n, p in parts.items() for i in range(p.shape[1])]
    of_rows = zip(*(part.tolist() for part in parts.values()), strict=True)
    table = [[value for part in row for value in part] for row in of_rows]
    folder.save_table(SIMULATIONS, header, table)
    if len(result.design) == 1 and result.candidates:
        designs, estimates = zip(*sorted(result.candidates, key=_place), strict=True)
        figure = plotting.plot_eig_over_design(
            torch.stack(designs),
            estimates,
            design=result.design.item(),
            eig=result.eig,
            name=(problem.design_names or ["design"])[0],
        )
        folder.save_figure(CURVE, figure)
    print(f"\nBest design of {problem.name}\n{result}", flush=True)
    return result


def _place(candidate: tuple[Tensor, Any]) -> float:
    return candidate[0].item()
