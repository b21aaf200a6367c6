"""Numbers that users pass, checked before any work."""

import math
import operator
from collections.abc import Callable, Sequence
from numbers import Integral, Real
from typing import Any

import numpy as np
from torch import Tensor

__all__ = [
    "MOST_LEARNING_RATE",
    "MOST_WEIGHT",
    "WrongKindError",
    "check_fields",
    "check_integer",
    "check_real",
    "check_seed",
]

# Beyond these a training overflows in single precision: a mistake, not a choice.
MOST_LEARNING_RATE = 1e3
MOST_WEIGHT = 1e6
_KINDS = {int: (Integral, "an integer"), float: (Real, "a number")}


class WrongKindError(TypeError, ValueError):
    """An argument that is not the kind of number that it must be."""


def check_integer(
    name: str, value: Any, least: int = -(2**63), most: int = 2**63 - 1, **kwargs: Any
) -> Any:
    """Return an integer within limits as an `int`; see `check_real`.

    3.0, `True` and "3" raise a `WrongKindError`.
    """
    return check_real(name, value, least, most, kind=int, **kwargs)


def check_real(
    name: str,
    value: Any,
    least: float | None = None,
    most: float | None = None,
    *,
    above: float | None = None,
    below: float | None = None,
    or_infinite: bool = False,
    or_none: bool = False,
    remedy: str = "",
    kind: type[int] | type[float] = float,
) -> Any:
    """Return a number of Python, NumPy or a tensor of one value as a `float`.

    It lies between `least` and `most` inclusively, `above` and `below` exclusively;
    `True` and "0.1" raise a `WrongKindError`.
    """
    if or_none and value is None:
        return None
    if isinstance(value, (Tensor, np.ndarray, np.generic)) and value.ndim == 0:
        value = value.item()
    number_type, description = _KINDS[kind]
    error: type[ValueError] = ValueError
    if not isinstance(value, number_type) or isinstance(value, bool):
        error, faults = WrongKindError, [description]
    else:
        checks = [
            (least, operator.ge, f"at least {least}"),
            (most, operator.le, f"at most {most}"),
            (above, operator.gt, f"above {above}" if above else "positive"),
            (below, operator.lt, f"below {below}"),
        ]
        faults = [
            text
            for limit, is_met, text in checks
            if limit is not None and not is_met(value, limit)
        ]
        is_finite = faults or math.isfinite(value)
        if not (is_finite or (or_infinite and not math.isnan(value))):
            faults.append("finite")
    if faults:
        allowed = f"{faults[0]} or None" if or_none else faults[0]
        raise error(f"{name}={value!r} must be {allowed}. {remedy}".rstrip())
    return kind(value)


def check_fields(
    config: Any, check: Callable[..., Any], names: Sequence[str], *args: Any, **kw: Any
) -> None:
    """Check fields of a frozen dataclass, and replace them by plain numbers."""
    for name in names:
        value = check(name, getattr(config, name), *args, **kw)
        object.__setattr__(config, name, value)


def check_seed(seed: Any) -> int | None:
    """Return the seed of the global generators as Python's `int`, or `None`."""
    return check_integer("seed", seed, -(2**63), 2**64 - 1, or_none=True)
