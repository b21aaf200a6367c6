"""Which sbi this package needs, and what all our trainers check or keep."""

import pickle
from typing import Any

import sbi
import torch

__all__ = [
    "ConditionalEstimatorBuilder",
    "KeepsTracker",
    "LikelihoodEstimatorTrainer",
    "NoOpTracker",
    "check_default_dtype",
    "check_sbi_version",
    "if_it_pickles",
]

_SUPPORTED_SBI = "0.27"


def check_sbi_version(version: str) -> None:
    """Refuse other minor versions: the trainers subclass private parts of sbi."""
    if version.split(".")[:2] != _SUPPORTED_SBI.split("."):
        raise ImportError(
            f"sbi_boed_plugin needs sbi {_SUPPORTED_SBI}.x, but sbi {version} is "
            'installed. Run `pip install "sbi>=0.27,<0.28"`.'
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


class NoOpTracker:
    """Satisfies `sbi.sbi_types.Tracker` and keeps nothing."""

    log_dir: str | None = None

    def log_metric(self, *args: Any, **kwargs: Any) -> None:
        """Ignore what is to be logged."""

    log_metrics = log_params = add_figure = flush = log_metric


class KeepsTracker:
    """A trainer that logs only where it is asked to, also after it was pickled.

    Without a tracker, sbi's trainers write a folder `sbi-logs/` to the working
    directory, and again whenever a trainer is loaded or copied.
    """

    _tracker: Any

    def _default_tracker(self) -> NoOpTracker:
        return NoOpTracker()

    def __getstate__(self) -> dict[str, Any]:
        trainer: Any = super()
        return {**trainer.__getstate__(), "_tracker": if_it_pickles(self._tracker)}

    def __setstate__(self, state: dict[str, Any]) -> None:
        vars(self).update(state)
        if self._tracker is None:
            self._tracker = self._default_tracker()
