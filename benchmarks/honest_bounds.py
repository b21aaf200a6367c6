"""Reported lower bounds against exact answers, at the defaults and with budgets.

    python benchmarks/honest_bounds.py --output docs/results/honest_bounds.csv

For each task, budget and seed: the information that `optimize_design` reports of the
design that it finds, the exact one, and whether the result says that it may be far too
low (doubts about the policy do not count). The information of `sir` is by brute force.
"""

import argparse
import csv
import time
import warnings
from pathlib import Path
from typing import Any, Dict, List, Optional, Tuple

import torch
from joblib import Parallel, delayed

from sbi_boed_plugin import tasks
from sbi_boed_plugin.experiment import find_design, make_trainer

SIZES = (("noisy_linear", 10), ("gaussian_linear", 10))
BUDGETS = (None, 1_000, 5_000, 20_000)
# Shares and nats by which a bound may be too low without a word.
SHARE, NATS = 0.2, 0.5


def exact_information(task: tasks.Task, design: torch.Tensor) -> Tuple[float, float]:
    """Return the information of a design and its standard error, in nats."""
    if task.has_exact_eig:
        return task.exact_eig(design)
    estimate = tasks.brute_force_eig(design, num_parameters=1_024)
    return float(estimate.eig[0]), float(estimate.standard_error[0])


def measure(
    name: str, dim_design: Optional[int], budget: Optional[int], seed: int
) -> Dict[str, Any]:
    """Search with a budget and compare what is reported with the exact answer."""
    torch.set_num_threads(1)
    torch.manual_seed(seed)
    sizes = {} if dim_design is None else {"dim_design": dim_design}
    task = tasks.get_task(name, **sizes)
    trainer = make_trainer(task, show_progress_bars=False)
    started = time.process_time()
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        result = find_design(trainer, task, max_num_simulations=budget)
    seconds = time.process_time() - started
    exact, error = exact_information(task, result.design)
    below = exact - result.eig.value
    return {
        "task": name,
        "dim_design": task.dim_design,
        "budget": budget or "default",
        "seed": seed,
        "exact": round(exact, 3),
        "exact_error": round(error, 3),
        "reported": round(result.eig.value, 3),
        "standard_error": round(result.eig.standard_error, 3),
        "bound": result.eig.bound,
        "too_high": below < -3.0 * (error**2 + result.eig.standard_error**2) ** 0.5,
        "too_low": below > max(0.0, min(NATS, SHARE * exact)),
        "told": any("policy" not in doubt for doubt in result.doubts),
        "num_warnings": len(caught),
        "num_simulations": result.num_simulations,
        "cpu_seconds": round(seconds, 1),
        **{k: round(v.value, 3) for k, v in result.bounds.items()},
        "doubts": " | ".join(result.doubts),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--output", type=Path, required=True)
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--budgets", type=int, nargs="*", default=BUDGETS)
    parser.add_argument("--tasks", nargs="*", default=tasks.available_tasks())
    parser.add_argument("--jobs", type=int, default=2)
    args = parser.parse_args()
    cases: List[Tuple[str, Optional[int]]] = [(name, None) for name in args.tasks]
    cases += [case for case in SIZES if case[0] in args.tasks]
    calls = [
        delayed(measure)(name, dim, budget or None, seed)
        for budget in args.budgets
        for seed in range(args.seeds)
        for name, dim in cases
    ]
    rows: List[Dict[str, Any]] = []
    for row in Parallel(n_jobs=args.jobs, return_as="generator")(calls):
        rows.append(row)
        print(row, flush=True)
        names = list(dict.fromkeys(name for each in rows for name in each))
        with args.output.open("w", newline="") as file:
            writer = csv.DictWriter(file, names)
            writer.writeheader()
            writer.writerows(rows)


if __name__ == "__main__":
    main()
