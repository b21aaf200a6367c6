"""Which sbi this package needs, and what our trainers do otherwise than sbi's."""

import pickle
from typing import Any, cast

import sbi
import torch
from torch.utils import data

__all__ = [
    "ConditionalEstimatorBuilder",
    "LikelihoodEstimatorTrainer",
    "SbiTrainerMixin",
    "check_default_dtype",
    "check_sbi_version",
    "if_it_pickles",
]

_SUPPORTED_SBI = "0.27"


def check_sbi_version(version: str) -> None:
    """Raise an `ImportError` unless an sbi is of the minor version that we support.

    A warning would not do: the trainers subclass private parts of sbi, which another
    minor version may move, rename or, worse, give another meaning.
    """
    if version.split(".")[:2] != _SUPPORTED_SBI.split("."):
        raise ImportError(
            f"sbi_boed_plugin needs sbi {_SUPPORTED_SBI}.x, but sbi {version} is "
            'installed. Run `pip install "sbi>=0.27,<0.28"`, or look for a newer '
            "sbi_boed_plugin."
        )


check_sbi_version(sbi.__version__)

# Private names of sbi, imported after the check so that its message comes first.
from sbi.inference.trainers.nle.nle_base import (  # noqa: E402
    LikelihoodEstimatorTrainer,
)
from sbi.neural_nets.estimators.base import ConditionalEstimatorBuilder  # noqa: E402


def if_it_pickles(value: Any) -> Any:
    """Return a value that can be pickled, and `None` in the place of any other."""
    try:
        pickle.dumps(value)
    except (pickle.PicklingError, AttributeError, TypeError):
        return None
    return value


def check_default_dtype() -> None:
    """Raise if networks would be built in another precision than data are kept in."""
    dtype = torch.get_default_dtype()
    if dtype != torch.float32:
        raise RuntimeError(
            f"torch's default dtype is {dtype}, in which sbi builds its networks, but "
            "it keeps data in torch.float32. Call "
            "torch.set_default_dtype(torch.float32) before training."
        )


class SbiTrainerMixin:
    """A base in front of sbi's trainers, for what all of ours do otherwise.

    A tracker that can be pickled is kept: sbi's trainers come back with a tracker of
    TensorBoard, which writes a folder, whatever they had before. And another default
    precision than that of data is refused before training.
    """

    def get_dataloaders(
        self, *args: Any, **kwargs: Any
    ) -> tuple[data.DataLoader, data.DataLoader]:
        """Return sbi's dataloaders for training and validation."""
        check_default_dtype()
        return cast(Any, super()).get_dataloaders(*args, **kwargs)

    def __getstate__(self) -> dict[str, Any]:
        """Return the state of sbi's trainer, with the tracker."""
        state = cast(Any, super()).__getstate__()
        return {**state, "_tracker": if_it_pickles(vars(self)["_tracker"])}

    def __setstate__(self, state: dict[str, Any]) -> None:
        """Set the state; without a tracker as sbi does."""
        if state["_tracker"] is None:
            cast(Any, super()).__setstate__(state)
        else:
            vars(self).update(state)
