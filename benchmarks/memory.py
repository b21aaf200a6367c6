"""Peak memory and time of the main paths beside those of sbi, in many dimensions.

    make reproduce NAME=memory

Every number comes from a process of its own: the largest resident memory that it had,
imports included, and its processor time. 200 simulations and two epochs. The peer of
`NLE_INCE` is `NLE`, of `NPE_GKL` is `NPE`, of `NRE_GKL` is `NRE_B`. A search for
designs trains a likelihood and a posterior: the peer is `NLE`, then `NPE`, with as many
simulations.
"""

import contextlib
import io
import resource
import subprocess
import sys
import warnings
from pathlib import Path
from typing import Any

import torch
from sbi.inference import NLE_A, NPE_C, NRE_B
from sbi.neural_nets import classifier_nn, likelihood_nn, posterior_nn
from torch import Tensor
from torch.distributions import Independent, Normal

from benchmarks.study import Job, Row, Study
from sbi_boed_plugin import (
    NLE_INCE,
    NPE_GKL,
    NRE_GKL,
    MultiStartConfig,
    TruncatedNormalPolicy,
)
from sbi_boed_plugin.experiment import NoOpTracker

NUM_SIMULATIONS = 200
DIMS_THETA, DIMS_X = (2, 50, 200), (2, 100, 1_000)
EPOCHS: dict[str, Any] = {"max_num_epochs": 2, "training_batch_size": 100}
QUIET: dict[str, Any] = {"show_progress_bars": False}
CLIMB = MultiStartConfig(
    num_starts=64, num_climb_steps=3, num_candidates=2, num_candidate_samples=100
)
DESIGN_PATHS = ("optimize_design", "multi_start", "estimate_eig", "observe")
NETWORKS = {"NPE_GKL": "mdn", "NLE_INCE": "maf", "NRE_GKL": "resnet"}
BUILDERS = {
    "NPE_GKL": posterior_nn,
    "NLE_INCE": likelihood_nn,
    "NRE_GKL": classifier_nn,
}
# Searches through all dimensions would take hours: a flow of 1,000 values draws them
# one after another.
SEARCH_DIMS = ((2, 2), (50, 100), (200, 1_000))
CELLS = [
    *((path, *dims, NETWORKS[path]) for path in NETWORKS for dims in SEARCH_DIMS),
    *(
        (path, *dims, "maf")
        for path in DESIGN_PATHS
        for dims in SEARCH_DIMS
        if path != "multi_start" or dims != SEARCH_DIMS[-1]
    ),
    *(
        (path, dim_theta, dim_x, model)
        for path, model in NETWORKS.items()
        for dim_theta in DIMS_THETA
        for dim_x in DIMS_X
        if (dim_theta, dim_x) not in SEARCH_DIMS
    ),
]


def run_path(path: str, dim_theta: int, dim_x: int, model: str, *, ours: bool) -> None:
    """Walk a path once, or that of its peer."""
    torch.manual_seed(0)
    prior = Independent(Normal(torch.zeros(dim_theta), 1.0), 1)
    weights = torch.randn(dim_theta, dim_x) / dim_theta**0.5

    def simulator(theta: Tensor, design: Tensor) -> Tensor:
        return theta @ weights * design + torch.randn(len(theta), dim_x)

    theta = prior.sample(torch.Size((NUM_SIMULATIONS,)))
    x = simulator(theta, torch.ones(NUM_SIMULATIONS, 1))
    settings = {"tracker": NoOpTracker(), **QUIET}
    if path in DESIGN_PATHS and ours:
        policy = TruncatedNormalPolicy(torch.zeros(1), torch.ones(1))
        search = NLE_INCE(prior, model, design_policy=policy, **settings)
        search.optimize_design(
            simulator,
            method="multi_start" if path == "multi_start" else "joint",
            num_steps=4,
            training_batch_size=100,
            num_eig_samples=NUM_SIMULATIONS,
            multi_start=CLIMB if path == "multi_start" else None,
        )
        if path == "estimate_eig":
            search.estimate_eig(
                simulator, policy.mode, num_samples=NUM_SIMULATIONS, num_contrastive=63
            )
        elif path == "observe":
            search.observe(policy.mode, x[:1], num_particles=512)
        return
    trainers = {"NLE_INCE": NLE_INCE, "NPE_GKL": NPE_GKL, "NRE_GKL": NRE_GKL}
    peers = {"NLE_INCE": NLE_A, "NPE_GKL": NPE_C, "NRE_GKL": NRE_B}
    names = ("NLE_INCE", "NPE_GKL") if path in DESIGN_PATHS else (path,)
    for name in names:
        trainer = (trainers if ours else peers)[name]
        build = BUILDERS[name]("resnet" if name == "NRE_GKL" else model)
        inference = trainer(prior, build, **settings)
        inference.append_simulations(theta, x).train(**EPOCHS)
        if name == path == "NPE_GKL":
            posterior = inference.build_posterior()
            samples = posterior.sample((1_000,), x=x[:1], **QUIET)
            posterior.log_prob(samples[:100], x=x[:1])


def measure(
    path: str, dim_theta: int, dim_x: int, model: str, *, ours: bool
) -> tuple[float, float]:
    """Return the peak memory in MB and the processor time in seconds of a process."""
    arguments = [path, str(dim_theta), str(dim_x), model, "ours" if ours else "sbi"]
    done = subprocess.run(
        [sys.executable, "-m", "benchmarks.memory", *arguments],
        cwd=Path(__file__).parents[1],
        capture_output=True,
        text=True,
        check=True,
    )
    peak, seconds = done.stdout.split()[-2:]
    return float(peak), float(seconds)


def jobs(num_seeds: int, quick: bool) -> list[Job]:
    """Return one job for each path, numbers of values and network."""
    names = ("path", "dim_theta", "dim_x", "model")
    cells = [cell for cell in CELLS if not quick or cell[1:3] == (2, 2)]
    return [{**dict(zip(names, cell, strict=True)), "seed": 0} for cell in cells]


def run(job: Job, quick: bool) -> Row:
    """Measure a path and its peer."""
    cell = (job["path"], job["dim_theta"], job["dim_x"], job["model"])
    peer = DESIGN_PATHS[0] if job["path"] in DESIGN_PATHS else job["path"]
    peak, seconds = measure(*cell, ours=True)
    of_sbi, seconds_of_sbi = measure(peer, *cell[1:], ours=False)
    return {
        "peak_mb": peak,
        "sbi_peak_mb": of_sbi,
        "cpu_s": seconds,
        "sbi_cpu_s": seconds_of_sbi,
    }


STUDY = Study(
    name="memory",
    title="Peak memory and processor time beside those of sbi",
    jobs=jobs,
    run=run,
)


def main() -> None:
    """Walk one path in this process, and print its peak memory and time."""
    warnings.filterwarnings("ignore")
    path, dim_theta, dim_x, model, whose = sys.argv[1:]
    with contextlib.redirect_stdout(io.StringIO()):
        run_path(path, int(dim_theta), int(dim_x), model, ours=whose == "ours")
    used = resource.getrusage(resource.RUSAGE_SELF)
    print(f"{used.ru_maxrss / 1_024:.0f} {used.ru_utime + used.ru_stime:.1f}")


if __name__ == "__main__":
    main()
