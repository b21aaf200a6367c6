"""Two populations that feed on or die of each other, for many parameters at once."""

from typing import Any

import numpy as np
import torch
from torch import Tensor

__all__ = ["solve_two_populations"]


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
    extinction keeps its relative precision and none becomes negative. All rows share a
    fixed step, so that a batch costs little more than one row. Numbers are numpy's,
    whose small operations are faster than torch's, unless a gradient is asked for.

    Args:
        initial: Populations at time zero, of shape `(2,)`, both positive.
        growth: Rates :math:`g` of shape `(batch_dim, 2)`, negative for a decline.
        coupling: Rates :math:`c` of shape `(batch_dim, 2)`.
        num_saved: Number of times to return, the initial one included.
        steps_per_save: Number of steps from one of them to the next.
        step_size: Length of a step.

    Returns:
        Populations of shape `(batch_dim, 2, num_saved)`, in double precision. Where
        they leave the range of numbers, they are NaN or infinite.

    Example:
        >>> u = solve_two_populations(
        ...     torch.tensor([8.0, 1.0]),
        ...     growth=torch.tensor([[-0.6931472, 0.0]]),
        ...     coupling=torch.zeros(1, 2),
        ...     num_saved=4,
        ...     steps_per_save=10,
        ...     step_size=0.1,
        ... )
        >>> u[0, 0].round(decimals=3)
        tensor([8., 4., 2., 1.], dtype=torch.float64)
    """
    wants_gradient = torch.is_grad_enabled() and (
        growth.requires_grad or coupling.requires_grad
    )
    # One row per population: rows of memory that are worked through in one go.
    rate: Any = growth.double().T.contiguous()
    strength: Any = coupling.double().T.contiguous()
    state: Any = initial.double().log().unsqueeze(1).expand_as(rate)
    if not wants_gradient:
        rate, strength, state = (v.cpu().numpy() for v in (rate, strength, state))

    def slope(logs: Any) -> Any:
        # Torch computes exponentials of doubles twice as fast as numpy.
        if wants_gradient:
            return rate + strength * logs.exp().flip(0)
        return rate + strength * torch.from_numpy(logs).exp().numpy()[::-1]

    saved = [state]
    # Populations that explode are told by their values.
    with np.errstate(over="ignore", invalid="ignore"):
        for _ in range(num_saved - 1):
            for _ in range(steps_per_save):
                state = _runge_kutta_step(slope, state, step_size)
            saved.append(state)
    if not wants_gradient:
        saved = [torch.from_numpy(logs) for logs in saved]
    return torch.stack(saved, dim=-1).exp().transpose(0, 1).to(growth.device)


def _runge_kutta_step(slope: Any, state: Any, step: float) -> Any:
    half = 0.5 * step
    first = slope(state)
    second = slope(state + half * first)
    third = slope(state + half * second)
    fourth = slope(state + step * third)
    return state + (step / 6.0) * (first + 2.0 * (second + third) + fourth)
