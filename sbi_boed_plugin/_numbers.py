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
    """Return a whole number as Python's `int`, or say what is wrong with it.

    Args:
        name: Name of the argument.
        value: What was passed: an integer of Python, NumPy or a tensor of one value.
        least: Smallest allowed value.
        most: Largest allowed value; `2**63 - 1` if `None`.
        or_none: Whether `None` is allowed.
        remedy: A sentence that says what to do instead.

    Returns:
        The integer, or `None`.

    Raises:
        WrongKindError: If it is not an integer; 3.0, `True` and "3" are not.
        ValueError: If it is out of range.

    Example:
        >>> check_integer("num_steps", np.int64(3), 1)
        3
    """
    if or_none and value is None:
        return None
    number = _plain(value)
    if not isinstance(number, Integral) or isinstance(number, bool):
        raise WrongKindError(_describe(name, value, "an integer", or_none, remedy))
    number = int(number)
    largest = 2**63 - 1 if most is None else most
    if number > largest or (least is not None and number < least):
        bounds = _bounds(least, None if most is None and number <= largest else largest)
        raise ValueError(_describe(name, value, bounds, or_none, remedy))
    return number


def check_real(
    name: str,
    value: Any,
    least: float = -math.inf,
    most: float = math.inf,
    *,
    above: float | None = None,
    below: float | None = None,
    or_infinite: bool = False,
    or_none: bool = False,
    remedy: str = "",
) -> Any:
    """Return a real number as Python's `float`, or say what is wrong with it.

    Args:
        name: Name of the argument.
        value: What was passed: a number of Python, NumPy or a tensor of one value.
        least: Smallest allowed value.
        most: Largest allowed value.
        above: Largest value that is too small.
        below: Smallest value that is too large.
        or_infinite: Whether infinity within these bounds is allowed.
        or_none: Whether `None` is allowed.
        remedy: A sentence that says what to do instead.

    Returns:
        The number, or `None`.

    Raises:
        WrongKindError: If it is not a number; `True` and "0.1" are not.
        ValueError: If it is NaN, infinite or out of range.

    Example:
        >>> check_real("learning_rate", 5e-4, above=0.0)
        0.0005
    """
    if or_none and value is None:
        return None
    number = _plain(value)
    if not isinstance(number, Real) or isinstance(number, bool):
        raise WrongKindError(_describe(name, value, "a number", or_none, remedy))
    try:
        number = float(number)
    except OverflowError:
        number = math.inf
    inside = (
        least <= number <= most
        and (above is None or number > above)
        and (below is None or number < below)
        and (or_infinite or math.isfinite(number))
    )
    if not inside:
        expected = _bounds(least, most)
        parts = [
            expected if math.isfinite(least) or math.isfinite(most) else "",
            "" if above is None else f"above {above:g}" if above else "positive",
            "" if below is None else f"below {below:g}",
            "" if or_infinite or "between" in expected else "finite",
        ]
        expected = " and ".join(part for part in parts if part)
        raise ValueError(_describe(name, value, expected, or_none, remedy))
    return number


def check_fields(
    config: Any, check: Callable[..., Any], names: Sequence[str], *args: Any, **kw: Any
) -> None:
    """Check fields of a frozen dataclass, and put plain numbers in their places.

    Args:
        config: Instance of the dataclass.
        check: Function that checks one of them, such as `check_integer`.
        names: Names of the fields.
        *args: Further arguments of `check`.
        **kw: Likewise.
    """
    for name in names:
        value = check(name, getattr(config, name), *args, **kw)
        object.__setattr__(config, name, value)


def check_seed(seed: Any) -> int | None:
    """Return the seed of the global generators as Python's `int`, or `None`.

    Args:
        seed: A whole number of at most 64 bits, or `None`.

    Raises:
        WrongKindError: If it is not an integer.
        ValueError: If it is out of range.
    """
    return check_integer("seed", seed, -(2**63), 2**64 - 1, or_none=True)


def _plain(value: Any) -> Any:
    """Return what a tensor, an array or a number of NumPy of one value holds."""
    is_single = isinstance(value, (Tensor, np.ndarray, np.generic)) and value.ndim == 0
    return value.item() if is_single else value


def _bounds(least: float | None, most: float | None) -> str:
    if most is None or most == math.inf:
        return f"at least {_short(least)}"
    if least is None or least == -math.inf:
        return f"at most {_short(most)}"
    return f"between {_short(least)} and {_short(most)}"


def _short(number: float | None) -> str:
    return str(number) if isinstance(number, int) else f"{number:g}"


def _describe(name: str, value: Any, expected: str, or_none: bool, remedy: str) -> str:
    shown = _plain(value)
    is_number = isinstance(shown, (int, float)) and not isinstance(shown, bool)
    kind = "" if is_number else f", got {type(value).__name__}"
    none = " or None" if or_none else ""
    return f"{name}={shown!r} must be {expected}{none}{kind}. {remedy}".rstrip()
