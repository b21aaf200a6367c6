"""The only place that looks at sbi's version or touches sbi's private names."""

import pickle
from typing import Any, cast

import sbi

SUPPORTED_SBI = "0.27"


def check_sbi_version(version: str) -> None:
    """Refuse an sbi that this package was not written for.

    An error rather than a warning: the trainers subclass private parts of sbi, which
    another minor version may move, rename or, worse, give another meaning.

    Args:
        version: The version of the installed sbi, such as `"0.27.0"`.

    Raises:
        ImportError: If it is not a release of the supported minor version.
    """
    if version.split(".")[:2] != SUPPORTED_SBI.split("."):
        raise ImportError(
            f"sbi_boed_plugin needs sbi {SUPPORTED_SBI}.x, but sbi {version} is "
            'installed. Run `pip install "sbi>=0.27,<0.28"`, or look for a newer '
            "sbi_boed_plugin."
        )


check_sbi_version(sbi.__version__)

# Private names of sbi, imported after the check so that its message comes first.
from sbi.inference.trainers.nle.nle_base import (  # noqa: E402
    LikelihoodEstimatorTrainer as LikelihoodEstimatorTrainer,
)
from sbi.neural_nets.estimators.base import (  # noqa: E402
    ConditionalEstimatorBuilder as ConditionalEstimatorBuilder,
)


def if_it_pickles(value: Any) -> Any:
    """Return a value that can be pickled, and `None` in the place of any other."""
    try:
        pickle.dumps(value)
    except (pickle.PicklingError, AttributeError, TypeError):
        return None
    return value


class KeepsTracker:
    """A base in front of sbi's trainers: a tracker that can be pickled is kept.

    sbi's trainers come back with a tracker of TensorBoard, which writes a folder,
    whatever they had before.
    """

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
