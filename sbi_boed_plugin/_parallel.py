"""Chunks of rows, simulated by joblib's workers or one after another in this process.

Each chunk has a seed of its own, so that what it draws depends neither on the worker
that gets it nor on how many workers there are.
"""

import random
import sys
import threading
import traceback
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
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

# Independent of the number of workers, so that results are, too. More chunks balance
# the load of more workers; fewer cost less: a chunk takes about a millisecond to send.
NUM_CHUNKS = 16

# The global generators belong to the process: threads of one that seed them take turns.
_GENERATORS = threading.RLock()
# So do numbers of threads: long calls in threads of one process, as a dask worker has
# them, take turns. The simulations inside of them take turns among themselves.
_NUM_THREADS = threading.RLock()

# Modules of dask that draw numbers in threads of a worker while a task runs.
_DRAW_BESIDE_TASKS = (
    "dask.sizeof",
    "distributed.comm.core",
    "distributed.protocol.compression",
    "distributed.utils_comm",
    "distributed.worker",
    "distributed.worker_state_machine",
    "tornado.ioloop",
)


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
    return max(1, -(-num_rows // NUM_CHUNKS))


def describe_error(error: BaseException) -> str:
    """Return the last line that Python would print of an error.

    Example:
        >>> describe_error(ZeroDivisionError("division by zero"))
        'ZeroDivisionError: division by zero'
    """
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
    one worker `function` runs in this process on the device of `theta`. Other workers
    get and return tensors on the CPU; they are those of `joblib.parallel_config`, by
    default processes (loky) that stay alive from one call to the next.

    Raises what `function` raises, the first chunk's first; a `TypeError` if `function`
    cannot be sent to the workers.
    """
    on_worker = num_workers != 1
    if on_worker:
        theta, design = theta.detach().cpu(), design.detach().cpu()
    rows = list(zip(theta.split(chunk_size), design.split(chunk_size), strict=True))
    seeds = _draw_seeds(len(rows))
    if on_worker:
        _check_picklable(function)
        chunks = _parallel(num_workers)(
            # As arrays: pickling a slice of a tensor sends the whole tensor.
            delayed(_run_on_worker)(function, theta.numpy(), design.numpy(), seed)
            for (theta, design), seed in zip(rows, seeds, strict=True)
        )
    else:
        pairs = zip(rows, seeds, strict=True)
        chunks = (_run(function, *chunk, seed) for chunk, seed in pairs)
    return _collect(chunks, [len(theta) for theta, _ in rows], show_progress_bar)


def _parallel(num_workers: int | None) -> Parallel:
    # Sent ahead of time, since a dask cluster takes long to ask for the next chunk.
    settings: dict[str, Any] = {"n_jobs": num_workers, "pre_dispatch": "8 * n_jobs"}
    try:
        return Parallel(return_as="generator", **settings)
    except ValueError:  # multiprocessing and ray return all chunks at once.
        return Parallel(**settings)


def _draw_seeds(num_seeds: int) -> list[int]:
    """Draw different seeds.

    Torch's generator on the CPU and NumPy's have only 32 bits of seed, so that some
    ten thousand seeds drawn one by one would coincide. Multiples of an odd number are
    different modulo 2**32.
    """
    start = int(torch.randint(2**32, ()))
    return [(start + 0x9E3779B9 * index) % 2**32 for index in range(num_seeds)]


def _run(function: Function, theta: Tensor, design: Tensor, seed: int) -> Chunk:
    with _GENERATORS, isolated_rng(seed):
        return function(theta, design)


def _run_on_worker(
    function: Function, theta: np.ndarray, design: np.ndarray, seed: int
) -> Chunk:
    """Return the result of a chunk, errors included.

    Errors travel as results: backends differ in what they do with an interrupt, and
    one that cannot be unpickled would break the pool.
    """
    try:
        _keep_dask_from_the_global_generator()
        # Copies, because what joblib maps into memory and dask shares is read-only.
        chunk = _run(function, torch.tensor(theta), torch.tensor(design), seed)
    except BaseException as error:
        chunk = Chunk(None, error=error, is_fatal=True)
    if chunk.error is not None:
        chunk = chunk._replace(error=_picklable_error(chunk.error))
    return chunk


def _keep_dask_from_the_global_generator() -> None:
    """Give the threads of a dask worker a generator of Python's of their own.

    They draw from the global one several times a second, to estimate sizes and choose
    addresses, which would change what a long simulator draws.
    """
    functions = random.random.__self__  # type: ignore[attr-defined]
    own = random.Random()
    for name in _DRAW_BESIDE_TASKS:
        module = sys.modules.get(name, object)
        for key, value in list(vars(module).items()):
            if value is random:
                setattr(module, key, own)
            elif getattr(value, "__self__", None) is functions:
                setattr(module, key, getattr(own, value.__name__))


def _picklable_error(error: BaseException) -> BaseException:
    """Return the error, or one that says the same if it does not survive pickling."""
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


def _collect(chunks: Any, num_rows: list[int], show_progress_bar: bool) -> list[Chunk]:
    results = []
    try:
        with tqdm(total=sum(num_rows), disable=not show_progress_bar) as progress:
            for chunk, rows in zip(chunks, num_rows, strict=True):
                if chunk.is_fatal and chunk.error is not None:
                    raise chunk.error
                results.append(chunk)
                progress.update(rows)
    finally:
        # The traceback of an error would keep the generator alive, and its chunks.
        if hasattr(chunks, "close"):
            with warnings.catch_warnings():
                # joblib warns of results that nobody waits for.
                warnings.filterwarnings("ignore", ".*tasks .* not used")
                warnings.filterwarnings("ignore", ".*tasks .* by the workers")
                chunks.close()
    return results


@contextmanager
def one_thread() -> Iterator[None]:
    """Compute with one thread: several per process would fight over the cores."""
    with _NUM_THREADS, threadpool_limits(limits=1):
        before = torch.get_num_threads()
        torch.set_num_threads(1)
        try:
            yield
        finally:
            torch.set_num_threads(before)
