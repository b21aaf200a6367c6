"""The boundary to a user's simulator: who runs it, what fails, what comes out."""

import warnings
from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor

from sbi_boed_plugin._parallel import (
    Chunk,
    add_note,
    check_num_workers,
    default_chunk_size,
    describe_error,
    map_chunks,
)

__all__ = ["run_simulator"]

# Rows of a chunk, evenly spread over it, that may raise one after another without a
# single success before the rest of the chunk is not tried any more.
MAX_FAILURES_WITHOUT_SUCCESS = 32


def run_simulator(
    simulator: Callable[[Tensor, Tensor], Tensor],
    theta: Tensor,
    design: Tensor,
    *,
    num_workers: int | None = 1,
    simulation_batch_size: int | None = None,
    isolate_errors: bool = False,
    warn: bool = True,
    show_progress_bar: bool = False,
) -> tuple[Tensor, Tensor]:
    """Simulate one experiment per row.

    With one worker and no `simulation_batch_size` there is a single call in this
    process, which draws from the global generators as they are. Otherwise rows go in
    chunks, each with a seed that is drawn from torch's global generator: what comes
    out then depends on the size of the chunks, not on the number of workers, their
    kind or their order.

    Args:
        simulator: Function from `theta` and `design` to `x` of shape
            `(batch_dim, dim_x)`.
        theta: Parameters of shape `(batch_dim, dim_theta)`.
        design: Designs of shape `(batch_dim, dim_design)`.
        num_workers: Number of workers of the backend of `joblib.parallel_config`, by
            default processes; -1 for all cores, `None` for the `n_jobs` of
            `parallel_config`. A dask cluster lends all of its workers to any number
            but 1, which always means this process. `simulator` has to be picklable (by
            cloudpickle) and gets tensors on the CPU. Threads of one process share the
            global generators and therefore take turns: use workers of one thread.
        simulation_batch_size: Number of rows of a chunk. If `None`, a sixteenth of the
            rows when there are several workers, else all of them.
        isolate_errors: Whether rows for which `simulator` raises an `Exception` become
            NaN, with a warning. The rows of a call that raises are simulated again in
            ever smaller parts, at most twice as many calls as rows; what fails by
            chance thus gets another chance. A chunk of which the first 32 rows that
            were tried alone all raise is given up. If `False`, errors are raised.
        warn: Whether to warn of rows that raised.
        show_progress_bar: Whether to show how many rows are done.

    Returns:
        Data of shape `(batch_dim, dim_x)`, on the device and in the dtype of `theta`;
        and which rows are free of NaN and infinite values, of shape `(batch_dim,)`.

    Raises:
        TypeError: If `simulator` does not return an array of numbers, or cannot be
            sent to workers.
        ValueError: If it returns another shape, or an argument is out of range.
        BaseException: What `simulator` raises, if errors are not isolated, if it is no
            `Exception` (an interrupt), or if every row raises.
    """
    if theta.dim() != 2:
        raise ValueError(
            f"The prior returns parameters of shape {tuple(theta.shape)}, but one row "
            "per draw of shape (batch_dim, dim_theta) is needed. Wrap it with "
            "sbi.utils.process_prior, or in torch.distributions.Independent."
        )
    check_num_workers(num_workers, simulation_batch_size)
    simulate = partial(_isolate_errors if isolate_errors else _simulate, simulator)
    if num_workers == 1 and simulation_batch_size is None:
        chunks, sizes = [simulate(theta, design)], [len(theta)]
    else:
        chunk_size = simulation_batch_size or default_chunk_size(len(theta))
        chunks = map_chunks(
            simulate,
            theta,
            design,
            num_workers=num_workers,
            chunk_size=chunk_size,
            show_progress_bar=show_progress_bar,
        )
        sizes = [len(rows) for rows in theta.split(chunk_size)]
    _report_errors(chunks, len(theta), warn)
    rows = torch.arange(len(theta)).split(sizes)
    parts = [(r, c.x) for r, c in zip(rows, chunks, strict=True) if c.x is not None]
    x = _assemble(theta, parts)
    return x, torch.isfinite(x).all(dim=1)


def _simulate(simulator: Callable, theta: Tensor, design: Tensor) -> Chunk:
    return Chunk(_check_x(simulator(theta, design), theta))


def _check_x(x: object, theta: Tensor) -> Tensor:
    """Return what a simulator returned as a tensor like `theta`, or refuse it."""
    try:
        tensor = torch.as_tensor(x, dtype=theta.dtype, device=theta.device).detach()
    except (TypeError, ValueError, RuntimeError) as error:
        raise TypeError(
            "simulator(theta, design) must return a tensor or an array of numbers of "
            f"shape (batch_dim, dim_x), got {type(x).__name__}."
        ) from error
    if tensor.dim() != 2 or tensor.shape[0] != theta.shape[0]:
        raise ValueError(
            f"simulator returned x of shape {tuple(tensor.shape)} for theta of shape "
            f"{tuple(theta.shape)}. It must return shape ({len(theta)}, dim_x), one "
            "row per row of theta; a single number per row has shape "
            f"({len(theta)}, 1)."
        )
    return tensor


def _isolate_errors(simulator: Callable, theta: Tensor, design: Tensor) -> Chunk:
    """Simulate, and halve the rows of calls that raise until those to blame are alone.

    Halves are every other row, so that the first rows to be alone are spread over all
    of them: rows next to each other may share a design that always fails.
    """
    parts: list[tuple[Tensor, Tensor]] = []
    num_raised, first_error = 0, None
    todo = [torch.arange(len(theta))]
    while todo and (parts or num_raised < MAX_FAILURES_WITHOUT_SUCCESS):
        rows = todo.pop()
        is_all = len(rows) == len(theta)
        some_theta = theta if is_all else theta[rows]
        try:
            x = simulator(some_theta, design if is_all else design[rows])
        except Exception as error:
            first_error = first_error or error
            if len(rows) == 1:
                num_raised += 1
            else:
                todo += [rows[1::2], rows[::2]]
        else:
            parts.append((rows, _check_x(x, some_theta)))
    num_raised += sum(map(len, todo))
    x = _assemble(theta, parts) if parts else None
    return Chunk(x, num_raised, first_error)


def _assemble(theta: Tensor, parts: list[tuple[Tensor, Tensor]]) -> Tensor:
    """Put rows of data in their places, and NaN where there are none."""
    dims = sorted({x.shape[1] for _, x in parts})
    if len(dims) > 1:
        raise ValueError(
            f"simulator returned dim_x={dims[0]} values for some rows and "
            f"dim_x={dims[-1]} for others. It must return the same number for every "
            "call; pad with NaN what has not been measured."
        )
    if len(parts) == 1 and len(parts[0][0]) == len(theta):
        return parts[0][1].to(theta)
    x = theta.new_full((len(theta), dims[0]), torch.nan)
    for rows, values in parts:
        x[rows.to(x.device)] = values.to(x)
    return x


def _report_errors(chunks: list[Chunk], num_rows: int, warn: bool) -> None:
    """Warn of rows that raised; if there are no others, raise what they did."""
    num_raised = sum(chunk.num_raised for chunk in chunks)
    error = next((chunk.error for chunk in chunks if chunk.error is not None), None)
    if not num_raised or error is None:
        return
    if num_raised == num_rows:
        add_note(error, f"The simulator raised for each of {num_rows} simulations.")
        raise error
    if not warn:
        return
    warnings.warn(
        f"{num_raised} of {num_rows} simulations raised an error and are NaN. The "
        f"first error: {describe_error(error)}",
        stacklevel=4,
    )
