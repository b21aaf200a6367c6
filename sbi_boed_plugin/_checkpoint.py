"""Checkpoints of a sequence of experiments: plain tensors and values, never code.

A checkpoint is a file of `torch.save`, followed by the SHA-256 of its content, so that
a single changed bit is noticed. One call of `run_experiments` uses it at a time.
"""

import hashlib
import io
import pickle
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from filelock import FileLock, Timeout
from torch import Tensor

from sbi_boed_plugin._atomic import write_bytes
from sbi_boed_plugin._parallel import describe_error
from sbi_boed_plugin._rng import isolated_rng

__all__ = [
    "digest_of",
    "draws_of",
    "load_checkpoint",
    "locked",
    "name_of",
    "refuse_damaged",
    "save_checkpoint",
]

VERSION = 8

_REMEDY = (
    "It was left as it is. Pass another path, or move the file away to start anew."
)


@contextmanager
def locked(path: Path) -> Iterator[None]:
    """Keep other calls, in this process and in others, from a checkpoint.

    The lock ends with the process, however it ends. Its file `.NAME.lock` stays.
    """
    if path.is_dir():
        raise ValueError(
            f"checkpoint={str(path)!r} is a directory. Pass the path of a file, for "
            f"instance {str(path / 'campaign.pt')!r}."
        )
    path.parent.mkdir(parents=True, exist_ok=True)
    try:
        held = FileLock(path.with_name(f".{path.name}.lock"), blocking=False).acquire()
    except Timeout as error:
        raise RuntimeError(
            f"checkpoint={str(path)!r} is in use by another run_experiments or "
            "Campaign, in this process or another. Wait until that has ended or is "
            "closed, or pass another path for other experiments."
        ) from error
    with held:
        yield


def save_checkpoint(path: Path, state: dict[str, Any]) -> None:
    """Write plain values; a killed process leaves the old file or the new one."""
    content = io.BytesIO()
    torch.save({"version": VERSION, **state}, content)
    data = content.getvalue()
    try:
        write_bytes(path, data + hashlib.sha256(data).digest())
    except OSError as error:
        raise OSError(
            error.errno,
            f"checkpoint={str(path)!r} could not be written ({describe_error(error)}). "
            "What was saved before is as it was. Make room or repair the disk, and "
            "call again with the same arguments to go on from there.",
        ) from error


def load_checkpoint(path: Path, campaign: dict[str, Any]) -> dict[str, Any]:
    """Return what was saved, without running code from it, or raise a `ValueError`.

    That says if the file is damaged, or of experiments that are not `campaign`'s.
    """
    with refuse_damaged(path):
        saved, size = path.read_bytes(), hashlib.sha256().digest_size
        data, digest = saved[:-size], saved[-size:]
        if hashlib.sha256(data).digest() != digest:
            raise ValueError("its content does not match its checksum")
        try:
            state = torch.load(io.BytesIO(data), map_location="cpu", weights_only=True)
        except pickle.UnpicklingError:
            # Torch's own words advise to run the code that was found.
            raise ValueError("it holds more than tensors and values") from None
        version, of_file = state["version"], state["campaign"]
    if version != VERSION:
        raise ValueError(
            f"checkpoint={str(path)!r} has version {version}, but this package reads "
            f"version {VERSION}. {_REMEDY}"
        )
    different = {
        name: f"{name} was {of_file.get(name)!r} and is {value!r}"
        for name, value in campaign.items()
        if of_file.get(name) != value
    }
    if different:
        told = "; ".join(different.values())
        if "policy" in different:
            told += ". A policy that a search has moved is another: make it anew"
        raise ValueError(
            f"checkpoint={str(path)!r} is of other experiments: {told}. {_REMEDY}"
        )
    return state


@contextmanager
def refuse_damaged(path: Path) -> Iterator[None]:
    """Turn every error of a block that uses what was read into one that says so."""
    try:
        yield
    except Exception as error:
        told = " ".join(describe_error(error).split())
        raise ValueError(
            f"checkpoint={str(path)!r} is damaged, or is no checkpoint of this trainer "
            f"({told}). {_REMEDY}"
        ) from error


def name_of(value: Any) -> Any:
    """Return what tells a setting from another in any process."""
    if not callable(value):
        return value
    value = getattr(value, "func", value)  # Of a partial one.
    return getattr(value, "__qualname__", type(value).__qualname__)


def draws_of(distribution: Any) -> Tensor:
    """Return draws from a fixed seed."""
    with isolated_rng(0):
        return distribution.sample(torch.Size((8,)))


def digest_of(distribution: Any, draws: list[Tensor]) -> str:
    """Return the kind of a distribution, with a hash of its draws."""
    numbers = b"".join(v.detach().cpu().numpy().tobytes() for v in draws)
    return f"{type(distribution).__name__}-{hashlib.sha256(numbers).hexdigest()[:16]}"
