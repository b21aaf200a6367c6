r"""Two moons: what contrastive samples and the weight of maximum likelihood do.

The paper trains the likelihood of *two moons*, without a design, and shows that the
information that it reports grows with the number L of contrastive samples and its
held-out log-likelihood with :math:`\lambda`. Here, with stored simulations:

- (a) the reported bound against L, beside its cap :math:`\log(L + 1)`, and for the
  same networks the bound from many contrastive samples. The true information, 5.1
  nats, is above every cap: most of the growth is the cap's.
- (b) the held-out log-likelihood of new simulations against :math:`\lambda`, beside
  that of the true likelihood, which two moons has in closed form.

The network is a mixture of 20 Normals: with 127 contrastive samples an epoch of a
spline flow takes ten times as long.

The simulator is that of sbibm (Lueckmann et al., *Benchmarking Simulation-Based
Inference*, AISTATS 2021, https://arxiv.org/abs/2101.04653).
"""

import math
from collections.abc import Sequence
from typing import Any

import torch
from matplotlib.figure import Figure
from sbi.neural_nets import likelihood_nn
from sbi.utils import BoxUniform
from torch import Tensor

from benchmarks.study import Job, Row, Study, averages
from sbi_boed_plugin.experiment import NoOpTracker
from sbi_boed_plugin.objectives.info_nce import (
    contrastive_bound,
    fresh_contrast,
    log_likelihood_matrix,
)
from sbi_boed_plugin.plotting._style import BLUE, GREY, VERMILLION, despine
from sbi_boed_plugin.trainers.nle_ince import NLE_INCE

__all__ = ["STUDY", "log_likelihood", "simulate"]

NUM_CONTRASTIVE = (1, 3, 7, 15, 31, 63, 127)
STRENGTHS = (1e-3, 1e-2, 1e-1, 1.0, 10.0)
# Of each panel, what the other one varies.
FIXED_STRENGTH, FIXED_CONTRASTIVE = 0.1, 15

# Contrastive samples of the bound that no longer feels its cap: log(4096) is 8.3 nats.
MANY_CONTRASTIVE = 4_095

_RADIUS, _RADIUS_SCALE, _OFFSET = 0.1, 0.01, 0.25


def prior() -> BoxUniform:
    """Return the distribution of the parameters."""
    return BoxUniform(-torch.ones(2), torch.ones(2))


def simulate(theta: Tensor) -> Tensor:
    """Draw a point of a crescent that the parameters move.

    Args:
        theta: Parameters of shape `(batch_dim, 2)`.

    Returns:
        Points of shape `(batch_dim, 2)`.
    """
    angle = math.pi * (torch.rand_like(theta[:, 0]) - 0.5)
    radius = _RADIUS + _RADIUS_SCALE * torch.randn_like(angle)
    crescent = torch.stack(
        [radius * angle.cos() + _OFFSET, radius * angle.sin()], dim=-1
    )
    return crescent + _shift(theta)


def log_likelihood(x: Tensor, theta: Tensor) -> Tensor:
    """Return the true `log p(x | theta)`.

    Args:
        x: Points of shape `(..., 2)`.
        theta: Parameters of shape `(..., 2)`.

    Returns:
        Log-densities of shape `(...)`, in nats; `-inf` where there is no crescent.
    """
    offset = torch.tensor([_OFFSET, 0.0])
    u = x - _shift(theta) - offset
    # A radius is never negative here: that would be ten standard deviations.
    radius = u.norm(dim=-1)
    standard = (radius - _RADIUS) / _RADIUS_SCALE
    log_radius = -0.5 * standard.square() - 0.5 * math.log(2.0 * math.pi)
    log_prob = log_radius - math.log(_RADIUS_SCALE * math.pi) - radius.log()
    return torch.where(u[..., 0] > 0.0, log_prob, -torch.inf)


def _shift(theta: Tensor) -> Tensor:
    total, difference = theta.sum(dim=-1), theta[..., 1] - theta[..., 0]
    return torch.stack([-total.abs(), difference], dim=-1) / math.sqrt(2.0)


def jobs(num_seeds: int, quick: bool) -> list[Job]:
    """Return the jobs of both panels; the setting that they share is run once."""
    settings = [(number, FIXED_STRENGTH) for number in NUM_CONTRASTIVE]
    settings += [(FIXED_CONTRASTIVE, strength) for strength in STRENGTHS]
    if quick:
        settings = [(1, 0.1), (15, 0.1), (15, 10.0)]
    return [
        {"num_contrastive": number, "regularization_strength": strength, "seed": seed}
        for seed in range(num_seeds)
        for number, strength in dict.fromkeys(settings)
    ]


def run(job: Job, quick: bool) -> Row:
    """Train on stored simulations, and evaluate on new ones.

    Args:
        job: Number of contrastive samples, weight of maximum likelihood, and seed.
        quick: Whether to train briefly on few simulations.

    Returns:
        The bound that training reports and the same on new simulations, the bound
        from many contrastive samples, log-likelihoods, and the number of epochs.
    """
    torch.manual_seed(job["seed"])
    num_simulations, num_test = (1_000, 200) if quick else (10_000, 2_000)
    distribution = prior()
    theta = distribution.sample(torch.Size((num_simulations,)))
    x = simulate(theta)
    test_theta = distribution.sample(torch.Size((num_test,)))
    test_x = simulate(test_theta)
    inference = NLE_INCE(
        distribution,
        likelihood_nn("mdn", num_components=20, hidden_features=64),
        tracker=NoOpTracker(),
        show_progress_bars=False,
    )
    inference.append_simulations(theta, x)
    estimator = inference.train(
        num_contrastive=job["num_contrastive"],
        regularization_strength=job["regularization_strength"],
        training_batch_size=256,
        learning_rate=2e-3,
        max_num_epochs=3 if quick else 40,
    )
    summary = inference.summary
    losses = summary["validation_loss"]
    best = min(range(len(losses)), key=losses.__getitem__)
    many_rows = 100 if quick else 500
    return {
        "reported_eig": summary["eig_lower_bound"][best],
        "eig": _bound(estimator, test_theta, test_x, job["num_contrastive"]),
        "eig_many": _bound(estimator, test_theta, test_x, MANY_CONTRASTIVE, many_rows),
        "log_likelihood": float(-estimator.loss(test_x, test_theta).detach().mean()),
        "true_log_likelihood": float(log_likelihood(test_x, test_theta).mean()),
        "epochs": len(losses),
    }


@torch.no_grad()
def _bound(
    estimator: Any,
    theta: Tensor,
    x: Tensor,
    num_contrastive: int,
    num_rows: int | None = None,
) -> float:
    """Return the contrastive bound of new simulations, in nats."""
    theta, x = theta[:num_rows], x[:num_rows]
    contrast = fresh_contrast(prior(), num_contrastive, len(theta))
    conditions = torch.cat([theta.unsqueeze(0), contrast])
    matrix = log_likelihood_matrix(estimator.log_prob, x, conditions)
    return float(contrastive_bound(matrix).mean())


def summary(rows: Sequence[Row]) -> list[Row]:
    """Return means over seeds of each setting."""
    return averages(
        rows,
        by=["num_contrastive", "regularization_strength"],
        values=["reported_eig", "eig", "eig_many", "log_likelihood"],
    )


def figure(rows: Sequence[Row]) -> Figure:
    """Return information against L, and log-likelihood against its weight."""
    table = summary(rows)
    made = Figure(figsize=(9.0, 3.8), layout="constrained")
    left, right = made.subplots(1, 2)

    chosen = [r for r in table if r["regularization_strength"] == FIXED_STRENGTH]
    numbers = [row["num_contrastive"] for row in chosen]
    caps = [math.log(number + 1) for number in numbers]
    left.plot(numbers, caps, color=GREY, linestyle="--", label="cap log(L + 1)")
    for name, color, label in (
        ("reported_eig", BLUE, "reported"),
        ("eig_many", VERMILLION, f"with {MANY_CONTRASTIVE:,} contrastive samples"),
    ):
        values, errors = ([r[key] for r in chosen] for key in (name, f"{name}_se"))
        left.errorbar(
            numbers, values, errors, color=color, marker="o", capsize=3, label=label
        )
    left.set_xscale("log", base=2)
    left.set_xticks(numbers, [str(n) for n in numbers])
    left.set_xlabel("contrastive samples L")
    left.set_ylabel("information, lower bound [nats]")
    left.set_title(f"λ = {FIXED_STRENGTH:g}")

    chosen = [r for r in table if r["num_contrastive"] == FIXED_CONTRASTIVE]
    strengths = [row["regularization_strength"] for row in chosen]
    values, errors = (
        [r[key] for r in chosen] for key in ("log_likelihood", "log_likelihood_se")
    )
    right.errorbar(strengths, values, errors, color=BLUE, marker="o", capsize=3)
    truth = sum(row["true_log_likelihood"] for row in rows) / len(rows)
    right.axhline(truth, color=GREY, linestyle="--", label="true likelihood")
    right.set_xscale("log")
    right.set_xlabel("weight of maximum likelihood λ")
    right.set_ylabel("held-out log-likelihood [nats]")
    right.set_title(f"L = {FIXED_CONTRASTIVE}")
    for ax in (left, right):
        despine(ax)
        ax.legend(frameon=False)
    return made


STUDY = Study(
    name="two-moons",
    title="Two moons: information against L, held-out log-likelihood against λ",
    jobs=jobs,
    run=run,
    figure=figure,
    summary=summary,
    num_seeds=3,
)
