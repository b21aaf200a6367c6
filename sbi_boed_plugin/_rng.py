"""Random states of torch, NumPy and Python, saved and restored together.

Simulators draw from any of the three. The package never leaves a global generator in
another state than plain use of it would: seeded or resumed work happens inside
`isolated_rng`, which restores the caller's state.
"""

import random
from collections.abc import Iterator
from contextlib import contextmanager
from numbers import Integral
from typing import Any

import numpy as np
import torch

__all__ = [
    "get_rng_state",
    "isolated_rng",
    "rng_state_from_plain",
    "rng_state_to_plain",
    "same_rng_state",
]


def get_rng_state() -> dict[str, Any]:
    """Return the state of every global generator that a simulator may use."""
    state: dict[str, Any] = {
        "torch": torch.get_rng_state(),
        "numpy": np.random.get_state(),
        "python": random.getstate(),
    }
    if torch.cuda.is_available() and torch.cuda.is_initialized():
        state["cuda"] = torch.cuda.get_rng_state_all()
    if torch.backends.mps.is_available():
        state["mps"] = torch.mps.get_rng_state()
    return state


def _set_rng_state(state: dict[str, Any]) -> None:
    torch.set_rng_state(state["torch"])
    np.random.set_state(state["numpy"])
    random.setstate(state["python"])
    if "cuda" in state and torch.cuda.is_available():
        # There may have been more devices where the state was saved.
        torch.cuda.set_rng_state_all(state["cuda"][: torch.cuda.device_count()])
    if "mps" in state and torch.backends.mps.is_available():
        torch.mps.set_rng_state(state["mps"])


def same_rng_state(state: dict[str, Any], other: dict[str, Any]) -> bool:
    """Whether two states are the same."""

    def plain(state: dict[str, Any]) -> list[Any]:
        kind, keys, *rest = state["numpy"]
        tensors = [state["torch"], *state.get("cuda", ())]
        tensors += [state["mps"]] if "mps" in state else []
        numbers = [tensor.tolist() for tensor in tensors]
        return [kind, keys.tolist(), rest, state["python"], numbers]

    return plain(state) == plain(other)


def rng_state_to_plain(state: dict[str, Any]) -> dict[str, Any]:
    """Return a state as tensors and numbers, to be saved without pickled objects."""
    kind, keys, position, has_gauss, cached = state["numpy"]
    keys = torch.from_numpy(keys.astype(np.int64))
    numpy_state = [kind, keys, int(position), int(has_gauss), float(cached)]
    return {**state, "numpy": numpy_state}


def rng_state_from_plain(state: dict[str, Any]) -> dict[str, Any]:
    """Return what `rng_state_to_plain` was given."""
    kind, keys, *rest = state["numpy"]
    return {**state, "numpy": (kind, keys.numpy().astype(np.uint32), *rest)}


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
        if isinstance(start, Integral):
            start = int(start)
            torch.manual_seed(start)
            np.random.seed(start % 2**32)
            random.seed(start)
        else:
            _set_rng_state(start)
        yield
    finally:
        _set_rng_state(outer)
        if torch.cuda.is_available() and "cuda" not in outer:
            # Whatever starts CUDA takes the seed of the caller, who set it before.
            torch.cuda.manual_seed_all(outer_seed)
