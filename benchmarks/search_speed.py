"""Speed of design searches: objectives, gradients, and how time and memory grow.

    OMP_NUM_THREADS=1 python benchmarks/search_speed.py --output docs/results

1. `noisy_linear` with ten measurements: seconds until the mode of the policy reaches
   97 % of the optimal information, for every objective and gradient. The information of
   a mode is exact (quadrature with the true likelihood) and not part of the time.
2. Time and peak memory of a step against the number of measurements and of contrastive
   samples, each in a process of its own.
"""

import argparse
import json
import resource
import subprocess
import sys
import time
import warnings
from pathlib import Path
from typing import Any, Dict

import pandas as pd
import torch

from sbi_boed_plugin import tasks
from sbi_boed_plugin.experiment import make_trainer
from sbi_boed_plugin.search.gradients import POLICY_GRADIENTS
from sbi_boed_plugin.search.information import POLICY_OBJECTIVES

TARGET = 0.97
# Modes whose information is computed: one in so many steps.
EVERY = 10


def best_information(task: tasks.Task) -> float:
    """Return the optimum: half of the measurements at each end."""
    design = task.design_high.clone()
    design[: task.dim_design // 2] = task.design_low[: task.dim_design // 2]
    return task.exact_eig(design)[0]


def seconds_to_target(
    objective: str, gradient: str, seed: int, max_seconds: float
) -> Dict[str, Any]:
    """Search once, and find when the mode first had the information asked for."""
    torch.manual_seed(seed)
    task = tasks.get_task("noisy_linear", dim_design=10)
    inference = make_trainer(task, show_progress_bars=False)
    result = inference.optimize_design(
        task.simulator,
        objective=objective,
        gradient=gradient,
        max_seconds=max_seconds / 0.8,  # A fifth is for the score.
        num_eig_samples=2,
    )
    best = best_information(task)
    modes, seconds = result.history["mode"], result.history["seconds"]
    reached = None
    for step in range(EVERY - 1, len(modes), EVERY):
        if task.exact_eig(torch.tensor(modes[step]))[0] >= TARGET * best:
            reached = step
            break
    found = task.exact_eig(result.design)[0]
    return {
        "objective": objective,
        "gradient": gradient,
        "seed": seed,
        "seconds_to_97_percent": "" if reached is None else round(seconds[reached], 1),
        "steps_to_97_percent": "" if reached is None else reached + 1,
        "share_at_the_end": round(found / best, 4),
        "steps": len(modes),
        "seconds": round(result.seconds, 1),
        "ms_per_step": round(1e3 * result.seconds / len(modes), 1),
    }


def step_cost(dim_design: int, num_contrastive: int, num_steps: int) -> Dict[str, Any]:
    """Return time and peak memory of the steps of a search; for a fresh process."""
    torch.manual_seed(0)
    task = tasks.get_task("noisy_linear", dim_design=dim_design)
    inference = make_trainer(task, show_progress_bars=False)
    settings = {"num_contrastive": num_contrastive, "num_eig_samples": 2}
    inference.optimize_design(task.simulator, num_steps=1, **settings)
    started = time.perf_counter()
    inference.optimize_design(task.simulator, num_steps=num_steps, **settings)
    seconds = time.perf_counter() - started
    return {
        "dim_design": dim_design,
        "L": num_contrastive,
        "ms_per_step": round(1e3 * seconds / num_steps, 1),
        "peak_memory_MB": round(peak_memory()),
    }


def peak_memory() -> float:
    """Return the largest memory of this process so far, in MB.

    Where the kernel tells it: `getrusage` of a new process starts from the memory of
    the process that started it.
    """
    status = Path("/proc/self/status")
    if status.exists():
        (line,) = [x for x in status.read_text().splitlines() if x.startswith("VmHWM")]
        return int(line.split()[1]) / 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def step_cost_apart(
    dim_design: int, num_contrastive: int, num_steps: int
) -> Dict[str, Any]:
    """Run `step_cost` in a process of its own, whose peak memory is its own."""
    code = (
        "import json, warnings; warnings.filterwarnings('ignore');"
        "import torch; torch.set_num_threads(1);"
        "from search_speed import step_cost;"
        f"print(json.dumps(step_cost({dim_design}, {num_contrastive}, {num_steps})))"
    )
    output = subprocess.run(
        [sys.executable, "-c", code],
        cwd=Path(__file__).parent,
        check=True,
        capture_output=True,
        text=True,
    ).stdout
    return json.loads(output.splitlines()[-1])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seeds", type=int, default=1)
    parser.add_argument("--max-seconds", type=float, default=60.0)
    parser.add_argument("--steps", type=int, default=5, help="steps to time")
    parser.add_argument("--no-searches", action="store_true", help="only part 2")
    parser.add_argument("--output", type=Path, help="folder for the tables as CSV")
    args = parser.parse_args()
    warnings.filterwarnings("ignore")
    torch.set_num_threads(1)
    if args.output:
        args.output.mkdir(parents=True, exist_ok=True)
    searches = []
    for seed in range(0 if args.no_searches else args.seeds):
        for objective in POLICY_OBJECTIVES:
            for gradient in POLICY_GRADIENTS:
                row = seconds_to_target(objective, gradient, seed, args.max_seconds)
                searches.append(row)
                print(row, flush=True)
                if args.output:
                    path = args.output / "speed_searches.csv"
                    pd.DataFrame(searches).to_csv(path, index=False)
    costs = []
    for dim_design in (1, 10, 100):
        for num_contrastive in (15, 63, 255):
            costs.append(step_cost_apart(dim_design, num_contrastive, args.steps))
            print(costs[-1], flush=True)
            if args.output:
                path = args.output / "speed_growth.csv"
                pd.DataFrame(costs).to_csv(path, index=False)


if __name__ == "__main__":
    main()
