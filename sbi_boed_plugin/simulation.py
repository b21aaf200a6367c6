"""The boundary to a user's simulator: who runs it, what fails, what comes out."""

import math
import random
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.distributions import Distribution

from sbi_boed_plugin._numbers import check_integer, check_seed
from sbi_boed_plugin._parallel import (
    CONTRACT,
    Chunk,
    assemble,
    call_simulator,
    check_num_workers,
    common_shape,
    map_chunks,
    simulate_chunk,
)
from sbi_boed_plugin._rng import get_rng_state, isolated_rng
from sbi_boed_plugin._vectorize import vectorize
from sbi_boed_plugin.policies.policy import DesignPolicy

__all__ = [
    "CheckedSimulator",
    "Simulations",
    "Simulator",
    "joint_shape",
    "run_simulator",
    "simulate_for_boed",
]

# Independent of the number of workers, so that results are, too.
_NUM_CHUNKS = 16
# Calls with one row, which all raise only where one row cannot be simulated.
_NUM_ALONE = 8
# Comparisons before a simulator is refused: by chance, rows may only seem to differ.
_NUM_COMPARISONS = 5
# Rows that a check takes, and that it takes at most.
_NUM_CHECK_CALLS = 1 + 2 * 3
_MOST_CHECK_CALLS = _NUM_ALONE + 3 * (2 * _NUM_COMPARISONS + 1)
# Relative change of a row with the others: solvers choose steps for all rows together.
_TOLERANCE = 0.01


@dataclass
class CheckedSimulator:
    """A user's simulator during one public call, which checks it once.

    It may get `max_calls` more rows, one by one if it is made by `vectorize`, raised
    whenever it was checked, or has raised while there is a limit. `record` gets
    parameters, designs and data of rows as they are finished. `x_shape` is the shape of
    the data of one simulation, once there are any, which later ones share.
    """

    function: Callable[[Tensor, Tensor], Any]
    max_calls: float = math.inf
    is_checked: bool = False
    one_by_one: bool = False
    record: Callable[[Tensor, Tensor, Tensor], None] | None = None
    x_shape: torch.Size | None = None

    def __post_init__(self) -> None:
        if isinstance(self.function, CheckedSimulator):
            self.is_checked |= self.function.is_checked
            self.function = self.function.function
        if not callable(self.function):
            raise TypeError(
                f"simulator must be a function of theta and design, got "
                f"{type(self.function).__name__}."
            )
        if isinstance(self.function, vectorize):
            self.is_checked = self.one_by_one = True

    @property
    def num_check_calls(self) -> int:
        """Rows that a check takes where nothing speaks against the simulator."""
        num_parts = getattr(self.function, "num_parts", 1)
        return 0 if self.is_checked else _NUM_CHECK_CALLS * num_parts

    def count(self, chunks: list[Chunk]) -> int:
        """Subtract the rows of chunks from the limit, and return their number."""
        num_calls = sum(chunk.num_calls for chunk in chunks)
        self.max_calls -= num_calls
        raised = any(chunk.error is not None for chunk in chunks)
        self.one_by_one |= raised and self.max_calls < math.inf
        return num_calls


Simulator = Callable[[Tensor, Tensor], Any] | CheckedSimulator


class Simulations(NamedTuple):
    """What came out of a simulator."""

    x: Tensor  # Rows of numbers, of shape (batch_dim, dim_x), NaN where it failed.
    valid: Tensor  # Rows free of NaN and infinite values, of shape (batch_dim,).
    num_calls: int  # Rows that it got, those of its check and repeated ones included.
    tried: Tensor  # Rows that the limit of calls left in, of shape (batch_dim,).
    x_shape: torch.Size  # Shape of the data of one simulation.


def run_simulator(
    simulator: Simulator,
    theta: Tensor,
    design: Tensor,
    *,
    num_workers: int | None = 1,
    simulation_batch_size: int | None = None,
    keep_gradient: bool = False,
    warn: bool = True,
    show_progress_bar: bool = False,
) -> Simulations:
    """Simulate one experiment per row, with copies in and copies out.

    With one worker and no `simulation_batch_size` or record, or to `keep_gradient` of
    `design`, one call draws from the global generators as they are. Otherwise rows go
    in chunks with seeds: results depend on the size of chunks, not on the workers. Rows
    that raise become NaN, unless all do or a gradient is kept.
    """
    for name, rows in (("prior", theta), ("design_policy", design)):
        if rows.dim() != 2:
            raise ValueError(
                f"{name} returns draws of shape {tuple(rows.shape)}, but must return "
                "(batch_dim, dim). Wrap it in torch.distributions.Independent."
            )
    if not isinstance(simulator, CheckedSimulator):
        simulator = CheckedSimulator(simulator)
    num_calls = _check_once(simulator, theta, design, num_workers)
    num_rows = int(min(len(theta), simulator.max_calls))
    is_simple = num_workers == 1 and simulation_batch_size is None
    one_call = keep_gradient or (is_simple and simulator.record is None)
    chunk_size = simulation_batch_size or max(1, -(-num_rows // _NUM_CHUNKS))
    if simulator.record is not None and isinstance(simulator.function, vectorize):
        chunk_size = 1
    num_chunks = 1 if one_call else max(1, -(-num_rows // chunk_size))
    simulate = partial(
        simulate_chunk,
        function=simulator.function,
        one_by_one=simulator.one_by_one,
        keep_gradient=keep_gradient,
        # The same for all chunks, whichever is first.
        max_repeats=(simulator.max_calls - num_rows) / num_chunks,
    )
    rows = theta[:num_rows], design[:num_rows]
    if one_call:
        chunks = [simulate(*rows)]
    else:
        chunks = map_chunks(
            simulate,
            *rows,
            num_workers=num_workers,
            chunk_size=chunk_size,
            show_progress_bar=show_progress_bar,
            record=simulator.record,
        )
    num_calls += simulator.count(chunks)
    x, tried = assemble(theta, chunks, chunk_size, num_rows, warn)
    if any(chunk.parts for chunk in chunks):
        simulator.x_shape = joint_shape(simulator.x_shape, x.shape[1:])
    x = x.flatten(1)
    valid, shape = torch.isfinite(x).all(dim=1), simulator.x_shape or x.shape[1:]
    return Simulations(x, valid, num_calls, tried, shape)


def joint_shape(known: torch.Size | None, shape: torch.Size) -> torch.Size:
    """Return the shape of data of one simulation, or raise if earlier ones differ.

    Rows of numbers may be data of any shape with as many.
    """
    flat = torch.Size((shape.numel(),))
    if known is None or known in (shape, flat):
        return shape
    if shape == (known.numel(),):
        return known
    raise ValueError(
        f"x of one simulation has shape {tuple(shape)}, but that of earlier ones "
        f"{tuple(known)}. Bring them into one shape, or use a new trainer."
    )


def _check_once(
    simulator: CheckedSimulator, theta: Tensor, design: Tensor, num_workers: int | None
) -> int:
    """Check a simulator before its first use, and return how many rows that took."""
    function: Any = simulator.function
    num_parts = getattr(function, "num_parts", 1)
    if simulator.is_checked or simulator.max_calls < _MOST_CHECK_CALLS * num_parts:
        return 0
    # The second one is checked beside others, which may share a design if next to it.
    rows = [0, len(theta) - 1, (len(theta) - 1) // 2]
    given = theta[rows].detach(), design[rows].detach()
    # Each by itself: the numbers of a row depend on how many are of its simulator.
    parts = function.parts(*given) if num_parts > 1 else [(function, *given)]
    with isolated_rng(get_rng_state()):  # What is simulated does not depend on it.
        chunks = [
            chunk
            for one, *of_one in parts
            for chunk in map_chunks(
                partial(_check_contract, one),
                *of_one,
                num_workers=num_workers,
                chunk_size=3,
            )
        ]
    simulator.is_checked = True
    simulator.one_by_one |= any(chunk.error is not None for chunk in chunks)
    return simulator.count(chunks)


def _check_contract(
    simulator: Callable[[Tensor, Tensor], Any], theta: Tensor, design: Tensor
) -> Chunk:
    """Check that a simulator takes one row as well as three, and keeps rows apart.

    With the same random numbers, the second row must be the same beside copies of
    itself. A simulator that takes others cannot be compared, and is taken. Returns how
    many rows the simulator got, and an error if each call raised.
    """
    alone, error, num_calls = None, None, 0
    while alone is None and num_calls < _NUM_ALONE:
        row = [num_calls % 3]
        alone, error = call_simulator(simulator, theta[row], design[row])
        num_calls += 1
    start = get_rng_state()

    def simulate(
        rows: list[int], state: dict[str, Any] = start
    ) -> tuple[Tensor | None, list[float], dict[str, Any]]:
        """Return data from a state, the next random numbers, and the state then."""
        nonlocal num_calls
        num_calls += len(rows)
        with isolated_rng(state):
            x, _ = call_simulator(simulator, theta[rows], design[rows])
            devices = {"cpu", *(["cuda"] if torch.cuda.is_initialized() else [])}
            of_torch = [torch.rand((), device=device).item() for device in devices]
            numbers = [*of_torch, np.random.rand(), random.random()]
            return x, numbers, get_rng_state()

    together, end, later = simulate([0, 1, 2])
    if together is None:
        return Chunk(error=error, num_calls=num_calls)
    if alone is None:
        raise ValueError(
            "simulator simulates several rows together, but raises for one row alone "
            f"({error!r}). {CONTRACT}"
        ) from error
    changed, end_of_changed, _ = simulate([1, 1, 1])
    common_shape(x for x in (alone, together, changed) if x is not None)
    rows = torch.cat([theta, design], dim=1)
    has_one_row = torch.equal(rows[0], rows[1])
    if changed is None or end_of_changed != end or has_one_row:
        return Chunk(num_calls=num_calls)
    has_two_rows = torch.equal(rows[0], rows[2])
    if not _second_row_differs(together, changed, has_two_rows):
        return Chunk(num_calls=num_calls)
    # A row that depends on others, noise of its own generator, or other numbers for it.
    repeated, _, _ = simulate([0, 1, 2])
    if repeated is None or not torch.equal(repeated, together):
        return Chunk(num_calls=num_calls)
    for _ in range(_NUM_COMPARISONS - 1):
        again, end, _ = simulate([0, 1, 2], later)
        beside_itself, end_beside_itself, later = simulate([1, 1, 1], later)
        if again is None or beside_itself is None or end != end_beside_itself:
            return Chunk(num_calls=num_calls)
        if not _second_row_differs(again, beside_itself, has_two_rows):
            return Chunk(num_calls=num_calls)
    raise ValueError(
        "simulator mixes rows: with the same random numbers, the row of x for theta="
        f"{theta[1].tolist()} and design={design[1].tolist()} is "
        f"{together[1].tolist()} beside some rows and {changed[1].tolist()} beside "
        f"others. {CONTRACT}"
    )


def _second_row_differs(together: Tensor, changed: Tensor, has_two_rows: bool) -> bool:
    """Return whether the second row is another one beside other rows.

    Columns of integers, or of which rows are equal, may repeat by chance.
    """
    together, changed = together.flatten(1), changed.flatten(1)
    different = together[: 2 if has_two_rows else 3]
    tells = different.sort(dim=0).values.diff(dim=0).ne(0.0).all(dim=0)
    tells &= together.ne(together.round()).any(dim=0)
    gaps = (changed[1] - together[1]).abs()
    return bool((tells & (gaps > _TOLERANCE * together.abs().amax(dim=0))).any())


def simulate_for_boed(
    simulator: Callable[[Tensor, Tensor], Tensor],
    prior: Distribution,
    design_policy: DesignPolicy | Distribution,
    num_simulations: int,
    num_workers: int | None = 1,
    *,
    simulation_batch_size: int | None = None,
    seed: int | None = None,
    show_progress_bar: bool = True,
) -> tuple[Tensor, Tensor, Tensor]:
    """Draw parameters and designs and simulate them, on several workers if asked.

    The counterpart of sbi's `simulate_for_sbi`. The same seed and
    `simulation_batch_size` give the same simulations with any number of workers, which
    are processes or, inside of `with joblib.parallel_config(backend="dask"):`, those of
    a cluster. There Python's `random` differs, from which dask draws as well.

    Args:
        simulator: Function from `theta` of shape `(batch_dim, dim_theta)` and `design`
            of shape `(batch_dim, dim_design)` to `x` of shape `(batch_dim, dim_x)`, or
            of any shape `(batch_dim, *x_shape)`. Workers get it pickled, and tensors on
            the CPU. Rows for which it raises an `Exception` become NaN, found by calls
            with parts of the rows. The first calls check that rows do not depend on
            each other. For a function of one vector see :class:`vectorize`.
        prior: Distribution of the parameters.
        design_policy: Distribution of the designs, a design policy or one of torch's,
            with an event dimension.
        num_simulations: Number of simulations.
        num_workers: Number of workers. 1 means this process, -1 as many as there are
            cores, `None` the `n_jobs` of `joblib.parallel_config`. A dask cluster
            lends all of its workers to any number but 1. Threads take turns.
        simulation_batch_size: Number of rows that `simulator` gets per call. If
            `None`, a sixteenth of `num_simulations`.
        seed: Seed of everything that is drawn. The global random state is left as it
            was. If `None`, the global random state is used and advanced.
        show_progress_bar: Whether to show how many simulations are done.

    Returns:
        Parameters, designs and data in single precision, each of shape
        `(num_simulations, dim)`, or data of `(num_simulations, *x_shape)`. Those of
        failed simulations are NaN:
        `append_simulations(..., exclude_invalid_x=True)` leaves them out.

    Raises:
        TypeError: If `design_policy` cannot be sampled, or `simulator` returns no
            array of numbers or cannot be sent to the workers.
        ValueError: If an argument is out of range, or something has a wrong shape.
        Exception: What `simulator` raises, if it does so for every simulation.

    Example:
        >>> from sbi.utils import BoxUniform
        >>> def simulator(theta, design):
        ...     return theta * design + torch.randn_like(theta)
        >>> prior = BoxUniform(-torch.ones(2), torch.ones(2))
        >>> designs = BoxUniform(torch.zeros(1), torch.ones(1))
        >>> settings = {"seed": 0, "show_progress_bar": False}
        >>> theta, design, x = simulate_for_boed(
        ...     simulator, prior, designs, 100, **settings
        ... )
        >>> theta.shape, design.shape, x.shape
        (torch.Size([100, 2]), torch.Size([100, 1]), torch.Size([100, 2]))
    """
    if not callable(getattr(design_policy, "sample", None)):
        raise TypeError(
            "design_policy must be a design policy or a distribution with sample(shape)"
            f", got {type(design_policy).__name__}. Use for example "
            "TruncatedNormalPolicy(low, high) or sbi.utils.BoxUniform(low, high)."
        )
    num_simulations = check_integer("num_simulations", num_simulations, 1)
    num_workers, seed = check_num_workers(num_workers), check_seed(seed)
    simulation_batch_size = check_integer(
        "simulation_batch_size", simulation_batch_size, 1, or_none=True
    )
    # Always chunks, so that results do not depend on the number of workers.
    chunk_size = simulation_batch_size or -(-num_simulations // _NUM_CHUNKS)
    shape = torch.Size((num_simulations,))
    with torch.no_grad(), isolated_rng(seed):
        # Copies, since a prior or policy may keep what it returned.
        theta = prior.sample(shape).to(torch.float32, copy=True)
        design = design_policy.sample(shape).to(theta, copy=True)
        made = run_simulator(
            simulator,
            theta,
            design,
            num_workers=num_workers,
            simulation_batch_size=chunk_size,
            show_progress_bar=show_progress_bar,
        )
    return theta, design, made.x.reshape(-1, *made.x_shape)
