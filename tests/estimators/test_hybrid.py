"""Hybrid posteriors: a base times an energy ratio, on Gaussians with exact answers."""

import math
import pickle

import pytest
import torch
from sbi.neural_nets import posterior_nn
from sbi.neural_nets.estimators import ConditionalDensityEstimator
from sbi.utils import BoxUniform
from torch import nn
from torch.distributions import Normal

from benchmarks.exact_estimators import exact_estimators, slope
from sbi_boed_plugin import _memory
from sbi_boed_plugin.estimators.energy import EnergyRatio, bounded
from sbi_boed_plugin.estimators.hybrid import HybridEstimator
from sbi_boed_plugin.estimators.noise import draw_noise
from sbi_boed_plugin.estimators.weights import gradient_of_log_partition
from sbi_boed_plugin.objectives.generalized_kl import hybrid_loss, partition_function
from sbi_boed_plugin.posteriors.hybrid_posterior import HybridPosterior
from tests.hybrids import Energy
from tests.oracles import EnergyBetween

SLOPE = {"dim_theta": 1, "dim_design": 1}
TILT = 0.8


def tilt(input, condition):
    """ρ = a θ: of a Normal base it shifts the mean by a σ²."""
    return TILT * input.sum(dim=-1)


def exact_posterior(**wrong):
    return exact_estimators(slope, **SLOPE, **wrong).posterior


def data_and_moments(base, num):
    """Data, and mean and variance of the one-dimensional Gaussian base given them."""
    data = torch.stack([torch.linspace(-2, 2, num), torch.ones(num)], dim=1)
    mean, factor = base.moments(data)
    return data, mean[:, 0], factor[:, 0, 0] ** 2


def test_the_partition_function_is_unbiased():
    base = exact_posterior()
    estimator = HybridEstimator(base, Energy(tilt))
    data, mean, variance = data_and_moments(base, 5)
    exact = torch.exp(TILT * mean + 0.5 * TILT**2 * variance)
    repeats = torch.stack([estimator.partition(data) for _ in range(4_000)])
    assert repeats.shape == (4_000, 5)
    error = repeats.std(dim=0) / 4_000**0.5
    assert ((repeats.mean(dim=0) - exact).abs() < 4 * error).all()
    many = estimator.partition(data, 40_000)
    torch.testing.assert_close(many, exact, rtol=0.03, atol=0)
    assert not estimator.partition(data.requires_grad_()).requires_grad


class LearnedNormal(ConditionalDensityEstimator):
    """N(weight x + bias, 1), which counts the rows of a draw or an evaluation."""

    most = 0

    def __init__(self):
        super().__init__(nn.Linear(1, 1), torch.Size((1,)), torch.Size((1,)))
        nn.init.ones_(self.net.weight)
        nn.init.zeros_(self.net.bias)

    def log_prob(self, input, condition, **kwargs):
        self.most = max(self.most, input.shape[:2].numel())
        return Normal(self.net(condition), 1.0).log_prob(input).sum(dim=-1)

    def loss(self, input, condition, **kwargs):
        return -self.log_prob(input.unsqueeze(0), condition)[0]

    def sample(self, sample_shape, condition, **kwargs):
        self.most = max(self.most, torch.Size(sample_shape).numel() * len(condition))
        return Normal(self.net(condition), 1.0).sample(sample_shape)


class LearnedTilt(nn.Module):
    """ρ = a θ + c θ x."""

    def __init__(self, slope=0.5, product=-0.3):
        super().__init__()
        self.weights = nn.Parameter(torch.tensor([slope, product]))

    def forward(self, input, condition):
        slope, product = self.weights
        return (input * (slope + product * condition)).sum(dim=-1)


BOX = BoxUniform(torch.zeros(1), torch.ones(1))


def log_partition(estimator, x, low, high):
    """By quadrature, with its gradient, of shape (batch_dim,)."""
    grid = torch.linspace(low, high, 2_001).reshape(-1, 1, 1)
    values = estimator.log_unnormalized(grid.expand(-1, len(x), -1), x)
    return torch.trapezoid(values.exp(), grid[:, 0, 0], dim=0).log()


@pytest.mark.parametrize("max_rows", [2**14, 5_000])
@pytest.mark.parametrize("slope, product", [(0.5, -0.3), (0.0, 0.0)])
@pytest.mark.parametrize("prior, low, high", [(BOX, 0.0, 1.0), (None, -8.0, 8.0)])
def test_gradients_are_those_of_the_normalized_density(
    prior, low, high, slope, product, max_rows, monkeypatch
):
    """In parameters, data, and weights of energy and base; most lies outside."""
    monkeypatch.setattr(_memory, "MAX_ROWS", max_rows)
    energy = LearnedTilt(slope, product)
    estimator = HybridEstimator(LearnedNormal(), energy, prior=prior)
    x = torch.tensor([[-1.0], [0.3], [1.5]], requires_grad=True)
    theta = torch.tensor([0.5, 0.2, 0.9]).reshape(1, 3, 1).requires_grad_()
    wanted = [x, theta, *estimator.parameters()]
    exact = estimator.log_unnormalized(theta, x)
    exact = exact - log_partition(estimator, x, low, high)
    expected = torch.autograd.grad(exact.sum(), wanted)
    estimator.net.most = 0
    found = estimator.log_prob(theta, x)
    gradient = torch.autograd.grad(found.sum(), wanted)
    assert 0 < estimator.net.most <= max_rows
    torch.testing.assert_close(found, exact, atol=0.05, rtol=0)
    # Sums over three rows of means over 4,000 of 10,000 draws, whose terms have
    # deviations of 1 to 1.5: four standard errors.
    torch.testing.assert_close(gradient, expected, atol=0.15, rtol=0)


def test_the_gradient_of_a_truncated_normal_is_known():
    """N(x, 1) on (0, 1) at x = -1 and 1/2: 1.5 less the mean of the score, 0.117."""
    energy = LearnedTilt(0.0, 0.0)
    estimator = HybridEstimator(LearnedNormal(), energy, prior=BOX)
    posterior = HybridPosterior(estimator, BOX)
    for log_prob in (
        lambda x: estimator.log_prob(torch.tensor([[[0.5]]]), x),
        lambda x: posterior.log_prob(torch.tensor([[0.5]]), x, track_gradients=True),
    ):
        x = torch.tensor([[-1.0]], requires_grad=True)
        (gradient,) = torch.autograd.grad(log_prob(x).sum(), x)
        # The mean of 4,000 of 1,359 values with a deviation of 0.27.
        assert gradient.item() == pytest.approx(0.1167, abs=0.04)
        with torch.no_grad():
            h = 0.2
            up, down = log_prob(x + h).item(), log_prob(x - h).item()
        # Two normalizations, each to 0.6 % or better, over 2 h; h² of curvature.
        assert gradient.item() == pytest.approx((up - down) / (2 * h), abs=0.12)


@pytest.mark.parametrize("prior, low, high", [(BOX, 0.0, 1.0), (None, -8.0, 8.0)])
@pytest.mark.parametrize("num_draws", [1, 4])
def test_few_draws_have_the_gradient_of_the_partition_function(
    num_draws, prior, low, high
):
    torch.manual_seed(0)
    estimator = HybridEstimator(LearnedNormal(), LearnedTilt(), prior=prior)
    x = torch.full((20_000, 1), -1.0, requires_grad=True)
    partition = estimator.partition(x, num_draws, whole_gradient=True)
    (found,) = torch.autograd.grad(partition.sum(), x)
    one = x[:1].detach().requires_grad_()
    exact = log_partition(estimator, one, low, high).exp()
    (expected,) = torch.autograd.grad(exact.sum(), one)
    error = found.std().item() / len(found) ** 0.5
    assert found.mean().item() == pytest.approx(expected.item(), abs=4 * error)
    assert error < 0.02


def test_a_condition_without_draws_in_the_prior_has_no_gradient():
    estimator = HybridEstimator(LearnedNormal(), LearnedTilt(), prior=BOX)
    x = torch.tensor([[0.5], [-50.0]], requires_grad=True)
    with pytest.raises(RuntimeError, match="None of 10000 draws.*row 1 of x"):
        gradient_of_log_partition(estimator, x)
    # Rows are numbered as the user numbers them, and rare draws inside are found.
    many = torch.full((300, 1), -2.0, requires_grad=True)  # 2 % are inside.
    zeros = gradient_of_log_partition(estimator, many)
    (found,) = torch.autograd.grad(zeros.sum(), many)
    (exact,) = torch.autograd.grad(log_partition(estimator, many, 0, 1).sum(), many)
    # Each is a mean of some 20 values with a deviation of 0.27, and 0.06 off.
    assert found.mean().item() == pytest.approx(exact.mean().item(), abs=0.02)
    assert (found - exact).abs().max() < 0.4
    with torch.no_grad():
        many[290] = -50.0
    with pytest.raises(RuntimeError, match="None of 1000 draws.*row 290 of x"):
        gradient_of_log_partition(estimator, many)


def test_the_prior_moves_with_the_networks_and_others_keep_theirs():
    prior = BoxUniform(torch.zeros(1), torch.ones(1))
    estimator = HybridEstimator(LearnedNormal(), LearnedTilt(), prior=prior)
    moved = nn.Sequential(estimator).to("meta")[0]
    assert moved.prior.sample((3,)).device.type == "meta"
    assert moved.inside(torch.zeros(2, 3, 1, device="meta")).device.type == "meta"
    assert prior.sample((3,)).device.type == "cpu"
    same = HybridEstimator(LearnedNormal(), LearnedTilt(), prior=prior).double()
    assert same.prior is prior


def test_the_exact_correction_of_a_wrong_base_gives_the_posterior():
    wrong, exact = exact_posterior(noise_scale=2.0), exact_posterior()
    estimator = HybridEstimator(wrong, EnergyBetween(exact, wrong))
    theta, (data, *_) = torch.randn(50, 1, 1), data_and_moments(exact, 1)
    found = estimator.log_prob(theta, data)
    torch.testing.assert_close(found, exact.log_prob(theta, data), atol=0.03, rtol=0)


def test_samples_are_those_of_the_corrected_base():
    base = exact_posterior()
    data, mean, variance = data_and_moments(base, 3)
    samples = HybridEstimator(base, Energy(tilt)).sample(torch.Size((4_000,)), data)
    assert samples.shape == (4_000, 3, 1)
    error = 3 * variance.sqrt() / 4_000**0.5  # some draws of the base come repeatedly.
    shifted = mean + TILT * variance
    assert ((samples.mean(dim=0)[:, 0] - shifted).abs() < 2 * error).all()
    # Four standard errors.
    torch.testing.assert_close(samples.var(dim=0)[:, 0], variance, rtol=0.15, atol=0.0)
    several = HybridEstimator(base, Energy(tilt)).sample(torch.Size((2, 3)), data)
    assert several.shape == (2, 3, 3, 1)


def test_training_starts_as_maximum_likelihood():
    """With ρ = 0, which a new energy is, the loss is that of the base plus one."""
    theta, data = torch.randn(100, 2), torch.randn(100, 3)
    base = posterior_nn("mdn")(theta, data)
    estimator = HybridEstimator(base, EnergyRatio(theta, data))
    pairs = theta.unsqueeze(0), data
    assert (estimator.log_ratio(*pairs) == 0).all()
    torch.testing.assert_close(estimator.loss(theta, data), base.loss(theta, data) + 1)
    torch.testing.assert_close(estimator.log_prob(*pairs), base.log_prob(*pairs))
    estimator.loss(theta, data).mean().backward()
    grads = [p.grad for p in estimator.energy.parameters() if p.grad is not None]
    assert any((grad != 0).any() for grad in grads)
    copy = pickle.loads(pickle.dumps(estimator))
    assert torch.equal(copy.loss(theta, data), estimator.loss(theta, data))


def test_the_loss_is_least_at_the_exact_correction():
    """Scaling the exact energy up or down by a fifth costs, with the same draws."""
    wrong, exact = exact_posterior(noise_scale=2.0), exact_posterior()
    theta = torch.randn(40_000, 1)
    data = torch.cat([theta + torch.randn_like(theta), torch.ones_like(theta)], dim=1)
    energy = EnergyBetween(exact, wrong)
    draws = wrong.sample(torch.Size((8,)), data)
    log_base = wrong.log_prob(theta.unsqueeze(0), data)[0]
    at_theta, at_draws = energy(theta, data), energy(draws, data)
    losses = [
        hybrid_loss(log_base, c * at_theta, partition_function(c * at_draws))
        for c in (0.8, 1.0, 1.2)
    ]
    for other in (losses[0], losses[2]):
        difference = other - losses[1]
        error = difference.std().item() / math.sqrt(len(difference))
        assert difference.mean().item() > 3 * error


def flow_with_an_energy_of_noise():
    """The energy sees data and noise alone, and is neither flat nor symmetric."""
    torch.manual_seed(0)
    theta, x = torch.randn(50, 2), torch.randn(50, 2)
    base = posterior_nn("maf", hidden_features=8)(theta, x).eval()
    energy = Energy(lambda _, c: torch.sin(2.0 * c[..., -1]) + 0.5 * c[..., 0])
    energy.sees_parameters = False
    prior = BoxUniform(-torch.ones(2), torch.ones(2))
    estimator = HybridEstimator(
        base, energy, prior=prior, embedded=True, latent_features=True
    )
    return estimator, x[:3]


def test_judging_noise_first_gives_the_same_samples(monkeypatch):
    estimator, x = flow_with_an_energy_of_noise()
    torch.manual_seed(1)
    first = estimator.sample(torch.Size((200,)), x)
    # An energy that might look at parameters is asked after they are made.
    monkeypatch.setattr(estimator.energy, "sees_parameters", True)
    torch.manual_seed(1)
    second = estimator.sample(torch.Size((200,)), x)
    torch.testing.assert_close(first, second)
    assert (first.abs() <= 1.0).all()


def test_only_accepted_noise_becomes_parameters():
    estimator, x = flow_with_an_energy_of_noise()
    chosen = torch.arange(300).reshape(100, 3) % 10 == 0
    # A tenth of 300, of which the untrained base has some inside a wide prior.
    estimator.prior = BoxUniform(-10.0 * torch.ones(2), 10.0 * torch.ones(2))
    draws, accepted = estimator.draw_accepted(100, x, lambda ratio: chosen)
    assert draws[chosen].isfinite().all() and draws[~chosen].isnan().all()
    assert 0 < accepted.sum() < 30 and not (accepted & ~chosen).any()
    # Outside of it nothing is judged by its noise, and all are made.
    draws, accepted = estimator.draw_accepted(
        100, x, lambda ratio: chosen, reject_outside_prior=False
    )
    assert draws.isfinite().all() and torch.equal(accepted, chosen)


def test_noise_and_data_determine_parameters():
    estimator, x = flow_with_an_energy_of_noise()
    noise, from_noise = draw_noise(estimator.base, 40, x)
    draws = from_noise()
    assert noise.shape == draws.shape == (40, 3, 2)
    torch.testing.assert_close(estimator.latent(draws, x), noise, rtol=1e-3, atol=1e-3)
    chosen = torch.rand(40, 3) < 0.3
    some = from_noise(chosen)
    torch.testing.assert_close(some[chosen], draws[chosen])


def test_rows_that_accept_little_do_not_make_the_others_wait():
    torch.manual_seed(0)
    base = posterior_nn("mdn", num_components=1)(torch.randn(50, 2), torch.randn(50, 2))
    drawn = torch.zeros(2, dtype=torch.long)

    def narrow(input, condition):
        """Accepts the fewer draws, the larger the first value of the condition."""
        is_slow = condition[..., 0] > 0.0
        drawn.add_(torch.stack([is_slow.sum(), (~is_slow).sum()]))
        return -100.0 * condition[..., 0] * input.square().sum(dim=-1)

    estimator = HybridEstimator(base.eval(), Energy(narrow))
    x = torch.zeros(6, 2)
    x[3, 0] = 1.0
    weights = estimator.measure_weights(x)
    drawn.zero_()
    samples = estimator.sample(torch.Size((50,)), x, weights=weights)
    assert samples.shape == (50, 6, 2)
    # The slow row is in its own place.
    assert samples[:, 3].norm(dim=-1).mean() < 0.3 * samples[:, 0].norm(dim=-1).mean()
    slow, others = drawn.tolist()
    assert slow > 1_000 and others < 5 * 200


def test_ratios_grow_with_the_energy_and_stay_within_their_bounds():
    energy = torch.linspace(-200.0, 200.0, 4_001)
    ratio = bounded(energy)
    free = (energy >= -15.0) & (energy <= 3.0)
    assert torch.equal(ratio[free], energy[free])
    assert ratio.min() >= -20.0
    assert ratio.max() <= 5.0
    assert (ratio.diff() >= 0.0).all()
    assert (ratio[(energy > -25.0) & (energy < 7.0)].diff() > 0.0).all()


@pytest.mark.parametrize("model", ["maf", "nsf", "mdn"])
def test_a_density_and_its_noise_come_from_one_pass(model):
    theta, x = torch.randn(50, 2), torch.randn(50, 3)
    base, pairs = posterior_nn(model)(theta, x), (theta.unsqueeze(1), x[:1])
    energy = EnergyRatio(theta, torch.randn(50, 5))
    hybrid = HybridEstimator(base, energy, latent_features=True)
    torch.nn.init.normal_(hybrid.energy.last.weight)
    expected = base.log_prob(*pairs) + hybrid.log_ratio(*pairs)
    assert torch.equal(hybrid.log_unnormalized(*pairs), expected)


def test_an_energy_that_does_not_correct_is_not_asked():
    theta, x = torch.randn(50, 1, 2), torch.randn(1, 3)
    base = posterior_nn("maf")(theta[:, 0], torch.randn(50, 3))
    hybrid = HybridEstimator(base, nn.Bilinear(2, 3, 1), corrects=False)
    assert torch.equal(hybrid.log_ratio(theta, x), torch.zeros(50, 1))
    assert torch.equal(hybrid.log_unnormalized(theta, x), base.log_prob(theta, x))
    theta[3] = torch.inf
    assert hybrid.log_ratio(theta, x)[3] == -torch.inf
