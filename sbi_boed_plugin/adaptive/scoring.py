"""What rollouts that nothing was trained on tell about a policy."""

import math
from dataclasses import replace
from typing import Any, cast

import torch
from scipy.stats import kstest

from sbi_boed_plugin._prior import finite_values
from sbi_boed_plugin.adaptive.config import PolicySearchConfig
from sbi_boed_plugin.adaptive.objective import contrastive_terms, log_posterior
from sbi_boed_plugin.adaptive.rollout import LearnedExperiment, Rollouts
from sbi_boed_plugin.adaptive.training import PolicyTraining
from sbi_boed_plugin.objectives._eig_estimate import EIGEstimate, NoEstimateError
from sbi_boed_plugin.objectives.eig import Problem, summarize

__all__ = ["policy_bounds", "policy_doubts", "posterior_doubts", "training_doubts"]

# Rollouts that are scored at once.
_NUM_AT_ONCE = 64
# Nats, and share of the information, by which the model may promise more.
_SLACK, _SHARE = 0.1, 0.2
# Draws of the posterior among which a true parameter has its rank, the probability of a
# doubt by chance, and how far from uniform ranks have to be for one.
_NUM_RANKED, _CHANCE, _FAR = 200, 1e-3, 0.1
# Share of the steps that may have no finite gradient.
_MOST_SKIPPED = 0.05


@torch.no_grad()
def policy_bounds(
    training: PolicyTraining,
    experiment: LearnedExperiment | None,
    rollouts: Rollouts,
    num_simulations: int,
    config: PolicySearchConfig,
    constant: tuple[float, float],
) -> dict[str, EIGEstimate]:
    """Return the bounds of rollouts, by the posterior and by the likelihood.

    With data of the simulator both are lower bounds, whatever the networks are.
    `constant` is what the log-density of the prior lacks, and its standard error.
    """
    num_failed = int((~rollouts.x.isfinite().all(dim=-1)).sum())
    counts: Any = {"num_simulations": num_simulations}
    counts["num_invalid_simulations"] = num_failed if num_simulations else 0
    theta, prior = rollouts.theta, training.prior
    target = training.target_of(theta)
    at_once = torch.arange(len(theta)).split(_NUM_AT_ONCE)
    parts = [rollouts.rows(rows) for rows in at_once]
    targets = target.split(_NUM_AT_ONCE)
    of_last = [
        log_posterior(training.posterior, of_part, part)[-1]
        for of_part, part in zip(targets, parts, strict=True)
    ]
    known = torch.cat(of_last) - training.log_prior(theta, target)
    if training.target is not None:
        spread = float(known.double().std()) / math.sqrt(len(known))
        num_particles = getattr(prior, "num_particles", math.inf)
        of_particles = float(known.double().std()) / math.sqrt(num_particles)
        error = math.hypot(spread, training.target.error, of_particles)
        bound: Any = "barber_agakov" if training.target.is_exact else "target"
        value = float(known.mean())
        return {bound: EIGEstimate(value, error, bound, **counts)}
    unknown = torch.full_like(known, torch.inf)
    terms = {"barber_agakov": torch.stack([known, known, unknown, unknown])}
    if experiment is not None:
        networks, num = (
            (experiment, training.posterior, prior),
            config.num_eig_contrastive,
        )
        lace = [contrastive_terms(*networks, part, num) for part in parts]
        terms["lace"] = torch.cat(lace, dim=1)
    bounds, error = {}, None
    for name, values in terms.items():
        num = config.num_eig_contrastive if name == "lace" else 0
        nothing = rollouts.design[:1, 0]
        problem = Problem(cast(Any, name), None, prior, nothing, num_contrastive=num)
        try:
            estimate = summarize(values.cpu().double(), problem, 0, constant)
        except NoEstimateError as found:
            error = found
            continue
        bounds[name] = replace(estimate, **counts)
    if error is not None and not bounds:
        raise error
    return bounds


def policy_doubts(
    eig: EIGEstimate,
    inside: float | None,
    at_random: tuple[float, float] | None,
    constant: float,
) -> list[str]:
    """Return what speaks against a result.

    `inside` is the information inside the learned model, if there is one,
    `at_random` that of designs at random there, with its standard error, where
    information is all that counts, and `constant` what the log-density of the prior
    lacks.
    """
    doubts = []
    if constant:
        doubts.append(
            f"prior.log_prob is not normalized: its density integrates to "
            f"{math.exp(constant):.3g}. The information allows for this. Subtract "
            f"{constant:.2f} from prior.log_prob."
        )
    least = max(_SLACK, _SHARE * eig.value) + 3.0 * eig.standard_error
    if not eig.num_simulations:
        doubts.append(
            "No simulation has scored the policy: its information is that inside the "
            "learned model. Pass a simulator to make sure."
        )
    elif inside is not None and inside > eig.value + least:
        doubts.append(
            f"Inside the learned model the policy tells {inside:.2f} nats, and with "
            f"simulations {eig.value:.2f} at least: the likelihood is not accurate "
            "where the policy measures. Allow for more simulations."
        )
    if at_random is not None and inside is not None:
        # Both inside the model: the errors of the likelihood are in both.
        value = at_random[0] + constant
        if value > inside + 3.0 * at_random[1]:
            doubts.append(
                f"Inside the learned model designs at random tell {value:.2f} nats, "
                f"and those of the policy {inside:.2f}: it has not learned. Allow "
                "for more steps, lower learning_rate, or look ahead."
            )
    if eig.value < 2.0 * eig.standard_error:
        doubts.append(
            f"No information was found ({eig.value:.3f} ± {eig.standard_error:.3f} "
            "nats): either the experiments tell nothing, or less than the networks can "
            "learn. Allow for more steps."
        )
    return doubts


@torch.no_grad()
def posterior_doubts(training: PolicyTraining, rollouts: Rollouts) -> list[str]:
    """Return whether ranks of true parameters in the posterior are far from uniform.

    After the first, half and all of the experiments of simulations.
    """
    if training.target is not None or finite_values(training.prior) is not None:
        return []
    theta, net = rollouts.theta, training.posterior.net
    conditions = training.posterior.conditions(rollouts.design, rollouts.x)
    steps = sorted({0, (len(conditions) - 1) // 2, len(conditions) - 1})
    worst = 0.0
    for step in steps:
        draws = net.sample(torch.Size((_NUM_RANKED,)), conditions[step])
        below = (draws < theta).sum(dim=0)
        # Where in the gap between two draws it lies, no rank tells.
        ranks = (below + torch.rand(theta.shape).to(theta)) / (_NUM_RANKED + 1)
        for column in ranks.T.cpu().double():
            test = kstest(column.numpy(), "uniform")
            is_sure = test.pvalue < _CHANCE / (len(steps) * theta.shape[1])
            worst = max(worst, test.statistic if is_sure else 0.0)
    if worst < _FAR:
        return []
    return [
        f"The amortised posterior of histories is off: shares of simulations with a "
        f"true parameter below a quantile differ from it by up to {worst:.0%}. The "
        "likelihood, which corrects it, was learned from the same simulations. Allow "
        "for more of them, or for more steps."
    ]


def training_doubts(
    training: PolicyTraining, num_rounds: int, num_planned: int
) -> list[str]:
    """Return what speaks against a training."""
    doubts, num_updates = [], 2 * training.step
    if num_rounds < num_planned:
        doubts.append(
            f"Time was up after {num_rounds} of {num_planned} rounds of simulations: "
            "the likelihood has not learned from where the policy measures. Allow for "
            "more time, or fewer num_steps."
        )
    if training.num_skipped > _MOST_SKIPPED * num_updates:
        doubts.append(
            f"{training.num_skipped} of {num_updates} updates had no finite gradient "
            "and were left out. Use other units, or a prior with shorter tails."
        )
    return doubts
