"""A design in a peak that is narrower than the policy that found it.

A policy climbs the mean information of its draws. Where that has a peak narrower than
the policy's last width, the mode can lie beside it. The networks, which have learned
from these draws, see the peak.
"""

import torch
from torch import Tensor

from sbi_boed_plugin._rng import isolated_rng
from sbi_boed_plugin.objectives.eig import NoEstimateError
from sbi_boed_plugin.search.config import MultiStartConfig
from sbi_boed_plugin.search.information import POLICY_OBJECTIVES
from sbi_boed_plugin.search.learned_model import LearnedModel
from sbi_boed_plugin.search.multi_start import climb_designs, score_design
from sbi_boed_plugin.search.optimizer import DesignOptimizer
from sbi_boed_plugin.simulation import CheckedSimulator

__all__ = ["better_by_simulations", "sharper_design"]

_CLIMB = MultiStartConfig(num_starts=32, num_climb_steps=45, num_candidates=1)
# Parameters that compare two designs, the same for both; what the other must have more:
# nats, share of the information, and standard errors.
_NUM_COMPARED, _NUM_REPETITIONS = 256, 8
_LEAST_GAIN, _LEAST_SHARE, _LEAST_ERRORS = 0.05, 0.05, 3.0
_SEED = 20_261_131


def sharper_design(optimizer: DesignOptimizer, mode: Tensor) -> Tensor | None:
    """Return a design that the networks know to be better than the mode, if any.

    They climb from draws of the policy. Nothing is returned where what is climbed
    needs contrasts, which would take longer than the search.
    """
    config, policy = optimizer.config, optimizer.policy
    objective = POLICY_OBJECTIVES[config.objective]
    if not policy.can_move or not policy.has_log_prob or objective.by_score:
        return None
    if objective.needs not in ("posterior", "target"):
        return None
    networks = optimizer.networks
    assert networks is not None
    if networks.likelihood is None:
        return None
    networks.train(False)
    model = LearnedModel(networks, optimizer.prior, config.objective, config.utility)
    with isolated_rng(_SEED):
        starts = policy.sample(torch.Size((_CLIMB.num_starts,))).to(mode)
        starts = torch.cat([mode.unsqueeze(0), starts])
        (best,) = climb_designs(model, policy, _CLIMB, starts=starts)
        pair = torch.stack([best, mode.to(best)])
        with torch.no_grad():
            values = torch.stack(
                [
                    model.utility(model.information(pair, _NUM_COMPARED), pair)
                    for _ in range(_NUM_REPETITIONS)
                ]
            )
    gains = values[:, 0] - values[:, 1]
    gain, error = float(gains.mean()), float(gains.std()) / len(gains) ** 0.5
    least = _LEAST_SHARE * abs(float(values[:, 1].mean()))
    if config.utility.unit == "nats":
        least = max(_LEAST_GAIN, least)
    return best.to(mode) if gain > max(least, _LEAST_ERRORS * error) else None


def better_by_simulations(
    optimizer: DesignOptimizer,
    simulator: CheckedSimulator,
    designs: list[Tensor],
    num_samples: int,
) -> tuple[Tensor, int, int]:
    """Return the design that simulations say is best, and what they cost.

    That is the numbers of simulations, and of those that failed.
    """
    config, networks = optimizer.config, optimizer.networks
    assert networks is not None
    seed = int(torch.randint(2**31, (1,)))
    values, costs = [], []
    for design in designs:
        try:
            estimate = score_design(
                networks,
                simulator,
                prior=optimizer.prior,
                design=design,
                objective=config.objective,
                num_samples=num_samples,
                num_workers=config.num_workers,
                seed=seed,
            )
        except NoEstimateError as error:
            values.append(-torch.inf)
            costs.append(error)
            continue
        value = design.new_tensor([estimate.value])
        values.append(float(config.utility(value, design.unsqueeze(0))))
        costs.append(estimate)
    best = designs[max(range(len(designs)), key=values.__getitem__)]
    return (
        best,
        sum(cost.num_simulations for cost in costs),
        sum(cost.num_invalid_simulations for cost in costs),
    )
