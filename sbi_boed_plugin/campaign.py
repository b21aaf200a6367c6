"""A sequence of experiments: design, measure, learn, and again."""

import hashlib
import time
from collections.abc import Callable
from contextlib import nullcontext
from copy import deepcopy
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.distributions.transforms import Transform
from tqdm.auto import tqdm

from sbi_boed_plugin._checkpoint import (
    load_checkpoint,
    locked,
    refuse_damaged,
    save_checkpoint,
)
from sbi_boed_plugin._numbers import check_integer, check_seed
from sbi_boed_plugin._rng import (
    get_rng_state,
    isolated_rng,
    rng_state_from_plain,
    rng_state_to_plain,
)
from sbi_boed_plugin.estimators.coordinates import INVERSE_TRANSFORM, Coordinates
from sbi_boed_plugin.objectives.eig import EIGEstimate
from sbi_boed_plugin.policies.policy import DesignPolicy
from sbi_boed_plugin.simulation import CheckedSimulator
from sbi_boed_plugin.trainers._state import get_state, set_state
from sbi_boed_plugin.trainers.nle_ince import NLE_INCE

__all__ = ["ExperimentRecord", "ExperimentsResult", "run_experiments"]


@dataclass(frozen=True)
class ExperimentRecord:
    """One experiment of a sequence.

    Attributes:
        design: Design of shape `(dim_design,)`.
        x: Observed data of shape `(dim_x,)`.
        eig: Expected information gain of the design before the experiment, beyond what
            was known then. What was known is the learned belief: a lower bound of the
            information about parameters that are distributed as it says.
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
    posterior_samples: Tensor
    log_evidence: float
    num_simulations: int
    num_invalid_simulations: int
    seconds: float

    def _to_plain(self) -> dict[str, Any]:
        values = {field.name: getattr(self, field.name) for field in fields(self)}
        return {**values, "eig": asdict(self.eig)}

    @classmethod
    def _from_plain(cls, values: dict[str, Any]) -> "ExperimentRecord":
        return cls(**{**values, "eig": EIGEstimate(**values["eig"])})


@dataclass(frozen=True)
class ExperimentsResult:
    """A sequence of experiments.

    Attributes:
        records: The experiments, oldest first.
    """

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
    undisturbed run would have given, to the last bit. The arguments are the same if
    priors draw the same from a fixed seed, and policies do so at the beginning, the
    middle and the end of a search.

    Args:
        inference: Trainer with prior and design policy.
        simulator: Function from `theta` of shape `(batch_dim, dim_theta)` and
            `design` of shape `(batch_dim, dim_design)` to `x` of shape
            `(batch_dim, dim_x)`.
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
            `method="multi_start"`, which trains in the first round only (`num_steps`
            are its steps) and serves every later one with hardly any simulation;
            where an objective that needs a posterior network is asked for, that learns
            anew what is known by then, in as many steps in each round.

    Returns:
        A record of each experiment: design, data, information, posterior and cost.

    Raises:
        ValueError: If there is no policy, an argument is out of range, or the
            checkpoint is damaged or belongs to other experiments. It is then left as
            it is.
        RuntimeError: If another call uses the checkpoint at this time.
        OSError: If the checkpoint cannot be written. It is then as it was before.

    Example:
    --------
    ::

        result = run_experiments(
            inference, simulator, measure, num_rounds=3, checkpoint="campaign.pt"
        )
        result.designs, result.x, result.records[-1].eig
    """
    num_rounds = check_integer("num_rounds", num_rounds, 1)
    num_particles = check_integer("num_particles", num_particles, 16)
    seed = check_seed(seed)
    if "resume_training" in search:
        raise ValueError(
            "resume_training is not for run_experiments: pass checkpoint=... to "
            "continue a sequence."
        )
    prior, policy = inference._prior, inference.design_policy
    if prior is None or policy is None:
        raise ValueError(
            "inference needs a prior and a design policy: NLE_INCE(prior, "
            "design_policy=TruncatedNormalPolicy(low, high))."
        )
    # Another number of workers gives the same results, but for one: it draws from the
    # generators of this process.
    named = {
        name: value == 1 if name == "num_workers" else value
        for name, value in {"num_workers": 1, **search}.items()
    }
    campaign = {
        "prior": _fingerprint_of_prior(prior),
        "policy": _fingerprint_of_policy(policy, inference._policy_start),
        "coordinates": repr(_plain(inference._search_coordinates)),
        "search": repr(sorted(named.items())),
        "num_particles": num_particles,
        "seed": seed,
    }
    # The file itself, wherever links and later changes of the folder lead.
    path = None if checkpoint is None else Path(checkpoint).resolve()
    with nullcontext() if path is None else locked(path):
        return _run_rounds(
            inference,
            simulator,
            observe,
            num_rounds,
            path,
            campaign,
            num_particles,
            show_progress_bar,
            search,
        )


def _run_rounds(
    inference: NLE_INCE,
    simulator: Callable[[Tensor, Tensor], Tensor],
    observe: Callable[[Tensor], Tensor],
    num_rounds: int,
    path: Path | None,
    campaign: dict[str, Any],
    num_particles: int,
    show_progress_bar: bool,
    search: dict[str, Any],
) -> ExperimentsResult:
    """Run the rounds that a checkpoint does not have yet."""
    records: list[ExperimentRecord] = []
    pending: dict[str, Any] = {}
    start: int | dict[str, Any] | None = campaign["seed"]
    if path is not None and path.exists():
        saved = load_checkpoint(path, campaign)
        with refuse_damaged(path):
            records = [ExperimentRecord._from_plain(r) for r in saved["records"]]
            pending = dict(saved["pending"])
            start = rng_state_from_plain(saved["rng"])
            with isolated_rng(0):  # The weights that are drawn here are replaced.
                set_state(inference, saved["trainer"])

    def save() -> None:
        if path is not None:
            state = {
                "campaign": campaign,
                "records": [record._to_plain() for record in records],
                "pending": pending,
                "trainer": get_state(inference),
                "rng": rng_state_to_plain(get_rng_state()),
            }
            save_checkpoint(path, state)

    bar = tqdm(
        total=num_rounds,
        initial=min(len(records), num_rounds),
        disable=not show_progress_bar,
        desc="Running experiments",
    )
    with isolated_rng(start), bar:
        if not records and not pending:
            save()  # So that the first round, too, can be repeated as it was.
        while len(records) < num_rounds:
            started = time.perf_counter()
            if "design" not in pending:
                checked = CheckedSimulator(simulator, is_checked=bool(records))
                pending = _search(inference, checked, search)
                save()
            if "x" not in pending:
                # Copies: it may change what it gets, and use again what it returned.
                x = torch.as_tensor(observe(pending["design"].clone())).reshape(-1)
                _check_measured(x, inference)
                pending = {**pending, "x": x.cpu().clone()}
                try:
                    save()
                except OSError as error:
                    raise OSError(
                        error.errno,
                        f"{error.strerror} Not saved is the last measurement, "
                        f"x={x.tolist()} at design={pending['design'].tolist()}: let "
                        "observe(design) return it then.",
                    ) from error
            pending["seconds"] += time.perf_counter() - started
            records.append(_learn(inference, num_particles, pending))
            pending = {}
            save()
            bar.set_postfix_str(f"EIG {records[-1].eig.value:.2f} nats", refresh=False)
            bar.update()
    return ExperimentsResult(tuple(records[:num_rounds]))


def _search(
    inference: NLE_INCE,
    simulator: CheckedSimulator,
    search: dict[str, Any],
) -> dict[str, Any]:
    """Search for the design of a round, and return what its record needs."""
    started = time.perf_counter()
    if (
        search.get("method") == "multi_start"
        and inference.observations
        and inference._serves_all_designs(search.get("objective"))
    ):
        # What is trained for all designs serves every later round.
        search = {**search, "num_steps": 0, "num_warmup_steps": 0}
    result = inference.optimize_design(simulator, **search)
    return {
        "design": result.design.cpu(),
        "eig": asdict(result.eig),
        "num_simulations": result.num_simulations,
        "num_invalid_simulations": result.num_invalid_simulations,
        "seconds": time.perf_counter() - started,
    }


def _check_measured(x: Tensor, inference: NLE_INCE) -> None:
    """Refuse data that cannot be learned from, before they are kept."""
    likelihood = inference._neural_net
    assert likelihood is not None
    if x.shape != likelihood.input_shape or not torch.isfinite(x).all():
        raise ValueError(
            f"observe(design) returned {x.tolist()}, but must return "
            f"{likelihood.input_shape.numel()} finite value(s). The design found is "
            "kept: run_experiments with the same checkpoint measures again."
        )


def _learn(
    inference: NLE_INCE, num_particles: int, pending: dict[str, Any]
) -> ExperimentRecord:
    """Take the data of a round into account."""
    started = time.perf_counter()
    inference.observe(pending["design"], pending["x"], num_particles=num_particles)
    belief = inference.belief
    assert belief is not None
    return ExperimentRecord(
        design=pending["design"],
        x=inference.observations[-1].x[0].cpu(),
        eig=EIGEstimate(**pending["eig"]),
        posterior_samples=belief.particles.cpu(),
        log_evidence=belief.log_evidence,
        num_simulations=pending["num_simulations"],
        num_invalid_simulations=pending["num_invalid_simulations"],
        seconds=pending["seconds"] + time.perf_counter() - started,
    )


def _fingerprint_of_prior(prior: Any) -> str:
    """Return what tells priors apart: their kind, and draws from a fixed seed."""
    with isolated_rng(0):
        return _digest(prior, prior.sample(torch.Size((8,))).cpu().numpy().tobytes())


def _fingerprint_of_policy(
    policy: DesignPolicy, start: dict[str, Tensor] | None
) -> str:
    """Return what tells policies apart: their kind, and how a search anneals them.

    State and draws at the beginning, the middle and the end of a search, from where the
    policy started: the last search has moved the policy itself.
    """
    policy = deepcopy(policy)
    policy.load_state_dict(start or {})
    content = b""
    for progress in (0.0, 0.5, 1.0):
        policy.anneal(progress)
        with isolated_rng(0):
            values = [*policy.state_dict().values(), policy.sample(torch.Size((8,)))]
        content += b"".join(v.detach().cpu().numpy().tobytes() for v in values)
    return _digest(policy, content)


def _digest(value: Any, content: bytes) -> str:
    return f"{type(value).__name__}-{hashlib.sha256(content).hexdigest()[:16]}"


def _plain(value: Any) -> Any:
    """Return transforms as names and numbers, which tell one from another."""
    if isinstance(value, Tensor):
        return value.tolist()
    if isinstance(value, (list, tuple)):
        return [_plain(part) for part in value]
    if isinstance(value, Coordinates):
        return [_plain(part) for part in (value.theta, value.x, value.design)]
    if isinstance(value, Transform):
        name = type(value).__name__
        if isinstance(value, INVERSE_TRANSFORM):
            return name, _plain(value.inv)
        # Not what torch has computed on demand.
        held = {
            k: _plain(v)
            for k, v in sorted(vars(value).items())
            if not (k.startswith("_") or hasattr(type(value), k))
        }
        return name, held
    return value if isinstance(value, (bool, int, float, str)) else type(value).__name__
