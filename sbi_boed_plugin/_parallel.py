"""Chunks of rows, simulated by joblib's workers or one after another in this process.

Each chunk has a seed of its own: what it draws does not depend on the workers.
"""

import math
import threading
import traceback
import warnings
from collections.abc import Callable, Iterable, Sequence
from contextlib import closing
from typing import Any, NamedTuple

import cloudpickle
import torch
from joblib import Parallel, delayed
from torch import Tensor
from tqdm.auto import tqdm

from sbi_boed_plugin._numbers import check_integer
from sbi_boed_plugin._rng import isolated_rng

__all__ = [
    "CONTRACT",
    "Chunk",
    "add_note",
    "assemble",
    "call_simulator",
    "check_num_workers",
    "common_shape",
    "describe_error",
    "map_chunks",
    "simulate_chunk",
]

CONTRACT = (
    "It must make each row of x from its own row of theta, of shape (batch_dim, "
    "dim_theta), and design, of shape (batch_dim, dim_design). For a function of one "
    "parameter vector and one design vector pass sbi_boed_plugin.vectorize(simulator)."
)
# Rows of a chunk that may raise without a success before no others are tried.
_MAX_FAILURES_WITHOUT_SUCCESS = 32
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
    remedy = "Use a positive number, -1 for all cores, or None for joblib's n_jobs."
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
    record: Callable[[Tensor, Tensor, Tensor], None] | None = None,
) -> list[Chunk]:
    """Call a function on chunks of rows, each with a seed of its own.

    `record` gets the rows of a chunk as soon as it is finished, with NaN for those that
    raised, and data of no columns if all have.

    Only the seeds are drawn from the caller's random state. With one worker `function`
    runs in this process on the device of `theta`; other workers get tensors on the CPU.
    """
    if num_workers != 1:
        theta, design = theta.detach().cpu(), design.detach().cpu()
    start = int(torch.randint(2**32, ()))
    rows = zip(theta.split(chunk_size), design.split(chunk_size), strict=True)
    jobs = [
        # Multiples of an odd number differ modulo 2**32; random seeds might coincide.
        # Copies, since pickling a slice of a tensor sends the whole tensor.
        (function, theta.clone(), design.clone(), (start + 0x9E3779B9 * index) % 2**32)
        for index, (theta, design) in enumerate(rows)
    ]
    if num_workers == 1:
        chunks: Any = (_run(*job) for job in jobs)
    else:
        try:
            cloudpickle.dumps(function)
        except Exception as error:
            raise TypeError(
                f"simulator cannot be sent to worker processes: {error}. Create files, "
                "locks and connections inside of it, or use num_workers=1."
            ) from error
        # Sent ahead of time, since a cluster takes long to ask for the next chunk.
        run = Parallel(num_workers, return_as="generator", pre_dispatch="8 * n_jobs")
        chunks = run(delayed(_run_on_worker)(*job) for job in jobs)
    results, num_failed, has_success = [], 0, False
    bar = tqdm(
        total=len(theta),
        disable=not show_progress_bar,
        desc="Simulating",
        unit=" simulations",
    )
    # Closed, since the traceback of an error would keep the generator and its chunks.
    with closing(chunks), bar:
        for chunk, job in zip(chunks, jobs, strict=True):
            results.append(chunk)
            if not chunk.is_fatal and (record is not None or show_progress_bar):
                rows, x = _finished(chunk, len(job[1]))
                if record is not None:
                    record(job[1][rows], job[2][rows], x.to(job[1]))
                is_finite = x.isfinite().all(dim=1) & (x.shape[1] > 0)
                num_failed += int((~is_finite).sum())
                bar.set_postfix(failed=num_failed, refresh=False)
            bar.update(len(job[1]))
            # Larger chunks count for themselves, and those that are on their way to
            # workers cannot be called back.
            has_success = has_success or bool(chunk.parts)
            too_many = len(results) >= _MAX_FAILURES_WITHOUT_SUCCESS
            if chunk_size == num_workers == 1 and too_many and not has_success:
                break
    for chunk in results:
        if chunk.is_fatal:
            raise chunk.error
    return results


def _finished(chunk: Chunk, num_rows: int) -> tuple[Tensor, Tensor]:
    """Return the rows that a chunk has tried, and their data."""
    width = common_shape(x for _, x in chunk.parts).numel() if chunk.parts else 0
    x = torch.full((num_rows, width), torch.nan)
    for rows, values in chunk.parts:
        x[rows] = values.detach().cpu().float().flatten(1)
    is_tried = torch.ones(num_rows, dtype=torch.bool)
    for rows in chunk.left_out:
        is_tried[rows] = False
    return is_tried, x[is_tried]


def _run(function: Function, theta: Tensor, design: Tensor, seed: int) -> Chunk:
    with _GENERATORS, isolated_rng(seed):
        return function(theta, design)


def _run_on_worker(*job: Any) -> Chunk:
    """Return the result of a chunk; errors and interrupts would break some pools."""
    try:
        chunk = _run(*job)
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


def call_simulator(
    simulator: Callable[[Tensor, Tensor], Any], theta: Tensor, design: Tensor
) -> tuple[Tensor | None, Exception | None]:
    """Return data `(batch_dim, *x_shape)` like `theta`, or the simulator's error.

    It gets copies, which it may change, and what it returns is copied, too.
    """
    try:
        x = simulator(theta.clone(), design.clone())
    except Exception as error:
        return None, error
    try:
        tensor = torch.as_tensor(x, dtype=theta.dtype, device=theta.device).clone()
    except (TypeError, ValueError, RuntimeError) as error:
        raise TypeError(
            "simulator(theta, design) must return a tensor or an array of numbers of "
            f"shape (batch_dim, dim_x), got {type(x).__name__}."
        ) from error
    if tensor.dim() < 2 or tensor.shape[0] != theta.shape[0]:
        raise ValueError(
            f"simulator returned x of shape {tuple(tensor.shape)} for theta of shape "
            f"{tuple(theta.shape)}, but must return shape ({len(theta)}, dim_x), or "
            f"({len(theta)}, *x_shape), one row per row of theta. {CONTRACT}"
        )
    return tensor, None


def common_shape(parts: Iterable[Tensor]) -> torch.Size:
    """Return the shape of one row of data, which all parts have."""
    shapes = sorted({x.shape[1:] for x in parts}) or [torch.Size((1,))]
    if len(shapes) > 1:
        first, last = (
            f"dim_x={shape[0]} values" if len(shape) == 1 else f"shape {tuple(shape)}"
            for shape in (shapes[0], shapes[-1])
        )
        raise ValueError(
            f"simulator returned {first} for some rows and {last} for others. Pad with "
            "NaN what has not been measured."
        )
    return shapes[0]


def simulate_chunk(
    theta: Tensor,
    design: Tensor,
    *,
    function: Callable[[Tensor, Tensor], Any],
    one_by_one: bool,
    keep_gradient: bool,
    max_repeats: float,
) -> Chunk:
    """Simulate the rows of a chunk, and find out which of them raise.

    The rows of a call that raises are halved until those to blame are alone, or are
    taken one by one if the number of repeated rows is limited. Halves are every other
    row, since rows next to each other may share a design that always fails.
    """
    todo = [torch.arange(len(theta))] if len(theta) else []
    parts, left_out, num_calls, first_error, num_raised = [], [], 0, None, 0
    while todo and (parts or num_raised < _MAX_FAILURES_WITHOUT_SUCCESS):
        rows = todo.pop()
        if one_by_one and len(rows) > 1:
            todo += [rows[1::2], rows[::2]]
        elif num_calls + len(rows) > len(theta) + max_repeats:
            left_out.append(rows)
        else:
            num_calls += len(rows)
            x, error = call_simulator(function, theta[rows], design[rows])
            if x is not None:
                parts.append((rows, x if keep_gradient else x.detach()))
            elif keep_gradient and error is not None:
                raise error
            elif len(rows) > 1:
                one_by_one |= math.isfinite(max_repeats)
                todo += [rows[1::2], rows[::2]]
            else:
                num_raised += 1
            first_error = first_error or error
    return Chunk(parts, left_out, num_calls, first_error)


def assemble(
    theta: Tensor, chunks: list[Chunk], chunk_size: int, num_rows: int, warn: bool
) -> tuple[Tensor, Tensor]:
    """Return data of all rows, NaN where there are none, and which rows are left in.

    Warns of rows that raised; if there are no others, raises what they did.
    """
    shape = common_shape(x for chunk in chunks for _, x in chunk.parts)
    x = theta.new_full((len(theta), *shape), torch.nan)
    tried = torch.arange(len(theta), device=theta.device) < num_rows
    num_done = 0
    for index, chunk in enumerate(chunks):
        for rows, values in chunk.parts:
            x[(index * chunk_size + rows).to(x.device)] = values.to(x)
            num_done += len(rows)
        for rows in chunk.left_out:
            tried[(index * chunk_size + rows).to(x.device)] = False
    error = next((chunk.error for chunk in chunks if chunk.error is not None), None)
    if error is None:
        return x, tried
    num_tried = int(tried.sum())
    num_raised = num_tried - num_done
    if num_raised == len(theta):
        note = f"The simulator raised for each of {len(theta)} simulations. {CONTRACT}"
        add_note(error, note)
        raise error
    if warn and (num_raised or num_tried < num_rows):
        limit = f" and {num_rows - num_tried} were left out at the limit of calls"
        warnings.warn(
            f"{num_raised} of {num_tried} simulations raised an error"
            f"{limit * (num_tried < num_rows)}: they are NaN. "
            f"The first error: {describe_error(error)}",
            stacklevel=4,
        )
    return x, tried
