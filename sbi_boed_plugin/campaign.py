"""A sequence of experiments whose data come by hand, over days and processes."""

import re
import time
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from typing_extensions import Self

from sbi_boed_plugin._campaign import (
    ExperimentRecord,
    ExperimentsResult,
    Rounds,
    check_settings,
    estimate_of,
    identity_of,
)
from sbi_boed_plugin._checkpoint import locked
from sbi_boed_plugin._numbers import check_integer, check_seed
from sbi_boed_plugin._rng import get_rng_state, isolated_rng
from sbi_boed_plugin.adaptive.policy import HistoryPolicy
from sbi_boed_plugin.objectives.eig import EIGEstimate
from sbi_boed_plugin.search.measurements import SURPRISING, predictive_p_value
from sbi_boed_plugin.trainers.nle_ince import NLE_INCE

__all__ = ["Campaign", "CampaignStatus"]


@dataclass(frozen=True)
class CampaignStatus:
    """Where a campaign stands.

    Attributes:
        num_experiments: Number of experiments with data.
        designs: Their designs, of shape `(num_experiments, dim_design)`.
        x: Their data, of shape `(num_experiments, dim_x)`.
        pending: Design that was proposed and has no data yet, or `None`.
        eig: Its expected information gain, `None` if a policy proposed it.
        mean: Mean of the parameters by what is known, of shape `(dim_theta,)`.
        std: Their standard deviation.
        log_evidence: Log-density of all data under the prior, in nats.
        num_simulations: Number of simulations of all searches.
        cost: Cost of all designs, the pending one included, if there are costs.
    """

    num_experiments: int
    designs: Tensor
    x: Tensor
    pending: Tensor | None
    eig: EIGEstimate | None
    mean: Tensor
    std: Tensor
    log_evidence: float
    num_simulations: int
    cost: float | None

    def __str__(self) -> str:
        """Return a few lines."""
        lines = [f"{self.num_experiments} experiments"]
        for design, x in zip(self.designs, self.x, strict=True):
            lines.append(f"  design {_short(design)}: x {_short(x)}")
        lines.append(f"parameters {_short(self.mean)} ± {_short(self.std)}")
        if self.pending is not None:
            told = "" if self.eig is None else f", {self.eig.value:.2f} nats expected"
            lines.append(f"next design {_short(self.pending)}{told}: waits for data")
        if self.cost is not None:
            lines.append(f"cost {self.cost:.4g}")
        lines.append(f"{self.num_simulations:,} simulations")
        return "\n".join(lines)


class Campaign:
    r"""A sequence of experiments whose data come by hand, over days and processes.

    :meth:`propose` finds the next design, :meth:`record` takes its data, and
    :meth:`undo` takes the last of both back. Each step is a file of the folder, so that
    a process may end at any time, and another goes on with the same arguments; the
    result is that of a single process, to the last bit. One process has the folder at a
    time, until `close()`, the end of a `with` block, or its own end.

    Args:
        folder: Folder of the campaign, made if there is none.
        inference: New trainer with prior and design policy.
        simulator: Function from `theta` and `design` to `x`, with one row for each
            simulation.
        seed: Seed of everything that is drawn; the global random state is left as it
            was. If `None`, the global random state is where it begins.
        num_particles: Number of particles of the belief.
        max_cost: Cost of all designs together, with `cost=...`: designs that cost more
            than what is left are not proposed.
        policy: Policy that proposes the designs, of the trainer's `optimize_policy`.
            A search proposes them where it cannot, with a warning: after its last
            experiment, and once data lie beyond all that the likelihood predicts.
        **search: Arguments of :meth:`NLE_INCE.optimize_design`.

    Raises:
        ValueError: If there is no policy, an argument is out of range, or the folder
            is damaged or belongs to another campaign. It is then left as it is.
        RuntimeError: If another process has the folder.

    Example:
        On Monday, and on Thursday in another process that begins with the same lines::

            campaign = Campaign("cells", inference, simulator, seed=1)
            print(campaign.propose())

            campaign = Campaign("cells", inference, simulator, seed=1)
            campaign.record(torch.tensor([0.31]))
    """

    def __init__(
        self,
        folder: str | Path,
        inference: NLE_INCE,
        simulator: Callable[[Tensor, Tensor], Tensor],
        *,
        seed: int | None = None,
        num_particles: int = 4_096,
        max_cost: float | None = None,
        policy: HistoryPolicy | None = None,
        **search: Any,
    ) -> None:
        num_particles = check_integer("num_particles", num_particles, 16)
        seed = check_seed(seed)
        max_cost = check_settings(inference, search, max_cost, policy)
        self.folder = Path(folder).resolve()
        if self.folder.is_file():
            raise ValueError(f"folder={str(folder)!r} is a file. Pass another path.")
        self.folder.mkdir(parents=True, exist_ok=True)
        of_search = inference.search, search, num_particles, seed
        identity = identity_of(*of_search, policy)
        first = self.folder / "state-0000.pt"
        given = inference, simulator, search, first, identity, max_cost, policy
        self._rounds = Rounds(*given)
        self._held = ExitStack()
        self._held.enter_context(locked(self.folder / "campaign"))
        try:
            self._load()
        except BaseException:
            self.close()
            raise

    @property
    def _steps(self) -> list[Path]:
        """The files of all steps, oldest first."""
        return sorted(self.folder.glob("state-[0-9]*.pt"))

    def _load(self) -> None:
        """Take up the last step, or begin."""
        steps = self._steps
        if steps:
            self._rounds.path = steps[-1]
        self._state = self._rounds.load()
        if not steps:
            with isolated_rng(self._state):
                self._rounds.save()
                self._state = get_rng_state()

    def _save(self) -> None:
        """Save what is now as a further step."""
        last = self._steps[-1]
        number = 1 + int(re.sub(r"\D", "", last.stem))
        self._rounds.path = self.folder / f"state-{number:04d}.pt"
        self._rounds.save()
        self._state = get_rng_state()

    def propose(self) -> Tensor:
        """Return the next design `(dim_design,)`: the one that waits for data, or anew.

        Raises:
            ValueError: If no design can be paid with what is left of `max_cost`, or
                only one of several models is left.
        """
        self._check_open()
        if not self._rounds.is_pending:
            if self._rounds.end is not None:
                raise ValueError(self._rounds.end)
            with isolated_rng(self._state):
                try:
                    self._rounds.find_design()
                    self._save()
                except BaseException:
                    self._load()
                    raise
        return self._rounds.rounds[-1]["design"].clone()

    def record(
        self,
        x: Tensor,
        *,
        design: Tensor | None = None,
        accept_surprise: bool = False,
    ) -> ExperimentRecord:
        """Take the data of the proposed design into account.

        Args:
            x: Data of shape `x_shape` or `(1, *x_shape)`.
            design: Design at which they were really measured, of shape
                `(dim_design,)`, if it was not quite the proposed one.
            accept_surprise: Whether to take data that nothing known predicts.

        Returns:
            What the experiment told.

        Raises:
            RuntimeError: If no design waits for data.
            ValueError: If data or design are wrong, or lie beyond all of 1,000
                predicted data; nothing has changed then.
        """
        self._check_open()
        if not self._rounds.is_pending:
            raise RuntimeError("No design waits for data: call propose() first.")
        x = self._rounds.check_data(x, "Give the data of one experiment.")
        values, started = dict(self._rounds.rounds[-1]), time.perf_counter()
        if design is not None:
            (row,) = self._rounds.inference.search.check(design)
            values["design"] = row.cpu()
            values["cost"] = self._rounds.cost_of(row.cpu())
        if not accept_surprise:
            self._question(values["design"], x)
        values["x"] = x
        with isolated_rng(self._state):
            try:
                self._rounds.rounds[-1] = values
                self._rounds.learn(values, started)
                self._save()
            except BaseException:
                self._load()
                raise
        return self._rounds.records()[-1]

    def _question(self, design: Tensor, x: Tensor) -> None:
        """Raise if data lie beyond all that is predicted at a design."""
        search = self._rounds.inference.search
        assert search.likelihood is not None
        with isolated_rng(0):
            theta = search.known().sample(torch.Size((1_000,))).float()
        p_value = predictive_p_value(
            search.likelihood.eval(), theta, design.to(theta), x.unsqueeze(0).to(theta)
        )
        if p_value < SURPRISING:
            raise ValueError(
                f"x={x.tolist()} lies beyond all of 1,000 data that are predicted at "
                f"design={design.tolist()}. Check its unit, and that it belongs to "
                "this design. If it is right, pass accept_surprise=True."
            )

    def undo(self) -> None:
        """Take back the last step: data, or else the proposed design.

        The state before it is as it was, to the last bit.

        Raises:
            RuntimeError: If there is nothing to take back.
        """
        self._check_open()
        steps = self._steps
        if len(steps) < 2:
            raise RuntimeError("There is nothing to take back.")
        steps[-1].unlink()
        self._load()

    def status(self) -> CampaignStatus:
        """Return where the campaign stands; printed, it is a few lines."""
        self._check_open()
        rounds, inference = self._rounds, self._rounds.inference
        records = rounds.records()
        with isolated_rng(0):
            known = inference.search.known().sample(torch.Size((4_096,)))
        if inference.belief is not None:
            known = inference.belief.particles
        policy = inference.search.policy
        assert policy is not None
        none = torch.zeros(0, policy.dim_design), torch.zeros(0, 0)
        last = rounds.rounds[-1] if rounds.is_pending else None
        has_costs = rounds.settings.get("cost") is not None
        return CampaignStatus(
            num_experiments=len(records),
            designs=torch.stack([r.design for r in records]) if records else none[0],
            x=torch.stack([r.x for r in records]) if records else none[1],
            pending=None if last is None else last["design"].clone(),
            eig=None if last is None else estimate_of(last),
            mean=known.mean(dim=0).cpu(),
            std=known.std(dim=0).cpu(),
            log_evidence=records[-1].log_evidence if records else 0.0,
            num_simulations=sum(v["num_simulations"] for v in rounds.rounds),
            cost=rounds.spent if has_costs else None,
        )

    @property
    def result(self) -> ExperimentsResult:
        """All experiments that have data."""
        return ExperimentsResult(tuple(self._rounds.records()))

    def close(self) -> None:
        """Let other processes have the folder."""
        self._held.close()
        self._is_closed = True

    def _check_open(self) -> None:
        if self._is_closed:
            raise RuntimeError("The campaign is closed: open it again.")

    _is_closed = False

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: Any) -> None:
        self.close()


def _short(values: Tensor) -> str:
    """Return a few numbers as text."""
    shown = ", ".join(f"{value:.4g}" for value in values[:6].tolist())
    return f"[{shown}{', …' if len(values) > 6 else ''}]"
