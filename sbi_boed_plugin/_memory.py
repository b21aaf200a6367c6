"""How many rows are evaluated at a time, so that memory stays bounded."""

from typing import Any

from torch import nn

__all__ = ["MAX_ROWS", "MEMORY_BYTES", "rows_at_once"]

# Bytes that one evaluation, or one pool of draws, may take.
MEMORY_BYTES = 2**28
# More rows are no faster on a CPU, whose caches they leave.
MAX_ROWS = 2**14
# Of four bytes, and a density holds about as many copies of what its layers return.
_BYTES_PER_VALUE = 16


def rows_at_once(density: Any, num_values: int) -> int:
    """Return how many pairs of an input and a condition are evaluated at a time.

    A pair takes 16 bytes for each of its values and for each output of a matrix of
    weights. For a gradient, densities of sbi hold as much within a factor of three,
    whatever their dimensions. All pairs at a time take 256 MB.

    Args:
        density: A network; anything else is taken to have no layers.
        num_values: Number of values of an input and its condition.

    Returns:
        Number of pairs, between 1 and 16,384.

    Example:
        >>> rows_at_once(None, 10), rows_at_once(None, 100_000)
        (16384, 167)
    """
    if isinstance(density, nn.Module):
        # Of shape (out, in), or (num_networks, in, out) of several at once.
        weights = [w for w in density.parameters() if w.dim() > 1]
        num_values += sum(w.numel() // max(1, w.shape[1]) for w in weights)
    return max(1, min(MAX_ROWS, MEMORY_BYTES // (_BYTES_PER_VALUE * num_values)))
