"""How `sbi-boed design` searches: the options, and which of them go together."""

from dataclasses import dataclass

import torch

from sbi_boed_plugin._rng import isolated_rng
from sbi_boed_plugin.tasks.task import Task

__all__ = ["NUM_STEPS", "SearchSettings", "check_settings"]

# What `optimize_design` takes for `num_steps=None` with untrained networks.
NUM_STEPS = 1_000


@dataclass(frozen=True)
class SearchSettings:
    """How to search; the defaults are those of `make_trainer` and `optimize_design`.

    Attributes:
        density_estimator: Name of a model of `sbi.neural_nets.likelihood_nn`; that of
            `make_trainer` if `None`.
        policy: Family of the policy, one of `sbi_boed_plugin.experiment.POLICIES`.
        method: How to search.
        objective: What the policy climbs.
        gradient: Gradient of the policy.
        num_steps: Number of training steps.
        num_refinement_steps: Number of further steps at the design found.
        max_seconds: Time in seconds after which no further step is started.
        num_workers: Number of processes that simulate.
    """

    density_estimator: str | None = None
    policy: str = "truncated_normal"
    method: str = "joint"
    objective: str | None = None
    gradient: str = "score"
    num_steps: int | None = None
    num_refinement_steps: int = 0
    max_seconds: float | None = None
    num_workers: int = 1


def check_settings(task: Task, settings: SearchSettings) -> None:
    """Refuse settings that do not go together, before any time is spent.

    Args:
        task: The task.
        settings: How to search.

    Raises:
        ValueError: If the gradient needs what the policy or the task does not have.
    """
    if settings.method == "multi_start" and settings.num_refinement_steps:
        raise ValueError(
            "--num-refinement-steps belongs to --method joint: a multi-start search "
            "trains for all designs alike"
        )
    is_joint = settings.method == "joint"
    if is_joint and settings.gradient == "score" and settings.policy == "point":
        raise ValueError(
            "a point policy has no density, and hence no --gradient score: add "
            "--gradient surrogate, or choose another --policy"
        )
    needs_path = not is_joint or settings.gradient in ("surrogate", "implicit")
    if needs_path and settings.density_estimator == "made":
        raise ValueError(
            "--density-estimator made cannot make data of noise, as --method "
            "multi_start and --gradient surrogate and implicit need: choose maf or mdn"
        )
    if is_joint and settings.gradient == "pathwise":
        with isolated_rng(0):
            theta = task.prior.sample(torch.Size((1,)))
            design = task.design_space.sample(torch.Size((1,))).requires_grad_()
            differentiable = task.simulator(theta, design).requires_grad
        if not differentiable:
            raise ValueError(
                f"the simulator of {task.name} is not differentiable, as --gradient "
                "pathwise needs: choose score, surrogate or implicit"
            )
