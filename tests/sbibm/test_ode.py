"""Populations agree with closed forms, with scipy and with each other."""

import numpy as np
import pytest
import torch
from scipy.integrate import solve_ivp

from sbi_boed_plugin.sbibm.julia_free import solve_two_populations

GRID = {"num_saved": 5, "steps_per_save": 40, "step_size": 0.025}


def solve(growth, coupling, initial=(30.0, 1.0), **settings):
    return solve_two_populations(
        torch.tensor(initial),
        torch.as_tensor(growth),
        torch.as_tensor(coupling),
        **(GRID | settings),
    )


def test_uncoupled_populations_grow_exponentially():
    growth = torch.tensor([[0.3, -0.7], [0.0, 1.2]], dtype=torch.float64)
    u = solve(growth, torch.zeros(2, 2))
    times = torch.arange(5.0, dtype=torch.float64)
    exact = torch.tensor([30.0, 1.0])[None, :, None] * torch.exp(
        growth[:, :, None] * times
    )
    assert u.shape == (2, 2, 5)
    torch.testing.assert_close(u, exact, rtol=1e-7, atol=0.0)


def test_coupled_populations_agree_with_scipy():
    growth, coupling = np.array([0.9, -0.8]), np.array([-0.05, 0.04])

    def slope(_, u):
        return [
            u[0] * (growth[0] + coupling[0] * u[1]),
            u[1] * (growth[1] + coupling[1] * u[0]),
        ]

    reference = solve_ivp(
        slope, (0, 20), [30.0, 1.0], t_eval=range(21), rtol=1e-11, atol=1e-13
    )
    u = solve(growth[None], coupling[None], num_saved=21)
    np.testing.assert_allclose(u[0].numpy(), reference.y, rtol=1e-5)


def test_the_error_falls_with_the_fourth_power_of_the_step():
    growth, coupling = torch.tensor([[0.9, -0.8]]), torch.tensor([[-0.05, 0.04]])

    def at(step):
        u = solve(
            growth,
            coupling,
            num_saved=2,
            steps_per_save=round(8 / step),
            step_size=step,
        )
        return u[..., -1].log()

    exact = at(0.0025)
    coarse, fine = ((at(step) - exact).norm() for step in (0.04, 0.02))
    assert 12.0 < coarse / fine < 20.0


def test_rows_do_not_depend_on_their_batch():
    torch.manual_seed(0)
    growth = torch.randn(7, 2)
    coupling = 0.05 * torch.randn(7, 2)
    together = solve(growth, coupling)
    alone = torch.cat(
        [solve(g[None], c[None]) for g, c in zip(growth, coupling, strict=True)]
    )
    torch.testing.assert_close(together, alone, rtol=1e-12, atol=0.0)


def test_gradients_are_those_of_finite_differences():
    growth = torch.tensor([[0.9, -0.8]], dtype=torch.float64, requires_grad=True)
    coupling = torch.tensor([[-0.05, 0.04]], dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(
        lambda g, c: solve(g, c, num_saved=3).log(), (growth, coupling)
    )
    with torch.no_grad():
        plain = solve(growth, coupling)
    torch.testing.assert_close(solve(growth, coupling).detach(), plain)


def test_a_population_near_extinction_keeps_its_precision():
    u = solve([[-80.0, 0.0]], torch.zeros(1, 2), steps_per_save=4_000, step_size=2.5e-4)
    exact = 30.0 * np.exp(-320.0)
    assert u[0, 0, -1].item() == pytest.approx(exact, rel=1e-6)


def test_explosions_are_not_finite_and_stay_in_their_row():
    u = solve([[0.0, 0.0], [500.0, 0.0]], [[0.0, 0.0], [500.0, 500.0]])
    assert u[0].isfinite().all()
    assert not u[1].isfinite().all()
