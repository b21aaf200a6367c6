"""Time and peak memory of a training against the number of stored simulations.

    make reproduce NAME=training-growth

A maf for the likelihood of ten values given five parameters, for two epochs, by sbi's
loop and by the averaged schedule. The memory is what the process needed beyond what it
had before the simulations, which themselves are 15 numbers of four bytes a row.
"""

import resource
import time

import torch
from sbi.neural_nets import likelihood_nn

from benchmarks.study import Job, Row, Study
from benchmarks.training import TRAINERS
from sbi_boed_plugin.experiment import NoOpTracker

DIM_THETA, DIM_X, NUM_EPOCHS = 5, 10, 2


def peak_mb() -> float:
    """Return the largest resident memory that this process had."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1_024


def jobs(num_seeds: int, quick: bool) -> list[Job]:
    """Return one job for each number of simulations and loop."""
    return [
        {"num_simulations": num_simulations, "loop": loop, "seed": seed}
        for seed in range(num_seeds)
        for num_simulations in (10**3, 10**4, *(() if quick else (10**5, 10**6)))
        for loop in ("sbi", "averaged")
    ]


def run(job: Job, quick: bool) -> Row:
    """Measure the epochs of a training, without its preparation."""
    torch.manual_seed(job["seed"])
    settings = {"tracker": NoOpTracker(), "show_progress_bars": False}
    build = likelihood_nn("maf")
    warm = TRAINERS["nle", job["loop"]](None, build, **settings)
    few = torch.randn(100, DIM_THETA), torch.randn(100, DIM_X)
    warm.append_simulations(*few).train(max_num_epochs=1)
    before = peak_mb()
    theta = torch.randn(job["num_simulations"], DIM_THETA)
    x = theta @ torch.randn(DIM_THETA, DIM_X)
    x += 0.1 * torch.randn_like(x)
    trainer = TRAINERS["nle", job["loop"]](None, build, **settings)
    trainer.append_simulations(theta, x)
    started = time.process_time()
    trainer.train(max_num_epochs=NUM_EPOCHS)
    seconds = time.process_time() - started
    return {
        "cpu_s": round(seconds, 2),
        "us_per_row": round(1e6 * seconds / NUM_EPOCHS / len(theta), 1),
        "memory_mb": round(peak_mb() - before, 1),
        "stored_mb": round(4 * (theta.numel() + x.numel()) / 2**20, 2),
    }


STUDY = Study(
    name="training-growth",
    title="Time and memory of two epochs against the number of simulations",
    jobs=jobs,
    run=run,
)
