"""Every task of sbibm simulates, and `sir` and `lotka_volterra` are sbibm's own."""

import numpy as np
import pytest
import torch
from scipy.integrate import solve_ivp

from sbi_boed_plugin.sbibm import TASKS, get_task, julia_free
from sbi_boed_plugin.sbibm.julia_free import solve_two_populations


@pytest.mark.parametrize("name", TASKS)
def test_every_task_simulates_and_has_ten_observations(name):
    from sbibm.utils.exceptions import SimulationBudgetExceeded

    torch.manual_seed(0)
    task = get_task(name)
    # Simulating distractors takes seconds.
    num = 100 if name == "slcp_distractors" else 1_000
    simulator = task.get_simulator(max_calls=num)
    theta = task.get_prior()(num_samples=num)
    x = simulator(theta)
    assert theta.shape == (num, task.dim_parameters)
    assert x.shape == (num, task.dim_data)
    assert x.isfinite().all()
    assert simulator.num_simulations == num
    with pytest.raises(SimulationBudgetExceeded):
        simulator(theta[:1])
    for number in range(1, 11):
        assert task.get_observation(number).shape == (1, task.dim_data)
        truth = task.get_true_parameters(number)
        assert truth.shape == (1, task.dim_parameters)
    reference = task.get_reference_posterior_samples(10)
    assert reference.shape == (10_000, task.dim_parameters)


def test_lotka_volterra_reproduces_the_shipped_observations():
    task = get_task("lotka_volterra")
    for number, seed in enumerate(task.observation_seeds, start=1):
        torch.random.manual_seed(seed)  # sbibm's own, which no test may change.
        theta = task.get_prior()(num_samples=1)
        x = task.get_simulator()(theta)
        torch.testing.assert_close(theta, task.get_true_parameters(number))
        torch.testing.assert_close(x, task.get_observation(number), rtol=2e-5, atol=0.0)


def test_sir_agrees_with_scipy_in_the_mean():
    torch.manual_seed(0)
    task = get_task("sir")
    theta = torch.tensor([[0.5, 0.1]])
    counts = task.get_simulator()(theta.expand(4_000, 2))

    def slope(_, u):
        infections = 0.5 * u[0] * u[1] / task.N
        return [-infections, infections - 0.1 * u[1]]

    times = range(0, 160, 17)
    start = [task.N - 1.0, 1.0]
    exact = solve_ivp(slope, (0, 160), start, t_eval=times, rtol=1e-10).y[1] / task.N
    exact = torch.from_numpy(exact).float()
    error = (exact * (1.0 - exact) * task.total_count / len(counts)).sqrt()
    # Ten means of 4,000 counts each, within four standard errors.
    assert torch.all(
        (counts.mean(0) - task.total_count * exact).abs() <= 4 * error + 1e-3
    )


@pytest.mark.parametrize("number", [1, 3])
def test_a_grid_posterior_of_sir_matches_the_reference(number):
    task = get_task("sir")
    reference = task.get_reference_posterior_samples(number)
    mean, scale = reference.mean(0), reference.std(0)
    axis = torch.linspace(-5.0, 5.0, 81)
    theta = mean + scale * torch.cartesian_prod(axis, axis)
    log_prob_fn = task._get_log_prob_fn(
        num_observation=number, implementation="experimental"
    )
    weights = torch.cat([log_prob_fn(part) for part in theta.split(1_000)])
    weights = torch.softmax(weights.double(), dim=0)[:, None]
    exact_mean = (weights * theta).sum(0)
    exact_scale = (weights * (theta - exact_mean).square()).sum(0).sqrt()
    assert torch.all((exact_mean - mean).abs() < 0.03 * scale)
    assert torch.all((exact_scale / scale - 1.0).abs() < 0.02)


@pytest.mark.parametrize("step", ["_SIR_STEP", "_LOTKA_VOLTERRA_STEP"])
def test_steps_are_fine_enough_for_the_noise(step, monkeypatch):
    """A thousand draws, against steps of a sixth of the length."""
    name = "sir" if step == "_SIR_STEP" else "lotka_volterra"
    task = get_task(name)
    torch.manual_seed(0)
    theta = task.get_prior()(num_samples=1_000)
    means = []
    monkeypatch.setattr(
        julia_free, "_observe", lambda values, noise: means.append(values) or values
    )
    task.get_simulator()(theta)
    monkeypatch.setattr(julia_free, step, getattr(julia_free, step) / 6.0)
    task.get_simulator()(theta)
    used, exact = (values.double() for values in means)
    if name == "sir":
        # In counts of 1,000 people; of a single person where nobody is infected.
        scale = (1_000.0 * exact * (1.0 - exact)).clamp(min=1.0).sqrt()
        error = 1_000.0 * (used - exact).abs() / scale
    else:
        logs = [values.clamp(1e-10, 1e4).log() for values in (used, exact)]
        error = (logs[0] - logs[1]).abs() / 0.1
    assert error.max() < 0.01
    assert error.mean() < 1e-4


def test_log_probabilities_have_gradients():
    task = get_task("lotka_volterra")
    truth = task.get_true_parameters(1)
    gradient = task._get_log_prob_grad_fn(num_observation=1)(truth)
    log_prob = task._get_log_prob_fn(num_observation=1)
    step = 1e-3 * truth[0, 1]
    shift = torch.tensor([[0.0, step, 0.0, 0.0]])
    difference = (log_prob(truth + shift) - log_prob(truth - shift)) / (2.0 * step)
    assert gradient.shape == (1, 4)
    torch.testing.assert_close(gradient[:, 1], difference, rtol=0.02, atol=0.0)


@pytest.mark.parametrize(
    "name, dims, num", [("sir", 3, 161), ("lotka_volterra", 2, 201)]
)
def test_whole_solutions_are_populations(name, dims, num):
    torch.manual_seed(0)
    task = get_task(name, summary=None)
    whole = task.get_simulator()(task.get_prior()(num_samples=3))
    whole = whole.reshape(3, dims, num)
    assert torch.all(whole >= 0.0)
    if name == "sir":
        torch.testing.assert_close(whole.sum(1), torch.full((3, num), 1e6))


def test_a_row_that_explodes_is_nan_and_costs_no_other():
    torch.manual_seed(0)
    task = get_task("lotka_volterra")
    usual = task.get_true_parameters(1)
    wild = torch.tensor([[1e3, 1e-9, 1e-9, 1e-9]])
    x = task.get_simulator()(torch.cat([usual, wild]))
    assert x[0].isfinite().all()
    assert x[1].isnan().all()


# --- The equations ------------------------------------------------------------------

GRID = {"num_saved": 5, "steps_per_save": 40, "step_size": 0.025}


def solve(growth, coupling, initial=(30.0, 1.0), **settings):
    return solve_two_populations(
        torch.tensor(initial),
        torch.as_tensor(growth),
        torch.as_tensor(coupling),
        **(GRID | settings),
    )


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
        grid = {"steps_per_save": round(8 / step), "step_size": step}
        return solve(growth, coupling, num_saved=2, **grid)[..., -1].log()

    exact = at(0.0025)
    coarse, fine = ((at(step) - exact).norm() for step in (0.04, 0.02))
    assert 12.0 < coarse / fine < 20.0


def test_rows_do_not_depend_on_their_batch():
    torch.manual_seed(0)
    growth, coupling = torch.randn(7, 2), 0.05 * torch.randn(7, 2)
    rows = [solve(growth[i : i + 1], coupling[i : i + 1]) for i in range(7)]
    torch.testing.assert_close(
        solve(growth, coupling), torch.cat(rows), rtol=1e-12, atol=0.0
    )


def test_gradients_are_those_of_finite_differences():
    growth = torch.tensor([[0.9, -0.8]], dtype=torch.float64, requires_grad=True)
    coupling = torch.tensor([[-0.05, 0.04]], dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(
        lambda g, c: solve(g, c, num_saved=3).log(), (growth, coupling)
    )


@pytest.mark.parametrize(
    "rate, error, settings",
    [
        (-0.7, 1e-7, {}),
        (1.2, 1e-7, {}),
        # A population near extinction keeps its precision.
        (-80.0, 1e-6, {"steps_per_save": 4_000, "step_size": 2.5e-4}),
    ],
)
def test_uncoupled_populations_grow_exponentially(rate, error, settings):
    growth = torch.tensor([[rate, 0.0]], dtype=torch.float64)
    u = solve(growth, torch.zeros(1, 2), **settings)
    exact = 30.0 * np.exp(rate * np.arange(5.0))
    assert u[0, 0].tolist() == pytest.approx(exact, rel=error)
    assert u[0, 1].tolist() == pytest.approx([1.0] * 5, rel=1e-7)
