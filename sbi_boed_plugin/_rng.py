"""Random states of torch, NumPy and Python, saved and restored together."""

import random
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch

__all__ = ["get_rng_state", "isolated_rng"]


def get_rng_state() -> dict[str, Any]:
    """Return the state of every global generator, as tensors and plain numbers."""
    of_numpy: Any = np.random.get_state()
    state: dict[str, Any] = {
        "torch": torch.get_rng_state(),
        "numpy": (of_numpy[0], of_numpy[1].tolist(), *of_numpy[2:]),
        "python": random.getstate(),
    }
    if torch.cuda.is_available() and torch.cuda.is_initialized():
        state["cuda"] = torch.cuda.get_rng_state_all()
    if torch.backends.mps.is_available():
        state["mps"] = [torch.mps.get_rng_state()]
    return state


def _set_rng_state(state: dict[str, Any]) -> None:
    torch.set_rng_state(state["torch"])
    np.random.set_state(state["numpy"])
    random.setstate(state["python"])
    if "cuda" in state and torch.cuda.is_available():
        # There may have been more devices where the state was saved.
        torch.cuda.set_rng_state_all(state["cuda"][: torch.cuda.device_count()])
    if "mps" in state and torch.backends.mps.is_available():
        torch.mps.set_rng_state(state["mps"][0])


@contextmanager
def isolated_rng(start: int | dict[str, Any] | None) -> Iterator[None]:
    """Run a block from a seed or a saved state, then restore the caller's state.

    With `None` the block uses and advances the global generators as they are.
    """
    if start is None:
        yield
        return
    outer, outer_seed = get_rng_state(), torch.initial_seed()
    try:
        if isinstance(start, dict):
            _set_rng_state(start)
        else:
            torch.manual_seed(start)
            np.random.seed(start % 2**32)
            random.seed(int(start))
        yield
    finally:
        _set_rng_state(outer)
        if torch.cuda.is_available() and "cuda" not in outer:
            # Whatever starts CUDA takes the seed of the caller, who set it before.
            torch.cuda.manual_seed_all(outer_seed)
