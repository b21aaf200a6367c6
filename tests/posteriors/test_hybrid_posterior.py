"""HybridPosterior on Gaussians with exact answers, and where its base fits badly."""

import math
import pickle
import time
import warnings
from copy import deepcopy

import pytest
import torch
from sbi.inference.posteriors import DirectPosterior, MCMCPosterior
from sbi.inference.potentials import posterior_estimator_based_potential
from sbi.neural_nets.estimators import ConditionalDensityEstimator
from sbi.utils import BoxUniform
from torch import nn
from torch.distributions import Independent, Normal

from sbi_boed_plugin import HybridEstimator, HybridPosterior
from sbi_boed_plugin.estimators.hybrid import UnnormalizedHybrid

PRIOR = BoxUniform(-3.0 * torch.ones(2), 3.0 * torch.ones(2))
X_O = torch.tensor([[0.5, -0.4]])


class GaussianBase(ConditionalDensityEstimator):
    """N(x, scale²), in sbi's calling convention."""

    def __init__(self, scale=0.7):
        super().__init__(
            net=nn.Linear(1, 1), input_shape=(2,), condition_shape=torch.Size((2,))
        )
        self.scale = scale

    def _normal(self, condition):
        return Independent(Normal(condition, self.scale), 1)

    def log_prob(self, input, condition, **kwargs):
        return self._normal(condition).log_prob(input)

    def loss(self, input, condition, **kwargs):
        # A weight without effect, as optimisers need one.
        return 0.0 * self.net.weight.sum() - self.log_prob(input, condition)

    def sample(self, sample_shape, condition, **kwargs):
        return self._normal(condition).sample(sample_shape)


class Zero(nn.Module):
    def forward(self, input, condition):
        return input.sum(dim=-1) * 0.0


class Ring(nn.Module):
    """Two bumps that a Gaussian does not have."""

    def forward(self, input, condition):
        return 2.0 * torch.cos(4.0 * input[..., 0]) - input[..., 1].square()


class Spike(nn.Module):
    """As good as all mass where the base has next to none."""

    def forward(self, input, condition):
        near = (input - condition - 1.0).norm(dim=-1) < 0.1
        return torch.where(near, 15.0, -15.0)


def hybrid_posterior(energy=None, prior=PRIOR, scale=0.7, **kwargs):
    estimator = HybridEstimator(GaussianBase(scale), energy or Ring(), prior=prior)
    return HybridPosterior(estimator, prior, **kwargs)


def draw(posterior, num=1_000, x=X_O, **kwargs):
    return posterior.sample((num,), x=x, show_progress_bars=False, **kwargs)


def grid(half=3.0, num=601):
    axis = torch.linspace(-half, half, num)
    return torch.cartesian_prod(axis, axis), (2.0 * half / (num - 1)) ** 2


def assert_samples_follow(posterior, x, samples, share=1.0, bias=0.01):
    """Means of the samples are those of the density, within four standard errors.

    Of correlated samples a `share` counts; the bound cuts off mass, hence the bias.
    """
    theta, _ = grid()
    weights = posterior.log_prob(theta, x).softmax(dim=0).unsqueeze(1)
    for statistic in (
        lambda values: values,
        lambda values: values.square(),
        lambda values: values.prod(dim=1, keepdim=True),
        lambda values: torch.cos(4.0 * values),
    ):
        exact = (weights * statistic(theta)).sum(dim=0)
        variance = (weights * statistic(theta).square()).sum(dim=0) - exact.square()
        error = (variance / (share * len(samples))).sqrt()
        found = statistic(samples).mean(dim=0)
        assert ((found - exact).abs() < 4.0 * error + bias).all()


# --- Without a correction it is its base ----------------------------------------------


@pytest.mark.parametrize("num_samples", [10, 15_000])
@pytest.mark.parametrize("x_o", [X_O, torch.tensor([[2.8, 2.9]])])
def test_without_energy_it_draws_what_its_base_draws(num_samples, x_o):
    hybrid = hybrid_posterior(Zero())
    direct = DirectPosterior(GaussianBase(), PRIOR)
    samples = []
    for posterior in (direct, hybrid):
        torch.manual_seed(0)
        samples.append(draw(posterior, num_samples, x_o))
    assert torch.equal(*samples)


def test_without_energy_its_density_is_that_of_its_base():
    hybrid, direct = hybrid_posterior(Zero()), DirectPosterior(GaussianBase(), PRIOR)
    theta = PRIOR.sample((50,))
    assert torch.equal(
        hybrid.log_prob(theta, X_O, norm_posterior=False),
        direct.log_prob(theta, X_O, norm_posterior=False),
    )
    # Near a corner two thirds of the base are outside, which 10,000 draws tell to 1.4 %
    # each: four standard errors of the difference.
    x_o = torch.tensor([[2.8, 2.9]])
    torch.testing.assert_close(
        hybrid.log_prob(theta, x_o), direct.log_prob(theta, x_o), atol=0.08, rtol=0
    )
    torch.testing.assert_close(
        hybrid.leakage_correction(x_o),
        direct.leakage_correction(x_o),
        atol=0.03,
        rtol=0,
    )


# --- Exact answers --------------------------------------------------------------------


@pytest.mark.parametrize("x_o", [X_O, torch.tensor([[2.8, 2.9]])])
def test_the_density_integrates_to_one_over_the_prior(x_o):
    posterior = hybrid_posterior()
    theta, cell = grid()
    total = posterior.log_prob(theta, x_o).exp().sum() * cell
    # Four standard errors of the normalization by 10,000 draws, of which so many count.
    error = posterior.diagnostics(x_o).effective_sample_size.item() ** -0.5
    assert total.item() == pytest.approx(1.0, abs=4 * error)
    outside = torch.tensor([[3.5, 0.0]])
    assert posterior.log_prob(outside, x_o).item() == -torch.inf
    assert posterior.potential(outside, x_o).item() == -torch.inf


def test_samples_have_the_moments_of_the_density():
    posterior = hybrid_posterior(bound_quantile=1.0)
    assert_samples_follow(posterior, X_O, draw(posterior, 20_000), bias=1e-3)


def test_rejection_resampling_and_mcmc_agree():
    rejection = hybrid_posterior()
    resampling = hybrid_posterior(min_acceptance_rate=1.0)
    potential, transform = posterior_estimator_based_potential(
        UnnormalizedHybrid(rejection.posterior_estimator), PRIOR, None
    )
    mcmc = MCMCPosterior(
        potential,
        PRIOR,
        transform,
        method="slice_np_vectorized",
        num_chains=200,
        warmup_steps=20,
    )
    assert_samples_follow(rejection, X_O, draw(rejection, 2_000))
    with pytest.warns(UserWarning, match="resampled by importance"):
        assert_samples_follow(rejection, X_O, draw(resampling, 2_000), share=0.5)
    # Ten samples of each chain, whose neighbours are alike.
    assert_samples_follow(rejection, X_O, draw(mcmc, 2_000), share=0.2)


def test_diagnostics_are_those_of_the_weights():
    posterior = hybrid_posterior(bound_quantile=0.99)
    measured = posterior.diagnostics(X_O)
    theta, cell = grid()
    base = GaussianBase().log_prob(theta.unsqueeze(1), X_O)[:, 0].exp() * cell
    ratio = Ring()(theta, X_O).exp()
    partition = (base * ratio).sum()
    bound = measured.log_bound.exp()
    # 10,000 draws: a few per cent of each.
    for name, exact in {
        "log_partition": partition.log(),
        "acceptance_rate": (base * (ratio / bound).clamp(max=1.0)).sum(),
        "effective_sample_size": 10_000 * partition**2 / (base * ratio**2).sum(),
    }.items():
        value = getattr(measured, name)
        torch.testing.assert_close(value[0], exact, rtol=0.04, atol=0.02)
    lost = (base * (ratio - bound).clamp(min=0.0)).sum() / partition
    torch.testing.assert_close(measured.truncated_mass[0], lost, rtol=0.3, atol=1e-4)
    assert measured.num_draws == 10_000
    exact_bound = hybrid_posterior(bound_quantile=1.0).diagnostics(X_O)
    assert exact_bound.truncated_mass.item() == 0.0


def test_another_bound_is_measured_anew():
    posterior = hybrid_posterior()
    first = posterior.diagnostics(X_O)
    posterior.bound_quantile = 0.9
    second = posterior.diagnostics(X_O)
    assert second.log_bound < first.log_bound
    assert second.acceptance_rate > first.acceptance_rate


def test_diagnostics_can_be_read():
    measured = hybrid_posterior().diagnostics(torch.tensor([[0.5, -0.4], [2.0, 1.0]]))
    text = str(measured)
    assert "2 observations, 10,000 draws each" in text
    low = measured.acceptance_rate.min().item()
    assert f"({low:.4f} to" in text
    assert torch.equal(
        measured.effective_share, measured.effective_sample_size / 10_000
    )


def test_what_is_measured_does_not_touch_the_random_state():
    posterior = hybrid_posterior()
    torch.manual_seed(3)
    state = torch.get_rng_state()
    first = posterior.diagnostics(X_O)
    log_prob = posterior.log_prob(PRIOR.sample((1,)) * 0.0, X_O)
    torch.manual_seed(3)
    assert torch.equal(torch.get_rng_state(), state)
    again = hybrid_posterior()
    assert torch.equal(again.diagnostics(X_O).log_partition, first.log_partition)
    assert torch.equal(again.log_prob(torch.zeros(1, 2), X_O), log_prob)


# --- The interface of a posterior -----------------------------------------------------


def test_many_observations_at_once_are_as_each_alone():
    posterior = hybrid_posterior()
    x = torch.tensor([[0.5, -0.4], [-2.0, 1.0], [2.9, 0.0]])
    samples = posterior.sample_batched((2_000,), x=x, show_progress_bars=False)
    assert samples.shape == (2_000, 3, 2)
    for row in range(3):
        assert_samples_follow(posterior, x[row : row + 1], samples[:, row])
    theta = PRIOR.sample((3,))
    together = posterior.log_prob_batched(theta, x)
    alone = [
        posterior.log_prob(theta[i : i + 1], x[i : i + 1]).item() for i in range(3)
    ]
    assert together.shape == (1, 3)
    # Normalized with other draws: the standard error of each is 0.006.
    torch.testing.assert_close(together[0], torch.tensor(alone), atol=0.03, rtol=0)
    shape = posterior.sample_batched((4, 5), x=x, show_progress_bars=False).shape
    assert shape == (4, 5, 3, 2)


def test_the_mode_is_that_of_the_density():
    posterior = hybrid_posterior().set_default_x(X_O)
    theta, _ = grid()
    best = theta[posterior.log_prob(theta).argmax()]
    mode = posterior.map(num_iter=200, num_to_optimize=20, num_init_samples=200)
    torch.testing.assert_close(mode[0], best, atol=0.02, rtol=0)


def test_gradients_flow_on_request():
    posterior = hybrid_posterior()
    theta = torch.zeros(3, 2, requires_grad=True)
    assert not posterior.log_prob(theta, X_O).requires_grad
    log_prob = posterior.log_prob(theta, X_O, track_gradients=True)
    (gradient,) = torch.autograd.grad(log_prob.sum(), theta)
    assert gradient.isfinite().all() and (gradient != 0).any()


class Tilt(nn.Module):
    """exp(a (theta_1 + theta_2)), which moves a Gaussian."""

    def __init__(self):
        super().__init__()
        self.a = nn.Parameter(torch.tensor(0.5))

    def forward(self, input, condition):
        return self.a * input.sum(dim=-1)


class WithNoise(GaussianBase):
    def to_noise(self, input, condition):
        return (input - condition) / self.scale


def test_gradients_are_those_of_the_normalized_density():
    """The hybrid is N(x + 0.49 a, 0.49): exact in x and in the energy's weight."""
    energy = Tilt()
    hybrid = HybridEstimator(WithNoise(), energy)
    theta = torch.tensor([[[0.9, 0.1]]])
    x = X_O.clone().requires_grad_()
    log_prob = hybrid.log_prob(theta, x)
    mean = X_O + 0.49 * 0.5
    exact = Independent(Normal(mean, 0.7), 1).log_prob(theta)
    torch.testing.assert_close(log_prob, exact, atol=0.02, rtol=0.0)
    of_x, of_a = torch.autograd.grad(log_prob.sum(), [x, energy.a])
    slope = (theta[0] - mean) / 0.49
    # A thousand draws, whose weights vary by a half.
    torch.testing.assert_close(of_x, slope, atol=0.05, rtol=0.0)
    torch.testing.assert_close(of_a, (theta[0] - mean).sum(), atol=0.08, rtol=0.0)

    posterior = HybridPosterior(hybrid, PRIOR)
    inside = posterior.log_prob(theta[0], x, track_gradients=True)
    (of_x,) = torch.autograd.grad(inside.sum(), [x])
    # The prior cuts off next to nothing.
    torch.testing.assert_close(of_x, slope, atol=0.1, rtol=0.0)
    state = torch.get_rng_state()
    hybrid.log_prob(theta, x)
    assert torch.equal(state, torch.get_rng_state())


def test_gradients_reach_the_weights():
    energy = Tilt()
    posterior = hybrid_posterior(energy)
    theta = torch.tensor([[0.9, 0.1]])
    log_prob = posterior.log_prob(theta, X_O, track_gradients=True)
    (of_a,) = torch.autograd.grad(log_prob.sum(), [energy.a])
    # The sum of theta less its mean; 0.02 is a standard error of 4,000 draws.
    expected = (theta - X_O - 0.49 * 0.5).sum()
    torch.testing.assert_close(of_a, expected, atol=0.08, rtol=0.0)


COPIES = [deepcopy, lambda value: pickle.loads(pickle.dumps(value))]


@pytest.mark.parametrize("copy", COPIES)
def test_it_can_be_copied_after_any_call_with_gradients(copy):
    posterior = hybrid_posterior(Tilt())
    theta = torch.zeros(2, 2)
    x = 1.0 * X_O.clone().requires_grad_()  # which is not a leaf.
    tracked = {"track_gradients": True}
    posterior.set_default_x(x)
    quiet = {"show_progress_bars": False}
    for call in (
        lambda: posterior.log_prob(theta, **tracked),
        lambda: posterior.log_prob(theta, norm_posterior=False, **tracked),
        lambda: posterior.log_prob_batched(theta, x.repeat(2, 1), **tracked),
        lambda: posterior.potential(theta, **tracked),
        lambda: posterior.leakage_correction(x),
        lambda: posterior.diagnostics(),
        lambda: posterior.sample((3,), **quiet),
        lambda: posterior.sample_batched((3,), x.repeat(2, 1), **quiet),
        lambda: posterior.set_default_x(x.detach()),
        lambda: posterior.map(num_iter=2, num_init_samples=20),
        lambda: posterior.to("cpu"),
    ):
        call()
        same = copy(posterior)
        assert torch.equal(same.log_prob(theta), posterior.log_prob(theta))
        assert torch.equal(same.potential(theta), posterior.potential(theta))
        estimator = copy(posterior.posterior_estimator)
        assert torch.equal(estimator.energy.a, posterior.posterior_estimator.energy.a)
    # The posterior itself keeps its gradients.
    assert posterior.log_prob(theta, **tracked).requires_grad


def test_networks_changed_in_place_are_measured_anew():
    energy = Tilt()
    posterior = hybrid_posterior(energy)
    theta = torch.tensor([[0.9, 0.1]])
    before = posterior.log_prob(theta, X_O), posterior.diagnostics(X_O)
    energy.a.data.neg_()
    after = posterior.log_prob(theta, X_O), posterior.diagnostics(X_O)
    changed = hybrid_posterior(energy)
    torch.testing.assert_close(after[0], changed.log_prob(theta, X_O))
    assert torch.equal(after[1].log_partition, changed.diagnostics(X_O).log_partition)
    assert (after[0] - before[0]).abs() > 0.1
    assert after[1].log_partition != before[1].log_partition
    # Another energy, with as many weights.
    posterior.posterior_estimator.energy = Zero()
    flat = posterior.log_prob(theta, X_O)
    posterior.posterior_estimator.energy = Ring()
    torch.testing.assert_close(
        posterior.log_prob(theta, X_O), hybrid_posterior(Ring()).log_prob(theta, X_O)
    )
    torch.testing.assert_close(flat, hybrid_posterior(Zero()).log_prob(theta, X_O))
    # The same energy, which is no longer asked.
    posterior.posterior_estimator.corrects = False
    torch.testing.assert_close(posterior.log_prob(theta, X_O), flat)
    assert posterior.diagnostics(X_O).uncorrected.all()


def test_what_was_measured_in_inference_mode_serves_gradients():
    posterior = hybrid_posterior(Tilt())
    theta = torch.tensor([[0.9, 0.1]])
    with torch.inference_mode():
        posterior.log_prob(theta, X_O.clone())
    x = X_O.clone().requires_grad_()
    log_prob = posterior.log_prob(theta, x, track_gradients=True)
    (gradient,) = torch.autograd.grad(log_prob.sum(), x)
    assert gradient.isfinite().all()


def test_a_base_without_a_correction_is_not_resampled():
    """Next to nothing of it is in the prior: slow, but each draw is its own."""
    posterior = hybrid_posterior(Zero())
    x_o = torch.tensor([[5.4, 0.0]])
    assert posterior.diagnostics(x_o).acceptance_rate < 1e-3
    samples = draw(posterior, 200, x_o)
    assert len(samples.unique(dim=0)) == 200


def test_draws_come_in_batches_of_the_size_asked_for():
    class Counting(GaussianBase):
        most = 0

        def sample(self, sample_shape, condition, **kwargs):
            self.most = max(self.most, torch.Size(sample_shape).numel())
            return super().sample(sample_shape, condition, **kwargs)

    base = Counting()
    posterior = HybridPosterior(HybridEstimator(base, Ring()), PRIOR)
    draw(posterior, 10, X_O, max_sampling_batch_size=50)
    assert base.most == 50
    posterior = HybridPosterior(
        HybridEstimator(base, Ring()), PRIOR, max_sampling_batch_size=50
    )
    draw(posterior, 10, X_O)
    posterior.log_prob(torch.zeros(1, 2), X_O)
    posterior.leakage_correction(X_O, rejection_sampling_batch_size=50)
    assert base.most == 50


@pytest.mark.parametrize("copy", [deepcopy, lambda p: pickle.loads(pickle.dumps(p))])
def test_copies_draw_the_same(copy):
    posterior = hybrid_posterior().set_default_x(X_O)
    samples = []
    for each in (posterior, copy(posterior)):
        torch.manual_seed(0)
        samples.append(draw(each, 5, None))
    assert torch.equal(*samples)


def test_it_moves_with_its_default_x():
    posterior = hybrid_posterior().set_default_x(X_O)
    before = posterior.diagnostics()
    posterior.to("cpu")
    assert torch.equal(posterior.default_x, X_O)
    assert torch.equal(posterior.diagnostics().log_bound, before.log_bound)
    assert draw(posterior, 5, None).shape == (5, 2)


def test_another_default_x_is_measured_anew():
    posterior = hybrid_posterior().set_default_x(X_O)
    first = posterior.diagnostics()
    posterior.set_default_x(torch.tensor([[2.0, 1.0]]))
    second = posterior.diagnostics()
    assert not torch.equal(first.log_partition, second.log_partition)


def test_a_prior_without_support_is_asked_for_its_density():
    class Triangle:
        """Positive below a diagonal; no `support`, as users write them."""

        event_shape, batch_shape = torch.Size((2,)), torch.Size()

        def sample(self, shape=torch.Size()):
            return -torch.rand(*shape, 2)

        def log_prob(self, theta):
            inside = theta.sum(dim=-1) < 0.0
            return torch.where(inside, 0.0, -torch.inf)

    prior = Triangle()
    estimator = HybridEstimator(GaussianBase(), Ring(), prior=prior)
    samples = estimator.sample(torch.Size((500,)), X_O)[:, 0]
    assert (samples.sum(dim=-1) < 0.0).all()


# --- Bad input and bad luck -----------------------------------------------------------


def test_hopeless_rejection_gives_way_to_resampling_with_a_warning():
    evaluated = []

    class CountingSpike(Spike):
        def forward(self, input, condition):
            evaluated.append(input[..., 0].numel())
            return super().forward(input, condition)

    posterior = hybrid_posterior(CountingSpike(), scale=0.5, bound_quantile=1.0)
    rate = posterior.diagnostics(X_O).acceptance_rate.item()
    assert rate < 1e-3
    evaluated.clear()
    with pytest.warns(UserWarning, match="less than min_acceptance_rate=0.001"):
        samples = draw(posterior, 500)
    # Far fewer than rejection would have taken.
    assert 500 <= sum(evaluated) < 0.5 * 500 / rate
    assert samples.shape == (500, 2)
    assert PRIOR.log_prob(samples).isfinite().all()
    # Nearly all of them in the spike, where nearly all of the mass is.
    near = (samples - X_O - 1.0).norm(dim=-1) < 0.1
    assert near.float().mean() > 0.99


def test_only_hopeless_observations_are_resampled():
    class SpikeOfSome(Spike):
        def forward(self, input, condition):
            spike = super().forward(input, condition)
            return torch.where(condition[..., 0] > 0.0, spike, 0.0)

    posterior = hybrid_posterior(SpikeOfSome(), scale=0.5, bound_quantile=1.0)
    x = torch.tensor([[-1.0, 0.0], [0.5, -0.4], [-2.0, 0.0]])
    with pytest.warns(UserWarning, match=r"row 1 of x.*\(1 of 3 rows\)"):
        samples = posterior.sample_batched((2_000,), x=x, show_progress_bars=False)
    assert samples.shape == (2_000, 3, 2)
    for row in (0, 2):
        error = 0.5 / 2_000**0.5
        assert ((samples[:, row].mean(dim=0) - x[row]).abs() < 4 * error).all()


def test_no_bound_cuts_off_much_of_the_mass():
    """Weights of which the quantile loses nine tenths raise the bound."""

    class Island(nn.Module):
        def forward(self, input, condition):
            near = (input - condition - 1.3).norm(dim=-1) < 0.2
            return torch.where(near, 2.0, -9.0)

    posterior = hybrid_posterior(Island())
    theta, cell = grid()
    density = posterior.log_prob(theta, X_O).exp() * cell
    near = (theta - X_O - 1.3).norm(dim=-1) < 0.2
    share = density[near].sum().item()
    assert share > 0.9
    measured = posterior.diagnostics(X_O)
    assert measured.truncated_mass.item() <= 0.02
    samples = draw(posterior, 2_000)
    found = ((samples - X_O - 1.3).norm(dim=-1) < 0.2).float().mean().item()
    assert found == pytest.approx(share, abs=0.03)


def test_hundreds_of_observations_are_sampled():
    posterior = hybrid_posterior()
    x = torch.zeros(450, 2) + torch.linspace(-1.0, 1.0, 450).unsqueeze(1)
    samples = posterior.sample_batched((3,), x=x, show_progress_bars=False)
    assert samples.shape == (3, 450, 2) and samples.isfinite().all()


def test_an_observation_changed_in_place_is_measured_anew():
    posterior, x_o = hybrid_posterior(), X_O.clone()
    posterior.log_prob(torch.zeros(1, 2), x_o)
    x_o += 1.0
    changed = posterior.log_prob(torch.zeros(1, 2), x_o)
    assert torch.equal(changed, hybrid_posterior().log_prob(torch.zeros(1, 2), x_o))


def test_posteriors_of_one_estimator_have_their_own_priors():
    estimator = HybridEstimator(GaussianBase(), Ring(), prior=PRIOR)
    positive = BoxUniform(torch.zeros(2), torch.ones(2))
    narrow = HybridPosterior(estimator, positive)
    wide = HybridPosterior(estimator, PRIOR)
    assert (draw(narrow, 200) >= 0.0).all()
    assert (draw(wide, 200) < 0.0).any()
    assert narrow.log_prob(-torch.ones(1, 2), X_O).item() == -torch.inf
    assert estimator.prior is PRIOR


def test_densities_without_any_mass_in_the_prior_are_refused():
    with pytest.raises(RuntimeError, match="None of 10000 draws.*row 1 of x"):
        hybrid_posterior().log_prob_batched(
            torch.zeros(2, 2), torch.tensor([[0.0, 0.0], [50.0, 50.0]])
        )


def test_the_shape_of_the_samples_is_that_asked_for():
    posterior = hybrid_posterior()
    assert posterior.sample((5, 2), x=X_O, show_progress_bars=False).shape == (5, 2, 2)
    batched = draw(posterior, 7, max_sampling_batch_size=3)
    assert batched.shape == (7, 2)


def test_an_observation_without_any_mass_in_the_prior_is_refused():
    with pytest.raises(RuntimeError, match="None of 10000 draws.*far from all"):
        draw(hybrid_posterior(), x=torch.tensor([[50.0, 50.0]]))


def test_a_partition_function_that_was_trained_and_is_off_is_told():
    class Off(nn.Module):
        def forward(self, input, condition):
            return torch.full(input.shape[:-1], 2.5)

    posterior = hybrid_posterior(Off())
    posterior.posterior_estimator.trained_partition = True
    with pytest.warns(UserWarning, match="log Z is 2.50.*far from the simulations"):
        posterior.diagnostics(X_O)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        hybrid_posterior(Off()).diagnostics(X_O)


def test_time_is_limited():
    class Slow(GaussianBase):
        def sample(self, sample_shape, condition, **kwargs):
            time.sleep(0.05)
            return super().sample(sample_shape, condition, **kwargs)

    estimator = HybridEstimator(Slow(), Ring(), prior=PRIOR)
    posterior = HybridPosterior(estimator, PRIOR)
    posterior.diagnostics(X_O)  # which is kept: not to wait for batches of ten of it.
    limited = {"max_sampling_time": 0.1, "max_sampling_batch_size": 10}
    with pytest.raises(RuntimeError, match="max_sampling_time"):
        draw(posterior, 1_000, **limited)
    with pytest.warns(UserWarning, match="partial"):
        some = draw(posterior, 1_000, return_partial_on_timeout=True, **limited)
    assert 0 < len(some) < 1_000


def test_wrong_input_is_named():
    with pytest.raises(TypeError, match="posterior_estimator must be a HybridEst"):
        HybridPosterior(GaussianBase(), PRIOR)
    with pytest.raises(ValueError, match="bound_quantile=2.0 must be between"):
        hybrid_posterior(bound_quantile=2.0)
    posterior = hybrid_posterior()
    with pytest.raises(ValueError, match=r"x has shape \(1, 3\)"):
        draw(posterior, x=torch.zeros(1, 3))
    with pytest.raises(ValueError, match="NaN"):
        draw(posterior, x=torch.tensor([[torch.nan, 0.0]]))
    with pytest.raises(ValueError, match="takes one observation, and x has 2"):
        draw(posterior, x=torch.zeros(2, 2))
    with pytest.raises(ValueError, match="takes one observation, and x has 2"):
        posterior.log_prob(torch.zeros(1, 2), torch.zeros(2, 2))
    with pytest.raises(ValueError, match="default"):
        posterior.diagnostics()


@pytest.mark.parametrize("value, fine", [(1e6, True), (-1e6, True), (torch.nan, False)])
def test_energies_of_any_network_are_bounded_or_refused(value, fine):
    class Wild(nn.Module):
        def forward(self, input, condition):
            return value * (1.0 + input.sum(dim=-1).square())

    posterior = hybrid_posterior(Wild())
    if fine:
        assert draw(posterior, 10).isfinite().all()
        assert posterior.log_prob(torch.zeros(1, 2), X_O).isfinite().all()
    else:
        with pytest.raises(ValueError, match="energy_net returned NaN"):
            draw(posterior, 10)


def test_densities_without_any_mass_in_the_prior_are_refused_by_number_of_draws():
    posterior = hybrid_posterior()
    few = {"num_rejection_samples": 100}
    with pytest.raises(RuntimeError, match="None of 100 draws.*far from all"):
        posterior.log_prob(
            torch.zeros(1, 2),
            x=torch.tensor([[50.0, 50.0]]),
            leakage_correction_params=few,
        )


def test_outside_the_prior_samples_are_those_of_the_base():
    """Whatever an energy says where it was never trained."""

    class LoudOutside(nn.Module):
        def forward(self, input, condition):
            inside = (input.abs() <= 3.0).all(dim=-1)
            return torch.where(inside, 0.0, 5.0)

    posterior = hybrid_posterior(LoudOutside(), scale=3.0)
    x = torch.zeros(1, 2)
    torch.manual_seed(0)
    with pytest.warns(UserWarning, match="reject_outside_prior"):
        samples = draw(posterior, 4_000, x=x, reject_outside_prior=False)
    base = torch.distributions.Normal(0.0, 3.0)
    share = 1.0 - (1.0 - 2.0 * base.cdf(torch.tensor(-3.0))) ** 2
    outside = (samples.abs() > 3.0).any(dim=-1).float().mean()
    assert outside.item() == pytest.approx(share.item(), abs=0.03)
    # Of all mass there is as much inside as the base has there.
    left = posterior.leakage_correction(x)
    assert left.item() == pytest.approx(1.0 - share.item(), abs=0.03)


def test_draws_that_are_not_finite_have_no_weight():
    class Overflows(GaussianBase):
        def sample(self, sample_shape, condition, **kwargs):
            draws = super().sample(sample_shape, condition, **kwargs)
            draws[::7] = torch.inf
            return draws

    for prior in (PRIOR, None):
        estimator = HybridEstimator(Overflows(), Ring(), prior=prior)
        samples = estimator.sample(torch.Size((500,)), X_O)
        assert samples.isfinite().all()
        # log Z of the draws that are there, six in seven.
        whole = HybridEstimator(GaussianBase(), Ring(), prior=prior)
        log_z, log_whole = (
            hybrid.measure_weights(X_O).log_partition for hybrid in (estimator, whole)
        )
        assert (log_whole - log_z).item() == pytest.approx(math.log(7 / 6), abs=0.05)


def test_observations_share_the_time_and_none_is_lost():
    class Slow(GaussianBase):
        def sample(self, sample_shape, condition, **kwargs):
            time.sleep(0.02)
            return super().sample(sample_shape, condition, **kwargs)

    posterior = HybridPosterior(HybridEstimator(Slow(), Ring(), prior=PRIOR), PRIOR)
    x = X_O.repeat(250, 1)
    with pytest.warns(UserWarning, match="partial"):
        samples = posterior.sample_batched(
            (100_000,),
            x=x,
            show_progress_bars=False,
            max_sampling_time=0.2,
            return_partial_on_timeout=True,
        )
    assert samples.shape[1:] == (250, 2)
    assert 0 < len(samples) < 100_000


def test_resampling_stops_when_the_time_is_over():
    class Slow(GaussianBase):
        def sample(self, sample_shape, condition, **kwargs):
            time.sleep(0.05)
            return super().sample(sample_shape, condition, **kwargs)

    estimator = HybridEstimator(Slow(0.5), Spike(), prior=PRIOR)
    posterior = HybridPosterior(estimator, PRIOR, bound_quantile=1.0)
    with (
        pytest.warns(UserWarning, match="min_acceptance_rate"),
        pytest.raises(RuntimeError, match="max_sampling_time is over.*of 100,000"),
    ):
        draw(posterior, 500, max_sampling_time=0.1)
    with pytest.warns(UserWarning, match="in the place of 100,000"):
        samples = draw(
            posterior, 500, max_sampling_time=0.1, return_partial_on_timeout=True
        )
    assert len(samples) == 500


def test_rows_are_numbered_as_the_user_numbers_them():
    class TailOfSome(nn.Module):
        def forward(self, input, condition):
            far = input[..., 0] > condition[..., 0] + 1.0
            tail = torch.where(far, 3.0, -8.0)
            return torch.where(condition[..., 0] > 0.0, tail, 0.0)

    posterior = hybrid_posterior(TailOfSome(), scale=0.5, min_acceptance_rate=0.1)
    x = torch.tensor([[-1.0, 0.0]]).repeat(120, 1)
    x[110] = X_O
    with pytest.warns(UserWarning, match=r"row 110 of x.*\(1 of 120 rows\)") as caught:
        posterior.sample_batched((5,), x=x, show_progress_bars=False)
    assert sum("min_acceptance_rate" in str(one.message) for one in caught) == 1
