"""The particles of the belief against posteriors and evidence in closed form."""

import math

import pytest
import torch
from sbi.utils import BoxUniform
from torch.distributions import Independent, MultivariateNormal, Normal, Poisson

from sbi_boed_plugin import estimate_eig
from sbi_boed_plugin.search.belief import ParticleBelief
from sbi_boed_plugin.search.measurements import SURPRISING, predictive_p_value
from tests.oracles import LinearGaussian

PRIOR = Independent(Normal(torch.zeros(2), 3.0), 1)


class Measured:
    """Log-likelihood of a straight line, measured with unit noise."""

    def __init__(self, x, design):
        self.x, self.design = torch.tensor(x), design

    def __call__(self, theta):
        return Normal(theta[:, 0] + theta[:, 1] * self.design, 1.0).log_prob(self.x)


OBSERVATIONS = [(52.0, 10.0), (-48.0, -10.0), (17.0, 3.0), (51.0, 10.0), (2.2, 0.0)]


def exact(observations):
    """Mean, covariance and log-evidence."""
    x = torch.tensor([x for x, _ in observations], dtype=torch.float64)
    rows = torch.tensor([[1.0, d] for _, d in observations], dtype=torch.float64)
    identity = torch.eye(2, dtype=torch.float64)
    covariance = torch.linalg.inv(rows.T @ rows + identity / 9.0)
    noise = torch.eye(len(x), dtype=torch.float64)
    marginal = MultivariateNormal(torch.zeros_like(x), noise + 9.0 * rows @ rows.T)
    return covariance @ rows.T @ x, covariance, marginal.log_prob(x).item()


def belief_after(*log_likelihoods, prior=PRIOR, seed=0, **kwargs):
    torch.manual_seed(seed)
    belief = ParticleBelief(prior, **kwargs)
    for log_likelihood in log_likelihoods:
        belief.update(log_likelihood)
    return belief


def assert_means(belief, mean, covariance):
    """Of 4,096 particles, moves leave perhaps a fourth independent."""
    error = (belief.particles.double().mean(dim=0) - mean).abs()
    assert (error < 5.0 * (covariance.diagonal() / 1_000).sqrt()).all()


def near(x, scale, of=lambda theta: theta[:, 0]):
    """Log-likelihood of a measurement of a function of the parameters."""
    return lambda theta: Normal(of(theta), scale).log_prob(torch.tensor(float(x)))


def test_it_is_the_posterior_after_every_observation():
    belief = belief_after()
    for count, observation in enumerate(OBSERVATIONS, start=1):
        belief.update(Measured(*observation))
        mean, covariance, log_evidence = exact(OBSERVATIONS[:count])
        assert_means(belief, mean, covariance)
        whitening = torch.linalg.inv(torch.linalg.cholesky(covariance))
        whitened = (belief.particles.double() - mean) @ whitening.T
        identity = torch.eye(2, dtype=torch.float64)
        torch.testing.assert_close(whitened.T.cov(), identity, atol=0.15, rtol=0.0)
        # Errors of the evidence add up from step to step: far below a tenth of a nat.
        assert belief.log_evidence == pytest.approx(log_evidence, abs=0.1)
        posterior = MultivariateNormal(mean, covariance)
        theta = posterior.sample(torch.Size((10,)))
        found, log_prob = belief.log_prob(theta.float()), posterior.log_prob(theta)
        torch.testing.assert_close(found.double(), log_prob, atol=0.2, rtol=0.0)


def test_separate_modes_keep_their_shares():
    """x = |theta| + noise: both signs stay equally likely, and are found again."""
    prior = Independent(Normal(torch.zeros(1), 2.0), 1)
    observed = near(3, 0.1, lambda theta: theta[:, 0].abs())
    particles = belief_after(*[observed] * 4, prior=prior, seed=1).particles
    assert (particles > 0.0).float().mean().item() == pytest.approx(0.5, abs=0.1)
    assert particles.abs().mean().item() == pytest.approx(3.0, abs=0.02)


def test_particles_stay_inside_a_bounded_prior():
    prior = BoxUniform(torch.zeros(1), torch.ones(1))
    # An observation beyond the edge: the posterior piles up at it.
    belief = belief_after(near(1.1, 0.2), prior=prior)
    theta = torch.linspace(0.0, 1.0, 10_001)
    density = near(1.1, 0.2)(theta.unsqueeze(1)).exp()
    mean = torch.trapezoid(theta * density, theta) / torch.trapezoid(density, theta)
    assert ((belief.particles > 0.0) & (belief.particles < 1.0)).all()
    assert belief.particles.mean().item() == pytest.approx(mean.item(), abs=0.01)
    evidence = math.log(torch.trapezoid(density, theta).item())
    assert belief.log_evidence == pytest.approx(evidence, abs=0.05)


def impossible(theta):
    return torch.full((len(theta),), -torch.inf)


@pytest.mark.parametrize(
    ("told", "log_likelihood"),
    [
        ("no finite log-likelihood.*4096 particles", impossible),
        # 30,000 standard deviations beyond the edge, where numbers are 1e-7 apart.
        ("different particles of 4096.*units", near(300, 0.01)),
    ],
)
def test_data_that_cannot_be_followed_are_refused_and_change_nothing(
    told, log_likelihood
):
    prior = BoxUniform(-2.0 * torch.ones(1), 2.0 * torch.ones(1))
    belief = belief_after(near(1, 0.5), prior=prior)
    particles, log_evidence = belief.particles.clone(), belief.log_evidence
    with pytest.raises(ValueError, match=told):
        belief.update(log_likelihood)
    assert torch.equal(belief.particles, particles)
    assert belief.log_evidence == log_evidence
    assert belief.log_prob(torch.zeros(1, 1)).isfinite()


def test_parameters_without_density_are_left_behind():
    def only_positive(theta):
        return torch.where(theta[:, 0] > 0.0, near(1, 1.0)(theta), -torch.inf)

    assert (belief_after(only_positive).particles[:, 0] > 0.0).all()


def test_the_variance_of_the_evidence_is_that_over_repetitions():
    errors, variances = [], []
    for seed in range(40):
        measured = (Measured(*observation) for observation in OBSERVATIONS[:2])
        belief = belief_after(*measured, seed=seed, num_particles=256)
        errors.append(belief.log_evidence - exact(OBSERVATIONS[:2])[2])
        variances.append(belief.log_evidence_variance)
    actual = torch.tensor(errors).std().item()
    expected = torch.tensor(variances).mean().sqrt().item()
    # Particles that moved little are more alike than the formula knows.
    assert 0.7 * expected < actual < 2.0 * expected


def test_an_independent_copy_has_particles_of_its_own():
    belief = belief_after(Measured(*OBSERVATIONS[0]))
    state = torch.get_rng_state()
    other = belief.independent_copy()
    assert torch.equal(state, torch.get_rng_state())
    assert belief.independent_copy() is other
    ours, others = (set(map(tuple, b.particles.tolist())) for b in (belief, other))
    assert not ours & others
    mean, covariance, log_evidence = exact(OBSERVATIONS[:1])
    assert_means(other, mean, covariance)
    assert other.log_evidence == pytest.approx(log_evidence, abs=0.1)
    assert 0.0 < other.log_evidence_variance < belief.log_evidence_variance
    belief.update(Measured(*OBSERVATIONS[1]))
    assert belief.independent_copy() is not other


@pytest.mark.parametrize("dim", [1, 10])
def test_data_a_thousand_times_as_precise_as_the_prior_are_followed(dim):
    prior = Independent(Normal(torch.zeros(dim), 1.0), 1)
    belief = belief_after(prior=prior)
    truth, noise, total = torch.randn(dim), 1e-3, torch.zeros(dim)
    for count in (1, 2):
        x = truth + noise * torch.randn(dim)
        belief.update(lambda theta, x=x: Normal(theta, noise).log_prob(x).sum(dim=1))
        total = total + x
        mean, std = total / count, noise / math.sqrt(count)
        # 4,096 particles, of which moves leave perhaps a fourth independent.
        assert ((belief.particles.mean(dim=0) - mean) / std).abs().max() < 0.15
        widths = belief.particles.std(dim=0) / std
        torch.testing.assert_close(widths, torch.ones(dim), atol=0.1, rtol=0.0)


def test_discrete_parameters_stay_discrete_and_may_become_certain():
    # Whether torch validates depends on what else was imported.
    rates = torch.full((1,), 20.0)
    prior = Independent(Poisson(rates, validate_args=True), 1, validate_args=True)
    belief = belief_after(near(17, 0.1), prior=prior)
    assert belief.particles.unique().tolist() == [17.0]
    belief = belief_after(near(17, 1.0), prior=prior)
    counts = torch.arange(10.0, 25.0)
    log_weight = prior.log_prob(counts.unsqueeze(1)) - 0.5 * (counts - 17.0) ** 2
    found = (belief.particles == counts).float().mean(dim=0)
    torch.testing.assert_close(found, log_weight.softmax(0), atol=0.03, rtol=0.0)


def test_p_values_of_data_that_are_predicted_are_uniform():
    torch.manual_seed(0)
    prior, design = LinearGaussian.prior, torch.tensor([2.0])
    theta = prior.sample(torch.Size((4_096,)))
    truths = prior.sample(torch.Size((200, 1)))
    data = [LinearGaussian.simulate(truth, design) for truth in truths]
    values = torch.tensor(
        [predictive_p_value(LinearGaussian, theta, design, x) for x in data]
    )
    # The smaller of two that are nearly the same. Standard error 0.035.
    assert (values < 0.5).float().mean().item() == pytest.approx(0.5, abs=0.13)
    assert (values < SURPRISING).sum() <= 2


class HighFarAway(LinearGaussian):
    """A likelihood that is wrong beyond its simulations."""

    @staticmethod
    def log_prob(input, condition):
        values = LinearGaussian.log_prob(input, condition)
        return torch.where(input[..., 0] > 30.0, 10.0, values)


@pytest.mark.parametrize("distance", [20.0, 100.0, 300.0])
@pytest.mark.parametrize("likelihood", [LinearGaussian, HighFarAway])
def test_data_far_from_all_that_is_predicted_are_told(distance, likelihood):
    torch.manual_seed(0)
    theta = LinearGaussian.prior.sample(torch.Size((256,)))
    # The predictive standard deviation is the root of five.
    x = torch.tensor([[5.0**0.5 * distance]])
    p_value = predictive_p_value(likelihood, theta, torch.tensor([2.0]), x)
    assert p_value < SURPRISING


def test_information_beyond_a_belief_is_known_to_its_particles_alone():
    """They are contrasted with one another, however many simulations there are."""
    torch.manual_seed(0)
    belief = ParticleBelief(LinearGaussian.prior, num_particles=16)
    settings = {"design": torch.tensor([30.0]), "bound": "pce"}
    model = LinearGaussian.log_likelihood, LinearGaussian.simulate
    with pytest.warns(UserWarning, match="largest value"):
        eig = estimate_eig(*model, prior=belief, **settings)
    assert eig.cap == pytest.approx(math.log(16), abs=1e-5)
    # 16 independent terms, of whatever many there are for a prior.
    of_prior = estimate_eig(*model, prior=LinearGaussian.prior, **settings)
    assert eig.standard_error > 3.0 * of_prior.standard_error
