"""What a simulator promises: one row of data per row of parameters and designs."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from sbi_boed_plugin._parallel import Chunk, describe_error
from sbi_boed_plugin._rng import get_rng_state, isolated_rng, same_rng_state

__all__ = [
    "CONTRACT",
    "MOST_CHECK_CALLS",
    "NUM_CHECKED",
    "call_simulator",
    "check_alone",
    "check_contract",
]

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
    "It must be a function of many rows, theta of shape (batch_dim, dim_theta) and "
    "design of shape (batch_dim, dim_design), that makes each row of x from its own "
    "row of theta and design. For a function of one parameter vector and one design "
    "vector pass sbi_boed_plugin.vectorize(simulator)."
)


def call_simulator(
    simulator: Callable[[Tensor, Tensor], Any],
    theta: Tensor,
    design: Tensor,
    keep_gradient: bool = False,
) -> tuple[Tensor | None, Exception | None]:
    """Call a simulator with copies, and copy what it returns.

    It may change what it gets in place, and use what it returned again.

    Args:
        simulator: Function from `theta` and `design` to `x`.
        theta: Parameters of shape `(batch_dim, dim_theta)`.
        design: Designs of shape `(batch_dim, dim_design)`.
        keep_gradient: Whether `x` carries the gradient of `design`.

    Returns:
        Data of shape `(batch_dim, dim_x)` like `theta`, or else the error that the
        simulator raised.

    Raises:
        TypeError: If it does not return an array of numbers.
        ValueError: If it returns another shape.
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
            "row per row of theta; a single number per row has shape "
            f"({len(theta)}, 1). {CONTRACT}"
        )
    return tensor if keep_gradient else tensor.detach(), None


def check_contract(
    simulator: Callable[[Tensor, Tensor], Any], theta: Tensor, design: Tensor
) -> Chunk:
    """Check that a simulator takes any number of rows and keeps them apart.

    It is called with the first row alone and with all rows; and again, with the same
    random numbers, with the middle row in the place of all others, which must come out
    as before. That comparison needs a simulator that gives the same for the same
    random state.

    Args:
        simulator: Function from `theta` and `design` to `x`.
        theta: Parameters of shape `(NUM_CHECKED, dim_theta)`, or fewer rows.
        design: Their designs.

    Returns:
        How many rows the simulator got, and whether it raised in all of these calls,
        which leaves the question open.

    Raises:
        TypeError: If it does not return an array of numbers.
        ValueError: If it returns another shape, or is not a function of rows.
    """
    alone, _ = call_simulator(simulator, theta[:1], design[:1])
    if len(theta) == 1:
        return Chunk(None, num_calls=1, is_suspect=alone is None)
    start = get_rng_state()
    together, _ = call_simulator(simulator, theta, design)
    end = get_rng_state()
    num_calls = 1 + len(theta)
    if together is None:
        return Chunk(None, num_calls=num_calls, is_suspect=alone is None)
    if alone is None:
        num_calls += check_alone(simulator, theta[1:], design[1:])
    else:
        _check_width(alone, together)

    def again(rows: list[int]) -> Tensor | None:
        with isolated_rng(start):
            x, _ = call_simulator(simulator, theta[rows], design[rows])
            # What used other random numbers cannot be compared.
            return x if same_rng_state(get_rng_state(), end) else None

    # Rows on both sides of one; of two rows each is the other side of the other.
    for row in [1] if len(theta) > 2 else [0, 1]:
        changed = again([row] * len(theta))
        num_calls += len(theta)
        if changed is not None:
            _check_width(changed, together)
        if changed is None or _agree(changed[row], together[row], together):
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
    return Chunk(None, num_calls=num_calls)


def _check_width(x: Tensor, other: Tensor) -> None:
    if x.shape[1] != other.shape[1]:
        raise ValueError(
            f"simulator returned x of shape {tuple(x.shape)}, then of shape "
            f"{tuple(other.shape)}: the number of values per row must be the same at "
            f"each call and for any number of rows. {CONTRACT}"
        )


def _agree(row: Tensor, other: Tensor, x: Tensor) -> bool:
    """Whether two outcomes of a row are alike, as far as their columns tell.

    Columns of which two rows are equal may hold outcomes of few values, such as yes
    and no, which repeat by chance.
    """
    gaps = (x.unsqueeze(0) - x.unsqueeze(1)).abs()
    gaps = gaps + torch.diag(gaps.new_full((len(x),), torch.inf)).unsqueeze(-1)
    tells = gaps.amin(dim=(0, 1)).gt(0.0) & x.ne(x.round()).any(dim=0)
    differs = (row - other).abs() > _TOLERANCE * x.abs().amax(dim=0)
    return not bool((differs & tells).any())


def check_alone(
    simulator: Callable[[Tensor, Tensor], Any], theta: Tensor, design: Tensor
) -> int:
    """Check that one of the first rows comes out alone, as all did together.

    Args:
        simulator: Function from `theta` and `design` to `x`.
        theta: Parameters of rows that it has simulated together.
        design: Their designs.

    Returns:
        How many rows the simulator got.

    Raises:
        ValueError: If it raises for each of these rows alone.
    """
    error = None
    for attempt in range(_NUM_ALONE):
        row = [attempt % len(theta)]
        x, error = call_simulator(simulator, theta[row], design[row])
        if x is not None:
            return attempt + 1
    assert error is not None
    raise ValueError(
        "simulator simulates several rows together, but raises for one row alone "
        f"({describe_error(error)}). {CONTRACT}"
    ) from error
