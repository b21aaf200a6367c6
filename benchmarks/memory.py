"""Peak memory and time of the main paths beside those of sbi, in many dimensions.

    OMP_NUM_THREADS=1 python benchmarks/memory.py --output docs/results

Every number comes from a process of its own: the largest resident memory that it had,
imports included, and its processor time. 200 simulations and two epochs. The peer of
`NLE_INCE` is `NLE`, of `NPE_GKL` is `NPE`, of `NRE_GKL` is `NRE_B`. A search for
designs trains a likelihood and a posterior: the peer is `NLE`, then `NPE`, with as many
simulations. Cells that the table has already are left out.
"""

import argparse
import contextlib
import csv
import functools
import io
import resource
import subprocess
import sys
import warnings
from pathlib import Path
from typing import Any, Dict, Tuple

import torch
from sbi.inference import NLE_A, NPE_C, NRE_B
from torch import Tensor
from torch.distributions import Independent, Normal

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
EPOCHS: Dict[str, Any] = {"max_num_epochs": 2, "training_batch_size": 100}
QUIET: Dict[str, Any] = {"show_progress_bars": False}
CLIMB = MultiStartConfig(
    num_starts=64, num_climb_steps=3, num_candidates=2, num_candidate_samples=100
)
DESIGN_PATHS = ("optimize_design", "multi_start", "estimate_eig", "observe")
NETWORKS = {"NPE_GKL": "mdn", "NLE_INCE": "maf", "NRE_GKL": "resnet"}
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
COLUMNS = (
    "path",
    "dim_theta",
    "dim_x",
    "model",
    "peak_mb",
    "sbi_peak_mb",
    "cpu_s",
    "sbi_cpu_s",
)


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
        network = "resnet" if name == "NRE_GKL" else model
        inference = trainer(prior, network, **settings)
        inference.append_simulations(theta, x).train(**EPOCHS)
        if name == path == "NPE_GKL":
            posterior = inference.build_posterior()
            samples = posterior.sample((1_000,), x=x[:1], **QUIET)
            posterior.log_prob(samples[:100], x=x[:1])


@functools.cache
def measure(
    path: str, dim_theta: int, dim_x: int, model: str, *, ours: bool
) -> Tuple[float, float]:
    """Return the peak memory in MB and the processor time in seconds of a process."""
    arguments = [path, str(dim_theta), str(dim_x), model, *(["--ours"] * ours)]
    done = subprocess.run(
        [sys.executable, __file__, "--only", *arguments],
        capture_output=True,
        text=True,
        check=True,
    )
    peak, seconds = done.stdout.split()[-2:]
    return float(peak), float(seconds)


def peer_of(path: str) -> str:
    """Return the first path with the same peer, which is measured once for all."""
    return DESIGN_PATHS[0] if path in DESIGN_PATHS else path


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--paths", nargs="+", default=[*NETWORKS, *DESIGN_PATHS])
    parser.add_argument("--output", type=Path, help="folder for the table as CSV")
    parser.add_argument("--only", nargs=4, help="walk one path in this process")
    parser.add_argument("--ours", action="store_true", help="with --only: ours")
    args = parser.parse_args()
    if args.only:
        warnings.filterwarnings("ignore")
        path, dim_theta, dim_x, model = args.only
        with contextlib.redirect_stdout(io.StringIO()):
            run_path(path, int(dim_theta), int(dim_x), model, ours=args.ours)
        used = resource.getrusage(resource.RUSAGE_SELF)
        print(f"{used.ru_maxrss / 1_024:.0f} {used.ru_utime + used.ru_stime:.1f}")
        return
    done = set()
    if args.output:
        args.output.mkdir(parents=True, exist_ok=True)
        table = args.output / "memory.csv"
        if not table.exists():
            table.write_text(",".join(COLUMNS) + "\n")
        done = {tuple(row[:4]) for row in csv.reader(table.open())}
    for cell in (cell for cell in CELLS if cell[0] in args.paths):
        if tuple(map(str, cell)) in done:
            continue
        peak, seconds = measure(*cell, ours=True)
        of_sbi, seconds_of_sbi = measure(peer_of(cell[0]), *cell[1:], ours=False)
        row = (*cell, peak, of_sbi, seconds, seconds_of_sbi)
        print(dict(zip(COLUMNS, row, strict=True)), flush=True)
        if args.output:
            with table.open("a", newline="") as file:
                csv.writer(file, lineterminator="\n").writerow(row)


if __name__ == "__main__":
    main()
