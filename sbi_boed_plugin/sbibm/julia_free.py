"""The simulators of sbibm's `sir` and `lotka_volterra` without Julia.

Both tasks are sbibm's own: prior, observations, reference samples, transforms and
noise. Only their differential equations are solved here, for all rows of a batch at
once, where the original calls Julia for each row.
"""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

__all__ = ["lotka_volterra_simulator", "sir_simulator", "solve_two_populations"]

# Length of a step, about. In a thousand draws from the prior no value is off by more
# than a hundredth of the noise's standard deviation; fast dynamics, which are rarer
# than that, are less precise.
_SIR_STEP, _LOTKA_VOLTERRA_STEP = 0.5, 0.1 / 6.0

# Every how many saved times the tasks keep one.
_SIR_EVERY, _LOTKA_VOLTERRA_EVERY = 17, 21


def sir_simulator(task: Any, max_calls: int | None) -> Any:
    """Return what `SIR.get_simulator` does: numbers of infected in samples of people.

    Parameters of shape `(batch_dim, 2)` give counts of shape `(batch_dim, 10)`, or the
    populations of every day if `task.summary` is `None`.
    """
    from pyro import distributions
    from sbibm.tasks.simulator import Simulator

    def simulate(parameters: Tensor) -> Tensor:
        contact, recovery = parameters.double().unbind(dim=1)
        initial = task.u0.double()
        # In fractions of the population, in which rates are those of the parameters.
        fractions = solve_two_populations(
            initial[:2] / task.N,
            growth=torch.stack([torch.zeros_like(recovery), -recovery], dim=1),
            coupling=torch.stack([-contact, contact], dim=1),
            **_grid(task, _SIR_EVERY, _SIR_STEP),
        )
        if task.summary is None:
            people = fractions * task.N
            recovered = initial.sum() - people.sum(dim=1, keepdim=True)
            return torch.cat([people, recovered], dim=1).float()
        return _observe(
            fractions[:, 1].float(),
            lambda values: distributions.Binomial(
                total_count=task.total_count, probs=values.clamp(0.0, 1.0)
            ),
        )

    return Simulator(task=task, simulator=simulate, max_calls=max_calls)


def lotka_volterra_simulator(task: Any, max_calls: int | None) -> Any:
    """Return what `LotkaVolterra.get_simulator` does: noisy populations of two species.

    Parameters of shape `(batch_dim, 4)` give populations of shape `(batch_dim, 20)`,
    prey first, or every saved time without noise if `task.summary` is `None`.
    """
    from pyro import distributions
    from sbibm.tasks.simulator import Simulator

    def simulate(parameters: Tensor) -> Tensor:
        birth, predation, death, growth = parameters.double().unbind(dim=1)
        populations = solve_two_populations(
            task.u0,
            growth=torch.stack([birth, -death], dim=1),
            coupling=torch.stack([-predation, growth], dim=1),
            **_grid(task, _LOTKA_VOLTERRA_EVERY, _LOTKA_VOLTERRA_STEP),
        ).float()
        if task.summary is None:
            return populations
        return _observe(
            populations.flatten(start_dim=1),
            lambda values: distributions.LogNormal(
                values.clamp(1e-10, 10_000.0).log(), 0.1
            ),
        )

    return Simulator(task=task, simulator=simulate, max_calls=max_calls)


def _grid(task: Any, every: int, step: float) -> dict[str, Any]:
    """Return which times are saved, and a step that meets them."""
    every = 1 if task.summary is None else every
    num_times = round(task.days / task.saveat) + 1
    between = task.saveat * every
    steps = max(round(between / step), 1)
    return {
        "num_saved": (num_times - 1) // every + 1,
        "steps_per_save": steps,
        "step_size": between / steps,
    }


def _observe(values: Tensor, noise: Callable[[Tensor], Any]) -> Tensor:
    """Draw data where the solution is finite; rows where it is not are NaN."""
    import pyro

    finite = values.isfinite().all(dim=1)
    data = torch.full_like(values, torch.nan)
    if finite.any():
        data[finite] = pyro.sample("data", noise(values[finite]).to_event(1))
    return data


def solve_two_populations(
    initial: Tensor,
    growth: Tensor,
    coupling: Tensor,
    *,
    num_saved: int,
    steps_per_save: int,
    step_size: float,
) -> Tensor:
    r"""Solve :math:`\dot u_1 = u_1 (g_1 + c_1 u_2), \; \dot u_2 = u_2 (g_2 + c_2 u_1)`.

    The classical Runge-Kutta method in logarithms, in which a population near
    extinction keeps its relative precision and none becomes negative. `initial` has
    shape `(2,)`, `growth` and `coupling` have shape `(batch_dim, 2)`, the populations
    `(batch_dim, 2, num_saved)` in double precision, from the initial ones on.
    """
    # One row per population: rows of memory that are worked through in one go.
    rate, strength = growth.double().T.contiguous(), coupling.double().T.contiguous()
    state = initial.double().log().unsqueeze(1).expand_as(rate)

    def slope(logs: Tensor) -> Tensor:
        return rate + strength * logs.exp().flip(0)

    saved = [state]
    for _ in range(num_saved - 1):
        for _ in range(steps_per_save):
            first = slope(state)
            second = slope(state + 0.5 * step_size * first)
            third = slope(state + 0.5 * step_size * second)
            fourth = slope(state + step_size * third)
            total = first + 2.0 * (second + third) + fourth
            state = state + (step_size / 6.0) * total
        saved.append(state)
    return torch.stack(saved, dim=-1).exp().transpose(0, 1)
