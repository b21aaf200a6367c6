"""Exact information of the designs that `optimize_design` finds.

    make reproduce NAME=design-recovery

The tasks have known answers: `gaussian_linear` in closed form, the others by quadrature
with the true likelihood. For the straight lines the optimum puts half of the
measurements at each end of the box; for the others it is the best of a grid.
"""

import time
from collections.abc import Sequence

import torch

from benchmarks.study import Job, Row, Study, averages
from sbi_boed_plugin import tasks
from sbi_boed_plugin.experiment import find_design, make_trainer

SIZES = {
    "gaussian_linear": (1,),
    "noisy_linear": (1, 10),
    "pharmacokinetic": (1,),
    "location_finding": (2,),
}


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


def jobs(num_seeds: int, quick: bool) -> list[Job]:
    """Return one job for each task, number of measurements and seed."""
    return [
        {"task": name, "dim_design": dim, "seed": seed}
        for name, dims in SIZES.items()
        for dim in dims
        for seed in range(num_seeds)
    ]


def run(job: Job, quick: bool) -> Row:
    """Search for the best design of a task and score it exactly."""
    torch.manual_seed(job["seed"])
    named = job["task"] == "location_finding"  # Its designs are places.
    sizes = {} if named else {"dim_design": job["dim_design"]}
    task = tasks.get_task(job["task"], **sizes)
    trainer = make_trainer(task, show_progress_bars=False)
    started = time.perf_counter()
    result = find_design(trainer, task, num_steps=50 if quick else None)
    seconds = time.perf_counter() - started
    found, error = task.exact_eig(result.design)
    best, _ = task.exact_eig(optimum(task))
    return {
        "design": " ".join(f"{value:.2f}" for value in result.design.tolist()),
        "exact_eig": round(found, 4),
        "standard_error": round(error, 4),
        "optimum": round(best, 4),
        "share_of_optimum": round(found / best, 4),
        "reported_lower_bound": round(result.eig.value, 4),
        "num_simulations": result.num_simulations,
        "search_seconds": round(seconds, 1),
    }


def summary(rows: Sequence[Row]) -> list[Row]:
    """Return means over seeds of each task."""
    values = ["exact_eig", "optimum", "share_of_optimum", "reported_lower_bound"]
    return averages(rows, by=["task", "dim_design"], values=values)


STUDY = Study(
    name="design-recovery",
    title="Exact information of the designs that optimize_design finds",
    jobs=jobs,
    run=run,
    summary=summary,
    num_seeds=5,
)
