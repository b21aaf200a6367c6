"""Which sbi this package needs, how its versions differ, and what our trainers keep."""

import pickle
from collections.abc import Callable
from typing import Any, Literal

import sbi
import torch
from torch import Tensor

__all__ = [
    "KeepsTracker",
    "LikelihoodEstimatorTrainer",
    "NoOpTracker",
    "as_builder",
    "check_default_dtype",
    "check_sbi_version",
    "finite_check_of",
    "if_it_pickles",
    "is_built_by_sbi",
    "unless_config",
]

_SUPPORTED_SBI = ("0.27", "0.28")


def check_sbi_version(version: str) -> None:
    """Refuse other minor versions: the trainers subclass private parts of sbi."""
    if ".".join(version.split(".")[:2]) not in _SUPPORTED_SBI:
        raise ImportError(
            f"sbi_boed_plugin needs sbi {' or '.join(_SUPPORTED_SBI)}, but sbi "
            f'{version} is installed. Run `pip install "sbi>=0.27,<0.29"`.'
        )


check_sbi_version(sbi.__version__)

# Names of sbi, imported after the check so that its message comes first.
from sbi import neural_nets  # noqa: E402
from sbi.inference.trainers.nle.nle_base import (  # noqa: E402
    LikelihoodEstimatorTrainer,
)

_CONFIG_BASES = {
    neural_nets.classifier_nn: "ClassifierConfigBase",
    neural_nets.likelihood_nn: "DensityConfigBase",
    neural_nets.posterior_nn: "DensityConfigBase",
}


class _ConfigBuilder:
    """Builds the network of a config of sbi; a class, so that it pickles."""

    def __init__(self, config: Any, describes: Literal["theta", "x"]) -> None:
        self.config, self.describes = config, describes

    def __call__(self, theta: Tensor, x: Tensor) -> Any:
        pair = (theta, x) if self.describes == "theta" else (x, theta)
        return self.config.build(*pair)


def unless_config(model: Any, network: Callable[..., Any]) -> Any:
    """Return a model, or for a config of sbi a function that builds its network.

    `network` is the function of sbi for networks of this kind. sbi 0.27 has no configs.
    """
    base = getattr(neural_nets, _CONFIG_BASES[network], ())
    if not isinstance(model, base):
        return model
    is_likelihood = network is neural_nets.likelihood_nn
    return _ConfigBuilder(model, "x" if is_likelihood else "theta")


def as_builder(model: Any, network: Callable[..., Any]) -> Any:
    """Return what a trainer of sbi is given: a function `(theta, x) -> estimator`.

    After sbi 0.27 its trainers warn of names, and take configs in their place; every
    version takes functions. What is neither is returned as it is, for sbi to judge.
    """
    return network(model) if isinstance(model, str) else unless_config(model, network)


def is_built_by_sbi(build: Any) -> bool:
    """Whether a function is one of sbi, which builds a network of sbi."""
    module = getattr(build, "__module__", "")
    return isinstance(build, _ConfigBuilder) or module.startswith("sbi.")


def finite_check_of(posterior: Any) -> dict[str, bool]:
    """Return whether a posterior checks its data, as an argument of another posterior.

    sbi 0.27 always checks that data are finite, and has no such argument.
    """
    checks = getattr(posterior, "_check_finite_x", None)
    return {} if checks is None else {"check_finite_x": checks}


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
