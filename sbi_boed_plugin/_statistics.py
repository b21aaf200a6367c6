"""What tables say of several values."""

import math
from collections.abc import Sequence

__all__ = ["mean_and_error"]


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
