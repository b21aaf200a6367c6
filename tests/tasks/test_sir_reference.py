"""The brute-force information gain against a model with a known one."""

import math

import pytest
import torch

from sbi_boed_plugin.tasks import brute_force_eig, sir

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
