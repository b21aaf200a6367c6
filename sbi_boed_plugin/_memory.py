"""How many rows are evaluated at a time, so that memory stays bounded."""

from typing import Any

from torch import nn

__all__ = ["MAX_ROWS", "MEMORY_BYTES", "rows_at_once"]

# Bytes that one evaluation, or one pool of draws, may take.
MEMORY_BYTES = 2**28
# More rows are no faster on a CPU: they do not fit into its caches.
MAX_ROWS = 2**14
# Four bytes, and a density holds about four copies of what its layers return.
_BYTES_PER_VALUE = 16


def rows_at_once(density: Any, num_values: int) -> int:
    """Return how many pairs of an input and a condition of `num_values` fit in memory.

    A pair takes 16 bytes for each of its values and each output of a weight matrix.
    """
    if isinstance(density, nn.Module):
        # Of shape (out, in), or (num_networks, in, out) of several at once.
        weights = [w for w in density.parameters() if w.dim() > 1]
        num_values += sum(w.numel() // max(1, w.shape[1]) for w in weights)
    return max(1, min(MAX_ROWS, MEMORY_BYTES // (_BYTES_PER_VALUE * num_values)))
