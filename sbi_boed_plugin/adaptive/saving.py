"""Checkpoints of a policy's training: plain tensors and values, never code."""

from pathlib import Path
from typing import Any

from sbi_boed_plugin._checkpoint import (
    digest_of,
    draws_of,
    load_checkpoint,
    name_of,
    refuse_damaged,
    save_checkpoint,
)
from sbi_boed_plugin.adaptive.config import OF_ONE_CALL

__all__ = ["load_training", "save_training"]

# What a training goes on from, beside its networks.
_PROGRESS = ("round", "num_simulated", "num_simulations", "num_invalid", "seconds")


def save_training(policy_search: Any, path: Path) -> None:
    """Save all that the training of a `PolicySearch` goes on from."""
    state = {
        "campaign": _identity(policy_search),
        "search": policy_search.search.state_dict(),
        "training": policy_search.training.state_dict(),
        "progress": {name: getattr(policy_search, name) for name in _PROGRESS},
    }
    save_checkpoint(path, state)


def load_training(policy_search: Any, path: Path) -> None:
    """Let a new `PolicySearch` go on from what was saved, or raise a `ValueError`."""
    saved = load_checkpoint(path, _identity(policy_search))
    with refuse_damaged(path):
        policy_search.search.load_state_dict(saved["search"])
        policy_search.make_networks(policy_search.search.simulations.rows())
        policy_search.training.load_state_dict(saved["training"])
        for name, value in saved["progress"].items():
            setattr(policy_search, name, value)


def _identity(policy_search: Any) -> dict[str, Any]:
    """Return what tells a training from another in any process."""
    settings = vars(policy_search.config).items()
    named = {name: name_of(v) for name, v in settings if name not in OF_ONE_CALL}
    prior, policy = policy_search.prior, policy_search.search.policy
    return {
        "prior": digest_of(prior, [draws_of(prior)]),
        "design_policy": digest_of(policy, [draws_of(policy)]),
        "settings": repr(sorted(named.items())),
    }
