"""Likelihoods against the models as written, and exact information against them."""

import math

import pytest
import torch
from torch.distributions import Normal

from sbi_boed_plugin import estimate_eig
from sbi_boed_plugin.tasks import (
    BMP,
    CES,
    SIR,
    Camera,
    DeathProcess,
    GaussianLinear,
    HyperbolicDiscounting,
    LocationFinding,
    NoisyLinear,
    Pharmacokinetic,
    PreyPopulation,
    Psychometric,
    Task,
    Trace,
)


def kolmogorov_smirnov(probabilities: torch.Tensor) -> float:
    """Return the distance from the uniform distribution over its 0.1 % quantile."""
    num = len(probabilities)
    ordered = probabilities.double().sort().values
    steps = torch.arange(1, num + 1, dtype=torch.float64) / num
    distance = torch.maximum(
        (ordered - steps).abs(), (ordered - steps + 1.0 / num).abs()
    )
    return float(distance.max()) * math.sqrt(num) / 1.95


def bmp(theta, design):
    affinity, efficiency = theta
    k = affinity * design
    return efficiency * ((2 * k + 1) - (4 * k + 1).sqrt()) / (2 * k), 0.1


def line(theta, design):
    return theta[0] + theta[1] * design, 1.0


def log_signal(theta, design):
    """The mean of the data, source by source."""
    total = 0.1
    for source in theta.view(-1, len(design)).tolist():
        total += 1.0 / (1e-4 + math.dist(source, design.tolist()) ** 2)
    return torch.tensor([math.log(total)]), 0.5


def blood(theta, times):
    absorption, elimination, volume = theta
    decays = torch.exp(-elimination * times) - torch.exp(-absorption * times)
    mean = 400.0 / volume * absorption / (absorption - elimination) * decays
    return mean, (0.01 * mean**2 + 0.1).sqrt()


@pytest.mark.parametrize(
    ("task", "design", "moments"),
    [
        (BMP(dim_design=2, noise=0.1), [0.3, 500.0], bmp),
        (GaussianLinear(dim_design=3), [-10.0, 0.0, 7.0], line),
        (LocationFinding(num_sources=1, dim_space=1), [0.5], log_signal),
        (LocationFinding(), [-1.0, 3.0], log_signal),
        (LocationFinding(num_sources=3), [-0.9, -1.1], log_signal),
        (LocationFinding(num_sources=2, dim_space=3), [0.0, 1.0, -1.0], log_signal),
        (Pharmacokinetic(dim_design=3), [0.0, 2.0, 20.0], blood),
    ],
)
def test_simulated_data_follow_the_model_as_written(task, design, moments):
    design = torch.tensor(design)
    mean, scale = moments(task.true_parameters[0], design)
    theta = task.true_parameters.expand(20_000, -1)
    x = task.simulator(theta, design.expand(20_000, -1))
    expected = Normal(mean, scale)
    for column in expected.cdf(x).T:
        assert kolmogorov_smirnov(column) < 1.0
    torch.testing.assert_close(
        task.log_likelihood(x, theta, design),
        expected.log_prob(x).sum(dim=1),
        rtol=1e-4,
        atol=1e-4,
    )


FEWER = {"num_samples": 1_024}
CASES: list[tuple[Task, list[float], dict]] = [
    *((BMP(noise=s), [d], FEWER) for s in (0.02, 0.2) for d in (0.1, 1_000.0)),
    (BMP(dim_design=2), [1.0, 100.0], FEWER),
    (CES(), [10.0, 40.0, 30.0, 30.0, 20.0, 40.0], {}),
    (CES(), [50.0] * 6, {}),
    (CES(), [100.0, 0.0, 0.0, 0.0, 100.0, 0.0], {}),
    (CES(), [50.0, 1.0, 1.0, 49.0, 1.0, 1.0], {}),
    *((LocationFinding(), d, {}) for d in ([0.0, 0.0], [1.5, -1.0], [-4.0, 4.0])),
    (LocationFinding(num_sources=1, dim_space=1), [0.7], {}),
    (LocationFinding(num_sources=3), [0.7, 0.7], {}),
    (LocationFinding(dim_space=3), [0.7, 0.7, 0.7], {}),
    *((DeathProcess(), [time], FEWER) for time in (0.1, 1.3, 10.0)),
    *((PreyPopulation(), [number], FEWER) for number in (1.0, 50.4, 300.0)),
    *((HyperbolicDiscounting(), d, FEWER) for d in ([50.0, 4.2], [90.0, 1.0])),
    *((Psychometric(), [intensity], FEWER) for intensity in (-6.0, 0.5)),
    *((Pharmacokinetic(), [time], FEWER) for time in (0.5, 17.0, 24.0)),
    (Pharmacokinetic(dim_design=2), [1.0, 18.0], FEWER),
    *(
        (family(dim_design=len(design)), design, {})
        for family in (GaussianLinear, NoisyLinear)
        for design in ([1.0], [4.0], [-2.0, 2.0], [3.0, 3.0, -1.0])
    ),
]


@pytest.mark.slow
@pytest.mark.parametrize(("task", "design", "accuracy"), CASES)
def test_exact_eig_agrees_with_nested_monte_carlo(task, design, accuracy):
    """Compare with an estimate that shares neither samples nor code with the task's."""

    def simulator(theta, design):
        return task.simulator(theta.double(), design.double())

    def log_likelihood(x, theta, design):
        return task.log_likelihood(x, theta.double(), design.double())

    value, error = task.exact_eig(torch.tensor(design), **accuracy)
    nested = estimate_eig(
        log_likelihood,
        simulator,
        prior=task.prior,
        design=torch.tensor(design),
        bound="exact",
        num_samples=1_000,
        num_contrastive=2_000,
        seed=0,
    )
    combined = math.hypot(error, nested.standard_error)
    assert combined < 0.1
    assert value == pytest.approx(nested.value, abs=4.0 * combined)


@pytest.mark.parametrize(
    "task",
    [
        BMP(dim_design=2),
        Camera(),
        CES(),
        DeathProcess(),
        HyperbolicDiscounting(),
        LocationFinding(),
        Pharmacokinetic(),
        PreyPopulation(),
        Psychometric(),
        Trace(),
    ],
    ids=repr,
)
def test_likelihood_is_on_the_device_of_the_data(task):
    """Torch's meta device stands for any that is not the CPU."""
    theta = task.prior.sample((4,)).to("meta")
    design = torch.empty(4, task.dim_design, device="meta")
    x = torch.empty(4, task.dim_x, device="meta")
    log_likelihood = task.log_likelihood(x, theta, design)
    assert log_likelihood.device.type == "meta"
    assert log_likelihood.shape == (4,)


THETA = r"`theta` must be in the support of the prior, .*natural units"
REFUSED = [
    (BMP(), [-0.5, 0.5], [1.0], THETA),
    (BMP(), [0.5, 0.5], [-1.0], "`design` must not be negative, got -1"),
    (CES(), [0.5, 1.2, 0.5, 1.0], [1.0] * 6, THETA),
    (CES(), [0.5, 0.5, 0.5, -1.0], [1.0] * 6, THETA),
    (CES(), [0.5] * 4, [-1.0] * 6, "`design` must not be negative, got -1"),
    (DeathProcess(), [-0.5], [1.0], THETA),
    (DeathProcess(), [0.5], [-1.0], "`design` must not be negative, got -1"),
    (HyperbolicDiscounting(), [-4.0, -1.0], [50.0, 1.0], THETA),
    (PreyPopulation(), [0.0, 1.0], [50.0], THETA),
    (Pharmacokinetic(), [0.0, -2.3, 3.0], [1.0], THETA),
    (Pharmacokinetic(), [1.0] * 3, [-1.0], "`design` must not be negative, got -1"),
    (SIR(), [-0.5, 0.1], [10.0], THETA),
    (SIR(), [0.5, 0.1], [-1.0], "`design` must not be negative, got -1"),
]


@pytest.mark.parametrize(("task", "theta", "design", "message"), REFUSED)
def test_values_out_of_range_are_refused(task, theta, design, message):
    with pytest.raises(ValueError, match=message):
        task.simulator(torch.tensor([theta]), torch.tensor([design]))
    if design[0] < 0 and task.has_exact_eig:
        with pytest.raises(ValueError, match=message):
            task.exact_eig(torch.tensor(design))
