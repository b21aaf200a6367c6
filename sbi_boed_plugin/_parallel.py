"""Chunks of rows, simulated by joblib's workers or one after another in this process.

Each chunk has a seed of its own: what it draws does not depend on the workers.
"""

import threading
import traceback
from collections.abc import Callable, Sequence
from contextlib import closing
from typing import Any, NamedTuple

import cloudpickle
import numpy as np
import torch
from joblib import Parallel, delayed
from torch import Tensor
from tqdm.auto import tqdm

from sbi_boed_plugin._numbers import check_integer
from sbi_boed_plugin._rng import isolated_rng

__all__ = ["Chunk", "add_note", "check_num_workers", "describe_error", "map_chunks"]

# The global generators belong to the process: threads of one that seed them take turns.
_GENERATORS = threading.RLock()


class Chunk(NamedTuple):
    """What comes out of some rows."""

    parts: Sequence[tuple[Tensor, Tensor]] = ()  # Rows, and their data.
    left_out: Sequence[Tensor] = ()  # Rows that a limit of calls leaves out.
    num_calls: int = 0  # Number of rows that the simulator got.
    error: BaseException | None = None  # The first one.
    is_fatal: bool = False  # Whether the error ends the whole simulation.


Function = Callable[[Tensor, Tensor], Chunk]


def check_num_workers(num_workers: Any) -> int | None:
    """Return a number of workers, -1 for all cores, or `None`; refuse anything else."""
    remedy = (
        "Use a positive number, -1 for all cores, or None for the n_jobs of "
        "joblib.parallel_config."
    )
    checked = check_integer("num_workers", num_workers, or_none=True, remedy=remedy)
    if checked == 0:
        raise ValueError(f"num_workers=0 starts no worker. {remedy}")
    return checked


def describe_error(error: BaseException) -> str:
    """Return the last line that Python would print of an error."""
    return f"{type(error).__name__}: {error}".removesuffix(": ")


def add_note(error: BaseException, note: str) -> None:
    """Add a note to an error where Python has notes, from 3.11 on."""
    if hasattr(error, "add_note"):
        getattr(error, "add_note")(note)  # noqa: B009 (unknown to Python 3.10)


def map_chunks(
    function: Function,
    theta: Tensor,
    design: Tensor,
    *,
    num_workers: int | None,
    chunk_size: int,
    show_progress_bar: bool = False,
) -> list[Chunk]:
    """Call a function on chunks of rows, each with a seed of its own.

    Only the seeds are drawn from the caller's random state, by torch's generator. With
    one worker `function` runs in this process on the device of `theta`; the workers of
    `joblib.parallel_config` get and return tensors on the CPU.
    """
    on_worker = num_workers != 1
    if on_worker:
        theta, design = theta.detach().cpu(), design.detach().cpu()
    rows = list(zip(theta.split(chunk_size), design.split(chunk_size), strict=True))
    # Multiples of an odd number differ modulo 2**32; random numbers would coincide.
    seed = int(torch.randint(2**32, ()))
    seeds = [(seed + 0x9E3779B9 * index) % 2**32 for index in range(len(rows))]
    if on_worker:
        try:
            cloudpickle.dumps(function)
        except Exception as error:
            raise TypeError(
                f"simulator cannot be sent to worker processes: {error}. Create files, "
                "locks and connections inside of it, or use num_workers=1."
            ) from error
        # Sent ahead of time, since a cluster takes long to ask for the next chunk.
        run = Parallel(num_workers, return_as="generator", pre_dispatch="8 * n_jobs")
        chunks: Any = run(
            # As arrays: pickling a slice of a tensor sends the whole tensor.
            delayed(_run_on_worker)(function, theta.numpy(), design.numpy(), seed)
            for (theta, design), seed in zip(rows, seeds, strict=True)
        )
    else:
        chunks = (_run(function, *pair) for pair in zip(rows, seeds, strict=True))
    results = []
    # Closed, since the traceback of an error would keep the generator and its chunks.
    with (
        closing(chunks),
        tqdm(total=sum(len(t) for t, _ in rows), disable=not show_progress_bar) as bar,
    ):
        for chunk, (part, _) in zip(chunks, rows, strict=True):
            results.append(chunk)
            bar.update(len(part))
    for chunk in results:
        if chunk.is_fatal:
            raise chunk.error
    return results


def _run(function: Function, rows: tuple[Tensor, Tensor], seed: int) -> Chunk:
    with _GENERATORS, isolated_rng(seed):
        return function(*rows)


def _run_on_worker(
    function: Function, theta: np.ndarray, design: np.ndarray, seed: int
) -> Chunk:
    """Return the result of a chunk; errors and interrupts would break some pools."""
    try:
        # Copies, because what joblib maps into memory and dask shares is read-only.
        chunk = _run(function, (torch.tensor(theta), torch.tensor(design)), seed)
    except BaseException as error:
        chunk = Chunk(error=error, is_fatal=True)
    if chunk.error is None:
        return chunk
    trace = "".join(traceback.format_exception(chunk.error))
    try:
        error = cloudpickle.loads(cloudpickle.dumps(chunk.error))
    except Exception:
        error = RuntimeError(describe_error(chunk.error))
    add_note(error, f"On the worker:\n{trace}")
    return chunk._replace(error=error)
