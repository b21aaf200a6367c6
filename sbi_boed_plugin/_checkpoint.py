"""Checkpoints of a sequence of experiments: plain tensors and values, never code."""

import os
from pathlib import Path
from typing import Any

import torch

__all__ = ["load_checkpoint", "save_checkpoint"]

FORMAT = "sbi_boed_plugin.run_experiments"
VERSION = 2


def save_checkpoint(path: Path, state: dict[str, Any]) -> None:
    """Write a checkpoint so that a killed process leaves the old or the new one.

    Args:
        path: File to write; its folder is made if needed.
        state: Tensors, numbers, strings, lists, tuples and dictionaries.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        with temporary.open("wb") as file:
            torch.save({"format": FORMAT, "version": VERSION, **state}, file)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


def load_checkpoint(path: Path, campaign: dict[str, Any]) -> dict[str, Any]:
    """Read a checkpoint without running code from it.

    Args:
        path: File to read. It is left as it is, whatever it holds.
        campaign: What identifies the sequence of experiments to continue.

    Returns:
        The state that was saved.

    Raises:
        ValueError: If the file is damaged, is no checkpoint, or belongs to other
            experiments.
    """
    remedy = "Pass another path, or move the file away to start anew."
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # torch raises many kinds for files it cannot read.
        raise ValueError(
            f"checkpoint={str(path)!r} is damaged or is no checkpoint "
            f"({type(error).__name__}). It was left as it is. {remedy}"
        ) from error
    if not isinstance(state, dict) or state.get("format") != FORMAT:
        raise ValueError(
            f"checkpoint={str(path)!r} is not one of run_experiments. It was left as "
            f"it is. {remedy}"
        )
    if state.get("version") != VERSION:
        raise ValueError(
            f"checkpoint={str(path)!r} has version {state.get('version')}, but this "
            f"package reads version {VERSION}. It was left as it is. {remedy}"
        )
    saved = state.get("campaign", {})
    different = [
        f"{name} was {saved.get(name)!r} and is {value!r}"
        for name, value in campaign.items()
        if saved.get(name) != value
    ]
    if different:
        moved = ""
        if saved.get("policy") != campaign["policy"]:
            moved = (
                " A policy that a search has moved already is another: make it anew."
            )
        raise ValueError(
            f"checkpoint={str(path)!r} is of other experiments: "
            f"{'; '.join(different)}. It was left as it is.{moved} {remedy}"
        )
    return state
