"""Settings of a design search, checked as a whole before any work."""

from collections.abc import Callable
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any

from torch import Tensor

from sbi_boed_plugin._numbers import (
    MOST_LEARNING_RATE,
    MOST_WEIGHT,
    check_fields,
    check_integer,
    check_real,
)
from sbi_boed_plugin._parallel import check_num_workers
from sbi_boed_plugin.search.gradients import POLICY_GRADIENTS
from sbi_boed_plugin.search.information import POLICY_OBJECTIVES
from sbi_boed_plugin.search.target import TargetLike
from sbi_boed_plugin.search.utility import Maximize, Utility

__all__ = ["METHODS", "DesignSearchConfig", "MultiStartConfig"]

METHODS = ("auto", "joint", "multi_start", "rounds")

_RATE = {"most": MOST_LEARNING_RATE, "above": 0.0}


@dataclass(frozen=True)
class MultiStartConfig:
    """Settings of a multi-start search.

    Attributes:
        num_starts: Number of designs to start from.
        num_samples: Number of parameters, with data from the learned likelihood, by
            which each design is judged while all climb: twice as many for the best
            quarter, after a third of the steps, four times for its best quarter, and
            sixteen times to rank what that arrives at. The contrastive bound has as
            many more as keep it a nat below its cap, at most 4,096.
        num_climb_steps: Number of gradient steps.
        learning_rate: Step size of Adam in units of the design space.
        num_candidates: Number of designs that are scored with simulations.
        num_candidate_samples: Number of simulations of each of them.
    """

    num_starts: int = 256
    num_samples: int = 16
    num_climb_steps: int = 60
    learning_rate: float = 0.02
    num_candidates: int = 5
    num_candidate_samples: int = 1_000

    def __post_init__(self) -> None:
        check_fields(self, check_integer, ["num_starts", "num_candidates"], 1)
        check_fields(self, check_integer, ["num_samples", "num_candidate_samples"], 2)
        check_fields(self, check_integer, ["num_climb_steps"], 0)
        check_fields(self, check_real, ["learning_rate"], **_RATE)


@dataclass(frozen=True)
class DesignSearchConfig:
    r"""Settings of a design search, the arguments of `NLE_INCE.optimize_design`.

    What is `None` is chosen when the search begins; the config of a result has the
    numbers that were chosen.

    Attributes:
        method: With `"rounds"`, simulations are made in a few rounds, and several
            networks learn from all of them, those stored before included, as often as
            that gains. A round simulates where these networks think best, and all over
            the space. With `"joint"` the policy moves at every step and narrows around
            its mode, the design that is returned. With `"multi_start"` it stays,
            networks are trained over its support if that is a box (else over its
            draws), hundreds of designs climb the information of the learned model, and
            the best are scored with simulations. The networks of `"rounds"` and
            `"multi_start"` serve later searches, too. `"auto"` is `"rounds"` for at
            most 30,000 simulations or without a simulator, unless a setting is given
            that only a joint search has, `"multi_start"` where designs are constrained,
            and else `"joint"`.
        objective: Bound of the information that the policy climbs: `"barber_agakov"`,
            from a posterior that is trained beside the likelihood, without a cap;
            `"gkl"`, the same tightened by an energy ratio; `"lace"`, the likelihood
            with contrasts that this posterior draws, in rounds or in a joint search
            with `gradient="score"`; `"info_nce"`, the
            contrastive bound of the likelihood (SBI-BOED), at most :math:`\log(L + 1)`;
            `"marginal"`, the likelihood against a learned density of the data, no
            bound. If `None`, `"barber_agakov"`; in rounds `"lace"` where it tells a
            tenth more of simulations left out; and `"info_nce"` for a multi-start
            search after an observation, which the posterior does not know of.
        gradient: Gradient of the policy in a joint search: `"score"`, unbiased for any
            simulator; `"surrogate"` and `"implicit"`, through the learned likelihood,
            at its own draws or at the simulated data; `"pathwise"`, through a
            differentiable simulator; `"partial"`, which holds the data fixed, for
            comparison with the paper's code only.
        num_steps: Number of training steps. If `None`, 1,000 or as many as
            `max_num_simulations` allows, and none for a multi-start search with
            trained networks.
        num_warmup_steps: Number of first steps in which the policy does not follow
            untrained networks. If `None`, a twentieth of `num_steps`.
        num_refinement_steps: Number of further steps of a joint search, with half of
            the simulations at the design found, where they tighten the reported bound.
            The learning rate starts anew from a fifth.
        training_batch_size: Number of simulations of one step. If `None`, 256, or what
            gives about 200 steps within `max_num_simulations`, at least 16.
        num_contrastive: Number :math:`L` of contrastive parameters of each simulation,
            other rows of the batch. If `None`, 31 where they drive the policy and 3
            where they are for the likelihood's loss alone.
        regularization_strength: Weight :math:`\lambda` of maximum likelihood in the
            likelihood's loss. The policy sees :math:`\lambda = 0`.
        learning_rate: Learning rate of Adam for the networks; falls to a hundredth
            along half a cosine.
        design_learning_rate: Learning rate of Adam for the policy; likewise.
        clip_max_norm: Value at which to clip the gradient norm of each network.
        max_num_simulations: Largest number of simulations, those that score the design
            and those of a call that is resumed included. What is not given otherwise
            is a share of it: a fifth scores the design, a tenth in rounds, and a fifth
            of the rest ranks the candidates of a multi-start search. The
            networks of other searches than rounds also learn again from the
            simulations, until they have seen 256,000 rows or gain no more on rows left
            out; without a budget at most four times as many rows as there are, and
            none for `info_nce`.
        max_seconds: Time in seconds of training and scoring, that of a call that is
            resumed included. A fifth of it, in rounds at most, is for the score. No
            step or round but the first begins that would end in it, at the pace of
            those before.
        num_workers: Number of processes that simulate, through joblib. With
            `gradient="pathwise"` only what scores designs: gradients do not come back
            from other processes.
        num_eig_samples: Number of simulations that score the design found. If `None`,
            4,000, or what `max_num_simulations` and `max_seconds` leave, but at least
            100.
        num_eig_contrastive: Number of contrastive parameters of each of them; LACE has
            15, 63 or 255, as many as raise it by more than its error.
        multi_start: Settings of the search with `method="multi_start"`.
        simulations_file: A file of comma-separated values to which a search in rounds
            appends each simulation as soon as it is finished: rows of a simulator that
            is made by `vectorize` one by one, of others a sixteenth of a round at a
            time. What the file has when a trainer first uses it is learned from, and
            counts within `max_num_simulations`: after a crash, start again.
        num_rounds: Number of rounds of simulations with `method="rounds"`: the first
            takes 40 % of those for training, half of them at designs all over the
            space and half at draws of the policy. If `None`, 4.
        num_networks: Number of networks of each kind there, each of which leaves out
            other simulations. The result has the mean of their densities.
        target: What the information is about, if not all parameters: columns of them,
            or a function from parameters `(batch_dim, dim_theta)` to `(batch_dim,)` or
            `(batch_dim, dim_target)`. The others are nuisance, which keeps its value
            from experiment to experiment. The search trains a posterior network of the
            target in the place of that of all parameters. A target of at most 100
            values, such as which of several models is right, gets probabilities.
        cost: Cost of designs, a function from `(batch_dim, dim_design)` to
            `(batch_dim,)`, of torch where designs climb.
        maximize: `"eig"`, the information; `"eig_per_cost"`; `"eig_minus_cost"`, with
            costs in nats; or a function of information and cost, both of shape
            `(batch_dim,)`, that is linear in the first, as expectations need it.
        feasible: Which designs are possible, a function from `(batch_dim, dim_design)`
            to truth values `(batch_dim,)`: the search is that of a
            :class:`ConstrainedPolicy`.

    Raises:
        ValueError: If a value is out of range, or values do not go together.
    """

    method: str = "auto"
    objective: str | None = None
    gradient: str = "score"
    num_steps: int | None = None
    num_warmup_steps: int | None = None
    num_refinement_steps: int = 0
    training_batch_size: int | None = None
    num_contrastive: int | None = None
    regularization_strength: float = 0.1
    learning_rate: float = 5e-3
    design_learning_rate: float = 3e-2
    clip_max_norm: float | None = 5.0
    max_num_simulations: int | None = None
    max_seconds: float | None = None
    num_workers: int | None = 1
    num_eig_samples: int | None = None
    num_eig_contrastive: int = 511
    multi_start: MultiStartConfig | None = None
    simulations_file: str | Path | None = None
    num_rounds: int | None = None
    num_networks: int = 3
    target: TargetLike | None = None
    cost: Callable[[Tensor], Tensor] | None = None
    maximize: Maximize | Callable[[Tensor, Tensor], Tensor] = "eig"
    feasible: Callable[[Tensor], Tensor] | None = None

    def __post_init__(self) -> None:
        names = {
            "method": METHODS,
            "objective": (None, *POLICY_OBJECTIVES),
            "gradient": POLICY_GRADIENTS,
        }
        for name, known in names.items():
            if getattr(self, name) not in known:
                raise ValueError(
                    f"{name}='{getattr(self, name)}' is unknown. Use one of "
                    f"{sorted(filter(None, known))}."
                )
        _check_numbers(self)
        self._check_target()
        if self.method == "rounds":
            self._check_rounds()
        elif self.simulations_file is not None and self.method != "auto":
            raise ValueError(
                f"simulations_file={str(self.simulations_file)!r} with method="
                f"'{self.method}': only a search in rounds has one."
            )
        by_score = self.objective and POLICY_OBJECTIVES[self.objective].by_score
        if by_score and (self.method == "multi_start" or self.gradient != "score"):
            raise ValueError(
                f"objective='{self.objective}' with method='{self.method}' and "
                f"gradient='{self.gradient}': its contrasts are draws that would move "
                "with the design. Use method='joint' with gradient='score'."
            )
        # A gradient that is neither the default nor what the climb does.
        of_joint = {"num_refinement_steps": (0,), "gradient": ("score", "surrogate")}
        for name, allowed in of_joint.items():
            value = getattr(self, name)
            if self.method == "multi_start" and value not in allowed:
                raise ValueError(
                    f"{name}={value!r} with method='multi_start': its networks serve "
                    "all designs, which climb the learned model through its own draws. "
                    "Leave it out, or use method='joint'."
                )

    @property
    def utility(self) -> Utility:
        """What is maximized."""
        return Utility(self.cost, self.maximize)

    def _check_target(self) -> None:
        """Raise if the objective is not that of the target."""
        if self.target is None and self.objective == "target":
            raise ValueError("objective='target' without target=...: pass the target.")
        objectives = (None, "barber_agakov", "target")
        if self.target is not None and self.objective not in objectives:
            raise ValueError(
                f"objective='{self.objective}' with target=...: a target has a "
                "posterior network of its own. Leave objective out."
            )

    def _check_rounds(self) -> None:
        """Raise if a setting is none of a search in rounds."""
        for name in self._of_joint():
            raise ValueError(
                f"{name}={getattr(self, name)!r} with method='rounds', which has no "
                "such setting. Leave it out, or use method='joint'."
            )

    def _of_joint(self) -> list[str]:
        """Return the settings that are given and that a search in rounds lacks."""
        names = [
            field.name
            for field in fields(self)
            if field.name not in _OF_ROUNDS
            and getattr(self, field.name) != field.default
        ]
        if self.objective not in _OBJECTIVES_OF_ROUNDS:
            names.append("objective")
        return names

    def with_method(
        self, has_simulator: bool, is_constrained: bool = False
    ) -> "DesignSearchConfig":
        """Return these settings with the method that `"auto"` stands for."""
        if self.method != "auto":
            return self
        budget = self.max_num_simulations
        is_small = budget is not None and budget <= MOST_OF_ROUNDS
        rounds = not has_simulator or (is_small and not self._of_joint())
        rounds = rounds or self.simulations_file is not None
        if is_constrained and not rounds and not self.num_refinement_steps:
            return replace(self, method="multi_start")
        return replace(self, method="rounds" if rounds else "joint")

    def check_without_likelihood(self) -> None:
        """Raise if a search that trains posteriors alone cannot have these settings."""
        posteriors = (None, "barber_agakov", "gkl", "target")
        for name, remedy, possible in (
            ("method", "joint' or 'rounds", ("auto", "joint", "rounds")),
            ("objective", "barber_agakov", posteriors),
            ("gradient", "score", ("score", "pathwise")),
        ):
            if getattr(self, name) not in possible:
                raise ValueError(
                    f"{name}={getattr(self, name)!r} with density_estimator=None, "
                    f"but it asks a likelihood. Use {name}='{remedy}', or a trainer "
                    "with a likelihood."
                )

    def with_vector_field(self) -> "DesignSearchConfig":
        """Return the settings of a search whose densities take a solver, or raise."""
        for name, possible in (
            ("method", ("auto", "rounds")),
            ("objective", (None, "barber_agakov", "target")),
        ):
            if getattr(self, name) not in possible:
                raise ValueError(
                    f"{name}={getattr(self, name)!r} with a flow matching or score "
                    "model, whose log-densities are too slow for it. Use "
                    "method='rounds' and leave objective out, or another model."
                )
        for name in self._of_joint():
            raise ValueError(
                f"{name}={getattr(self, name)!r} with a flow matching or score model: "
                "such a search is one in rounds, which has no such setting. Leave it "
                "out, or use another model."
            )
        return replace(self, method="rounds")

    def continuing(self, earlier: "DesignSearchConfig") -> "DesignSearchConfig":
        """Return these budgets with the schedule of a search that is to go on."""
        for field in fields(self):
            value, before = getattr(self, field.name), getattr(earlier, field.name)
            if field.name not in _OF_ONE_CALL and value not in (before, field.default):
                raise ValueError(
                    f"{field.name}={value} with resume_training=True, but the search "
                    f"to resume has {field.name}={before}, on which its schedules "
                    "depend. Leave it out, or start a new search."
                )
        return replace(earlier, **{name: getattr(self, name) for name in _OF_ONE_CALL})


# Simulations up to which `"auto"` is a search in rounds.
MOST_OF_ROUNDS = 30_000
# Settings of a search in rounds, and what it can climb.
_OF_ROUNDS = (
    "method",
    "objective",
    "clip_max_norm",
    "max_num_simulations",
    "max_seconds",
    "num_workers",
    "num_eig_samples",
    "num_eig_contrastive",
    "simulations_file",
    "num_rounds",
    "num_networks",
    "target",
    "cost",
    "maximize",
    "feasible",
)
_OBJECTIVES_OF_ROUNDS = (None, "barber_agakov", "lace", "target")

# What a call that resumes a search may change.
_OF_ONE_CALL = (
    "max_num_simulations",
    "max_seconds",
    "num_workers",
    "num_eig_samples",
    "num_eig_contrastive",
    "multi_start",
)


def _check_numbers(config: Any) -> None:
    """Put plain numbers in the places of numbers, or raise if one is out of range."""
    # With trained networks a multi-start search needs no step, and no warm-up either.
    least_steps = 0 if config.method == "multi_start" else 1
    check_fields(config, check_integer, ["num_refinement_steps"], 0)
    check_fields(config, check_integer, ["num_eig_contrastive"], 1)
    check_fields(config, check_integer, ["num_networks"], 2)
    for least, names in (
        (least_steps, ["num_steps"]),
        (0, ["num_warmup_steps", "num_rounds"]),
        (1, ["num_contrastive", "max_num_simulations"]),
        (2, ["training_batch_size", "num_eig_samples"]),
    ):
        check_fields(config, check_integer, names, least, or_none=True)
    optional = {"or_infinite": True, "or_none": True}
    check_fields(config, check_real, ["max_seconds"], 0.0, **optional)
    clip = {"above": 0.0, "remedy": "None means no clipping.", **optional}
    check_fields(config, check_real, ["clip_max_norm"], **clip)
    rates = ["learning_rate", "design_learning_rate"]
    check_fields(config, check_real, rates, **_RATE)
    check_fields(config, check_real, ["regularization_strength"], 0.0, MOST_WEIGHT)
    object.__setattr__(config, "num_workers", check_num_workers(config.num_workers))
    steps, warmup = config.num_steps, config.num_warmup_steps
    if None not in (steps, warmup) and warmup > steps - least_steps:
        raise ValueError(
            f"num_warmup_steps={warmup} must be less than num_steps={steps}."
        )
    size, contrasts = config.training_batch_size, config.num_contrastive
    if None not in (size, contrasts) and contrasts >= size:
        raise ValueError(
            f"num_contrastive={contrasts} must be less than training_batch_size="
            f"{size}: contrastive parameters are other rows of the batch."
        )
