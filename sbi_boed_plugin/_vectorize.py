"""Simulators of many rows, made from functions of one parameter vector."""

from collections.abc import Callable
from concurrent.futures import TimeoutError as TookTooLong
from concurrent.futures.process import BrokenProcessPool
from multiprocessing import current_process
from typing import Any

import torch
from joblib.externals.loky import ProcessPoolExecutor
from torch import Tensor

from sbi_boed_plugin._numbers import check_real
from sbi_boed_plugin._rng import isolated_rng

__all__ = ["vectorize"]

# After which a process ends itself, should this one have been killed.
_IDLE_SECONDS = 300


class vectorize:
    """Make a simulator of many rows from a function of one parameter vector.

    The counterpart of sbi's `process_simulator`: a function from `theta` of shape
    `(batch_dim, dim_theta)` and `design` of shape `(batch_dim, dim_design)` to `x` of
    shape `(batch_dim, dim_x)` or `(batch_dim, *x_shape)`, which carries gradients if
    `simulator` does. Rows are simulated one after another, or on several processes with
    `num_workers`; a row that raises costs no other row.

    Args:
        simulator: Function from `theta` of shape `(dim_theta,)` and `design` of shape
            `(dim_design,)` to a number, a vector or an array of any shape `x_shape`, a
            tensor, an array or a list; an array with one row is a vector. To run on
            several processes it has to be picklable.
        max_seconds: Time after which a call is ended, whatever it does, with a
            `TimeoutError`, which makes its row NaN. Calls then run in a process of
            their own, which is started anew after one that was ended or has crashed;
            the simulator has to be picklable, gets tensors on the CPU, and its data
            carry no gradients.

    Raises:
        TypeError: If `simulator` is not a function.
        ValueError: If `max_seconds` is not positive.

    Example:
        >>> def decay(theta, design):
        ...     return [theta[0] * torch.exp(-theta[1] * design[0])]
        >>> simulator = vectorize(decay)
        >>> simulator(torch.ones(5, 2), torch.zeros(5, 1)).shape
        torch.Size([5, 1])
    """

    def __init__(
        self,
        simulator: Callable[[Tensor, Tensor], Any],
        *,
        max_seconds: float | None = None,
    ) -> None:
        if not callable(simulator):
            raise TypeError(
                "simulator must be a function of one parameter vector and one design, "
                f"got {type(simulator).__name__}."
            )
        self.simulator = simulator
        self.max_seconds = check_real(
            "max_seconds", max_seconds, above=0.0, or_none=True
        )
        self._process: ProcessPoolExecutor | None = None

    def __call__(self, theta: Tensor, design: Tensor) -> Tensor:
        """Simulate rows one after another."""
        simulate = self.simulator if self.max_seconds is None else self._in_time
        pairs = zip(theta, design, strict=True)
        return torch.stack([_as_data(simulate(*pair), theta) for pair in pairs])

    def _in_time(self, theta: Tensor, design: Tensor) -> Any:
        """Return what the simulator makes of one row, or raise when it takes too long.

        The row has a seed of its own, drawn in this process.
        """
        if current_process().daemon:
            raise RuntimeError(
                "max_seconds needs a process for the simulator, which daemons may not "
                "start. Of a dask cluster, start the workers with "
                'dask.config.set({"distributed.worker.daemon": False}).'
            )
        seed = int(torch.randint(2**32, ()))
        # Copies: pickling a row of a batch would send all of it.
        rows = [row.detach().cpu().clone() for row in (theta, design)]
        call = self._ready().submit(_call, seed, *rows)
        try:
            return call.result(self.max_seconds)
        except BaseException as error:
            is_running = not call.done()  # Also after an interrupt.
            if is_running or isinstance(error, BrokenProcessPool):
                self._end()
            if is_running and isinstance(error, TookTooLong):
                raise TimeoutError(
                    f"simulator took longer than max_seconds={self.max_seconds:g}."
                ) from None
            raise

    def _ready(self) -> ProcessPoolExecutor:
        """Return a process that has the simulator: starting takes seconds.

        One that has died meanwhile is replaced.
        """
        for is_last in (False, True):
            if self._process is None:
                self._process = ProcessPoolExecutor(
                    1,
                    timeout=_IDLE_SECONDS,
                    initializer=_keep,
                    initargs=(self.simulator,),
                )
            try:
                self._process.submit(_is_ready).result()
                break
            except BaseException as error:
                self._end()
                if is_last or not isinstance(error, BrokenProcessPool):
                    raise
        return self._process

    def _end(self) -> None:
        process, self._process = self._process, None
        if process is not None:
            process.shutdown(kill_workers=True)

    def __getstate__(self) -> dict[str, Any]:
        """Leave out the process: each worker has its own."""
        return {**vars(self), "_process": None}


# In the process of a time limit, the simulator, which may keep what it has set up.
_kept: list[Callable[[Tensor, Tensor], Any]] = []


def _keep(simulator: Callable[[Tensor, Tensor], Any]) -> None:
    _kept.append(simulator)


def _is_ready() -> bool:
    return bool(_kept)


def _call(seed: int, theta: Tensor, design: Tensor) -> Any:
    (simulator,) = _kept
    with isolated_rng(seed):
        try:
            return simulator(theta, design)
        except SystemExit as error:
            raise RuntimeError(f"simulator exits, with {error.code!r}.") from error


def _as_data(x: Any, theta: Tensor) -> Tensor:
    """Return what a simulator made of one row: a vector, or an array of `x_shape`.

    Numbers and rows of one matrix are vectors.
    """
    if isinstance(x, (list, tuple)) and any(isinstance(part, Tensor) for part in x):
        x = torch.stack([torch.as_tensor(part).to(theta) for part in x])
    data = torch.as_tensor(x).to(theta)
    is_vector = data.numel() == max([1, *data.shape])
    return data.reshape(-1) if is_vector else data
