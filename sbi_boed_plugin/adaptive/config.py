"""Settings of a policy's training, and its result."""

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from sbi.neural_nets.estimators import ConditionalDensityEstimator
from torch import Tensor

from sbi_boed_plugin._numbers import (
    MOST_LEARNING_RATE,
    check_fields,
    check_integer,
    check_real,
)
from sbi_boed_plugin._parallel import check_num_workers
from sbi_boed_plugin.adaptive.policy import HistoryPolicy
from sbi_boed_plugin.adaptive.posterior import AmortizedPosterior
from sbi_boed_plugin.objectives.eig import EIGEstimate
from sbi_boed_plugin.search.target import TargetLike
from sbi_boed_plugin.search.utility import Utility

__all__ = [
    "NUM_FOR_UNITS",
    "OF_ONE_CALL",
    "PolicyResult",
    "PolicySearchConfig",
    "share_done",
]

# Simulations where no budget is given, the share of them that scores the policy, and
# rollouts that do so at least and at most.
_BUDGET, _SCORING_SHARE, _SCORING = 50_000, 0.1, (100, 1_000)
# Simulations of a round, at least.
_LEAST_OF_ROUND = 100
_STEPS_OF_MODEL = 4_000
# Simulations that tell the units of designs and data, where no likelihood learns.
NUM_FOR_UNITS = 256
# Settings that a call that goes on with a training may change.
OF_ONE_CALL = (
    "max_num_simulations",
    "max_seconds",
    "num_workers",
    "num_eig_samples",
    "num_eig_contrastive",
    "checkpoint",
    "checkpoint_seconds",
)


@dataclass(frozen=True)
class PolicySearchConfig:
    """Settings of `NLE_INCE.optimize_policy`, which takes them by name.

    Attributes:
        num_experiments: Number of experiments that the policy is for.
        max_num_simulations: Number of simulations, all included. If `None`, 50,000.
        method: `"model"` learns a likelihood and trains the policy inside it, through
            its reparameterised data. `"simulator"` trains the policy on simulations
            alone, each used once, by the score gradient.
        adapts: Whether designs depend on data. If not, the result is the best list of
            designs to measure at.
        looks_ahead: Whether a policy learns from the information of all experiments
            together. If not, each design is the one that tells most by itself, which
            has a gradient of much less noise; the information that is reported is that
            of all experiments. Lists of designs (`adapts=False`), a `target`,
            parameters of a few values and `method="simulator"` always look ahead.
        num_steps: Number of steps. If `None`, 4,000 inside the model, and as many as
            the budget allows for with `method="simulator"`.
        training_batch_size: Number of rollouts, sequences of experiments, of a step. A
            policy that does not look ahead sees as many histories of any length, or
            four times as many where the likelihood is a mixture.
        learning_rate: First learning rate of the policy, which falls to zero.
        posterior_learning_rate: The same of the amortised posterior.
        max_seconds: Time after which training ends; rates fall accordingly.
        num_rounds: Rounds of simulations with `method="model"`: the first has 40 % of
            those for training, at designs all over the space, later ones follow the
            policy as it is by then, and the likelihood learns from all.
        num_workers: Number of processes that simulate, through joblib.
        num_eig_samples: Number of rollouts that score the policy. If `None`, a tenth of
            the budget, but from 100 to 1,000.
        num_eig_contrastive: Contrastive parameters of each of them.
        target: What the information is about, as in
            :class:`~sbi_boed_plugin.DesignSearchConfig`.
        cost: Cost of designs, likewise, in nats.
        maximize: `"eig"`, or `"eig_minus_cost"` with the costs of all experiments.
        checkpoint: A file that holds the training every `checkpoint_seconds`: a call
            with the same settings goes on from there.
        checkpoint_seconds: See there.

    Raises:
        ValueError: If a value is out of range, or values do not go together.
    """

    num_experiments: int
    max_num_simulations: int | None = None
    method: Literal["model", "simulator"] = "model"
    adapts: bool = True
    looks_ahead: bool = True
    num_steps: int | None = None
    training_batch_size: int = 128
    learning_rate: float = 1e-3
    posterior_learning_rate: float = 3e-3
    max_seconds: float | None = None
    num_rounds: int = 3
    num_workers: int | None = 1
    num_eig_samples: int | None = None
    num_eig_contrastive: int = 255
    target: TargetLike | None = None
    cost: Callable[[Tensor], Tensor] | None = None
    maximize: Literal["eig", "eig_minus_cost"] = "eig"
    checkpoint: str | Path | None = None
    checkpoint_seconds: float = 60.0

    def __post_init__(self) -> None:
        if self.method not in ("model", "simulator"):
            raise ValueError(
                f"method={self.method!r} is unknown. Use 'model' or 'simulator'."
            )
        names = ["num_experiments", "num_rounds", "num_eig_contrastive"]
        check_fields(self, check_integer, names, 1)
        names = ["max_num_simulations", "num_steps"]
        check_fields(self, check_integer, names, 1, or_none=True)
        check_fields(self, check_integer, ["training_batch_size"], 2)
        check_fields(self, check_integer, ["num_eig_samples"], 2, or_none=True)
        rates = ["learning_rate", "posterior_learning_rate"]
        check_fields(self, check_real, rates, most=MOST_LEARNING_RATE, above=0.0)
        check_fields(self, check_real, ["max_seconds"], above=0.0, or_none=True)
        check_fields(self, check_real, ["checkpoint_seconds"], 0.0)
        object.__setattr__(self, "num_workers", check_num_workers(self.num_workers))
        if self.maximize not in ("eig", "eig_minus_cost"):
            raise ValueError(
                f"maximize={self.maximize!r}: a policy's experiments share one "
                "information, from which costs can be subtracted alone. Use 'eig' or "
                "'eig_minus_cost'."
            )

    @property
    def utility(self) -> Utility:
        """What is maximized."""
        return Utility(self.cost, self.maximize)

    @property
    def budget(self) -> int:
        """Number of simulations."""
        return self.max_num_simulations or _BUDGET

    @property
    def num_scoring(self) -> int:
        """Number of rollouts that score the policy."""
        if self.num_eig_samples is not None:
            return self.num_eig_samples
        least, most = _SCORING
        share = int(_SCORING_SHARE * self.budget / self.num_experiments)
        return min(max(share, least), most)

    @property
    def num_reserved(self) -> int:
        """Number of simulations that score the policy."""
        return self.num_scoring * self.num_experiments

    @property
    def num_training(self) -> int:
        """Number of simulations that networks learn from."""
        return self.budget - self.num_reserved

    def check_budget(self) -> None:
        """Raise if the budget is too small for its parts."""
        least = self.num_experiments * self.training_batch_size + NUM_FOR_UNITS
        if self.method == "model":
            least = self.num_rounds * max(_LEAST_OF_ROUND, 2 * self.num_experiments)
        if self.num_training < least:
            used = self.budget - self.num_training
            raise ValueError(
                f"max_num_simulations={self.budget} is too few: {used} that score the "
                f"policy and {least} to learn from need {used + least}. Raise it, or "
                "lower num_eig_samples or num_rounds."
            )

    @property
    def steps(self) -> int:
        """Number of steps."""
        if self.method == "model":
            return self.num_steps or _STEPS_OF_MODEL
        of_step = self.training_batch_size * self.num_experiments
        affordable = (self.num_training - NUM_FOR_UNITS) // of_step
        return min(affordable, self.num_steps or affordable)


@dataclass(frozen=True)
class PolicyResult:
    """What `NLE_INCE.optimize_policy` found.

    Attributes:
        policy: The policy, with :meth:`HistoryPolicy.propose`.
        eig: Information of all experiments together, from rollouts that nothing was
            trained on: the larger lower bound. Without a simulator an estimate inside
            the learned model, which is no bound.
        bounds: Every bound, from the same rollouts, by its name.
        doubts: What speaks against the result; each was also a warning.
        posterior: The amortised posterior of histories; `build_posterior(history=...)`
            of the trainer corrects it by the likelihood.
        likelihood_estimator: The likelihood, conditioned on `(theta, design)` in one
            row; `None` with `method="simulator"`.
        config: The settings.
        history: A list with an entry per step for each of `"eig"`, `"barber_agakov"`
            (nats) and `"cost"` of rollouts inside the model, or of simulations. Where
            the policy does not look ahead, `"eig"` is the sum of what 32 draws of what
            is known tell of each experiment, at most log 32 of one.
        cost: Mean cost of all experiments, if there are costs.
        num_simulations: Number of simulations run, all included.
        num_invalid_simulations: How many of them failed.
        seconds: Time of the training.
        stop_reason: The budget that was used up, else `"num_steps"`.
    """

    policy: HistoryPolicy = field(repr=False)
    eig: EIGEstimate
    bounds: dict[str, EIGEstimate]
    doubts: tuple[str, ...]
    posterior: AmortizedPosterior = field(repr=False)
    likelihood_estimator: ConditionalDensityEstimator | None = field(repr=False)
    config: PolicySearchConfig = field(repr=False)
    history: dict[str, list[Any]] = field(repr=False)
    cost: float | None
    num_simulations: int
    num_invalid_simulations: int
    seconds: float
    stop_reason: str

    def __str__(self) -> str:
        """Say what was found, and what is known of it."""
        eig, num = self.eig, self.config.num_experiments
        kind = f"at least {eig.value:.2f} nats (± {eig.standard_error:.2f}; {eig.bound}"
        if not eig.num_simulations:
            kind = f"about {eig.value:.2f} nats (inside the learned model"
        adapts = "policy" if self.config.adapts else "fixed designs"
        lines = [
            f"{adapts} for {num} experiments: {kind}), "
            f"{self.num_simulations:,} simulations",
            *(f"- {doubt}" for doubt in self.doubts),
        ]
        return "\n".join(lines)


def share_done(step: int, num_steps: int, seconds: float, limit: float | None) -> float:
    """Return the share of a training that is done, by steps or by time."""
    return max(step / num_steps, seconds / (limit or math.inf))
