"""Simulations per second of a slow simulator, by the number and kind of workers.

    OMP_NUM_THREADS=1 python benchmarks/parallel_speed.py

The simulator works for a fixed processor time per row, in pure Python, so that workers
beyond the number of free cores cannot help: a load near the number of cores before a
backend is measured means that its pace tells of the other work. The overhead of a call
is that of a batch of the design loop with a simulator that costs nothing.
"""

import argparse
import contextlib
import os
import statistics
import time
from pathlib import Path
from typing import Callable, Iterator, Optional

import joblib
import pandas as pd
import torch
from sbi.utils import BoxUniform
from torch import Tensor

from sbi_boed_plugin.simulation import (
    CheckedSimulator,
    run_simulator,
    simulate_for_boed,
)

PRIOR = BoxUniform(torch.zeros(2), torch.ones(2))
DESIGNS = BoxUniform(torch.zeros(1), torch.ones(1))
BATCH_SIZE = 256
NUM_CALLS = 15


def slow_simulator(ms_per_row: float) -> Callable[[Tensor, Tensor], Tensor]:
    """Return a simulator that computes for so many milliseconds per row."""

    def simulator(theta: Tensor, design: Tensor) -> Tensor:
        for _ in range(len(theta)):
            end = time.thread_time() + 1e-3 * ms_per_row
            while time.thread_time() < end:
                sum(range(100))
        return theta * design + torch.randn_like(theta)

    return simulator


def free_simulator(theta: Tensor, design: Tensor) -> Tensor:
    return theta * design + torch.randn_like(theta)


@contextlib.contextmanager
def backend(name: str, num_workers: int) -> Iterator[None]:
    """Set a backend of joblib, on a cluster of this machine for dask."""
    if name != "dask":
        with joblib.parallel_config(backend=name):
            yield
        return
    from distributed import Client, LocalCluster

    with (
        LocalCluster(
            n_workers=num_workers,
            threads_per_worker=1,
            processes=True,
            dashboard_address=None,
        ) as cluster,
        Client(cluster),
        joblib.parallel_config(backend=name),
    ):
        yield


def simulations_per_second(
    num_workers: int, num_simulations: int, ms_per_row: float, repeats: int
) -> float:
    """Return the best pace of several runs of a slow simulator.

    The best, because other work on the machine only ever slows one down, and because a
    worker may still be starting during the first.
    """
    seconds = []
    for _ in range(repeats):
        started = time.perf_counter()
        simulate_for_boed(
            slow_simulator(ms_per_row),
            PRIOR,
            DESIGNS,
            num_simulations,
            num_workers,
            seed=0,
            show_progress_bar=False,
        )
        seconds.append(time.perf_counter() - started)
    return num_simulations / min(seconds)


def ms_per_call(num_workers: int, simulation_batch_size: Optional[int] = None) -> float:
    """Return the median time of a batch of the design loop that costs nothing."""
    theta, design = PRIOR.sample((BATCH_SIZE,)), DESIGNS.sample((BATCH_SIZE,))
    seconds = []
    for _ in range(NUM_CALLS):
        started = time.perf_counter()
        run_simulator(
            CheckedSimulator(free_simulator, is_checked=True),
            theta,
            design,
            num_workers=num_workers,
            simulation_batch_size=simulation_batch_size,
        )
        seconds.append(time.perf_counter() - started)
    return 1e3 * statistics.median(seconds)


def compare(num_simulations: int, ms_per_row: float, repeats: int) -> pd.DataFrame:
    """Compare one worker with two processes, of loky and of a dask cluster."""
    rows = []
    for name, num_workers in (("loky", 1), ("loky", 2), ("dask", 2)):
        with backend(name, num_workers):
            load = os.getloadavg()[0]
            started = time.perf_counter()
            run_simulator(
                CheckedSimulator(free_simulator, is_checked=True),
                PRIOR.sample((BATCH_SIZE,)),
                DESIGNS.sample((BATCH_SIZE,)),
                num_workers=num_workers,
            )
            first_call = time.perf_counter() - started
            rows.append(
                {
                    "backend": name if num_workers > 1 else "this process",
                    "workers": num_workers,
                    "simulations/s": simulations_per_second(
                        num_workers, num_simulations, ms_per_row, repeats
                    ),
                    "load before": load,
                    "first call [s]": first_call,
                    "overhead [ms/call]": ms_per_call(num_workers),
                    "overhead, 2 chunks [ms/call]": ms_per_call(
                        num_workers, BATCH_SIZE // 2
                    ),
                }
            )
    table = pd.DataFrame(rows)
    pace = table["simulations/s"]
    table.insert(3, "ratio", pace / pace[0])
    return table


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--simulations", type=int, default=1_000)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--ms-per-row", type=float, default=2.0)
    parser.add_argument("--output", type=Path, help="folder for the table as CSV")
    args = parser.parse_args()
    torch.set_num_threads(1)
    table = compare(args.simulations, args.ms_per_row, args.repeats)
    print(f"\n{args.ms_per_row:g} ms per simulation, {args.simulations} simulations")
    print(table.to_string(index=False, float_format="%.2f"))
    if args.output:
        args.output.mkdir(parents=True, exist_ok=True)
        table.to_csv(args.output / "parallel_speed.csv", index=False)


if __name__ == "__main__":
    main()
