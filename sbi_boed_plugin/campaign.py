"""A sequence of experiments: design, measure, learn, and again."""

import hashlib
import time
from collections.abc import Callable
from contextlib import nullcontext
from copy import deepcopy
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from tqdm.auto import tqdm

from sbi_boed_plugin._checkpoint import (
    load_checkpoint,
    locked,
    refuse_damaged,
    save_checkpoint,
)
from sbi_boed_plugin._numbers import check_integer, check_seed
from sbi_boed_plugin._rng import get_rng_state, isolated_rng
from sbi_boed_plugin.objectives.eig import EIGEstimate
from sbi_boed_plugin.search.config import DesignSearchConfig
from sbi_boed_plugin.search.design_search import DesignSearch
from sbi_boed_plugin.simulation import CheckedSimulator
from sbi_boed_plugin.trainers.nle_ince import NLE_INCE

__all__ = ["ExperimentRecord", "ExperimentsResult", "run_experiments"]


@dataclass(frozen=True)
class ExperimentRecord:
    """One experiment of a sequence.

    Attributes:
        design: Design of shape `(dim_design,)`.
        x: Observed data of shape `(dim_x,)`.
        eig: Expected information gain of the design before the experiment, beyond the
            belief of that time.
        posterior_samples: Particles of the belief after the experiment, of shape
            `(num_particles, dim_theta)`.
        log_evidence: Log-density of all data so far under the prior, in nats.
        num_simulations: Number of simulations that the search for the design took.
        num_invalid_simulations: How many of them failed.
        seconds: Time of search, experiment and inference.
    """

    design: Tensor
    x: Tensor
    eig: EIGEstimate
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
    def posterior_samples(self) -> Tensor:
        """Particles of the belief after all experiments."""
        return self.records[-1].posterior_samples


def run_experiments(
    inference: NLE_INCE,
    simulator: Callable[[Tensor, Tensor], Tensor],
    observe: Callable[[Tensor], Tensor],
    num_rounds: int,
    *,
    checkpoint: str | Path | None = None,
    seed: int | None = None,
    num_particles: int = 4_096,
    show_progress_bar: bool = True,
    **search: Any,
) -> ExperimentsResult:
    r"""Choose a design, run the experiment there, learn from it, and repeat.

    With a `checkpoint`, the state is saved after every round, and within a round once
    its design is found and once it is measured: no experiment is run twice. A call with
    the same arguments, in this process or another, goes on from there and gives what an
    undisturbed run would have given, to the last bit. Priors and policies are the same
    if they draw the same from a fixed seed.

    Args:
        inference: Trainer with prior and design policy.
        simulator: Function from `theta` and `design` to `x`, with one row for each
            simulation.
        observe: The real experiment: function from a design of shape
            `(dim_design,)` to observed data of shape `(dim_x,)` or `(1, dim_x)`.
        num_rounds: Number of experiments. A larger number with the same checkpoint
            continues the sequence.
        checkpoint: File to save the state to, and to continue from if it exists.
        seed: Seed of everything that is drawn; the global random state is left as it
            was. If `None`, the global random state is used and advanced.
        num_particles: Number of particles of the belief.
        show_progress_bar: Whether to show the progress of the rounds.
        **search: Arguments of :meth:`NLE_INCE.optimize_design`, for instance
            `method="multi_start"`, which trains in the first round only and serves
            every later one with hardly any simulation; an objective that needs a
            posterior network trains that in each round.

    Returns:
        A record of each experiment: design, data, information, posterior and cost.

    Raises:
        ValueError: If there is no policy, an argument is out of range, or the
            checkpoint is damaged or belongs to other experiments. It is then left as
            it is.
        RuntimeError: If another call uses the checkpoint at this time.
        OSError: If the checkpoint cannot be written. It is then as it was before.
    """
    num_rounds = check_integer("num_rounds", num_rounds, 1)
    num_particles = check_integer("num_particles", num_particles, 16)
    seed = check_seed(seed)
    if "resume_training" in search:
        raise ValueError(
            "resume_training=... is not for run_experiments: pass checkpoint=..."
        )
    DesignSearchConfig(**search)
    if inference.search.prior is None or inference.search.policy is None:
        raise ValueError(
            "inference needs a prior and a design policy: NLE_INCE(prior, "
            "design_policy=TruncatedNormalPolicy(low, high))."
        )
    # The file itself, wherever links and later changes of the folder lead.
    path = None if checkpoint is None else Path(checkpoint).resolve()
    identity = _identity(inference.search, search, num_particles, seed)
    campaign = _Campaign(inference, simulator, observe, search, path, identity)
    with nullcontext() if path is None else locked(path):
        return campaign.run(num_rounds, show_progress_bar)


@dataclass
class _Campaign:
    """The rounds of a sequence, as they are saved: the last may be unfinished."""

    inference: NLE_INCE
    simulator: Callable[[Tensor, Tensor], Tensor]
    observe: Callable[[Tensor], Tensor]
    settings: dict[str, Any]
    path: Path | None
    identity: dict[str, Any]
    rounds: list[dict[str, Any]] = field(default_factory=list)

    def records(self) -> list[ExperimentRecord]:
        """Return the records of the finished rounds."""
        return [
            ExperimentRecord(**{**values, "eig": EIGEstimate(**values["eig"])})
            for values in self.rounds
            if "log_evidence" in values
        ]

    def load(self) -> int | dict[str, Any] | None:
        """Take up what was saved, if anything was, and return the random state."""
        if self.path is None or not self.path.exists():
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

    def run(self, num_rounds: int, show_progress_bar: bool) -> ExperimentsResult:
        """Run the rounds that there are not yet, and save after each step of one."""
        bar_settings = {"disable": not show_progress_bar, "desc": "Running experiments"}
        with isolated_rng(self.load()):
            if not self.rounds:
                self.save()  # So that the first round, too, can be repeated as it was.
            for number in tqdm(range(num_rounds), **bar_settings):
                if number == len(self.rounds):
                    self.find_design()
                    self.save()
                values, started = self.rounds[number], time.perf_counter()
                if "x" not in values:
                    self.measure(values)
                if "log_evidence" not in values:
                    self.learn(values, started)
                    self.save()
        return ExperimentsResult(tuple(self.records()[:num_rounds]))

    def find_design(self) -> None:
        """Begin a round with the search for its design."""
        started = time.perf_counter()
        settings, search = self.settings, self.inference.search
        served = settings.get("method") == "multi_start" and len(search.measurements)
        if served and search.serves_all_designs(settings.get("objective")):
            # What is trained for all designs serves every later round.
            settings = {**settings, "num_steps": 0, "num_warmup_steps": 0}
        checked = CheckedSimulator(self.simulator, is_checked=bool(self.rounds))
        result = self.inference.optimize_design(checked, **settings)
        values = {
            "design": result.design.cpu(),
            "eig": asdict(result.eig),
            "num_simulations": result.num_simulations,
            "num_invalid_simulations": result.num_invalid_simulations,
            "seconds": time.perf_counter() - started,
        }
        self.rounds.append(values)

    def measure(self, values: dict[str, Any]) -> None:
        """Run the experiment of a round, and save its data."""
        design = values["design"]
        # Copies: it may change what it gets, and use again what it returned.
        x = torch.as_tensor(self.observe(design.clone())).reshape(-1)
        likelihood = self.inference.search.likelihood
        assert likelihood is not None
        if x.shape != likelihood.input_shape or not torch.isfinite(x).all():
            raise ValueError(
                f"observe(design) returned {x.tolist()}, but must return "
                f"{likelihood.input_shape.numel()} finite value(s). The design found "
                "is kept: run_experiments with the same checkpoint measures again."
            )
        values["x"] = x.cpu().clone()
        try:
            self.save()
        except OSError as error:
            raise OSError(
                error.errno,
                f"{error.strerror} Not saved is the last measurement, "
                f"x={x.tolist()} at design={design.tolist()}: let "
                "observe(design) return it then.",
            ) from error

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


def _identity(
    search: DesignSearch, settings: dict[str, Any], num_particles: int, seed: int | None
) -> dict[str, Any]:
    """Return what tells one sequence of experiments from another."""
    # Any number of workers gives the same results, but for one: it draws from the
    # generators of this process.
    named = {**settings, "num_workers": settings.get("num_workers", 1) == 1}
    # From where the policy started: the last search has moved it.
    policy, draws = deepcopy(search.policy), []
    assert policy is not None and search.prior is not None
    policy.load_state_dict(search.policy_start or {})
    for progress in (0.0, 0.5, 1.0):
        policy.anneal(progress)
        draws.append(_draws(policy))
    return {
        "prior": _digest(search.prior, [_draws(search.prior)]),
        "policy": _digest(policy, draws),
        "search": repr(sorted(named.items())),
        "num_particles": num_particles,
        "seed": seed,
    }


def _draws(distribution: Any) -> Tensor:
    """Return draws from a fixed seed."""
    with isolated_rng(0):
        return distribution.sample(torch.Size((8,)))


def _digest(distribution: Any, draws: list[Tensor]) -> str:
    """Return the kind of a distribution, with a hash of its draws."""
    numbers = b"".join(v.detach().cpu().numpy().tobytes() for v in draws)
    return f"{type(distribution).__name__}-{hashlib.sha256(numbers).hexdigest()[:16]}"
