"""Settings and result of a design optimization."""

from dataclasses import dataclass, field
from typing import Any, Literal

from sbi.neural_nets.estimators import ConditionalDensityEstimator
from torch import Tensor

from sbi_boed_plugin._numbers import (
    MOST_LEARNING_RATE,
    MOST_WEIGHT,
    check_fields,
    check_integer,
    check_real,
)
from sbi_boed_plugin.objectives.eig import EIGEstimate
from sbi_boed_plugin.policies.policy import DesignPolicy
from sbi_boed_plugin.search.gradients import POLICY_GRADIENTS
from sbi_boed_plugin.search.information import POLICY_OBJECTIVES
from sbi_boed_plugin.search.trust import Arrival

__all__ = ["DesignOptimizerConfig", "DesignResult", "StopReason"]

StopReason = Literal["num_steps", "plateau", "max_num_simulations", "max_seconds"]


@dataclass(frozen=True)
class DesignOptimizerConfig:
    """Settings of the joint training of policy and estimator.

    The arguments of `NLE_INCE.optimize_design`, which documents them.
    """

    method: str
    num_steps: int
    num_warmup_steps: int
    training_batch_size: int
    num_simulations_per_design: int
    num_contrastive: int
    regularization_strength: float
    learning_rate: float
    design_learning_rate: float
    clip_max_norm: float | None
    objective: str
    gradient: str
    num_refinement_steps: int = 0

    def __post_init__(self) -> None:
        multi_start = self.method == "multi_start"
        # With trained estimators a multi-start search needs no further step.
        check_fields(self, check_integer, ["num_steps"], 0 if multi_start else 1)
        counts = [
            "training_batch_size",
            "num_simulations_per_design",
            "num_contrastive",
        ]
        check_fields(self, check_integer, counts, 1)
        check_fields(
            self, check_integer, ["num_warmup_steps", "num_refinement_steps"], 0
        )
        if self.num_warmup_steps >= self.num_steps + multi_start:
            raise ValueError(
                f"num_warmup_steps={self.num_warmup_steps} must be less than "
                f"num_steps={self.num_steps}."
            )
        if multi_start and self.num_refinement_steps:
            raise ValueError(
                f"num_refinement_steps={self.num_refinement_steps} with "
                "method='multi_start': its networks serve all designs and are not "
                "refined at one. Use method='joint' or leave it out."
            )
        rates = ["learning_rate", "design_learning_rate"]
        check_fields(self, check_real, rates, most=MOST_LEARNING_RATE, above=0.0)
        check_fields(
            self,
            check_real,
            ["clip_max_norm"],
            above=0.0,
            or_infinite=True,
            or_none=True,
            remedy="None means no clipping.",
        )
        check_fields(self, check_real, ["regularization_strength"], 0.0, MOST_WEIGHT)
        for name, known in (
            ("objective", POLICY_OBJECTIVES),
            ("gradient", POLICY_GRADIENTS),
        ):
            if getattr(self, name) not in known:
                raise ValueError(
                    f"{name}='{getattr(self, name)}' is unknown. Use one of "
                    f"{sorted(known)}."
                )
        if multi_start and self.gradient not in ("score", "surrogate"):
            # Neither the default nor what the climb does.
            raise ValueError(
                f"gradient='{self.gradient}' with method='multi_start': designs climb "
                "the information of the learned model, through its own draws. Leave it "
                "out, or use method='joint'."
            )
        if self.training_batch_size % self.num_simulations_per_design:
            raise ValueError(
                f"training_batch_size={self.training_batch_size} must be a multiple of "
                f"num_simulations_per_design={self.num_simulations_per_design}."
            )
        if self.training_batch_size // self.num_simulations_per_design < 2:
            raise ValueError(
                f"training_batch_size={self.training_batch_size} gives fewer than two "
                "designs a step, but the baseline of the gradient compares designs. "
                "Increase it or decrease num_simulations_per_design."
            )
        if self.num_contrastive >= self.training_batch_size:
            raise ValueError(
                f"num_contrastive={self.num_contrastive} must be less than "
                f"training_batch_size={self.training_batch_size}: contrastive "
                "parameters are other rows of the batch."
            )


@dataclass(frozen=True)
class DesignResult:
    """What `NLE_INCE.optimize_design` found.

    Attributes:
        design: The best design found, of shape `(dim_design,)`: the mode of the policy
            or, after a multi-start search, the best of the candidates.
        eig: Its expected information gain, from simulations that were not trained on:
            the larger of the objective's own bound and `"lace"`.
        bounds: Every bound that the networks give, from the same simulations, by its
            name; `"linear"` is that of a linear regression.
        arrival: Whether the policy arrived at the design, after a joint search.
        doubts: What speaks against the result; each was also a warning.
        policy: The trained policy.
        likelihood_estimator: The trained likelihood, conditioned on `(theta, design)`
            in one row.
        posterior_estimator: The posterior trained beside it, conditioned on
            `(x, design)` in one row, if the objective needs one.
        marginal_estimator: The density of the data alone, conditioned on the design,
            if the objective needs one.
        config: Settings of the optimization.
        candidates: After a multi-start search, the best designs with the estimates
            that ranked them, best first; the first is `design`.
        history: One list per recorded quantity with one entry per step: `"loss"` of
            the likelihood, `"eig"` of the designs of that step as the objective
            estimates it and its `"eig_standard_error"` (nats), `"log_likelihood"`
            (nats), `"num_simulations"` and `"seconds"` so far, and what the policy
            describes, such as `"mode"` and `"scale"`.
        num_simulations: Number of simulations run, all included.
        num_invalid_simulations: How many of them failed: NaN, infinite, or raised.
            They count as experiments that tell nothing.
        seconds: Time of the training steps, in seconds, without that of climbing and
            scoring designs.
        stop_reason: The budget that was used up, or else what ended the search.
    """

    design: Tensor
    eig: EIGEstimate
    policy: DesignPolicy
    likelihood_estimator: ConditionalDensityEstimator
    config: DesignOptimizerConfig
    history: dict[str, list[Any]]
    num_simulations: int
    num_invalid_simulations: int
    seconds: float
    stop_reason: StopReason
    bounds: dict[str, EIGEstimate] = field(default_factory=dict)
    arrival: Arrival | None = None
    doubts: tuple[str, ...] = ()
    posterior_estimator: ConditionalDensityEstimator | None = None
    marginal_estimator: ConditionalDensityEstimator | None = None
    candidates: tuple[tuple[Tensor, EIGEstimate], ...] = ()

    def __str__(self) -> str:
        """Say what was found, and what is known of it."""
        shown = ", ".join(f"{value:.4g}" for value in self.design[:6].tolist())
        if len(self.design) > 6:
            shown += ", …"
        eig = self.eig
        lines = [
            f"design [{shown}]: at least {eig.value:.2f} nats (± "
            f"{eig.standard_error:.2f}; lower bound, {eig.bound}), "
            f"{self.num_simulations:,} simulations",
            *(f"- {doubt}" for doubt in self.doubts),
        ]
        return "\n".join(lines)
