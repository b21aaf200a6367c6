"""Posteriors of likelihoods that a posterior estimator proposes."""

import copy
import math
import pickle
import warnings

import pytest
import torch
from sbi.diagnostics import run_sbc
from sbi.inference import NLE, NPE
from sbi.inference.posteriors import MCMCPosterior
from sbi.inference.posteriors.posterior_parameters import MCMCPosteriorParameters
from sbi.utils import BoxUniform
from sbi.utils.metrics import c2st
from scipy.stats import kstest, norm, truncnorm
from torch.distributions import Independent, Normal

from sbi_boed_plugin import (
    NLE_INCE,
    HybridPosterior,
    HybridPosteriorParameters,
    TruncatedNormalPolicy,
)
from sbi_boed_plugin.estimators.likelihood_hybrid import LikelihoodHybrid
from sbi_boed_plugin.estimators.particle_density import ParticleDensity
from tests.conftest import NoOpTracker
from tests.hybrids import PRIOR, GaussianBase

QUIET = {"show_progress_bars": False}
QUIET_BAR = {"show_progress_bar": False}
SCALE = 0.4
# One well inside of the prior's box, and one at its edge.
X = torch.tensor([[0.5, -0.4], [2.9, 1.0]])


class Gaussian1d(GaussianBase):
    """The same of one parameter and one value."""

    input_shape = condition_shape = torch.Size((1,))


def exact(scale=SCALE, x=X):
    """Return the coordinates' distributions, a list for each observation."""
    return [
        [truncnorm((-3 - v) / scale, (3 - v) / scale, v, scale) for v in row]
        for row in x.tolist()
    ]


def posterior_of(base_scale, prior=PRIOR, **kwargs):
    """A Gaussian is both the likelihood of x around theta and a base around x."""
    networks = GaussianBase(base_scale), GaussianBase(SCALE)
    return HybridPosterior.from_estimators(*networks, prior, **kwargs)


def assert_draws(samples, distributions):
    for values, distribution in zip(samples.T, distributions, strict=True):
        assert kstest(values.numpy(), distribution.cdf).pvalue > 1e-4


@pytest.mark.parametrize("base_scale", [0.35, 0.4, 1.0])
def test_samples_and_densities_are_those_of_the_likelihood(base_scale):
    torch.manual_seed(0)
    posterior = posterior_of(base_scale)
    samples = posterior.sample_batched((2_000,), x=X, **QUIET)
    for row, distributions in enumerate(exact()):
        assert_draws(samples[:, row], distributions)
        theta = samples[:50, row]
        log_prob = posterior.log_prob(theta, x=X[row : row + 1])
        expected = sum(
            torch.from_numpy(d.logpdf(v.numpy()))
            for d, v in zip(distributions, theta.T, strict=True)
        )
        torch.testing.assert_close(log_prob.double(), expected, atol=0.05, rtol=0)
    outside = posterior.log_prob(torch.tensor([[3.1, 0.0]]), x=X[:1])
    assert outside.item() == -torch.inf


@pytest.mark.parametrize("ratio", [3.0, 10.0])
def test_a_base_that_is_too_narrow_is_noticed_with_one_parameter(ratio):
    """Most weights are alike there, and the effective sample size is small late."""
    torch.manual_seed(0)
    prior = BoxUniform(-10.0 * torch.ones(1), 10.0 * torch.ones(1))
    networks = Gaussian1d(1.0 / ratio), Gaussian1d(1.0)
    posterior = HybridPosterior.from_estimators(*networks, prior)
    x = torch.tensor([[0.3]])
    with pytest.warns(UserWarning, match="covers too little.*tail index"):
        samples = posterior.sample((2_000,), x=x, **QUIET)
    assert_draws(samples, [norm(0.3, 1.0)])
    log_prob = posterior.log_prob(torch.zeros(1, 1), x=x).item()
    assert log_prob == pytest.approx(norm(0.3, 1.0).logpdf(0.0), abs=0.05)


def test_gradients_are_those_of_the_density_whatever_its_scale():
    """Log-likelihoods of data of many values are huge, and constants do not count."""

    class Shifted(GaussianBase):
        shift = 0.0

        def log_prob(self, input, condition, **kwargs):
            return super().log_prob(input, condition) + self.shift

    theta, gradients = torch.tensor([[0.2, 0.1]]), []
    for shift in (0.0, -300.0):
        likelihood = Shifted(SCALE)
        likelihood.shift = shift
        posterior = HybridPosterior.from_estimators(
            GaussianBase(0.6), likelihood, PRIOR
        )
        x = X[:1].clone().requires_grad_()
        posterior.log_prob(theta, x=x, track_gradients=True).sum().backward()
        gradients.append(x.grad)
    torch.testing.assert_close(gradients[1], gradients[0], rtol=0.01, atol=0)
    exact_gradient = (theta - X[:1]) / SCALE**2
    torch.testing.assert_close(gradients[0], exact_gradient, atol=0.1, rtol=0)


def test_one_parameter_has_a_density_given_each_of_several_observations():
    posterior = posterior_of(0.6)
    theta = torch.tensor([[[0.2, 0.1]]])
    together = posterior.log_prob_batched(theta, X)
    alone = [posterior.log_prob(theta[0], x=x.unsqueeze(0)) for x in X]
    torch.testing.assert_close(together[0], torch.cat(alone), atol=0.02, rtol=0)


def test_nothing_is_outside_of_the_prior():
    torch.manual_seed(0)
    posterior = posterior_of(1.0)
    samples = posterior.sample((500,), x=X[1:], reject_outside_prior=False, **QUIET)
    assert PRIOR.support.check(samples).all()
    assert posterior.leakage_correction(X).tolist() == [1.0, 1.0]


def test_a_draw_without_a_density_costs_itself_alone():
    class Overflowing(GaussianBase):
        def sample(self, sample_shape, condition, **kwargs):
            draws = super().sample(sample_shape, condition)
            draws[0] = torch.inf
            return draws

    networks = Overflowing(0.6), GaussianBase(SCALE)
    posterior = HybridPosterior.from_estimators(*networks, PRIOR)
    assert (posterior.diagnostics(X).effective_share > 0.3).all()


def test_a_row_without_likelihood_does_not_fail_the_others():
    class Finite(GaussianBase):
        def log_prob(self, input, condition, **kwargs):
            values = super().log_prob(input, condition)
            return values.where(values > -1e6, -torch.inf)

    posterior = HybridPosterior.from_estimators(GaussianBase(0.6), Finite(SCALE), PRIOR)
    x = torch.cat([X[:1], torch.full((1, 2), 1e20)])
    with pytest.warns(UserWarning, match="row 1 of x"):
        shares = posterior.diagnostics(x).effective_share
    assert shares[0] > 0.3 and shares[1] == 0.0


def test_log_z_is_the_evidence():
    log_z = posterior_of(0.6).diagnostics(X).log_partition
    masses = [
        math.prod(Normal(v, SCALE).cdf(torch.tensor([-3.0, 3.0])).diff() for v in row)
        for row in X
    ]
    expected = torch.stack(masses).squeeze(-1).log() - math.log(36.0)
    torch.testing.assert_close(log_z, expected, atol=0.05, rtol=0)


@pytest.mark.parametrize("num", [1, 4])
def test_several_rows_are_one_experiment(num):
    """Independent measurements narrow the posterior, also far from the first."""
    torch.manual_seed(0)
    posterior = posterior_of(1.0)
    x = torch.tensor([[0.2, -0.1], [0.9, 0.3], [0.4, -0.6], [0.1, 0.0]])[:num]
    together = exact(SCALE / num**0.5, x.mean(dim=0, keepdim=True))[0]
    assert_draws(posterior.sample((2_000,), x=x, **QUIET), together)
    theta = torch.tensor([[0.3, 0.0]])
    expected = sum(d.logpdf(v) for d, v in zip(together, theta[0], strict=True))
    log_prob = posterior.log_prob(theta, x=x)
    assert log_prob.item() == pytest.approx(expected, abs=0.05)


def test_a_base_that_misses_the_posterior_is_replaced_and_told():
    torch.manual_seed(0)
    base = GaussianBase(0.02)
    posterior = HybridPosterior.from_estimators(base, GaussianBase(SCALE), PRIOR)
    with pytest.warns(UserWarning, match="covers too little.*2 of 2 rows"):
        samples = posterior.sample_batched((2_000,), x=X, **QUIET)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert (posterior.diagnostics(X).effective_share > 0.2).all()
    for row, distributions in enumerate(exact()):
        assert_draws(samples[:, row], distributions)


def test_only_rows_that_need_it_have_another_base():
    class Partly(GaussianBase):
        """Narrow for positive data."""

        def _normal(self, condition):
            scale = torch.where(condition[:, :1] > 1.0, 0.02, 0.5)
            return Independent(Normal(condition, scale.expand_as(condition)), 1)

    torch.manual_seed(0)
    networks = Partly(), GaussianBase(SCALE)
    posterior = HybridPosterior.from_estimators(*networks, PRIOR)
    with pytest.warns(UserWarning, match="given row 1 of x.*1 of 2 rows"):
        samples = posterior.sample_batched((2_000,), x=X, **QUIET)
    for row, distributions in enumerate(exact()):
        assert_draws(samples[:, row], distributions)


def test_what_was_observed_earlier_counts():
    torch.manual_seed(0)

    def earlier(theta):
        return Independent(Normal(torch.tensor([1.0, 0.0]), SCALE), 1).log_prob(theta)

    hybrid = LikelihoodHybrid(GaussianBase(0.6), GaussianBase(SCALE), PRIOR, earlier)
    posterior = HybridPosterior(hybrid, PRIOR)
    with pytest.raises(ValueError, match="leave x out"):
        posterior.sample((3,), x=X, **QUIET)
    x = torch.tensor([[0.4, 0.2]])
    distributions = exact(SCALE / 2**0.5, torch.tensor([[0.7, 0.1]]))[0]
    assert_draws(posterior.sample((2_000,), x=x, **QUIET), distributions)


def test_a_prior_may_be_unbounded_and_lack_its_constant():
    class Scaled(Independent):
        def log_prob(self, value):
            return super().log_prob(value) + 7.0

    torch.manual_seed(0)
    prior = Scaled(Normal(torch.zeros(2), SCALE), 1)
    posterior = posterior_of(1.0, prior)
    samples = posterior.sample((2_000,), x=X[:1], **QUIET)
    for values, mean in zip(samples.T, 0.5 * X[0], strict=True):
        expected = norm(mean.item(), SCALE / 2**0.5)
        assert kstest(values.numpy(), expected.cdf).pvalue > 1e-4


@pytest.mark.parametrize("num_components", [1, 2])
def test_particles_have_a_normalized_density_inside_the_support(num_components):
    torch.manual_seed(0)
    prior = BoxUniform(torch.zeros(1), torch.ones(1))
    particles = torch.rand(4_096, 1) * 0.1
    if num_components == 2:
        particles[::2] += 0.8
    density = ParticleDensity(particles, prior, torch.Size((3,)))
    grid = torch.linspace(1e-5, 1.0 - 1e-5, 20_001).reshape(-1, 1, 1)
    values = density.log_prob(grid, torch.zeros(1, 3)).exp()
    assert torch.trapezoid(values[:, 0], grid[:, 0, 0]).item() == pytest.approx(
        1.0, abs=0.02
    )
    draws = density.sample(torch.Size((500,)), torch.zeros(2, 3))
    assert draws.shape == (500, 2, 1) and prior.support.check(draws).all()


def test_estimators_of_other_data_are_refused():
    theta, x = torch.randn(60, 2), torch.randn(60, 3)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        npe = NPE(PRIOR, **QUIET, tracker=NoOpTracker()).append_simulations(theta, x)
        posterior = npe.train(max_num_epochs=1) and npe.build_posterior()
        nle = NLE(PRIOR, **QUIET, tracker=NoOpTracker())
        likelihood = nle.append_simulations(theta, x[:, :2]).train(max_num_epochs=1)
    with pytest.raises(ValueError, match=r"x \(3,\).*x \(2,\).*same simulations"):
        HybridPosterior.from_estimators(posterior, likelihood, PRIOR)


def simulations(num=1_000):
    torch.manual_seed(0)
    theta = PRIOR.sample((num,))
    return theta, theta.abs() + SCALE * torch.randn_like(theta)


@pytest.fixture(scope="module")
def trained():
    trainer = NLE_INCE(PRIOR, "nsf", **QUIET, tracker=NoOpTracker())
    trainer.append_simulations(*simulations()).train(schedule="averaged")
    return trainer


@pytest.mark.slow
def test_a_likelihood_trainer_samples_without_chains(trained):
    """Chains start from a posterior of four modes, and need not find them all."""
    x = torch.tensor([[1.5, 1.5]])
    posterior = trained.build_posterior(sample_with="hybrid")
    assert isinstance(trained.build_posterior(), MCMCPosterior)
    again = trained.build_posterior(
        sample_with="hybrid",
        posterior_parameters=HybridPosteriorParameters(ceiling_quantile=1.0),
    )
    assert again.ceiling_quantile == 1.0
    theirs, ours = again.posterior_estimator.base, posterior.posterior_estimator.base
    pairs = zip(theirs.parameters(), ours.parameters(), strict=True)
    assert all(torch.equal(*pair) for pair in pairs)
    torch.manual_seed(0)
    samples = posterior.sample((1_000,), x=x, **QUIET)
    rejection = trained.build_posterior(sample_with="rejection")
    assert c2st(samples, rejection.sample((1_000,), x=x, **QUIET)) < 0.56
    for through in (copy.deepcopy, lambda p: pickle.loads(pickle.dumps(p))):
        torch.manual_seed(0)
        assert torch.equal(through(posterior).sample((1_000,), x=x, **QUIET), samples)


@pytest.mark.slow
def test_a_proposal_is_trained_anew_once_there_are_more_simulations(trained):
    trainer = copy.deepcopy(trained)
    before = trainer._proposal.network(trainer, None)
    assert trainer._proposal.network(trainer, None) is before
    trainer.append_simulations(*simulations(100))
    assert trainer._proposal.network(trainer, None) is not before


def linear(theta, design):
    return theta * design + SCALE * torch.randn_like(theta)


@pytest.fixture(scope="module")
def searched():
    torch.manual_seed(0)
    policy = TruncatedNormalPolicy(torch.tensor([0.1]), torch.tensor([1.0]))
    search = NLE_INCE(
        PRIOR, "mdn", design_policy=policy, **QUIET, tracker=NoOpTracker()
    )
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        search.optimize_design(linear, num_steps=150, num_eig_samples=100)
    return search


@pytest.mark.parametrize(
    "num_observations",
    [0, *(pytest.param(num, marks=pytest.mark.slow) for num in (1, 2))],
)
def test_after_a_search_the_posterior_is_a_hybrid(searched, num_observations):
    search, design = copy.deepcopy(searched), torch.tensor([0.9])
    x = torch.tensor([[0.6, -0.9], [0.5, -0.4]])
    if num_observations:
        rows = x[:num_observations]
        search.observe(design.expand(num_observations, 1), rows)
        given = {}
        kwargs = {}
    else:
        given, kwargs = {"design": design}, {"x": x[:1]}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        posterior = search.build_posterior(**given)
        assert isinstance(posterior, HybridPosterior)
        torch.manual_seed(1)
        samples = posterior.sample((1_000,), **kwargs, **QUIET)
        chains = search.build_posterior(**given, sample_with="rejection")
        expected = chains.sample((1_000,), **kwargs, **QUIET)
    assert c2st(samples, expected) < 0.56


def test_settings_of_another_sampler_ask_for_it(searched):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        posterior = searched.build_posterior(
            design=torch.tensor([0.5]), mcmc_parameters={"num_chains": 3}
        )
    assert isinstance(posterior, MCMCPosterior)


def test_a_hybrid_is_of_the_own_likelihood_and_prior(searched):
    design = torch.tensor([0.5])
    given = {"sample_with": "hybrid", "design": design}
    for other in ({"density_estimator": GaussianBase()}, {"prior": Normal(0.0, 1.0)}):
        with pytest.raises(ValueError, match="own likelihood and prior"):
            searched.build_posterior(**given, **other)
    wide = BoxUniform(-6.0 * torch.ones(2), 6.0 * torch.ones(2))
    assert isinstance(
        searched.build_posterior(design=design, prior=wide), MCMCPosterior
    )
    with pytest.raises(TypeError, match="must be HybridPosteriorParameters"):
        searched.build_posterior(
            **given, posterior_parameters=MCMCPosteriorParameters()
        )


def test_gradients_reach_earlier_observations(searched):
    search = copy.deepcopy(searched)
    designs = torch.tensor([[0.9], [0.4]])
    search.observe(designs, torch.tensor([[0.6, -0.9], [0.2, -0.4]]))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        posterior = search.build_posterior()
        theta = torch.tensor([[0.5, -0.8]], requires_grad=True)
        posterior.log_prob(theta, track_gradients=True).sum().backward()
        steps = 1e-2 * torch.eye(2)
        high, low = (
            posterior.log_prob(theta.detach() + sign * steps) for sign in (1.0, -1.0)
        )
    torch.testing.assert_close(theta.grad[0], (high - low) / 2e-2, atol=0.05, rtol=0.05)


def test_posteriors_of_many_observations_are_calibrated():
    torch.manual_seed(0)
    theta = PRIOR.sample((300,))
    x = theta + SCALE * torch.randn_like(theta)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # about trials, and the ends of the box.
        ranks, _ = run_sbc(
            theta, x, posterior_of(0.5), 99, reduce_fns="marginals", **QUIET_BAR
        )
    for column in ranks.T:
        uniform = (column.float() + torch.rand(len(column))) / 100.0
        assert kstest(uniform.numpy(), "uniform").pvalue > 1e-3


def test_other_objects_than_estimators_are_refused():
    with pytest.raises(TypeError, match="likelihood_estimator must be a density"):
        HybridPosterior.from_estimators(GaussianBase(), posterior_of(0.5), PRIOR)


def test_a_hybrid_needs_both_networks():
    trainer = NLE_INCE(PRIOR, **QUIET, tracker=NoOpTracker())
    with pytest.raises(RuntimeError, match="needs a likelihood and a posterior"):
        trainer.build_posterior(sample_with="hybrid")
