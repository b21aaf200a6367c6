"""Chunks of rows, simulated by joblib's workers or one after another in this process.

Each chunk has a seed of its own: what it draws does not depend on the workers.
"""

import threading
import traceback
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from typing import Any, NamedTuple

import cloudpickle
import numpy as np
import torch
from joblib import Parallel, delayed
from threadpoolctl import threadpool_limits
from torch import Tensor
from tqdm.auto import tqdm

from sbi_boed_plugin._numbers import check_integer
from sbi_boed_plugin._rng import isolated_rng

__all__ = [
    "Chunk",
    "add_note",
    "check_num_workers",
    "default_chunk_size",
    "describe_error",
    "map_chunks",
    "one_thread",
]

# Independent of the number of workers, so that results are, too.
_NUM_CHUNKS = 16
# The global generators belong to the process: threads of one that seed them take turns.
_GENERATORS = threading.RLock()


class Chunk(NamedTuple):
    """What comes out of some rows."""

    x: Tensor | None  # Of shape (chunk_dim, dim_x); None if every row raised.
    num_raised: int = 0
    error: BaseException | None = None  # The first one.
    is_fatal: bool = False  # Whether the error ends the whole simulation.
    num_calls: int = 0  # Number of rows that the simulator got.
    tried: Tensor = torch.ones(0, dtype=torch.bool)  # Rows that a limit leaves in.


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


def default_chunk_size(num_rows: int) -> int:
    """Return a sixteenth of the rows, rounded up."""
    return max(1, -(-num_rows // _NUM_CHUNKS))


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
    pairs = zip(rows, _draw_seeds(len(rows)), strict=True)
    if on_worker:
        _check_picklable(function)
        # Sent ahead of time, since a cluster takes long to ask for the next chunk.
        run = Parallel(num_workers, return_as="generator", pre_dispatch="8 * n_jobs")
        chunks: Any = run(
            # As arrays: pickling a slice of a tensor sends the whole tensor.
            delayed(_run_on_worker)(function, theta.numpy(), design.numpy(), seed)
            for (theta, design), seed in pairs
        )
    else:
        chunks = (_run(function, *chunk, seed) for chunk, seed in pairs)
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


def _draw_seeds(num_seeds: int) -> list[int]:
    """Draw different seeds: multiples of an odd number, which differ modulo 2**32.

    Of some ten thousand seeds of 32 bits that are drawn one by one, two would coincide.
    """
    start = int(torch.randint(2**32, ()))
    return [(start + 0x9E3779B9 * index) % 2**32 for index in range(num_seeds)]


def _run(function: Function, theta: Tensor, design: Tensor, seed: int) -> Chunk:
    with _GENERATORS, isolated_rng(seed):
        return function(theta, design)


def _run_on_worker(
    function: Function, theta: np.ndarray, design: np.ndarray, seed: int
) -> Chunk:
    """Return the result of a chunk; errors and interrupts would break some pools."""
    try:
        # Copies, because what joblib maps into memory and dask shares is read-only.
        chunk = _run(function, torch.tensor(theta), torch.tensor(design), seed)
    except BaseException as error:
        chunk = Chunk(None, error=error, is_fatal=True)
    if chunk.error is not None:
        chunk = chunk._replace(error=_picklable_error(chunk.error))
    return chunk


def _picklable_error(error: BaseException) -> BaseException:
    """Return the error, or one that says the same, with a note of where it was."""
    trace = "".join(traceback.format_exception(type(error), error, error.__traceback__))
    try:
        cloudpickle.loads(cloudpickle.dumps(error))
    except Exception:
        error = RuntimeError(describe_error(error))
    add_note(error, f"On the worker:\n{trace}")
    return error


def _check_picklable(function: Function) -> None:
    """Refuse what cannot be sent, before a backend fails over it in its own way."""
    try:
        cloudpickle.dumps(function)
    except Exception as error:
        raise TypeError(
            f"simulator cannot be sent to worker processes: {error}. Create files, "
            "locks, connections and the like inside of it, or use num_workers=1."
        ) from error


@contextmanager
def one_thread() -> Iterator[None]:
    """Compute with one thread: several per process would fight over the cores."""
    with threadpool_limits(limits=1):
        before = torch.get_num_threads()
        torch.set_num_threads(1)
        try:
            yield
        finally:
            torch.set_num_threads(before)
