"""What a design search found."""

from dataclasses import dataclass, field
from html import escape
from typing import Any, Literal

from sbi.neural_nets.estimators import ConditionalDensityEstimator
from torch import Tensor

from sbi_boed_plugin.objectives.eig import EIGEstimate
from sbi_boed_plugin.policies.policy import DesignPolicy
from sbi_boed_plugin.search.config import DesignSearchConfig

__all__ = ["DesignResult", "StopReason"]

StopReason = Literal["num_rounds", "num_steps", "max_num_simulations", "max_seconds"]


@dataclass(frozen=True)
class DesignResult:
    """What `NLE_INCE.optimize_design` found.

    Attributes:
        design: The best design found, of shape `(dim_design,)`: the mode of the policy
            or, after a search in rounds or a multi-start one, the best candidate.
        eig: Its expected information gain, from simulations that were not trained on:
            the larger of the objective's own bound and `"lace"`. Without a simulator an
            estimate by stored simulations at other designs, which is no bound.
        policy: The policy, which only a joint search trains.
        likelihood_estimator: The trained likelihood, conditioned on `(theta, design)`
            in one row.
        config: Settings of the search, with all that was chosen for it.
        history: A list with an entry per step for each of: `"loss"` of the likelihood,
            or else of the network that drives the search, `"eig"` as the objective
            estimates it, its `"eig_standard_error"` and, where there is a likelihood
            that learns all along, `"log_likelihood"` (nats), `"num_simulations"` and
            `"seconds"` so far, and what the policy describes, such as `"mode"` and
            `"scale"`.
        num_simulations: Number of simulations run, all included.
        num_invalid_simulations: How many of them failed: NaN, infinite, or raised.
        seconds: Time of the steps or rounds, without scoring designs.
        stop_reason: The budget that was used up, else `"num_steps"` or `"num_rounds"`.
        bounds: Every bound that the networks give, from the same simulations, by its
            name; `"linear"` is that of a linear regression.
        doubts: What speaks against the result; each was also a warning.
        posterior_estimator: The posterior trained beside it, conditioned on
            `(x, design)` in one row, if the objective needs one.
        marginal_estimator: The density of the data alone, conditioned on the design,
            if the objective needs one.
        target_estimator: With a target, its posterior network as a
            `TargetEstimator`: `net` is conditioned on `(x, design)` in one row.
        cost: Cost of the design, if the search was given one.
        utility: What was maximized: of information and cost of the design.
        candidates: After a search in rounds or a multi-start one, designs with the
            estimates that ranked them, best first; the first is `design`. In rounds
            the best ones and others all over the space, with the values of the learned
            model, and standard errors that say how far its networks differ.
    """

    design: Tensor
    eig: EIGEstimate
    policy: DesignPolicy
    likelihood_estimator: ConditionalDensityEstimator
    config: DesignSearchConfig
    history: dict[str, list[Any]]
    num_simulations: int
    num_invalid_simulations: int
    seconds: float
    stop_reason: StopReason
    bounds: dict[str, EIGEstimate] = field(default_factory=dict)
    doubts: tuple[str, ...] = ()
    posterior_estimator: ConditionalDensityEstimator | None = None
    marginal_estimator: ConditionalDensityEstimator | None = None
    candidates: tuple[tuple[Tensor, EIGEstimate], ...] = ()
    target_estimator: ConditionalDensityEstimator | None = None
    cost: float | None = None
    utility: float | None = None

    def __str__(self) -> str:
        """Say what was found, and what is known of it."""
        lines = [
            f"design {self._short_design()}: {self._information()}, "
            f"{'' if self.cost is None else f'cost {self._cost()}, '}"
            f"{self.num_simulations:,} simulations",
            *(f"- {doubt}" for doubt in self.doubts),
        ]
        return "\n".join(lines)

    def __repr__(self) -> str:
        """Name the design, its information and what they cost, in one line."""
        return (
            f"DesignResult(design={self._short_design()}, eig={self.eig.value:.4g}, "
            f"bound={self.eig.bound!r}, num_simulations={self.num_simulations}, "
            f"stop_reason={self.stop_reason!r}, num_doubts={len(self.doubts)})"
        )

    def _repr_html_(self) -> str:
        """Return a table for notebooks."""
        rows = {
            "design": self._short_design(),
            "information": self._information(),
            **({} if self.cost is None else {"cost": self._cost()}),
            "simulations": f"{self.num_simulations:,} "
            f"({self.num_invalid_simulations:,} failed)",
            "ended by": self.stop_reason,
            "doubts": "<br>".join(map(escape, self.doubts)) or "none",
        }
        cells = (f"<tr><th>{k}</th><td>{v}</td></tr>" for k, v in rows.items())
        return f"<table>{''.join(cells)}</table>"

    def _information(self) -> str:
        """Return the information, and how it was estimated."""
        eig = self.eig
        value = f"{eig.value:.2f} nats (± {eig.standard_error:.2f}; "
        about = "" if self.config.target is None else "about the target, "
        value = f"{value}{about}"
        if not eig.num_simulations:
            return f"about {value}by stored simulations at other designs)"
        if eig.bound == "target":
            return f"about {value}an estimate by a fitted prior of it)"
        contrasts = (
            f", {eig.num_contrastive:,} contrasts" if eig.num_contrastive else ""
        )
        return f"at least {value}lower bound, {eig.bound}{contrasts})"

    def _cost(self) -> str:
        """Return the cost, and the utility that was maximized."""
        told = f"{self.cost:.4g}"
        if self.config.maximize == "eig":
            return told
        return f"{told} (utility {self.utility:.3g} {self.config.utility.unit})"

    def _short_design(self) -> str:
        shown = ", ".join(f"{value:.4g}" for value in self.design[:6].tolist())
        return f"[{shown}{', …' if len(self.design) > 6 else ''}]"
