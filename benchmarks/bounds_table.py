"""Every bound of the information against its exact value, on a straight line.

    python benchmarks/bounds_table.py --output docs/results/bounds.csv

`gaussian_linear` at its best design, half of the measurements at each end, where the
information is known in closed form. Likelihood, hybrid posterior and marginal are
trained there by `optimize_design`, from a policy that stays within a hundredth of the
box. "true" rows have the task's own likelihood in the place of the learned one.
"""

import argparse
import csv
import time
import warnings
from pathlib import Path
from typing import Any, Dict, List, Optional

import torch
from torch import Tensor

from sbi_boed_plugin import NLE_INCE, TruncatedNormalPolicy, estimate_eig, tasks
from sbi_boed_plugin.experiment import NoOpTracker
from sbi_boed_plugin.search.result import DesignResult

# Bound, the likelihood that it has, and its number of contrastive samples.
CASES = [
    ("pce", "learned", 15),
    ("pce", "learned", 1_023),
    ("snmc", "learned", 1_023),
    ("nwj", "learned", 1_023),
    ("marginal", "learned", None),
    ("barber_agakov", None, None),
    ("gkl", None, 1_023),
    ("pce", "true", 1_023),
    ("snmc", "true", 1_023),
    ("exact", "true", 16_383),
    ("marginal", "true", None),
]


def best_design(task: tasks.Task) -> Tensor:
    """Return the best design: half of the measurements at each end."""
    design = task.design_high.clone()
    design[: task.dim_design // 2] = task.design_low[: task.dim_design // 2]
    return design


def train_at(
    task: tasks.Task, design: Tensor, num_steps: int, training_batch_size: int = 256
) -> DesignResult:
    """Train likelihood, hybrid posterior and marginal around a design."""
    # As `experiment.make_trainer`, but with a policy that stays where it is. An
    # autoregressive flow of a single value is a Gaussian: a mixture there.
    model = "mdn" if task.dim_x == 1 else "maf"
    trainer = NLE_INCE(
        task.prior,
        model,
        posterior_estimator="maf",
        marginal_estimator=model,
        design_policy=TruncatedNormalPolicy(
            task.design_low, task.design_high, loc=design, scale=0.01
        ),
        tracker=NoOpTracker(),
        show_progress_bars=False,
    )
    settings = {
        "num_steps": num_steps,
        "training_batch_size": training_batch_size,
        "num_contrastive": 3,
        "design_learning_rate": 1e-8,
        "num_eig_samples": 100,
    }
    trainer.optimize_design(task.simulator, objective="gkl", **settings)
    return trainer.optimize_design(task.simulator, objective="marginal", **settings)


def row_of(
    task: tasks.Task,
    design: Tensor,
    trained: DesignResult,
    bound: str,
    likelihood: Optional[str],
    num_contrastive: Optional[int],
    num_samples: int,
) -> Dict[str, Any]:
    """Return an estimate and the exact value."""
    if bound in ("barber_agakov", "gkl"):
        estimator = trained.posterior_estimator
    elif likelihood == "true":
        estimator = task.log_likelihood
    else:
        estimator = trained.likelihood_estimator
    needs_marginal = bound in ("marginal", "nwj")
    eig = estimate_eig(
        estimator,
        task.simulator,
        prior=task.prior,
        design=design,
        bound=bound,
        marginal_estimator=trained.marginal_estimator if needs_marginal else None,
        num_samples=num_samples,
        num_contrastive=num_contrastive or 1,
        seed=0,
    )
    return {
        "dim_design": task.dim_design,
        "bound": bound,
        "likelihood": likelihood or "",
        "num_contrastive": num_contrastive or "",
        "value": round(eig.value, 3),
        "standard_error": round(eig.standard_error, 3),
        "cap": "" if eig.cap is None else round(eig.cap, 3),
        "exact": round(task.exact_eig(design)[0], 3),
    }


def bounds_table(
    dim_design: int, num_steps: int, num_samples: int = 2_000, seed: int = 0
) -> List[Dict[str, Any]]:
    """Return one row per bound."""
    torch.manual_seed(seed)
    task = tasks.get_task("gaussian_linear", dim_design=dim_design)
    design = best_design(task)
    trained = train_at(task, design, num_steps)
    return [row_of(task, design, trained, *case, num_samples) for case in CASES]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--output", type=Path, required=True)
    parser.add_argument(
        "--quick", action="store_true", help="a tenth of all steps and simulations"
    )
    args = parser.parse_args()
    torch.set_num_threads(1)
    warnings.filterwarnings("ignore")
    started = time.perf_counter()
    rows: List[Dict[str, Any]] = []
    for dim_design in (1, 10):
        budget = (100, 200) if args.quick else (1_000, 2_000)
        table = bounds_table(dim_design, *budget)
        print(*table, sep="\n", flush=True)
        rows += table
    with args.output.open("w", newline="") as file:
        writer = csv.DictWriter(file, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)
    print(f"{time.perf_counter() - started:.0f} seconds")


if __name__ == "__main__":
    main()
