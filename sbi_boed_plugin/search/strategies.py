"""The two ways to search: a policy that moves, or many designs that climb."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from torch.distributions import Distribution

from sbi_boed_plugin.policies.policy import DesignPolicy
from sbi_boed_plugin.search.batch import Designs, DesignsAtMode
from sbi_boed_plugin.search.config import DesignSearchConfig
from sbi_boed_plugin.search.estimators import DesignEstimators
from sbi_boed_plugin.search.multi_start import (
    MultiStartOutcome,
    multi_start_search,
    uniform_designs,
)
from sbi_boed_plugin.simulation import CheckedSimulator

__all__ = ["STRATEGIES", "Strategy"]


@dataclass(frozen=True)
class Strategy:
    """Which designs networks learn from, and how a design is found with them.

    Attributes:
        moves_policy: Whether the policy is trained beside the networks.
        training_designs: From the policy, and whether it has stopped, to what the
            designs of a training step are drawn from.
        find: From networks, prior, policy, simulator and settings to the candidates,
            best first; without any the design is the policy's mode.
    """

    moves_policy: bool
    training_designs: Callable[[DesignPolicy, bool], Designs]
    find: Callable[..., MultiStartOutcome]


def _draws_or_mode(policy: DesignPolicy, has_stopped: bool) -> Designs:
    return DesignsAtMode(policy) if has_stopped else policy


def _all_designs(policy: DesignPolicy, has_stopped: bool) -> Designs:
    return uniform_designs(policy) or policy


def _nothing_but_the_mode(*args: Any, **kwargs: Any) -> MultiStartOutcome:
    return MultiStartOutcome([], 0, 0)


def _climb(
    networks: DesignEstimators,
    prior: Distribution,
    policy: DesignPolicy,
    simulator: CheckedSimulator,
    config: DesignSearchConfig,
    show_progress_bar: bool,
) -> MultiStartOutcome:
    assert config.multi_start is not None and config.objective is not None
    return multi_start_search(
        networks,
        prior,
        policy,
        simulator,
        objective=config.objective,
        config=config.multi_start,
        num_workers=config.num_workers,
        show_progress_bar=show_progress_bar,
    )


STRATEGIES = {
    "joint": Strategy(True, _draws_or_mode, _nothing_but_the_mode),
    "multi_start": Strategy(False, _all_designs, _climb),
}
