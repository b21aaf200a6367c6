"""The rounds of a sequence of experiments, and how they are saved."""

import time
import warnings
from collections.abc import Callable
from copy import deepcopy
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from sbi_boed_plugin._checkpoint import (
    digest_of,
    draws_of,
    load_checkpoint,
    name_of,
    refuse_damaged,
    save_checkpoint,
)
from sbi_boed_plugin._numbers import check_real
from sbi_boed_plugin._rng import get_rng_state, isolated_rng
from sbi_boed_plugin.adaptive.policy import HistoryPolicy
from sbi_boed_plugin.objectives.eig import EIGEstimate
from sbi_boed_plugin.search.config import DesignSearchConfig
from sbi_boed_plugin.search.design_search import DesignSearch
from sbi_boed_plugin.search.measurements import SURPRISING
from sbi_boed_plugin.search.utility import Utility
from sbi_boed_plugin.simulation import CheckedSimulator
from sbi_boed_plugin.trainers.nle_ince import NLE_INCE

__all__ = [
    "ExperimentRecord",
    "ExperimentsResult",
    "Rounds",
    "check_settings",
    "estimate_of",
    "identity_of",
]

# Designs among which the cheapest is looked for.
_NUM_FOR_CHEAPEST = 4_096
_ROUNDING = 1e-6


@dataclass(frozen=True)
class ExperimentRecord:
    """One experiment of a sequence.

    Attributes:
        design: Design of shape `(dim_design,)`.
        x: Observed data of shape `(dim_x,)`.
        eig: Expected information gain of the design before the experiment, beyond the
            belief of that time; `None` of a design that a policy proposed, which no
            simulation has scored.
        cost: Cost of the design, if the search was given one.
        posterior_samples: Particles of the belief after the experiment, of shape
            `(num_particles, dim_theta)`.
        log_evidence: Log-density of all data so far under the prior, in nats.
        num_simulations: Number of simulations that the search for the design took.
        num_invalid_simulations: How many of them failed.
        seconds: Time of search, experiment and inference.
    """

    design: Tensor
    x: Tensor
    eig: EIGEstimate | None
    cost: float | None
    posterior_samples: Tensor = field(repr=False)
    log_evidence: float
    num_simulations: int
    num_invalid_simulations: int
    seconds: float


@dataclass(frozen=True)
class ExperimentsResult:
    """A sequence of experiments: their `records`, oldest first."""

    records: tuple[ExperimentRecord, ...]

    @property
    def designs(self) -> Tensor:
        """Designs of shape `(num_rounds, dim_design)`."""
        return torch.stack([record.design for record in self.records])

    @property
    def x(self) -> Tensor:
        """Observed data of shape `(num_rounds, dim_x)`."""
        return torch.stack([record.x for record in self.records])

    @property
    def num_simulations(self) -> int:
        """Number of simulations of all rounds."""
        return sum(record.num_simulations for record in self.records)

    @property
    def cost(self) -> float:
        """Cost of all designs."""
        return sum(record.cost or 0.0 for record in self.records)

    @property
    def posterior_samples(self) -> Tensor:
        """Particles of the belief after all experiments."""
        return self.records[-1].posterior_samples


@dataclass
class Rounds:
    """The rounds of a sequence, as they are saved: the last may be unfinished."""

    inference: NLE_INCE
    simulator: Callable[[Tensor, Tensor], Tensor]
    settings: dict[str, Any]
    path: Path | None
    identity: dict[str, Any]
    max_cost: float | None = None
    policy: HistoryPolicy | None = None
    rounds: list[dict[str, Any]] = field(default_factory=list)

    @property
    def spent(self) -> float:
        """Cost of the designs so far, the last included."""
        return sum(values["cost"] or 0.0 for values in self.rounds)

    @property
    def is_pending(self) -> bool:
        """Whether the design of the last round has no data yet."""
        return bool(self.rounds) and "log_evidence" not in self.rounds[-1]

    def records(self) -> list[ExperimentRecord]:
        """Return the records of the finished rounds."""
        return [
            ExperimentRecord(**{**values, "eig": estimate_of(values)})
            for values in self.rounds
            if "log_evidence" in values
        ]

    def load(self) -> int | dict[str, Any] | None:
        """Take up what was saved, if anything was, and return the random state."""
        if self.path is None or not self.path.exists():
            if self.policy is not None and self.inference.search.likelihood is None:
                raise ValueError(
                    "policy=..., but the trainer has no likelihood to learn from data "
                    "with: pass the one whose optimize_policy made the policy, or load "
                    "the state of its search."
                )
            return self.identity["seed"]
        saved = load_checkpoint(self.path, self.identity)
        with refuse_damaged(self.path):
            self.rounds = saved["rounds"]
            self.records()
            with isolated_rng(saved["rng"]):
                self.inference.search.load_state_dict(saved["search"])
        return saved["rng"]

    def save(self) -> None:
        """Save all that the next call needs."""
        if self.path is not None:
            state = {
                "campaign": self.identity,
                "rounds": self.rounds,
                "search": self.inference.search.state_dict(),
                "rng": get_rng_state(),
            }
            save_checkpoint(self.path, state)

    def find_design(self) -> None:
        """Begin a round with its design, one that can be paid: proposed or searched."""
        started = time.perf_counter()
        proposed = None if self.policy is None else self._proposed(self.policy)
        if proposed is not None:
            values = {
                "design": proposed.cpu(),
                "eig": None,
                "cost": self.cost_of(proposed.cpu()),
                "num_simulations": 0,
                "num_invalid_simulations": 0,
                "seconds": time.perf_counter() - started,
            }
            self.rounds.append(values)
            return
        settings, search = dict(self.settings), self.inference.search
        if self.max_cost is not None:
            settings["feasible"] = self._affordable()
        of_trainer = getattr(self.inference, "default_target", None)
        has_target = settings.get("target", of_trainer) is not None
        served = settings.get("method") == "multi_start" and len(search.measurements)
        served = served and not has_target  # Whose network is of one search.
        if served and search.serves_all_designs(settings.get("objective")):
            # What is trained for all designs serves every later round.
            settings = {**settings, "num_steps": 0, "num_warmup_steps": 0}
        was_run = any(values["num_simulations"] for values in self.rounds)
        checked = CheckedSimulator(self.simulator, is_checked=was_run)
        result = self.inference.optimize_design(checked, **settings)
        values = {
            "design": result.design.cpu(),
            "eig": asdict(result.eig),
            "cost": result.cost,
            "num_simulations": result.num_simulations,
            "num_invalid_simulations": result.num_invalid_simulations,
            "seconds": time.perf_counter() - started,
        }
        self.rounds.append(values)

    def _proposed(self, policy: HistoryPolicy) -> Tensor | None:
        """Return the design of the policy, or `None` and say why it has none."""
        observations = self.inference.search.measurements.observations
        seen, fault = observations[policy.num_before :], ""
        p_values = [one.predictive_p_value for one in seen]
        if len(observations) < policy.num_before:
            fault = f"it was trained after {policy.num_before} observations, and there "
            fault += f"are {len(observations)}"
        elif len(seen) >= policy.num_experiments:
            fault = f"it is for {policy.num_experiments} experiments"
        elif any(value < SURPRISING for value in p_values):
            fault = "data lie beyond all that the likelihood, in which it was trained, "
            fault += "predicts"
        else:
            history = (None, None)
            if seen:
                history = (
                    torch.stack([one.design for one in seen]),
                    torch.cat([one.x for one in seen]),
                )
            design = policy.propose(*history)
            if not self._affordable()(design[None]).all():
                fault = f"design {design.tolist()} is impossible, or costs too much"
            elif not self._supports(design):
                fault = f"design {design.tolist()} is none of the trainer's"
            else:
                return design
        warnings.warn(
            f"The policy does not propose the next design: {fault}. A search finds it.",
            stacklevel=4,
        )
        return None

    def _supports(self, design: Tensor) -> bool:
        policy: Any = self.inference.search.policy
        return bool(policy.support.check(design.to(policy.mode)).all())

    def cost_of(self, design: Tensor) -> float | None:
        """Return the cost of a design, `None` without costs."""
        cost = self.settings.get("cost")
        return None if cost is None else float(Utility(cost).costs(design[None]))

    @property
    def end(self) -> str | None:
        """Why there is no further experiment, `None` where there may be."""
        if getattr(self.inference, "is_settled", False):
            return "only one model is left, so that there is nothing to tell apart."
        if self.max_cost is None:
            return None
        policy, may = self.inference.search.policy, self._affordable()
        assert policy is not None
        num_designs = max(_NUM_FOR_CHEAPEST, policy.num_designs or 0)
        with isolated_rng(0):
            if may(policy.spread(num_designs)).any():
                return None
        return (
            f"max_cost={self.max_cost}, of which {self.spent:g} is spent: no design "
            "costs as little as what is left."
        )

    def _affordable(self) -> Callable[[Tensor], Tensor]:
        """Return the function of designs that says which are possible, and paid for."""
        feasible = self.settings.get("feasible")
        if self.max_cost is None:
            return feasible or (lambda d: torch.ones(len(d), dtype=torch.bool))
        # Sums of costs in single precision are rounded.
        left = self.max_cost * (1.0 + _ROUNDING) - self.spent
        costs = Utility(self.settings["cost"]).costs

        def affordable(design: Tensor) -> Tensor:
            possible = costs(design).double() <= left
            return possible if feasible is None else possible & feasible(design)

        return affordable

    def check_data(self, x: Any, remedy: str) -> Tensor:
        """Return data as one row of finite values, or raise."""
        search = self.inference.search
        likelihood = search.likelihood
        assert likelihood is not None
        x = search.simulations.flat(torch.atleast_1d(torch.as_tensor(x)))
        x = x[0] if x.dim() == 2 and len(x) == 1 else x
        if x.shape != likelihood.input_shape or not torch.isfinite(x).all():
            raise ValueError(
                f"x={x.tolist()}, but there must be "
                f"{likelihood.input_shape.numel()} finite value(s). {remedy}"
            )
        return x.cpu().clone()

    def learn(self, values: dict[str, Any], started: float) -> None:
        """Take the data of a round, whose measurement started then, into account."""
        inference = self.inference.observe(
            values["design"], values["x"], num_particles=self.identity["num_particles"]
        )
        assert inference.belief is not None
        values["x"] = inference.observations[-1].x[0].cpu()
        values["posterior_samples"] = inference.belief.particles.cpu()
        values["log_evidence"] = inference.belief.log_evidence
        values["seconds"] += time.perf_counter() - started


def estimate_of(values: dict[str, Any]) -> EIGEstimate | None:
    """Return the information of a round's design, `None` if nothing has scored it."""
    return None if values["eig"] is None else EIGEstimate(**values["eig"])


def identity_of(
    search: DesignSearch,
    settings: dict[str, Any],
    num_particles: int,
    seed: int | None,
    proposes: HistoryPolicy | None = None,
) -> dict[str, Any]:
    """Return what tells one sequence of experiments from another."""
    # Any number of workers gives the same results, but for one: it draws from the
    # generators of this process.
    named = {name: name_of(value) for name, value in settings.items()}
    named["num_workers"] = settings.get("num_workers", 1) == 1
    # From where the policy started: the last search has moved it.
    policy, draws = deepcopy(search.policy), []
    assert policy is not None and search.prior is not None
    policy.load_state_dict(search.policy_start or {})
    for progress in (0.0, 0.5, 1.0):
        policy.anneal(progress)
        draws.append(draws_of(policy))
    return {
        "prior": digest_of(search.prior, [draws_of(search.prior)]),
        "policy": digest_of(policy, draws),
        "search": repr(sorted(named.items())),
        "num_particles": num_particles,
        "seed": seed,
        "history_policy": None if proposes is None else proposes.digest(),
    }


def check_settings(
    inference: NLE_INCE,
    search: dict[str, Any],
    max_cost: float | None,
    policy: Any = None,
) -> float | None:
    """Return the largest cost as a number, or raise if arguments do not go together."""
    if "resume_training" in search:
        raise ValueError(
            "resume_training=... is not for a sequence of experiments, which goes on "
            "from what was saved."
        )
    DesignSearchConfig(**search)
    if search.get("simulations_file") is not None:
        raise ValueError(
            "simulations_file=... is not for a sequence of experiments: all of its "
            "simulations are in what is saved."
        )
    if inference.search.prior is None or inference.search.policy is None:
        raise ValueError(
            "inference needs a prior and a design policy: NLE_INCE(prior, "
            "design_policy=TruncatedNormalPolicy(low, high))."
        )
    if not inference.search.models.has_likelihood:
        raise ValueError(
            "density_estimator=None: experiments one after another are learned from "
            "with a likelihood. Make the trainer with one."
        )
    if policy is not None:
        _check_policy(inference.search, policy)
    max_cost = check_real("max_cost", max_cost, above=0.0, or_none=True)
    if max_cost is not None and search.get("cost") is None:
        raise ValueError(f"max_cost={max_cost} needs cost=..., a function of designs.")
    return max_cost


def _check_policy(search: DesignSearch, policy: Any) -> None:
    """Raise if a policy does not propose designs of a search."""
    if not isinstance(policy, HistoryPolicy):
        raise TypeError(
            f"policy must be a HistoryPolicy, got {type(policy).__name__}: pass "
            "optimize_policy(...).policy."
        )
    assert search.policy is not None
    if policy.dim_design != search.policy.dim_design:
        raise ValueError(
            f"policy proposes designs of {policy.dim_design} values, but those of the "
            f"trainer have {search.policy.dim_design}."
        )
