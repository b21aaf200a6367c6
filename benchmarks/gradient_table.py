"""Policy gradients with exact densities, against finite differences.

    make reproduce NAME=gradients

x = theta * design + noise, all Normal, and a policy of scale 0.4 around a location.
Each gradient is that in the location, in nats per unit of the design: its mean and
standard error over batches, and the standard deviation of one batch. The finite
difference is that of the exact information, averaged over the policy by quadrature.
"""

import torch
from torch import Tensor

from benchmarks.exact_estimators import (
    exact_estimators,
    information,
    normal_prior,
    slope,
)
from benchmarks.study import Job, Row, Study
from sbi_boed_plugin import TruncatedNormalPolicy
from sbi_boed_plugin.objectives.info_nce import in_batch_contrast
from sbi_boed_plugin.search.batch import simulate_batch
from sbi_boed_plugin.search.gradients import DATA_PATHS, POLICY_GRADIENTS, score_loss
from sbi_boed_plugin.search.information import POLICY_OBJECTIVES, Densities
from sbi_boed_plugin.simulation import CheckedSimulator

LOW, HIGH = -10.0, 10.0
SCALE = 0.4
PRIOR = normal_prior(1)


def simulate(theta: Tensor, design: Tensor) -> Tensor:
    return theta * design + torch.randn_like(theta)


def policy_at(loc: float, scale: float = SCALE) -> TruncatedNormalPolicy:
    return TruncatedNormalPolicy(
        torch.tensor([LOW]),
        torch.tensor([HIGH]),
        loc=torch.tensor([loc]),
        scale=scale / (HIGH - LOW),
    )


def batch_gradients(
    method: str,
    objective: str,
    loc: float,
    *,
    scale: float = SCALE,
    num_batches: int = 400,
    batch_size: int = 256,
    num_contrastive: int = 100,
) -> Tensor:
    """Return the gradient of each batch, of shape `(num_batches,)`."""
    policy = policy_at(loc, scale)
    estimators = exact_estimators(slope, dim_theta=1, dim_design=1)
    terms_of = POLICY_OBJECTIVES[objective].terms
    gradients = []
    for _ in range(num_batches):
        path = DATA_PATHS.get(method)
        draw = policy.sample if path is None else policy.rsample
        designs = draw(torch.Size((batch_size,)))
        batch = simulate_batch(
            CheckedSimulator(simulate, is_checked=True),
            PRIOR,
            designs,
            keep_gradient=method == "pathwise",
        )
        x = batch.x.detach() if path is None else path(batch, estimators)
        contrast = in_batch_contrast(batch.theta, num_contrastive)
        densities = Densities(estimators, PRIOR, batch.theta, x, batch.design, contrast)
        terms = terms_of(densities)
        if path is None:
            loss = score_loss(terms, policy.log_prob(designs))
        else:
            loss = -terms.mean()
        (gradient,) = torch.autograd.grad(loss, list(policy.parameters()))
        gradients.append(-gradient.item() / (HIGH - LOW))  # per unit of the design.
    return torch.tensor(gradients)


def finite_difference(loc: float, scale: float = SCALE, step: float = 1e-2) -> float:
    """Return the derivative of the exact information, averaged over the policy."""

    def average(loc: float) -> float:
        policy = policy_at(loc, scale).double()
        grid = torch.linspace(LOW, HIGH, 20_001, dtype=torch.float64).unsqueeze(1)
        density = policy.log_prob(grid).exp().detach()
        return torch.trapezoid(density * information(slope, grid), dx=1e-3).item()

    return (average(loc + step) - average(loc - step)) / (2 * step)


def jobs(num_seeds: int, quick: bool) -> list[Job]:
    """Return one job for each objective, location, gradient and seed."""
    return [
        {"objective": objective, "gradient": gradient, "location": loc, "seed": seed}
        for seed in range(num_seeds)
        for objective in ("info_nce", "barber_agakov")
        for loc in (1.0, 3.0)
        for gradient in POLICY_GRADIENTS
    ]


def gradient_row(method: str, objective: str, loc: float, **kwargs) -> Row:
    """Return mean and spread of the gradient of a batch, and the exact one."""
    gradients = batch_gradients(method, objective, loc, **kwargs)
    deviation = gradients.std().item()
    exact = finite_difference(loc, kwargs.get("scale", SCALE))
    return {
        "value": round(gradients.mean().item(), 4),
        "standard_error": round(deviation / len(gradients) ** 0.5, 4),
        "finite_difference": round(exact, 4),
        "deviation_of_a_batch": round(deviation, 4),
        "variance_of_a_batch": float(f"{deviation**2:.3g}"),
    }


def run(job: Job, quick: bool) -> Row:
    """Compare a gradient with the finite difference."""
    torch.manual_seed(job["seed"])
    num_batches = 40 if quick else 400
    return gradient_row(
        job["gradient"], job["objective"], job["location"], num_batches=num_batches
    )


STUDY = Study(
    name="gradients",
    title="Gradients of the information under exact densities",
    jobs=jobs,
    run=run,
)
