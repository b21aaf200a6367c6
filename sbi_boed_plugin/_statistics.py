"""What tables say of several values."""

import math
from collections.abc import Hashable, Iterable, Sequence

__all__ = ["grouped_mean_and_error", "mean_and_error"]


def mean_and_error(values: Sequence[float]) -> tuple[float, float]:
    """Return mean and standard error, NaN for the error of a single value.

    Example:
        >>> mean_and_error([1.0, 3.0])
        (2.0, 1.0)
    """
    if len(values) < 2:
        return (values[0] if values else math.nan), math.nan
    # In plain arithmetic, which takes what is not finite as it is.
    mean = sum(values) / len(values)
    variance = sum((value - mean) ** 2 for value in values) / (len(values) - 1)
    return mean, math.sqrt(variance / len(values))


def grouped_mean_and_error(
    values: Iterable[tuple[Hashable, float]],
) -> tuple[float, float]:
    """Return mean and standard error over groups, each by its own mean.

    Example:
        >>> grouped_mean_and_error([("a", 0.0), ("a", 2.0), ("b", 3.0)])
        (2.0, 1.0)
    """
    groups: dict[Hashable, list[float]] = {}
    for name, value in values:
        groups.setdefault(name, []).append(value)
    return mean_and_error([mean_and_error(group)[0] for group in groups.values()])
