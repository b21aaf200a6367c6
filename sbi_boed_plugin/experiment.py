"""The stages of a designed experiment: find the design, measure there, infer.

`sbi-boed design` runs them one after another.
"""

from collections.abc import Callable
from typing import Any

import torch
from sbi.inference.posteriors.posterior_parameters import MCMCPosteriorParameters
from sbi.neural_nets.embedding_nets import CNNEmbedding, FCEmbedding
from torch import Tensor
from torch.distributions.transforms import identity_transform

from sbi_boed_plugin._prior import to_real_numbers
from sbi_boed_plugin._sbi_compat import NoOpTracker
from sbi_boed_plugin.estimators.data_embedding import DataEmbedding
from sbi_boed_plugin.estimators.discrete import categorical_likelihood_nn
from sbi_boed_plugin.estimators.transformed import (
    transformed_likelihood_nn,
    transformed_posterior_nn,
)
from sbi_boed_plugin.policies import (
    PointPolicy,
    TruncatedNormalMixturePolicy,
    TruncatedNormalPolicy,
)
from sbi_boed_plugin.policies.policy import DesignPolicy
from sbi_boed_plugin.search.result import DesignResult
from sbi_boed_plugin.tasks._discrete import DiscreteTask
from sbi_boed_plugin.tasks.task import Task
from sbi_boed_plugin.trainers.nle_ince import NLE_INCE

__all__ = [
    "POLICIES",
    "NoOpTracker",
    "data_embedding",
    "find_design",
    "infer_parameters",
    "likelihood_builder",
    "make_trainer",
    "measure",
    "simulate_predictions",
]

POLICIES: dict[str, Callable[[Tensor, Tensor], DesignPolicy]] = {
    "truncated_normal": TruncatedNormalPolicy,
    "mixture": TruncatedNormalMixturePolicy,
    "point": PointPolicy,
}

# 50 steps let the chains forget where they started.
_MCMC = MCMCPosteriorParameters(
    method="slice_np_vectorized", num_chains=20, warmup_steps=50, thin=1
)

# Features of embedded data.
_NUM_FEATURES = 20


def make_trainer(
    task: Task,
    *,
    density_estimator: str | None = None,
    policy: str | DesignPolicy = "truncated_normal",
    posterior_estimator: str = "mdn",
    posterior_embedding: torch.nn.Module | None = None,
    show_progress_bars: bool = True,
) -> NLE_INCE:
    """Return a trainer for a task, in the coordinates that suit it.

    The policy may be a family of `POLICIES`, over the design space of the task, and
    `posterior_estimator` the name of a model. The posterior sees rows `(x, design)`
    through its embedding. Where no likelihood is named, tasks whose data are embedded
    have none.
    """
    if isinstance(policy, str):
        if policy not in POLICIES:
            raise ValueError(
                f"policy='{policy}' is unknown. Use one of {sorted(POLICIES)}."
            )
        policy = POLICIES[policy](task.design_low, task.design_high)
    options: dict[str, Any] = {}
    is_embedded = density_estimator is None and task.x_shape is not None
    if is_embedded and posterior_embedding is None:
        posterior_embedding = data_embedding(task)
    if posterior_embedding is not None:
        coordinates = _coordinates(task)
        if task.theta_transform is identity_transform:
            # No mass of the posterior outside of the prior's support.
            coordinates["theta_transform"] = to_real_numbers(task.prior)
        options["posterior_estimator"] = transformed_posterior_nn(
            posterior_estimator, embedding_net=posterior_embedding, **coordinates
        )
    else:
        options["posterior_estimator"] = posterior_estimator
    return NLE_INCE(
        task.prior,
        None if is_embedded else likelihood_builder(task, density_estimator),
        show_progress_bars=show_progress_bars,
        design_policy=policy,
        **options,
    )


def data_embedding(task: Task) -> DataEmbedding:
    """Return an embedding of images or, otherwise, of long vectors."""
    assert task.x_shape is not None
    if len(task.x_shape) == 3:
        num_channels, *size = task.x_shape
        net: Any = CNNEmbedding(
            tuple(size), in_channels=num_channels, output_dim=_NUM_FEATURES
        )
    else:
        net = FCEmbedding(task.dim_x, output_dim=_NUM_FEATURES, num_hiddens=100)
    return DataEmbedding(net, task.x_shape, task.dim_design)


def likelihood_builder(task: Task, density_estimator: str | None = None) -> Any:
    """Return what builds the likelihood of a task, in the coordinates that suit it."""
    if density_estimator is None:
        if isinstance(task, DiscreteTask) and not task.is_dequantised:
            return categorical_likelihood_nn(list(range(task.num_values)))
        # Of one value, autoregressive flows are mere Gaussians, and splines are slow to
        # become as narrow as the noise.
        density_estimator = "mdn" if task.dim_x == 1 else "maf"
    return transformed_likelihood_nn(density_estimator, **_coordinates(task))


def _coordinates(task: Task) -> dict[str, Any]:
    return {
        "dim_design": task.dim_design,
        "linear_start": True,
        "x_transform": task.x_transform,
        "theta_transform": task.theta_transform,
        "design_transform": task.design_transform,
    }


def find_design(trainer: NLE_INCE, task: Task, **settings: Any) -> DesignResult:
    """Optimize the design; the settings are those of `NLE_INCE.optimize_design`."""
    return trainer.optimize_design(task.simulator, **settings)


def measure(task: Task, design: Tensor) -> Tensor:
    """Return one observation `(1, dim_x)` at a design and the true parameters."""
    return task.simulator(task.true_parameters, design.unsqueeze(0))


def infer_parameters(
    trainer: NLE_INCE, design: Tensor, x_o: Tensor, *, show_progress_bars: bool = True
) -> Tensor:
    """Return 1,000 posterior samples `(1000, dim_theta)`.

    From Markov chains where the search trained no posterior network to propose them.
    """
    networks = trainer.search.networks
    proposes = networks is not None and networks.posterior is not None
    posterior = trainer.build_posterior(
        design=design, posterior_parameters=None if proposes else _MCMC
    )
    return posterior.sample(
        torch.Size((1_000,)), x=x_o, show_progress_bars=show_progress_bars
    )


def simulate_predictions(task: Task, theta: Tensor, design: Tensor) -> Tensor:
    """Return data `(num, dim_x)` of one experiment for each row of parameters.

    Simulations that failed are left out.
    """
    x = task.simulator(theta, design.expand(len(theta), -1)).flatten(1)
    return x[x.isfinite().all(dim=-1)]
