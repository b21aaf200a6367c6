"""Calls of a user's simulator: what it gets and returns, what raises, what it promises.

It promises one row of data for each row of parameters and designs.
"""

import math
import random
import warnings
from collections.abc import Callable, Iterable
from typing import Any

import numpy as np
import torch
from torch import Tensor

from sbi_boed_plugin._parallel import Chunk, add_note, describe_error
from sbi_boed_plugin._rng import get_rng_state, isolated_rng

__all__ = [
    "CONTRACT",
    "MOST_CHECK_CALLS",
    "NUM_CHECK_CALLS",
    "assemble",
    "check_contract",
    "report_errors",
    "simulate_chunk",
]

# Rows of a chunk that may raise without a success before no others are tried.
_MAX_FAILURES_WITHOUT_SUCCESS = 32
# Calls with one row, all of which raise only if one row is what a simulator cannot do.
_NUM_ALONE = 8
# Rows that a check takes, and that it takes at most.
NUM_CHECK_CALLS, MOST_CHECK_CALLS = 1 + 2 * 3, _NUM_ALONE + 3 * 3
# What a row may change by when the others do, relative to its column: solvers choose
# the steps of all rows of a batch together.
_TOLERANCE = 0.01

CONTRACT = (
    "It must make each row of x from its own row of theta, of shape (batch_dim, "
    "dim_theta), and design, of shape (batch_dim, dim_design). For a function of one "
    "parameter vector and one design vector pass sbi_boed_plugin.vectorize(simulator)."
)


def _call(
    simulator: Callable[[Tensor, Tensor], Any], theta: Tensor, design: Tensor
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
    return tensor, None


def _width(parts: Iterable[Tensor]) -> int:
    """Return the number of columns that all parts of the data have."""
    dims = sorted({x.shape[1] for x in parts}) or [1]
    if len(dims) > 1:
        raise ValueError(
            f"simulator returned dim_x={dims[0]} values for some rows and "
            f"dim_x={dims[-1]} for others. Pad with NaN what has not been measured."
        )
    return dims[0]


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
            x, error = _call(function, theta[rows], design[rows])
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
    theta: Tensor, chunks: list[Chunk], chunk_size: int
) -> tuple[Tensor, Tensor]:
    """Return data of all rows, NaN where there are none, and which rows are left in."""
    width = _width(x for chunk in chunks for _, x in chunk.parts)
    x = theta.new_full((len(theta), width), torch.nan)
    tried = torch.ones(len(theta), dtype=torch.bool, device=theta.device)
    for index, chunk in enumerate(chunks):
        for rows, values in chunk.parts:
            x[(index * chunk_size + rows).to(x.device)] = values.to(x)
        for rows in chunk.left_out:
            tried[(index * chunk_size + rows).to(x.device)] = False
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

    It is called with one of three rows (up to eight times, until it does not raise),
    then with all of them, and then, with the same random numbers, with the second row
    in the place of all: the second row of x must not change. A simulator that does not
    give the same for the same random numbers cannot be compared, and is taken. Returns
    how many rows the simulator got, and an error if each of these calls raised.
    """
    alone, error, num_calls = None, None, 0
    while alone is None and num_calls < _NUM_ALONE:
        row = [num_calls % 3]
        alone, error = _call(simulator, theta[row], design[row])
        num_calls += 1
    start = get_rng_state()

    def simulate(rows: list[int]) -> tuple[Tensor | None, list[float]]:
        """Return data from the same state, and the random numbers that come next."""
        with isolated_rng(start):
            x, _ = _call(simulator, theta[rows], design[rows])
            of_torch = torch.rand((), device=theta.device).item()
            return x, [of_torch, np.random.rand(), random.random()]

    together, end = simulate([0, 1, 2])
    if together is None:
        return Chunk(error=error, num_calls=num_calls + 3)
    if alone is None:
        raise ValueError(
            "simulator simulates several rows together, but raises for one row alone "
            f"({error!r}). {CONTRACT}"
        ) from error
    changed, end_of_changed = simulate([1, 1, 1])
    num_calls += 6
    _width(x for x in (alone, together, changed) if x is not None)
    if changed is None or end_of_changed != end:
        return Chunk(num_calls=num_calls)
    # Columns of integers, or of which rows are equal, may repeat by chance.
    different = together[: 2 if torch.equal(theta[0], theta[2]) else 3]
    tells = different.sort(dim=0).values.diff(dim=0).ne(0.0).all(dim=0)
    tells &= together.ne(together.round()).any(dim=0)
    gaps = (changed[1] - together[1]).abs()
    if not bool((tells & (gaps > _TOLERANCE * together.abs().amax(dim=0))).any()):
        return Chunk(num_calls=num_calls)
    # A row that depends on others, or noise from a generator of its own.
    repeated, _ = simulate([0, 1, 2])
    if repeated is not None and torch.equal(repeated, together):
        raise ValueError(
            "simulator mixes rows: with the same random numbers, the row of x for "
            f"theta={theta[1].tolist()} and design={design[1].tolist()} is "
            f"{together[1].tolist()} beside some rows and {changed[1].tolist()} beside "
            f"others. {CONTRACT}"
        )
    return Chunk(num_calls=num_calls + 3)
