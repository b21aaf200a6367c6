"""The boundary to a user's simulator: who runs it, what fails, what comes out."""

import math
import warnings
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import torch
from torch import Tensor

from sbi_boed_plugin._contract import (
    CONTRACT,
    MOST_CHECK_CALLS,
    NUM_CHECKED,
    call_simulator,
    check_alone,
    check_contract,
)
from sbi_boed_plugin._numbers import check_integer
from sbi_boed_plugin._parallel import (
    Chunk,
    add_note,
    check_num_workers,
    default_chunk_size,
    describe_error,
    map_chunks,
)
from sbi_boed_plugin._rng import get_rng_state, isolated_rng

__all__ = ["CheckedSimulator", "Simulations", "Simulator", "run_simulator"]

# Rows of a chunk, evenly spread over it, that may raise one after another without a
# single success before the rest of the chunk is not tried any more.
MAX_FAILURES_WITHOUT_SUCCESS = 32


@dataclass
class CheckedSimulator:
    """A user's simulator during one public call, which checks it once.

    Attributes:
        function: The simulator.
        max_calls: Number of rows that it may still get, or `None` for any number.
        is_checked: Whether it need not be checked any more.
        is_suspect: Whether it raised whenever it was checked, so that it is not known
            to take several rows.
        has_raised: Whether it has raised an error.
        num_checked: Number of rows of the calls that check it.
    """

    function: Callable[[Tensor, Tensor], Any]
    max_calls: int | None = None
    is_checked: bool = False
    is_suspect: bool = False
    has_raised: bool = False
    num_checked: int = NUM_CHECKED

    def __post_init__(self) -> None:
        if isinstance(self.function, CheckedSimulator):
            self.is_checked = self.is_checked or self.function.is_checked
            self.function = self.function.function
        if not callable(self.function):
            raise TypeError(
                f"simulator must be a function of theta and design, got "
                f"{type(self.function).__name__}."
            )
        self.is_checked = self.is_checked or self.is_row_by_row

    def count(self, chunks: list[Chunk]) -> int:
        """Take what chunks cost from the limit, and return it."""
        num_calls = sum(chunk.num_calls for chunk in chunks)
        self.has_raised |= any(chunk.error is not None for chunk in chunks)
        if self.max_calls is not None:
            self.max_calls -= num_calls
        return num_calls

    def set_aside(self, num_calls: int) -> None:
        """Leave some of the calls for later."""
        if self.max_calls is not None:
            self.max_calls = max(0, self.max_calls - num_calls)

    @property
    def num_check_calls(self) -> int:
        """Rows that a check takes, unless there are errors or other generators."""
        return 0 if self.is_checked else 1 + 2 * self.num_checked

    @property
    def is_row_by_row(self) -> bool:
        """Whether it simulates one row after another, so that none is done in vain."""
        return getattr(self.function, "is_row_by_row", False)


Simulator = Callable[[Tensor, Tensor], Any] | CheckedSimulator


@dataclass(frozen=True)
class Simulations:
    """What came out of a simulator.

    Attributes:
        x: Data of shape `(batch_dim, dim_x)`, NaN where it failed.
        valid: Rows free of NaN and infinite values, of shape `(batch_dim,)`.
        num_calls: Number of rows that the simulator got, those of its check and those
            repeated after errors included.
        is_complete: Whether the limit of calls left every row its chance.
    """

    x: Tensor
    valid: Tensor
    num_calls: int
    is_complete: bool = True


def run_simulator(
    simulator: Simulator,
    theta: Tensor,
    design: Tensor,
    *,
    num_workers: int | None = 1,
    simulation_batch_size: int | None = None,
    isolate_errors: bool = False,
    keep_gradient: bool = False,
    warn: bool = True,
    show_progress_bar: bool = False,
) -> Simulations:
    """Simulate one experiment per row.

    With one worker and no `simulation_batch_size` there is a single call in this
    process, which draws from the global generators as they are. Otherwise rows go in
    chunks, each with a seed that is drawn from torch's global generator: what comes
    out then depends on the size of the chunks, not on the number of workers, their
    kind or their order.

    The simulator gets copies, and copies of what it returns are kept. Before its first
    use it is called with one row and twice with three, to see that rows do not depend
    on each other; that leaves the random state as it was.

    Args:
        simulator: Function from `theta` and `design` to `x` of shape
            `(batch_dim, dim_x)`, or one with a limit of calls.
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
            ever smaller parts, at most twice as many calls as rows; with a limit of
            calls one by one, from then on. What fails by chance thus gets another
            chance. A chunk of which the first 32 rows that were tried alone all raise
            is given up. If `False`, errors are raised.
        keep_gradient: Whether `x` carries the gradient of `design`. Then there is one
            call in this process.
        warn: Whether to warn of rows that raised.
        show_progress_bar: Whether to show how many rows are done.

    Returns:
        The data, on the device and in the dtype of `theta`, and what they cost.

    Raises:
        TypeError: If `simulator` does not return an array of numbers, or cannot be
            sent to workers.
        ValueError: If it returns another shape or mixes rows, or an argument is out of
            range.
        BaseException: What `simulator` raises, if errors are not isolated, if it is no
            `Exception` (an interrupt), or if every row raises.
    """
    if theta.dim() != 2:
        raise ValueError(
            f"The prior returns parameters of shape {tuple(theta.shape)}, but one row "
            "per draw of shape (batch_dim, dim_theta) is needed. Wrap it with "
            "sbi.utils.process_prior, or in torch.distributions.Independent."
        )
    num_workers = check_num_workers(num_workers)
    simulation_batch_size = check_integer(
        "simulation_batch_size", simulation_batch_size, 1, or_none=True
    )
    if not isinstance(simulator, CheckedSimulator):
        simulator = CheckedSimulator(simulator)
    num_calls = _check_once(simulator, theta, design, num_workers)
    num_rows, spare, left = len(theta), None, simulator.max_calls
    if left is not None:
        num_rows = min(num_rows, left)
        spare = left - num_rows
    run = _Run(
        simulator,
        isolate_errors,
        keep_gradient,
        spare,
        # From the first error on no row is done twice, where their number is limited.
        one_by_one=simulator.is_row_by_row
        or (left is not None and simulator.has_raised),
    )
    if keep_gradient or (num_workers == 1 and simulation_batch_size is None):
        sizes = [num_rows]
        chunks = [run(theta[:num_rows], design[:num_rows])]
    else:
        chunk_size = simulation_batch_size or default_chunk_size(num_rows)
        sizes = [len(rows) for rows in theta[:num_rows].split(chunk_size)]
        if spare is not None:
            # Alike for all, whoever is first.
            run = replace(run, spare=spare // max(1, len(sizes)))
        chunks = map_chunks(
            run,
            theta[:num_rows],
            design[:num_rows],
            num_workers=num_workers,
            chunk_size=chunk_size,
            show_progress_bar=show_progress_bar,
        )
    num_calls += simulator.count(chunks)
    is_complete = num_rows == len(theta) and not any(c.num_left_out for c in chunks)
    _report_errors(chunks, len(theta), is_complete, warn)
    rows = torch.arange(num_rows).split(sizes)
    parts = [(r, c.x) for r, c in zip(rows, chunks, strict=True) if c.x is not None]
    x = _assemble(theta, parts)
    return Simulations(x, torch.isfinite(x).all(dim=1), num_calls, is_complete)


def _check_once(
    simulator: CheckedSimulator,
    theta: Tensor,
    design: Tensor,
    num_workers: int | None,
) -> int:
    """Check a simulator before its first use, and return how many rows that took."""
    left = simulator.max_calls
    if simulator.is_checked or (left is not None and left < MOST_CHECK_CALLS):
        return 0
    num_rows = simulator.num_checked
    if len(theta) > 1:  # A single row is checked beside copies of itself.
        num_rows = min(num_rows, len(theta))
    # First, last and between, since neighbours may share a design.
    rows = torch.linspace(0, len(theta) - 1, num_rows).round().long()
    with isolated_rng(get_rng_state()):  # What is simulated does not depend on it.
        chunks = map_chunks(
            partial(check_contract, simulator.function),
            theta[rows].detach(),
            design[rows].detach(),
            num_workers=num_workers,
            chunk_size=num_rows,
        )
    simulator.is_checked, simulator.is_suspect = True, chunks[0].is_suspect
    return simulator.count(chunks)


@dataclass(frozen=True)
class _Run:
    """Simulates a chunk of rows, and finds out which of them raise.

    The rows of a call that raises are halved until those to blame are alone. Halves
    are every other row, so that the first rows to be alone are spread over all of
    them: rows next to each other may share a design that always fails.
    """

    simulator: CheckedSimulator
    isolate_errors: bool
    keep_gradient: bool
    spare: int | None  # Number of rows that may be repeated.
    one_by_one: bool

    def __call__(self, theta: Tensor, design: Tensor) -> Chunk:
        function = self.simulator.function
        limit = math.inf if self.spare is None else len(theta) + self.spare
        is_suspect = self.simulator.is_suspect
        parts: list[tuple[Tensor, Tensor]] = []
        num_calls, num_raised, num_left_out, first_error = 0, 0, 0, None
        all_rows = torch.arange(len(theta))
        todo = _alone(all_rows) if self.one_by_one else [all_rows]
        while todo and (parts or num_raised < MAX_FAILURES_WITHOUT_SUCCESS):
            rows = todo.pop()
            reserve = MOST_CHECK_CALLS if is_suspect and len(rows) > 1 else 0
            if num_calls + len(rows) + reserve > limit:
                num_left_out += len(rows)
                continue
            some_theta, some_design = (
                values if len(rows) == len(theta) else values[rows]
                for values in (theta, design)
            )
            num_calls += len(rows)
            x, error = call_simulator(
                function, some_theta, some_design, self.keep_gradient
            )
            if x is not None:
                if is_suspect and len(rows) > 1:
                    num_calls += check_alone(function, some_theta, some_design)
                    is_suspect = False
                parts.append((rows, x))
                continue
            assert error is not None
            if not self.isolate_errors:
                raise error
            first_error = first_error or error
            if len(rows) == 1:
                num_raised += 1
            elif self.spare is None:
                todo += [rows[1::2], rows[::2]]
            else:
                todo += _alone(rows)
        num_raised += sum(map(len, todo))
        x = _assemble(theta, parts) if parts else None
        return Chunk(
            x,
            num_raised,
            first_error,
            num_calls=num_calls,
            num_left_out=num_left_out,
        )


def _alone(rows: Tensor) -> list[Tensor]:
    """Return rows one by one, neighbours apart, to be taken from the end."""
    num_parts = max(1, len(rows) // MAX_FAILURES_WITHOUT_SUCCESS)
    spread = torch.cat([rows[start::num_parts] for start in range(num_parts)])
    return list(spread.flip(0).split(1))


def _assemble(theta: Tensor, parts: list[tuple[Tensor, Tensor]]) -> Tensor:
    """Put rows of data in their places, and NaN where there are none."""
    dims = sorted({x.shape[1] for _, x in parts}) or [1]
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


def _report_errors(
    chunks: list[Chunk], num_rows: int, is_complete: bool, warn: bool
) -> None:
    """Warn of rows that raised; if there are no others, raise what they did."""
    num_raised = sum(chunk.num_raised for chunk in chunks)
    error = next((chunk.error for chunk in chunks if chunk.error is not None), None)
    if error is None:
        return
    if num_raised == num_rows:
        add_note(
            error,
            f"The simulator raised for each of {num_rows} simulations. {CONTRACT}",
        )
        raise error
    if not warn or not (num_raised or not is_complete):
        return
    num_left_out = sum(chunk.num_left_out for chunk in chunks)
    left_out = f", {num_left_out} were left out, at the limit of calls," * bool(
        num_left_out
    )
    warnings.warn(
        f"{num_raised} of {num_rows} simulations raised an error{left_out} and are "
        f"NaN. The first error: {describe_error(error)}",
        stacklevel=4,
    )
