"""A file of simulations, to which each is appended as soon as it is finished."""

import os
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from sbi_boed_plugin.search.batch import Batch

__all__ = ["SimulationFile"]


class SimulationFile:
    """A table of comma-separated values with a simulation in each row.

    Columns are `theta_1`, …, `design_1`, …, `x_1`, … and `log_proposal`, the
    log-density of what the parameters were drawn from. `x` is NaN where it failed.
    Failures wait for the first data, which tell the number of columns.
    """

    def __init__(self, path: str | Path) -> None:
        self.path, self._dim_x = Path(path), 0
        self._waiting: list[tuple[Tensor, Tensor, Tensor]] = []

    def read(self, dim_theta: int, dim_design: int) -> Batch | None:
        """Return the simulations, `None` if there are none yet, or raise.

        A last line that is not complete, of a process that was killed, is cut off.
        """
        if not self.path.exists():
            return None
        content = self.path.read_bytes()
        complete = content[: content.rfind(b"\n") + 1]
        if len(complete) < len(content):
            with self.path.open("r+b") as file:
                file.truncate(len(complete))
        header, *lines = complete.decode().splitlines() or [""]
        names = header.split(",")
        dim_x = len(names) - dim_theta - dim_design - 1
        if complete and (dim_x < 1 or names != _names(dim_theta, dim_design, dim_x)):
            raise ValueError(
                f"simulations_file={str(self.path)!r} begins with {header[:200]!r}, "
                f"but must have {dim_theta} columns of theta, {dim_design} of design, "
                "those of x, and log_proposal. Use another file."
            )
        if not lines:
            return None
        self._dim_x = dim_x
        table = np.array([line.split(",") for line in lines], dtype=np.float32)
        widths = [dim_theta, dim_design, dim_x, 1]
        theta, design, x, log_proposal = torch.from_numpy(table).split(widths, dim=1)
        valid = x.isfinite().all(dim=1)
        return Batch(theta, x, design, valid, log_proposal=log_proposal[:, 0])

    def append(
        self, theta: Tensor, design: Tensor, x: Tensor, log_proposal: Tensor
    ) -> None:
        """Append rows, and wait until they are on the disk.

        `x` has no columns if all rows raised an error.
        """
        self._dim_x = self._dim_x or x.shape[1]
        if not self._dim_x:
            self._waiting.append((theta, design, log_proposal))
            return
        waiting, self._waiting = self._waiting, []
        for earlier, at, density in waiting:
            self.append(earlier, at, x.new_empty(len(earlier), 0), density)
        if not x.shape[1]:
            x = x.new_full((len(theta), self._dim_x), torch.nan)
        parts = [theta, design, x, log_proposal.unsqueeze(1)]
        rows = torch.cat([part.detach().cpu().float() for part in parts], dim=1)
        is_new = not self.path.exists() or not self.path.stat().st_size
        with self.path.open("a") as file:
            if is_new:
                widths = theta.shape[1], design.shape[1], self._dim_x
                file.write(",".join(_names(*widths)) + "\n")
            np.savetxt(file, rows.numpy(), fmt="%.9g", delimiter=",")
            file.flush()
            os.fsync(file.fileno())


def _names(dim_theta: int, dim_design: int, dim_x: int) -> list[str]:
    """Return the names of the columns."""
    widths = {"theta": dim_theta, "design": dim_design, "x": dim_x}
    names = [f"{n}_{j + 1}" for n, width in widths.items() for j in range(width)]
    return [*names, "log_proposal"]
