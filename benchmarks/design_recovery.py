"""Exact information of the designs that `optimize_design` finds.

    python benchmarks/design_recovery.py --output docs/results/design_recovery.csv

The tasks have known answers: `gaussian_linear` in closed form, the others by quadrature
with the true likelihood. For the straight lines the optimum puts half of the
measurements at each end of the box; for the others it is the best of a grid.
"""

import argparse
import csv
import time
import warnings
from pathlib import Path
from typing import Any, Dict, List, Tuple

import torch

from sbi_boed_plugin import tasks
from sbi_boed_plugin.experiment import find_design, make_trainer

CASES: List[Tuple[str, int, int]] = [
    (name, dim_design, seed)
    for name, dim_design, num_seeds in (
        ("gaussian_linear", 1, 5),
        ("noisy_linear", 1, 5),
        ("noisy_linear", 10, 5),
        ("pharmacokinetic", 1, 5),
        ("location_finding", 2, 5),
    )
    for seed in range(num_seeds)
]


def optimum(task: tasks.Task) -> torch.Tensor:
    """Return the best design: half of the measurements at each end, or of a grid."""
    if hasattr(task, "exact_eig_grid"):
        num = {1: 481, 2: 33}[task.dim_design]
        axes = [
            torch.linspace(low, high, num)
            for low, high in zip(task.design_low, task.design_high, strict=True)
        ]
        grid = torch.stack(torch.meshgrid(*axes, indexing="ij"), -1).flatten(0, -2)
        return grid[task.exact_eig_grid(grid)[0].argmax()]
    design = task.design_high.clone()
    design[: task.dim_design // 2] = task.design_low[: task.dim_design // 2]
    return design


def recover(name: str, dim_design: int, seed: int) -> Dict[str, Any]:
    """Search for the best design of a task and score it exactly."""
    torch.manual_seed(seed)
    sizes = {} if name == "location_finding" else {"dim_design": dim_design}
    task = tasks.get_task(name, **sizes)
    trainer = make_trainer(task, show_progress_bars=False)
    started = time.perf_counter()
    result = find_design(trainer, task)
    seconds = time.perf_counter() - started
    found, error = task.exact_eig(result.design)
    best, _ = task.exact_eig(optimum(task))
    return {
        "task": name,
        "dim_design": dim_design,
        "seed": seed,
        "design": " ".join(f"{value:.2f}" for value in result.design.tolist()),
        "exact_eig": round(found, 4),
        "standard_error": round(error, 4),
        "optimum": round(best, 4),
        "share_of_optimum": round(found / best, 4),
        "reported_lower_bound": round(result.eig.value, 4),
        "num_simulations": result.num_simulations,
        "seconds": round(seconds, 1),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--output", type=Path, required=True)
    args = parser.parse_args()
    warnings.filterwarnings("ignore")
    rows = []
    for case in CASES:
        rows.append(recover(*case))
        print(rows[-1], flush=True)
        with args.output.open("w", newline="") as file:
            writer = csv.DictWriter(file, list(rows[0]))
            writer.writeheader()
            writer.writerows(rows)


if __name__ == "__main__":
    main()
