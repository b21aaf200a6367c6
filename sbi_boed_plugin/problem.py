"""A user's own problem in one object, for the command line and for campaigns."""

from collections.abc import Callable, Sequence
from copy import deepcopy
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.distributions import Distribution

from sbi_boed_plugin.policies.policy import DesignPolicy
from sbi_boed_plugin.search.target import TargetLike
from sbi_boed_plugin.search.utility import Maximize
from sbi_boed_plugin.trainers.nle_ince import NLE_INCE

__all__ = ["Problem", "read_simulations"]

_PARTS = ("theta", "design", "x")


@dataclass(frozen=True)
class Problem:
    """What is to be found out, and with which experiments.

    Attributes:
        simulator: Function from `theta` `(batch_dim, dim_theta)` and `design`
            `(batch_dim, dim_design)` to `x` `(batch_dim, *x_shape)`.
        prior: Distribution of the parameters.
        design_policy: Policy over the designs that can be done.
        density_estimator: Model of the likelihood; `None` trains a posterior alone.
        posterior_estimator: Model of the posterior that searches train.
        name: What results are called.
        parameter_names: Names of the parameters.
        design_names: Names of the values of a design, with units.
        target: What the information is about, as in
            :class:`~sbi_boed_plugin.DesignSearchConfig`, or names of parameters;
            likewise all that follow.
        cost: Cost of designs.
        maximize: Information, or a utility of information and cost.
        feasible: Which designs are possible.

    Example:
        In `cells.py`, for `sbi-boed design cells:problem`::

            problem = Problem(simulator, prior, TruncatedNormalPolicy(low, high))
    """

    simulator: Callable[[Tensor, Tensor], Tensor]
    prior: Distribution
    design_policy: DesignPolicy
    density_estimator: Any = "mdn"
    posterior_estimator: Any = "mdn"
    name: str = "problem"
    parameter_names: Sequence[str] | None = None
    design_names: Sequence[str] | None = None
    target: TargetLike | str | Sequence[str] | None = None
    cost: Callable[[Tensor], Tensor] | None = None
    maximize: Maximize | Callable[[Tensor, Tensor], Tensor] = "eig"
    feasible: Callable[[Tensor], Tensor] | None = None

    def __post_init__(self) -> None:
        if not callable(self.simulator):
            raise TypeError(
                f"simulator must be a function, got {type(self.simulator).__name__}."
            )
        if not isinstance(self.design_policy, DesignPolicy):
            raise TypeError(
                "design_policy must be a DesignPolicy, got "
                f"{type(self.design_policy).__name__}."
            )
        numbers = {
            "parameter_names": self.prior.event_shape.numel(),
            "design_names": self.design_policy.dim_design,
        }
        for field, number in numbers.items():
            names = getattr(self, field)
            if names is None:
                made = [f"{field.split('_')[0]} {i + 1}" for i in range(number)]
                object.__setattr__(self, field, tuple(made))
            elif len(names) != number:
                raise ValueError(
                    f"{field}={list(names)} must have {number} names, one for each "
                    "value."
                )

        names = [self.target] if isinstance(self.target, str) else self.target
        if isinstance(names, Sequence) and any(isinstance(n, str) for n in names):
            known = list(self.parameter_names or ())
            unknown = [name for name in names if name not in known]
            if unknown:
                raise ValueError(
                    f"target={self.target!r}: {unknown[0]!r} is none of the parameters "
                    f"{known}."
                )
            object.__setattr__(self, "target", [known.index(name) for name in names])

    @property
    def settings(self) -> dict[str, Any]:
        """What a search is told of the problem."""
        return {
            name: getattr(self, name)
            for name in ("target", "cost", "maximize", "feasible")
        }

    def make_trainer(self, *, show_progress_bars: bool = True) -> NLE_INCE:
        """Return a new trainer."""
        return NLE_INCE(
            self.prior,
            self.density_estimator,
            posterior_estimator=self.posterior_estimator,
            show_progress_bars=show_progress_bars,
            # A copy: a search moves its policy.
            design_policy=deepcopy(self.design_policy),
        )


def read_simulations(
    path: str | Path, dim_theta: int, dim_design: int
) -> tuple[Tensor, Tensor, Tensor]:
    """Return parameters, designs and data of a file, in single precision.

    Tables (`.csv`, `.parquet`) have columns `theta_1`, …, `design_1`, … and `x_1`, …;
    archives (`.npz`) arrays `theta`, `design` and `x`.

    Raises:
        ValueError: If the kind of file is unknown, or columns are missing.
    """
    import pandas as pd  # Takes longer to import than all else.

    path = Path(path)
    if path.suffix == ".npz":
        with np.load(path) as archive:
            missing = {"theta", "design", "x"} - set(archive.files)
            if missing:
                raise ValueError(f"{path} has no array {', '.join(sorted(missing))}.")
            parts = [np.asarray(archive[n], np.float32) for n in _PARTS]
        theta, design, x = (torch.from_numpy(p.reshape(len(p), -1)) for p in parts)
    elif path.suffix in (".csv", ".parquet"):
        is_csv = path.suffix == ".csv"
        table = pd.read_csv(path) if is_csv else pd.read_parquet(path)
        columns = []
        for part in _PARTS:
            given = [name for name in table if str(name).startswith(f"{part}_")]
            # In the order of their numbers, whatever that of the table.
            wanted = [f"{part}_{i + 1}" for i in range(len(given))]
            if not given or set(given) != set(wanted):
                raise ValueError(
                    f"{path} must have columns {part}_1, {part}_2, …, and no others of "
                    f"{part}, but has {given}."
                )
            columns.append(wanted)
        theta, design, x = (
            torch.from_numpy(table[c].to_numpy(np.float32, copy=True)) for c in columns
        )
    else:
        raise ValueError(f"{path}: use a file that ends in .csv, .parquet or .npz.")
    widths = {"theta": (theta, dim_theta), "design": (design, dim_design)}
    for part, (values, width) in widths.items():
        if values.shape[1] != width:
            raise ValueError(
                f"{path} has {values.shape[1]} columns of {part}, but there are "
                f"{width}."
            )
    return theta, design, x
