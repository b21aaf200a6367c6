"""Calls of a user's simulator: what it gets and returns, what raises, what it promises.

It promises one row of data for each row of parameters and designs.
"""

import math
import warnings
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from sbi_boed_plugin._parallel import Chunk, add_note, describe_error
from sbi_boed_plugin._rng import get_rng_state, isolated_rng, same_rng_state

__all__ = [
    "CONTRACT",
    "MOST_CHECK_CALLS",
    "NUM_CHECKED",
    "assemble",
    "check_contract",
    "report_errors",
    "simulate_chunk",
]

# Rows of a chunk that may raise without a success before no others are tried.
_MAX_FAILURES_WITHOUT_SUCCESS = 32
# Rows of the calls that check a simulator: one in the middle, others on both sides.
NUM_CHECKED = 3
# Calls with one row, all of which raise only if one row is what a simulator cannot do.
_NUM_ALONE = 8
# Rows that a check takes at most.
MOST_CHECK_CALLS = 1 + _NUM_ALONE + 3 * NUM_CHECKED
# What a row may change by when the others do, relative to its column: solvers choose
# the steps of all rows of a batch together.
_TOLERANCE = 0.01

CONTRACT = (
    "It must make each row of x from its own row of theta, of shape (batch_dim, "
    "dim_theta), and design, of shape (batch_dim, dim_design). For a function of one "
    "parameter vector and one design vector pass sbi_boed_plugin.vectorize(simulator)."
)


def _call(
    simulator: Callable[[Tensor, Tensor], Any],
    theta: Tensor,
    design: Tensor,
    keep_gradient: bool = False,
) -> tuple[Tensor | None, Exception | None]:
    """Return data of shape `(batch_dim, dim_x)` like `theta`, or the simulator's error.

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
    if tensor.dim() != 2 or tensor.shape[0] != theta.shape[0]:
        raise ValueError(
            f"simulator returned x of shape {tuple(tensor.shape)} for theta of shape "
            f"{tuple(theta.shape)}, but must return shape ({len(theta)}, dim_x), one "
            f"row per row of theta. {CONTRACT}"
        )
    return tensor if keep_gradient else tensor.detach(), None


def simulate_chunk(
    theta: Tensor,
    design: Tensor,
    *,
    function: Callable[[Tensor, Tensor], Any],
    one_by_one: bool,
    keep_gradient: bool,
    num_repeats: int | None,
) -> Chunk:
    """Simulate the rows of a chunk, and find out which of them raise.

    The rows of a call that raises are halved until those to blame are alone, or are
    taken one by one if the number of repeated rows is limited. Halves are every other
    row, since rows next to each other may share a design that always fails.
    """
    if len(theta) == 0:
        return Chunk()
    all_rows = torch.arange(len(theta))
    todo = _spread(all_rows) if one_by_one else [all_rows]
    most = math.inf if num_repeats is None else len(theta) + num_repeats
    parts, left_out, num_calls, first_error, num_raised = [], [], 0, None, 0
    while todo and (parts or num_raised < _MAX_FAILURES_WITHOUT_SUCCESS):
        rows = todo.pop()
        if num_calls + len(rows) > most:
            left_out.append(rows)
            continue
        num_calls += len(rows)
        x, error = _call(function, theta[rows], design[rows], keep_gradient)
        if error is None:
            parts.append((rows, x))
            continue
        if keep_gradient:
            raise error
        first_error = first_error or error
        if len(rows) == 1:
            num_raised += 1
        elif num_repeats is None:
            todo += [rows[1::2], rows[::2]]
        else:
            todo += _spread(rows)
    return Chunk(parts, left_out, num_calls, first_error)


def _spread(rows: Tensor) -> list[Tensor]:
    """Return rows one by one, neighbours apart, to be taken from the end."""
    num_parts = max(1, len(rows) // _MAX_FAILURES_WITHOUT_SUCCESS)
    spread = torch.cat([rows[start::num_parts] for start in range(num_parts)])
    return list(spread.flip(0).split(1))


def assemble(
    theta: Tensor, chunks: list[Chunk], chunk_size: int
) -> tuple[Tensor, Tensor]:
    """Return data of all rows, NaN where there are none, and which rows are left in."""
    dims = sorted({x.shape[1] for chunk in chunks for _, x in chunk.parts}) or [1]
    if len(dims) > 1:
        raise ValueError(
            f"simulator returned dim_x={dims[0]} values for some rows and "
            f"dim_x={dims[-1]} for others. Pad with NaN what has not been measured."
        )
    x = theta.new_full((len(theta), dims[0]), torch.nan)
    tried = torch.ones(len(theta), dtype=torch.bool, device=theta.device)
    for index, chunk in enumerate(chunks):
        start = index * chunk_size
        for rows, values in chunk.parts:
            x[(start + rows).to(x.device)] = values.to(x)
        for rows in chunk.left_out:
            tried[(start + rows).to(x.device)] = False
    return x, tried


def report_errors(chunks: list[Chunk], tried: Tensor, warn: bool) -> None:
    """Warn of rows that raised; if there are no others, raise what they did."""
    error = next((chunk.error for chunk in chunks if chunk.error is not None), None)
    if error is None:
        return
    num_rows, num_left_out = len(tried), int((~tried).sum())
    num_done = sum(len(rows) for chunk in chunks for rows, _ in chunk.parts)
    num_raised = num_rows - num_done - num_left_out
    if num_raised == num_rows:
        note = f"The simulator raised for each of {num_rows} simulations. {CONTRACT}"
        add_note(error, note)
        raise error
    if warn and (num_raised or num_left_out):
        limit = f", {num_left_out} were left out, at the limit of calls,"
        warnings.warn(
            f"{num_raised} of {num_rows} simulations raised an error"
            f"{limit * bool(num_left_out)} and are NaN. "
            f"The first error: {describe_error(error)}",
            stacklevel=4,
        )


def check_contract(
    simulator: Callable[[Tensor, Tensor], Any], theta: Tensor, design: Tensor
) -> Chunk:
    """Check that a simulator takes any number of rows and keeps them apart.

    It is called with one row (up to eight times, until it does not raise), then with
    all rows, and then, with the same random numbers, with the middle row in the place
    of all others: the middle row of x must not change. A simulator that does not give
    the same for the same random numbers cannot be compared, and is taken. Returns how
    many rows the simulator got, and an error if each of these calls raised.
    """
    alone, error, num_calls = None, None, 0
    while alone is None and num_calls < _NUM_ALONE:
        row = [num_calls % len(theta)]
        alone, error = _call(simulator, theta[row], design[row])
        num_calls += 1
    together, start = None, get_rng_state()
    if len(theta) > 1:
        together, _ = _call(simulator, theta, design)
        num_calls += len(theta)
    if together is None:
        return Chunk(error=error, num_calls=num_calls)
    end = get_rng_state()
    if alone is None:
        raise ValueError(
            "simulator simulates several rows together, but raises for one row alone "
            f"({error!r}). {CONTRACT}"
        ) from error
    _check_width(alone, together)

    def again(rows: list[int]) -> Tensor | None:
        """Simulate from the same state; `None` if it took other random numbers."""
        with isolated_rng(start):
            x, _ = _call(simulator, theta[rows], design[rows])
            return x if same_rng_state(get_rng_state(), end) else None

    # Rows on both sides of one; of two rows each is the other side of the other.
    for row in [1] if len(theta) > 2 else [0, 1]:
        changed = again([row] * len(theta))
        num_calls += len(theta)
        if changed is None:
            continue
        _check_width(changed, together)
        if _agree(changed[row], together[row], together):
            continue
        # A row that depends on others, or noise from a generator of its own.
        repeated = again(list(range(len(theta))))
        num_calls += len(theta)
        if repeated is not None and torch.equal(repeated, together):
            raise ValueError(
                "simulator mixes rows: with the same random numbers, the row of x for "
                f"theta={theta[row].tolist()} and design={design[row].tolist()} is "
                f"{together[row].tolist()} beside some rows and "
                f"{changed[row].tolist()} beside others. {CONTRACT}"
            )
    return Chunk(num_calls=num_calls)


def _check_width(x: Tensor, other: Tensor) -> None:
    if x.shape[1] != other.shape[1]:
        raise ValueError(
            f"simulator returned x of shape {tuple(x.shape)}, then of shape "
            f"{tuple(other.shape)}: rows must be of one length at each call. {CONTRACT}"
        )


def _agree(row: Tensor, other: Tensor, x: Tensor) -> bool:
    """Whether two outcomes of a row are alike, as far as the columns of `x` tell.

    Columns of which two rows are equal may hold outcomes of few values, such as yes
    and no, which repeat by chance.
    """
    gaps = (x.unsqueeze(0) - x.unsqueeze(1)).abs()
    gaps = gaps + torch.diag(gaps.new_full((len(x),), torch.inf)).unsqueeze(-1)
    tells = gaps.amin(dim=(0, 1)).gt(0.0) & x.ne(x.round()).any(dim=0)
    differs = (row - other).abs() > _TOLERANCE * x.abs().amax(dim=0)
    return not bool((differs & tells).any())
