"""The epidemic against exact answers and finer integrations, and its reference."""

import math

import pytest
import torch

from sbi_boed_plugin.tasks import SIR, brute_force_eig, sir
from sbi_boed_plugin.tasks.sir import NUM_STEPS, infected_at, time_grid
from tests.tasks.test_likelihoods import kolmogorov_smirnov

# (beta, gamma, time); `None` takes the parameters from the prior.
SETTINGS = [
    ((0.8, 0.1), 5.0),
    ((0.8, 0.1), 20.0),
    ((0.8, 0.1), 60.0),
    ((1.5, 0.1), 20.0),
    (None, 20.0),
    (None, 60.0),
]


def parameters(theta: tuple[float, float] | None, num: int) -> torch.Tensor:
    if theta is None:
        return SIR().prior.sample((num,))
    return torch.tensor([theta]).expand(num, 2)


def counts(theta, times, num_steps=NUM_STEPS):
    """The infected before they are rounded to people."""
    return infected_at(theta, times, num_steps=num_steps)


def simulate(theta, time, num_steps=NUM_STEPS):
    return counts(theta, torch.tensor([[time]]), num_steps)[:, 0]


def euler_maruyama(theta: torch.Tensor, time: float, num_steps: int) -> torch.Tensor:
    """The equations as they are written, step by step."""
    infected = []
    for beta, gamma in (chunk.T for chunk in theta.split(5_000)):
        s, i = torch.full_like(beta, 498.0), torch.full_like(beta, 2.0)
        dt = time / num_steps
        for _ in range(num_steps):
            dw = math.sqrt(dt) * torch.randn(2, len(beta))
            h, g = beta * s * i / 500.0, gamma * i
            infections = h * dt + h.sqrt() * dw[0]
            recoveries = g * dt + g.sqrt() * dw[1]
            s = (s - infections).clamp(0.0, 500.0)
            i = (i + infections - recoveries).clamp(0.0, 500.0)
        infected.append(i)
    return torch.cat(infected)


def assert_same_distribution(ours: torch.Tensor, reference: torch.Tensor) -> None:
    """Compare mean, spread and extinct share of counts, at 4.5 standard errors.

    Each comparison fails by chance about once in 100,000 times.
    """
    ours, reference = ours.round().double(), reference.round().double()
    for statistic in (
        lambda count: count,
        lambda count: (count - reference.mean()).square(),
        lambda count: (count == 0).double(),
    ):
        a, b = statistic(ours), statistic(reference)
        error = math.sqrt(float(a.var() / len(a) + b.var() / len(b)))
        assert float((a.mean() - b.mean()).abs()) <= 4.5 * error


@pytest.mark.parametrize(("theta", "time"), SETTINGS[1:4:2] + SETTINGS[5:])
def test_steps_are_fine_enough_for_the_equations_as_written(theta, time):
    theta = parameters(theta, 20_000)
    ours = simulate(theta, time)
    assert_same_distribution(ours, euler_maruyama(theta, time, 10 * NUM_STEPS))


@pytest.mark.slow
@pytest.mark.parametrize(("theta", "time"), SETTINGS)
def test_steps_are_fine_enough_against_eight_times_finer_ones(theta, time):
    theta = parameters(theta, 100_000)
    finer = simulate(theta, time, num_steps=8 * NUM_STEPS)
    assert_same_distribution(simulate(theta, time), finer)


def test_the_comparison_notices_coarse_steps():
    theta = parameters((0.8, 0.1), 20_000)
    coarse = simulate(theta, 20.0, num_steps=4)
    with pytest.raises(AssertionError):
        assert_same_distribution(coarse, simulate(theta, 20.0))


@pytest.mark.parametrize("time", [2.0, 15.0])
def test_without_infection_the_branching_process_is_exact(time):
    gamma, num = 0.1, 100_000
    infected = simulate(parameters((0.0, gamma), num), time)
    # Feller's diffusion dI = -gamma I dt + sqrt(gamma I) dW from I = 2.
    decay = math.exp(-gamma * time)
    mean, variance = 2.0 * decay, 2.0 * decay * (1.0 - decay)
    extinct = math.exp(-4.0 * decay / (1.0 - decay))
    # Four standard errors; the fourth moment is below ten times the variance squared.
    assert abs(float(infected.mean()) - mean) < 4.0 * math.sqrt(variance / num)
    assert float(infected.var()) == pytest.approx(variance, rel=12.0 / math.sqrt(num))
    share = float((infected == 0).double().mean())
    # In one last step an epidemic may be caught between 0 and a hundredth of a person.
    assert abs(share - extinct) < 4.0 * math.sqrt(extinct / num) + 2e-3


def test_without_recovery_everybody_is_infected_in_the_end():
    infected = simulate(parameters((0.8, 0.0), 2_000), 60.0)
    # Who leaves the susceptible joins the infected: the noise of both is one. Noise of
    # their own would leave the infected some 20 people off. (An epidemic may still die
    # out at the start.)
    assert float(infected[infected > 0].min()) > 495.0
    assert float((infected > 0).double().mean()) > 0.95


def test_time_grid_meets_every_time():
    times = torch.tensor([[30.0, 10.0, 10.0], [5.0, 0.0, 80.0]])
    steps, index = time_grid(times, 50)
    assert (steps >= 0).all()
    torch.testing.assert_close(steps.cumsum(0).gather(0, index).T, times)


def test_order_of_times_does_not_matter():
    task = SIR(dim_design=2)
    theta = task.prior.sample((50,))
    design = task.design_space.sample((50,))
    torch.manual_seed(3)
    x = counts(theta, design)
    torch.manual_seed(3)
    assert torch.equal(counts(theta, design.flip(1)), x.flip(1))


def test_several_times_belong_to_one_epidemic():
    theta = parameters(None, 2_000)
    x = counts(theta, torch.tensor([[20.0, 20.0, 90.0]]))
    assert torch.equal(x[:, 0], x[:, 1])
    extinct = x[:, 0] == 0
    assert 50 < int(extinct.sum()) < 1_950
    assert (x[extinct, 2] == 0).all()


def test_a_further_time_does_not_change_the_others():
    theta = parameters((0.8, 0.1), 20_000)
    together = counts(theta, torch.tensor([[20.0, 50.0]]))
    assert_same_distribution(simulate(theta, 20.0), together[:, 0])


def test_rows_do_not_depend_on_chunks(monkeypatch):
    theta = SIR().prior.sample((10_000,))
    whole = simulate(theta, 30.0, num_steps=50)
    monkeypatch.setattr("sbi_boed_plugin.tasks.sir._CHUNK_ROWS", 999)
    times = torch.full((10_000, 1), 30.0)
    assert_same_distribution(counts(theta, times, 50)[:, 0], whole)


def test_data_are_counts_plus_uniform_noise():
    task = SIR()
    theta = parameters((0.8, 0.1), 10_000)
    x = task.simulator(theta, torch.full((10_000, 1), 10.0))[:, 0]
    assert (x >= 0).all() and (x < 501).all()
    assert kolmogorov_smirnov(x - x.floor()) < 1.0
    # The counts themselves are centred on people, not on their lower neighbours.
    raw = counts(theta, torch.full((10_000, 1), 10.0))[:, 0]
    assert_same_distribution(x.floor(), raw)


def test_uniform_noise_never_reaches_the_next_count(monkeypatch):
    last = 1.0 - 2.0**-24
    monkeypatch.setattr(torch, "rand_like", lambda x: torch.full_like(x, last))
    theta, design = parameters((0.8, 0.1), 1_000), torch.full((1_000, 1), 12.0)
    torch.manual_seed(0)
    raw = counts(theta, design)
    torch.manual_seed(0)
    x = SIR().simulator(theta, design)
    assert raw.max() > 256
    assert torch.equal(x.floor(), raw.round())


def test_extreme_parameters_stay_within_the_population():
    theta = torch.tensor([[1e-3, 5.0], [20.0, 1e-3], [20.0, 20.0], [0.0, 0.0]])
    x = counts(theta, torch.full((4, 1), 100.0))
    assert x.isfinite().all()
    assert (x >= 0).all() and (x <= 500).all()
    assert float(x[3]) == 2.0


# 2048 parameters x 8192 trajectories x 400 steps, seed 0: time, value, standard error.
REFERENCE = {
    1.0: (0.1606, 0.0018),
    10.0: (0.9890, 0.0015),
    20.0: (1.1617, 0.0018),
    40.0: (1.2772, 0.0026),
    60.0: (1.1402, 0.0014),
    100.0: (0.6566, 0.0015),
}


def gaussian_counts(theta, times, *, num_steps, generator):
    """Counts that are Gaussian around the logarithm of beta, at any time."""
    z = (theta[:, :1] / 0.5).log() / 0.5
    mean = 250.0 + 30.0 * z
    noise = torch.randn(len(theta), times.shape[1], generator=generator)
    return (mean + 20.0 * noise).clamp(0, 500)


def test_known_information_gain_is_found(monkeypatch):
    monkeypatch.setattr(sir, "infected_at", gaussian_counts)
    result = brute_force_eig(
        torch.tensor([1.0, 2.0]), num_parameters=512, num_trajectories=1024
    )
    expected = 0.5 * math.log(1.0 + (30.0 / 20.0) ** 2)
    # Four standard errors; rounding to counts changes the gain by less than 1e-3.
    tolerance = 4.0 * result.standard_error + 1e-3
    assert ((result.eig - expected).abs() < tolerance).all()
    assert (result.standard_error < 0.01).all()


def test_few_parameters_still_have_an_honest_error(monkeypatch):
    monkeypatch.setattr(sir, "infected_at", gaussian_counts)
    runs = [
        brute_force_eig(
            torch.tensor([1.0]),
            num_parameters=32,
            num_replicates=8,
            num_trajectories=2048,
            seed=seed,
        )
        for seed in range(40)
    ]
    values = torch.cat([run.eig for run in runs])
    stated = torch.cat([run.standard_error for run in runs]).mean()
    # The spread of 40 values is known to within 11 %; the jackknife errs on the side
    # of caution.
    assert 0.6 < float(values.std() / stated) < 1.4
    # Four standard errors.
    expected = 0.5 * math.log(1.0 + (30.0 / 20.0) ** 2)
    tolerance = 4.0 * float(values.std()) / math.sqrt(40)
    assert float(values.mean()) == pytest.approx(expected, abs=tolerance)


def test_entropy_of_sparse_histograms_is_unbiased():
    num_bins, num_draws, num_repeats = 300, 600, 200
    draws = torch.randint(num_bins, (num_repeats, num_draws))
    counts = torch.zeros(num_repeats, num_bins).scatter_add_(
        1, draws, torch.ones(num_repeats, num_draws)
    )
    estimate = sir.unbiased_entropy(counts)
    # The histogram's own entropy is 0.25 too low here. Four standard errors are 0.005.
    assert float(estimate.mean()) == pytest.approx(math.log(num_bins), abs=0.01)
    assert float(sir._entropy(counts).mean()) < math.log(num_bins) - 0.2


def test_result_is_seeded_and_leaves_the_global_generator_alone():
    options = {"num_parameters": 8, "num_trajectories": 8, "num_replicates": 2}
    times = torch.tensor([5.0, 50.0])
    state = torch.get_rng_state()
    first = brute_force_eig(times, num_steps=20, seed=1, **options)
    assert torch.equal(torch.get_rng_state(), state)
    again = brute_force_eig(times, num_steps=20, seed=1, **options)
    other = brute_force_eig(times, num_steps=20, seed=2, **options)
    assert torch.equal(first.eig, again.eig)
    assert not torch.equal(first.eig, other.eig)


def test_information_gain_of_an_epidemic():
    times = torch.tensor(list(REFERENCE))
    expected, error = torch.tensor(list(REFERENCE.values())).T
    result = brute_force_eig(
        times, num_parameters=256, num_trajectories=1024, num_steps=150
    )
    # Four standard errors, and the bias that so few trajectories leave.
    margin = 4.0 * (result.standard_error**2 + error**2).sqrt() + 0.01
    assert ((result.eig - expected).abs() < margin).all()
    assert times[result.eig.argmax()] == 40.0


@pytest.mark.slow
def test_information_gain_of_an_epidemic_with_another_seed():
    times = torch.tensor(list(REFERENCE))
    expected, error = torch.tensor(list(REFERENCE.values())).T
    result = brute_force_eig(times, num_steps=400, seed=1)
    # Four standard errors, and the bias that 2048 trajectories leave.
    margin = 4.0 * (result.standard_error**2 + error**2).sqrt() + 0.003
    assert ((result.eig - expected).abs() < margin).all()


def test_arguments_are_checked():
    with pytest.raises(ValueError, match="`times` must be a vector"):
        brute_force_eig(torch.tensor([-1.0]))
    with pytest.raises(ValueError, match="num_replicates=1 must be at least 2"):
        brute_force_eig(torch.tensor([1.0]), num_replicates=1)
