"""Flow matching and score models as densities."""

import math
import pickle

import pytest
import torch
from sbi.inference.posteriors import DirectPosterior
from sbi.neural_nets.estimators import ConditionalDensityEstimator
from sbi.utils import BoxUniform
from torch import nn
from torch.distributions import MultivariateNormal, Normal

from sbi_boed_plugin import (
    NLE_INCE,
    NPE_GKL,
    TruncatedNormalPolicy,
    VectorFieldDensity,
    transformed_likelihood_nn,
    transformed_posterior_nn,
)
from sbi_boed_plugin._fit import AveragedSchedule
from sbi_boed_plugin.estimators.ensemble import EnsembleEstimator
from sbi_boed_plugin.estimators.noise import reparameterize, to_noise
from sbi_boed_plugin.estimators.vector_field import is_vector_field
from sbi_boed_plugin.search.fitting import fit_network
from tests.conftest import NoOpTracker

QUIET = {"show_progress_bars": False, "tracker": NoOpTracker()}
SLOPE, NOISE = torch.tensor([[1.0, 0.5, 0.0], [0.0, 1.0, -1.0]]), 0.4


class NormalField(nn.Module):
    """The exact field of straight paths from N(slope c, noise²) to N(0, 1)."""

    def __init__(self):
        super().__init__()
        self.input_shape = torch.Size([3])
        self.t_min, self.t_max = 0.0, 1.0
        self.slope = nn.Parameter(SLOPE.clone())
        self.register_buffer("_mean_base", torch.zeros(1, 3))
        self.register_buffer("_std_base", torch.ones(1, 3))

    def ode_fn(self, input, condition, times):
        mean, t = condition @ self.slope, times.unsqueeze(-1)
        variance = ((1 - t) * NOISE) ** 2 + t**2
        factor = (t - (1 - t) * NOISE**2) / variance
        return factor * (input - (1 - t) * mean) - mean


def exact(**settings):
    return VectorFieldDensity(NormalField(), nn.Identity(), torch.Size([2]), **settings)


def normal(condition):
    return Normal(condition @ SLOPE, NOISE)


def test_the_density_is_that_of_the_flow():
    torch.manual_seed(0)
    condition, x = torch.randn(20, 2), torch.randn(5, 20, 3)
    found = exact().log_prob(x, condition)
    expected = normal(condition).log_prob(x).sum(dim=-1)
    assert torch.allclose(found, expected, atol=2e-3, rtol=1e-3)
    # More steps are more accurate.
    error = (exact(num_steps=40).log_prob(x, condition) - expected).abs().max()
    assert error < 1e-4
    each_its_own = condition.expand(5, 20, 2)
    assert torch.allclose(exact().log_prob(x, each_its_own), found)
    assert exact().log_prob(x[:, :1], condition).shape == (5, 20)
    # As many samples as conditions, which come with a sample dimension of one.
    few = condition[:5]
    square = exact().log_prob(x[:, :5], few)
    assert torch.allclose(exact().log_prob(x[:, :5], few.unsqueeze(0)), square)


def test_samples_are_those_of_the_density():
    torch.manual_seed(0)
    condition = torch.tensor([[1.0, -1.0], [0.0, 2.0]])
    samples = exact().sample(torch.Size((4_000,)), condition)
    assert samples.shape == (4_000, 2, 3)
    assert torch.allclose(samples.mean(dim=0), condition @ SLOPE, atol=0.04)
    assert torch.allclose(samples.std(dim=0), torch.tensor(NOISE), atol=0.03)
    assert exact().sample(torch.Size((2, 3)), condition).shape == (2, 3, 2, 3)


def test_noise_of_samples_is_normal_and_moves_them():
    torch.manual_seed(0)
    density, condition = exact(), torch.randn(500, 2)
    x = normal(condition).sample()
    noise = to_noise(density, x, condition)
    assert torch.allclose(noise, (x - condition @ SLOPE) / NOISE, atol=5e-3)
    moving = condition.clone().requires_grad_()
    moved = reparameterize(density, x, moving)
    assert torch.equal(moved, x)
    (gradient,) = torch.autograd.grad(moved[:, 0].sum(), moving)
    assert torch.allclose(gradient, SLOPE[:, 0].expand(500, 2), atol=1e-3)


def test_log_densities_have_a_gradient():
    condition = torch.tensor([[0.5, 1.0]], requires_grad=True)
    x = torch.tensor([[[1.0, 1.0, 0.0]]])
    for density, atol in ((exact(), 1e-2), (exact(num_steps=40), 1e-3)):
        (found,) = torch.autograd.grad(density.log_prob(x, condition).sum(), condition)
        value = normal(condition).log_prob(x).sum()
        (expected,) = torch.autograd.grad(value, condition)
        assert torch.allclose(found, expected, atol=atol)


def test_probes_estimate_the_divergence():
    torch.manual_seed(0)
    condition, x = torch.randn(50, 2), torch.randn(50, 3)
    few = exact(num_probes=2)
    # The Jacobian of this field is diagonal: each probe is exact.
    assert torch.allclose(
        few.log_prob(x[None], condition),
        exact().log_prob(x[None], condition),
        atol=1e-4,
    )


def test_settings_are_checked_before_any_network_is_built():
    for settings in ({"num_steps": 0}, {"num_probes": -1}):
        with pytest.raises(ValueError, match=next(iter(settings))):
            transformed_likelihood_nn("flow_matching", **settings)
    with pytest.raises(ValueError, match="compose_standardization=True"):
        transformed_posterior_nn("score", compose_standardization=True)


def test_losses_are_those_of_rows_that_count():
    torch.manual_seed(0)
    build = transformed_likelihood_nn("flow_matching", hidden_features=8, num_layers=1)
    theta, x = torch.randn(300, 2), torch.randn(300, 60)
    weights, rows = torch.ones(300), torch.arange(300)
    weights[:120] = 0.0
    schedule = AveragedSchedule(max_num_rates=1)
    given = (x, theta), rows[::2], rows[1::2], schedule
    fitted = fit_network(build(theta, x), *given, weights=weights, max_num_passes=1)
    assert all(map(math.isfinite, fitted))


@pytest.mark.parametrize("value", [0, 2.5])
def test_steps_are_at_least_one(value):
    with pytest.raises((TypeError, ValueError), match="num_steps"):
        exact(num_steps=value)


def test_tensors_follow_the_device():
    density = exact().to("meta")
    condition = torch.zeros(4, 2, device="meta")
    x = torch.zeros(1, 4, 3, device="meta")
    assert density.log_prob(x, condition).device.type == "meta"
    assert density.sample(torch.Size((2,)), condition).device.type == "meta"


def linear_data(num):
    theta = torch.randn(num, 2)
    return theta, normal(theta).sample()


@pytest.mark.parametrize("model", ["flow_matching", "score"])
def test_named_models_learn(model):
    torch.manual_seed(0)
    theta, x = linear_data(1_000)
    build = transformed_likelihood_nn(model, hidden_features=32, num_layers=2)
    network = build(theta, x)
    assert is_vector_field(network)
    assert is_vector_field(EnsembleEstimator([network, network]))
    rows = torch.arange(1_000)
    schedule = AveragedSchedule(max_num_rates=1, min_patience=300)
    fitted = fit_network(network, (x, theta), rows[100:], rows[:100], schedule)
    new_theta, new_x = linear_data(500)
    with torch.no_grad():
        known = network.log_prob(new_x[None], new_theta).mean()
    best = normal(new_theta).log_prob(new_x).sum(dim=-1).mean()
    marginal = MultivariateNormal(
        torch.zeros(3), SLOPE.T @ SLOPE + NOISE**2 * torch.eye(3)
    )
    # Most of what the parameters tell; the loss reported is in nats.
    of_prior = marginal.log_prob(new_x).mean()
    assert known - of_prior > 0.6 * (best - of_prior)
    assert fitted.loss == pytest.approx(-float(known), abs=0.4)
    again = pickle.loads(pickle.dumps(network))
    assert torch.equal(
        again.log_prob(new_x[None], new_theta).detach()[0, :3],
        network.log_prob(new_x[None], new_theta).detach()[0, :3],
    )


def test_a_likelihood_learns_from_stored_simulations():
    torch.manual_seed(0)
    prior = MultivariateNormal(torch.zeros(2), torch.eye(2))
    trainer = NLE_INCE(prior, "flow_matching", **QUIET)
    trainer.append_simulations(*linear_data(400))
    with pytest.raises(ValueError, match="num_contrastive=3 with a flow matching"):
        trainer.train(num_contrastive=3)
    network = trainer.train(max_num_epochs=3)
    assert is_vector_field(network)
    assert all(map(math.isnan, trainer.summary["validation_log_likelihood"]))
    posterior = trainer.build_posterior(sample_with="rejection")
    assert posterior.potential(torch.zeros(3, 2), x=torch.zeros(1, 3)).shape == (3,)


def test_a_hybrid_has_a_flow_matching_base():
    torch.manual_seed(0)
    prior = BoxUniform(-3 * torch.ones(2), 3 * torch.ones(2))
    theta = prior.sample((400,))
    build = transformed_posterior_nn("flow_matching", hidden_features=16, num_layers=2)
    trainer = NPE_GKL(prior, build, **QUIET)
    trainer.append_simulations(theta, normal(theta).sample())
    trainer.train(max_num_epochs=3)
    posterior = trainer.build_posterior()
    samples = posterior.sample((20,), x=torch.zeros(1, 3), show_progress_bars=False)
    assert samples.shape == (20, 2)


def noisy_slope(theta, design):
    return theta * design + 0.3 * torch.randn_like(theta)


def searching():
    policy = TruncatedNormalPolicy(torch.tensor([0.1]), torch.tensor([2.0]))
    prior = BoxUniform(-torch.ones(1), torch.ones(1))
    small = {"hidden_features": 16, "num_layers": 2}
    build = transformed_likelihood_nn("flow_matching", dim_design=1, **small)
    return NLE_INCE(prior, build, design_policy=policy, **QUIET)


def test_what_is_too_slow_is_refused():
    trainer = searching()
    for settings in ({"method": "joint"}, {"objective": "info_nce"}, {"num_steps": 9}):
        ((name, value),) = settings.items()
        with pytest.raises(ValueError, match=f"{name}={value!r} with a flow match"):
            trainer.optimize_design(noisy_slope, max_num_simulations=300, **settings)
    with pytest.raises(ValueError, match="too slow for policies"):
        trainer.optimize_policy(noisy_slope, 2)


@pytest.mark.slow
def test_a_search_with_vector_fields_is_one_in_rounds():
    torch.manual_seed(0)
    budget = {"max_num_simulations": 200, "num_rounds": 2}
    result = searching().optimize_design(noisy_slope, **budget)
    assert result.config.method == "rounds"
    assert float(result.design) > 1.0
    assert is_vector_field(result.likelihood_estimator)
    assert set(result.bounds) <= {"barber_agakov", "linear"}


def test_time_that_ends_before_the_last_round_leaves_no_likelihood():
    torch.manual_seed(0)
    trainer, again = searching(), searching()
    budget = {"max_num_simulations": 200, "num_rounds": 2, "max_seconds": 0.01}
    with pytest.warns(UserWarning, match="before the last round.*there is none yet"):
        early = trainer.optimize_design(noisy_slope, **budget)
    assert early.stop_reason == "max_seconds"
    assert early.likelihood_estimator is None
    posterior = trainer.build_posterior(design=early.design)
    assert isinstance(posterior, DirectPosterior)
    again.search.load_state_dict(trainer.search.state_dict())
    assert again.search.networks.posterior is not None


class InContext(ConditionalDensityEstimator):
    """Has the interface of sbi's TabPFNFlow: a Normal around the nearest rows."""

    def __init__(self, theta, x):
        super().__init__(nn.Identity(), theta[0].shape, x[0].shape)
        self.register_buffer("anchor", torch.zeros(1))
        self.rows = None

    def set_context(self, input, condition):
        self.rows = input, condition, condition.std(dim=0)
        return self

    def law(self, condition):
        theta, x, scale = self.rows
        distances = torch.cdist(condition / scale, x / scale)
        nearest = theta[distances.topk(25, largest=False).indices]
        return Normal(nearest.mean(dim=1), nearest.std(dim=1) + 1e-2)

    def log_prob(self, input, condition, **kwargs):
        return self.law(condition).log_prob(input).sum(dim=-1)

    def sample(self, sample_shape, condition, **kwargs):
        return self.law(condition).sample(sample_shape)

    def loss(self, input, condition, **kwargs):
        raise NotImplementedError("There is nothing to train.")


def test_a_posterior_learns_in_context():
    policy = TruncatedNormalPolicy(torch.tensor([0.1]), torch.tensor([2.0]))
    prior = BoxUniform(-torch.ones(1), torch.ones(1))
    given = {"design_policy": policy, "posterior_estimator": InContext, **QUIET}
    torch.manual_seed(0)
    trainer = NLE_INCE(prior, None, **given)
    with pytest.raises(ValueError, match="method='joint' with a network that learns"):
        trainer.optimize_design(noisy_slope, num_steps=5)
    result = trainer.optimize_design(noisy_slope, max_num_simulations=400, num_rounds=2)
    assert float(result.design) > 1.2
    assert 0.2 < result.eig.value < 1.5
    posterior = trainer.build_posterior(design=result.design)
    samples = posterior.sample(
        (200,), x=torch.tensor([[1.0]]), show_progress_bars=False
    )
    assert float(samples.mean()) == pytest.approx(1.0 / float(result.design), abs=0.2)
