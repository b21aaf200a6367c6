"""Numbers that users pass, checked before any work."""

import math
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
_MOST_INTEGER = 2**63 - 1


class WrongKindError(TypeError, ValueError):
    """An argument that is not the kind of number that it must be."""


def check_integer(
    name: str,
    value: Any,
    least: int | None = None,
    most: int | None = None,
    *,
    or_none: bool = False,
    remedy: str = "",
) -> Any:
    """Return a whole number of Python, NumPy or a tensor of one value as an `int`.

    It must be between `least` and `most` inclusively; 3.0, `True` and "3" raise a
    `WrongKindError`.
    """
    if or_none and value is None:
        return None
    number = _plain(value)
    if not isinstance(number, Integral) or isinstance(number, bool):
        raise WrongKindError(_describe(name, value, ["an integer"], or_none, remedy))
    number = int(number)
    if most is None and number > _MOST_INTEGER:
        most = _MOST_INTEGER
    if not _is_between(number, least, most):
        limits = _limits(least, most)
        raise ValueError(_describe(name, value, limits, or_none, remedy))
    return number


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
) -> Any:
    """Return a real number of Python, NumPy or a tensor of one value as a `float`.

    It must be between `least` and `most` inclusively, `above` and `below` exclusively,
    and finite unless `or_infinite`; `True` and "0.1" raise a `WrongKindError`.
    """
    if or_none and value is None:
        return None
    number = _plain(value)
    if not isinstance(number, Real) or isinstance(number, bool):
        raise WrongKindError(_describe(name, value, ["a number"], or_none, remedy))
    number = float(number)
    is_allowed = (
        _is_between(number, least, most)
        and (above is None or number > above)
        and (below is None or number < below)
        and (math.isfinite(number) or (or_infinite and not math.isnan(number)))
    )
    if not is_allowed:
        limits = _limits(least, most)
        if above is not None:
            limits.append(f"above {above:g}" if above else "positive")
        if below is not None:
            limits.append(f"below {below:g}")
        if not or_infinite and None in (least, most):
            limits.append("finite")
        raise ValueError(_describe(name, value, limits, or_none, remedy))
    return number


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


def _plain(value: Any) -> Any:
    """Return what a tensor, an array or a number of NumPy of one value holds."""
    is_single = isinstance(value, (Tensor, np.ndarray, np.generic)) and value.ndim == 0
    return value.item() if is_single else value


def _is_between(number: Any, least: float | None, most: float | None) -> bool:
    return (least is None or number >= least) and (most is None or number <= most)


def _limits(least: float | None, most: float | None) -> list[str]:
    """Describe two inclusive limits, of which some may miss."""
    low, high = (str(limit).removesuffix(".0") for limit in (least, most))
    if least is not None and most is not None:
        return [f"between {low} and {high}"]
    if least is not None:
        return [f"at least {low}"]
    return [] if most is None else [f"at most {high}"]


def _describe(
    name: str, value: Any, expected: list[str], or_none: bool, remedy: str
) -> str:
    """Say which argument has which value, what it must be, and what to do."""
    allowed = " and ".join(expected) + (" or None" if or_none else "")
    return f"{name}={_plain(value)!r} must be {allowed}. {remedy}".rstrip()
