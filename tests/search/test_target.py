"""Information about a part of the parameters, against closed forms."""

import math

import pytest
import torch
from sbi.utils import BoxUniform
from torch.distributions import (
    Bernoulli,
    Gamma,
    Independent,
    LogNormal,
    MultivariateNormal,
    Normal,
)

from sbi_boed_plugin import NLE_INCE, TruncatedNormalPolicy
from sbi_boed_plugin.search.belief import ParticleBelief
from sbi_boed_plugin.search.target import Target
from tests.trainers.cases import message

NORMAL = MultivariateNormal(torch.zeros(2), torch.tensor([[1.0, 0.6], [0.6, 1.0]]))
NOISE = 0.2


def simulator(theta, design):
    """One parameter matters; the other, the same in all experiments, disturbs."""
    signal = theta[:, :1] * design + 3.0 * theta[:, 1:] * (1.0 - design)
    return signal + NOISE * torch.randn(len(theta), 1)


def exact(design):
    noise = 9.0 * (1.0 - design) ** 2 + NOISE**2
    return 0.5 * math.log(1.0 + design**2 / noise)


def make_trainer(prior=None):
    prior = prior or MultivariateNormal(torch.zeros(2), torch.eye(2))
    policy = TruncatedNormalPolicy(torch.tensor([-2.0]), torch.tensor([2.0]))
    return NLE_INCE(prior, "mdn", design_policy=policy, show_progress_bars=False)


@pytest.mark.parametrize(
    "settings",
    [
        pytest.param({"method": "joint", "num_steps": 300}, marks=pytest.mark.slow),
        pytest.param(
            {"method": "multi_start", "num_steps": 300}, marks=pytest.mark.slow
        ),
        pytest.param({"max_num_simulations": 1_000}, marks=pytest.mark.slow),
    ],
    ids=lambda settings: settings.get("method", "rounds"),
)
@pytest.mark.filterwarnings("ignore:The networks", "ignore:A linear", "ignore:Designs")
def test_the_design_is_that_of_the_target(settings):
    result = make_trainer().optimize_design(simulator, target=0, **settings)
    found, eig = exact(result.design.item()), result.eig
    assert found > 0.9 * exact(1.0)
    assert eig.bound == "barber_agakov" and set(result.bounds) <= {eig.bound, "linear"}
    assert eig.value < found + 3.0 * eig.standard_error
    assert "about the target" in str(result)
    assert result.posterior_estimator is None
    x = torch.cat([torch.tensor([[1.0]]), result.design.unsqueeze(0)], dim=1)
    samples = result.target_estimator
    samples = getattr(samples, "members", [samples])[0].net.sample((2_000,), x)
    assert samples.shape == (2_000, 1, 1)
    if "method" in settings:  # It has learned from enough.
        assert eig.value > found - (0.25 if settings["method"] == "joint" else 0.35)
    if settings.get("method") == "joint":  # It knows this design best.
        assert samples.mean().item() == pytest.approx(1.0, abs=0.15)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:The networks", "ignore:The policy")
def test_nuisance_stays_from_experiment_to_experiment():
    trainer = make_trainer()
    trainer.optimize_design(simulator, method="multi_start", target=0, num_steps=400)
    designs, x = (
        torch.tensor([[0.6], [0.6], [0.4]]),
        torch.tensor([[1.5], [1.4], [2.2]]),
    )
    trainer.observe(designs, x)
    rows = torch.cat([designs, 3.0 * (1.0 - designs)], dim=1)
    precision = torch.eye(2) + rows.T @ rows / NOISE**2
    covariance = torch.linalg.inv(precision)
    mean, sd = (covariance @ rows.T @ x / NOISE**2)[0], covariance[0, 0].sqrt()
    particles = trainer.belief.particles[:, 0]
    assert abs(particles.mean() - mean) < 0.25 * sd
    assert particles.std() == pytest.approx(sd.item(), rel=0.2)
    # A further search knows of what was observed: the prior is the belief.
    result = trainer.optimize_design(simulator, target=0, num_steps=20)
    assert result.eig.bound == "target" and "an estimate" in str(result)


def test_priors_of_targets_that_are_known():
    theta = torch.rand(50, 2)
    gamma = Independent(Gamma(torch.tensor([2.0, 3.0]), torch.tensor([1.0, 4.0])), 1)
    normal = Independent(LogNormal(torch.zeros(2), torch.tensor([1.0, 2.0])), 1)
    box = BoxUniform(torch.zeros(2), torch.tensor([1.0, 4.0]))
    alone = {
        gamma: Gamma(3.0, 4.0),
        normal: LogNormal(0.0, 2.0),
        box: torch.distributions.Uniform(0.0, 4.0),
        NORMAL: Normal(0.0, 1.0),
    }
    for prior, one in alone.items():
        target = Target([1], prior)
        found = target(theta)
        assert target.is_exact and torch.equal(found, theta[:, 1:])
        torch.testing.assert_close(target.log_prior(found), one.log_prob(theta[:, 1]))
    both = Target([1, 0], NORMAL)
    torch.testing.assert_close(
        both.log_prior(both(theta)), NORMAL.log_prob(theta[:, [1, 0]])
    )


def test_priors_of_functions_are_fitted():
    target = Target(lambda theta: theta.sum(dim=1) ** 2 + theta[:, 0], NORMAL)
    theta = NORMAL.sample((4_000,))
    draws = target(theta)
    assert not target.is_exact and draws.shape == (4_000, 1)
    total = Target(lambda theta: theta.sum(dim=1), NORMAL)
    exact = Normal(0.0, 3.2**0.5).log_prob(theta.sum(dim=1))
    fitted = total.log_prior(total(theta))
    assert (fitted - exact).mean().abs() < 0.02 and total.error < 0.02
    assert total.distribution.sample((5,)).shape == (5, 1)


def test_values_that_repeat_have_probabilities():
    coins = Independent(Bernoulli(torch.tensor([0.2, 0.5])), 1)
    target = Target(0, coins)
    assert target.is_exact
    log_p = target.log_prior(target(torch.tensor([[0.0, 1.0], [1.0, 1.0]])))
    torch.testing.assert_close(log_p.exp(), torch.tensor([0.8, 0.2]))
    sign = Target(lambda theta: (theta[:, 0] > 1.0).float(), NORMAL)
    probability = 1.0 - Normal(0.0, 1.0).cdf(torch.tensor(1.0))
    found = sign.log_prior(sign(torch.tensor([[2.0, 0.0]]))).exp()
    assert not sign.is_exact
    assert found.item() == pytest.approx(probability.item(), rel=0.05)


def test_particles_do_not_count_as_values():
    belief = ParticleBelief(NORMAL, num_particles=2_000)
    target = Target(0, belief)
    assert target.values is None and not target.is_exact


@pytest.mark.parametrize("scale", [1e-6, pytest.param(1e4, marks=pytest.mark.slow)])
@pytest.mark.parametrize(
    "exponent", [0.0, pytest.param(1.0, marks=pytest.mark.slow), 3.0]
)
def test_fitted_priors_know_small_and_skewed_targets(scale, exponent):
    """Entropies of a line and of exponentials of a Normal, in closed form."""

    def function(theta):
        first = theta[:, 0]
        return scale * ((exponent * first).exp() if exponent else first)

    entropy = 0.5 * math.log(2.0 * math.pi * math.e) + math.log(scale)
    entropy += math.log(exponent) if exponent else 0.0
    target = Target(function, NORMAL)
    theta = NORMAL.sample((20_000,))
    found = -target.log_prior(target(theta)).double().mean()
    assert found.item() == pytest.approx(entropy, abs=0.05)


def test_large_values_keep_their_places():
    def function(theta):
        return 10_000.0 + theta[:, 0].round().clamp(-1, 1)

    target = Target(function, NORMAL)
    theta = torch.tensor([[-2.0, 0.0], [0.0, 0.0], [2.0, 0.0]]).repeat(50, 1)
    assert torch.equal(target(theta)[:, 0], torch.tensor([0.0, 1.0, 2.0]).repeat(50))


def test_a_box_far_from_zero_has_a_density():
    box = BoxUniform(torch.tensor([1_000.0]), torch.tensor([1_001.0]))
    assert Target(0, box).values is None


@pytest.mark.parametrize(
    ("target", "said"),
    [
        (2, "integers between 0 and 1"),
        ([], "integers between 0 and 1"),
        ([0, -2], "names a parameter twice"),
        ("mean", "integers between 0 and 1"),
        (lambda theta: 0.0 * theta[:, 0], "value 0 is 0 for all draws"),
        (lambda theta: theta[:5], "must return"),
        (lambda theta: theta[:, 0] / 0.0, "is not finite"),
        (lambda theta: (100.0 * theta[:, 0]).round(), "too many for probabilities"),
        (lambda theta: theta[:, 0].clamp(max=1.8), "some of its values repeat"),
        (
            lambda theta: torch.stack([(theta[:, 0] > 0).float(), theta[:, 1]], 1),
            "some of its values repeat",
        ),
    ],
)
def test_bad_targets_are_refused_before_any_work(target, said):
    def never(theta, design):
        raise AssertionError("simulated")

    with pytest.raises(ValueError, match=message(said)):
        make_trainer().optimize_design(never, target=target)


@pytest.mark.parametrize("objective", ["info_nce", "lace", "gkl", "marginal"])
def test_a_target_has_its_own_objective(objective):
    with pytest.raises(ValueError, match="a target has a posterior network"):
        make_trainer().optimize_design(simulator, target=0, objective=objective)
    with pytest.raises(ValueError, match="without target="):
        make_trainer().optimize_design(simulator, objective="target")
