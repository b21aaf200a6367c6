"""HybridPosterior on Gaussians with exact answers, and where its base fits badly."""

import math
import pickle
import warnings
from copy import deepcopy

import pytest
import torch
from sbi.inference.posteriors import DirectPosterior, MCMCPosterior
from sbi.inference.potentials import posterior_estimator_based_potential
from sbi.utils import BoxUniform
from torch.distributions import Normal

from sbi_boed_plugin import HybridEstimator, HybridPosterior
from sbi_boed_plugin.estimators.hybrid import UnnormalizedHybrid
from tests.hybrids import (
    PRIOR,
    X_O,
    Energy,
    GaussianBase,
    Tilt,
    hybrid_posterior,
    ring,
    spike,
    zero,
)

CORNER = torch.tensor([[2.8, 2.9]])
QUIET = {"show_progress_bars": False}
THETA = torch.tensor([[0.9, 0.1]])


def draw(posterior, num=1_000, x=X_O, **kwargs):
    return posterior.sample((num,), x=x, **QUIET, **kwargs)


def grid(half=3.0, num=601):
    axis = torch.linspace(-half, half, num)
    return torch.cartesian_prod(axis, axis), (2.0 * half / (num - 1)) ** 2


def assert_samples_follow(posterior, x, samples, share=1.0, bias=0.01):
    """Means of the samples are those of the density, within four standard errors.

    Of correlated samples a `share` counts; the ceiling cuts off mass, hence the bias.
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


@pytest.mark.parametrize("num_samples", [10, 15_000])
@pytest.mark.parametrize("x_o", [X_O, CORNER])
def test_without_energy_it_draws_what_its_base_draws(num_samples, x_o):
    samples = []
    for posterior in (DirectPosterior(GaussianBase(), PRIOR), hybrid_posterior(zero)):
        torch.manual_seed(0)
        samples.append(draw(posterior, num_samples, x_o))
    assert torch.equal(*samples)


def test_without_energy_its_density_is_that_of_its_base():
    hybrid, direct = hybrid_posterior(zero), DirectPosterior(GaussianBase(), PRIOR)
    theta = PRIOR.sample((50,))
    unnormalized = [
        p.log_prob(theta, X_O, norm_posterior=False) for p in (hybrid, direct)
    ]
    assert torch.equal(*unnormalized)
    # Near a corner two thirds of the base are outside, which 10,000 draws tell to 1.4 %
    # each: four standard errors of the difference.
    normalized = [p.log_prob(theta, CORNER) for p in (hybrid, direct)]
    torch.testing.assert_close(*normalized, atol=0.08, rtol=0)
    shares = [p.leakage_correction(CORNER) for p in (hybrid, direct)]
    torch.testing.assert_close(*shares, atol=0.03, rtol=0)


@pytest.mark.parametrize("x_o", [X_O, CORNER])
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


@pytest.mark.slow
def test_rejection_resampling_and_mcmc_agree():
    rejection = hybrid_posterior()
    resampling = hybrid_posterior(min_acceptance_rate=1.0)
    potential, transform = posterior_estimator_based_potential(
        UnnormalizedHybrid(rejection.posterior_estimator), PRIOR, None
    )
    slices = {"method": "slice_np_vectorized", "num_chains": 200, "warmup_steps": 20}
    mcmc = MCMCPosterior(potential, PRIOR, transform, **slices)
    exact = hybrid_posterior(ceiling_quantile=1.0)
    assert_samples_follow(exact, X_O, draw(exact, 20_000), bias=1e-3)
    assert_samples_follow(rejection, X_O, draw(rejection, 2_000))
    with pytest.warns(UserWarning, match="resampled by importance"):
        assert_samples_follow(rejection, X_O, draw(resampling, 2_000), share=0.5)
    # Ten samples of each chain, whose neighbours are alike.
    assert_samples_follow(rejection, X_O, draw(mcmc, 2_000), share=0.2)


def test_diagnostics_are_those_of_the_weights():
    posterior = hybrid_posterior(ceiling_quantile=0.99)
    measured = posterior.diagnostics(X_O)
    theta, cell = grid()
    base = GaussianBase().log_prob(theta.unsqueeze(1), X_O)[:, 0].exp() * cell
    ratio = ring(theta, X_O).exp()
    partition = (base * ratio).sum()
    ceiling = measured.log_ceiling.exp()
    # 10,000 draws: a few per cent of each.
    for name, exact in {
        "log_partition": partition.log(),
        "acceptance_rate": (base * (ratio / ceiling).clamp(max=1.0)).sum(),
        "effective_sample_size": 10_000 * partition**2 / (base * ratio**2).sum(),
    }.items():
        value = getattr(measured, name)
        torch.testing.assert_close(value[0], exact, rtol=0.04, atol=0.02)
    lost = (base * (ratio - ceiling).clamp(min=0.0)).sum() / partition
    torch.testing.assert_close(measured.truncated_mass[0], lost, rtol=0.3, atol=1e-4)
    assert measured.num_draws == 10_000
    exact_ceiling = hybrid_posterior(ceiling_quantile=1.0).diagnostics(X_O)
    assert exact_ceiling.truncated_mass.item() == 0.0
    several = posterior.diagnostics(torch.tensor([[0.5, -0.4], [2.0, 1.0]]))
    text = str(several)
    assert "2 observations, 10,000 draws each" in text
    assert f"({several.acceptance_rate.min().item():.4f} to" in text


def test_what_is_measured_does_not_touch_the_random_state():
    posterior = hybrid_posterior()
    state = torch.get_rng_state()
    first = posterior.diagnostics(X_O)
    log_prob = posterior.log_prob(THETA, X_O)
    assert torch.equal(torch.get_rng_state(), state)
    again = hybrid_posterior()
    assert torch.equal(again.diagnostics(X_O).log_partition, first.log_partition)
    assert torch.equal(again.log_prob(THETA, X_O), log_prob)


def test_no_ceiling_cuts_off_much_of_the_mass():
    """Weights of which the quantile loses nine tenths raise the ceiling."""

    def is_near(theta, x):
        return (theta - x - 1.3).norm(dim=-1) < 0.2

    posterior = hybrid_posterior(lambda t, x: torch.where(is_near(t, x), 2.0, -9.0))
    theta, cell = grid()
    density = posterior.log_prob(theta, X_O).exp() * cell
    share = density[is_near(theta, X_O)].sum().item()
    assert share > 0.9
    assert posterior.diagnostics(X_O).truncated_mass.item() <= 0.02
    found = is_near(draw(posterior, 2_000), X_O).float().mean().item()
    assert found == pytest.approx(share, abs=0.03)


def test_many_observations_at_once_are_as_each_alone():
    posterior = hybrid_posterior()
    x = torch.tensor([[0.5, -0.4], [-2.0, 1.0], [2.9, 0.0]])
    samples = posterior.sample_batched((2_000,), x=x, **QUIET)
    assert samples.shape == (2_000, 3, 2)
    for row in range(3):
        assert_samples_follow(posterior, x[row : row + 1], samples[:, row])
    theta = PRIOR.sample((3,))
    together = posterior.log_prob_batched(theta, x)
    pairs = zip(theta.split(1), x.split(1), strict=True)
    alone = torch.cat([posterior.log_prob(*pair) for pair in pairs])
    assert together.shape == (1, 3)
    # Normalized with other draws: the standard error of each is 0.006.
    torch.testing.assert_close(together[0], alone, atol=0.03, rtol=0)


def test_the_shape_of_the_samples_is_that_asked_for():
    posterior = hybrid_posterior()
    assert posterior.sample((5, 2), x=X_O, **QUIET).shape == (5, 2, 2)
    assert draw(posterior, 7, max_sampling_batch_size=3).shape == (7, 2)
    assert draw(posterior, 0).shape == (0, 2)
    x = X_O.repeat(3, 1)
    assert posterior.sample_batched((4, 5), x=x, **QUIET).shape == (4, 5, 3, 2)


def test_gradients_flow_on_request_and_reach_the_weights():
    energy = Tilt()
    posterior = hybrid_posterior(energy)
    theta = THETA.clone().requires_grad_()
    with torch.inference_mode():  # whose measured weights serve gradients later.
        posterior.log_prob(THETA, X_O.clone())
    assert not posterior.log_prob(theta, X_O).requires_grad
    log_prob = posterior.log_prob(theta, X_O, track_gradients=True)
    of_theta, of_a = torch.autograd.grad(log_prob.sum(), [theta, energy.a])
    # The hybrid is N(x + 0.49 a, 0.49), of which the prior cuts off next to nothing.
    mean = X_O + 0.49 * 0.5
    torch.testing.assert_close(of_theta, (mean - THETA) / 0.49)
    # 0.02 is a standard error of 4,000 draws.
    torch.testing.assert_close(of_a, (THETA - mean).sum(), atol=0.08, rtol=0.0)


@pytest.mark.parametrize("copy", [deepcopy, lambda p: pickle.loads(pickle.dumps(p))])
def test_copies_are_the_same_and_it_moves_with_its_default_x(copy):
    posterior = hybrid_posterior(Tilt()).set_default_x(X_O)
    before = posterior.log_prob(THETA, track_gradients=True)
    posterior.to("cpu")
    assert torch.equal(posterior.default_x, X_O)
    samples = []
    for each in (posterior, copy(posterior)):
        torch.testing.assert_close(each.log_prob(THETA), before)
        assert torch.equal(each.potential(THETA), posterior.potential(THETA))
        torch.manual_seed(0)
        samples.append(draw(each, 5, None))
    assert torch.equal(*samples)


@pytest.mark.parametrize(
    "change",
    [
        lambda posterior: setattr(
            posterior.posterior_estimator, "energy", Energy(ring)
        ),
        lambda posterior: posterior.posterior_estimator.energy.a.data.neg_(),
        lambda posterior: setattr(posterior.posterior_estimator, "corrects", False),
        lambda posterior: posterior.default_x.add_(1.0),
        lambda posterior: setattr(posterior, "ceiling_quantile", 0.9),
    ],
)
def test_what_was_changed_is_measured_again(change):
    posterior = hybrid_posterior(Tilt()).set_default_x(X_O.clone())
    posterior.log_prob(THETA)
    before = posterior.diagnostics()
    change(posterior)
    fresh = deepcopy(posterior)
    fresh._measured = None
    assert torch.equal(posterior.log_prob(THETA), fresh.log_prob(THETA))
    measured = posterior.diagnostics()
    assert torch.equal(measured.log_ceiling, fresh.diagnostics().log_ceiling)
    assert not torch.equal(measured.acceptance_rate, before.acceptance_rate)


def test_posteriors_of_one_estimator_have_their_own_priors():
    wide = hybrid_posterior()
    positive = BoxUniform(torch.zeros(2), torch.ones(2))
    narrow = HybridPosterior(wide.posterior_estimator, positive)
    assert (draw(narrow, 200) >= 0.0).all()
    assert (draw(wide, 200) < 0.0).any()
    assert narrow.log_prob(-torch.ones(1, 2), X_O).item() == -torch.inf
    assert wide.posterior_estimator.prior is PRIOR


def test_hopeless_rejection_gives_way_to_resampling_with_a_warning():
    posterior = hybrid_posterior(spike, base=GaussianBase(0.5), ceiling_quantile=1.0)
    assert posterior.diagnostics(X_O).acceptance_rate < 1e-3
    with pytest.warns(UserWarning, match="less than min_acceptance_rate=0.001"):
        samples = draw(posterior, 500)
    assert PRIOR.log_prob(samples).isfinite().all()
    # Nearly all of them in the spike, where nearly all of the mass is.
    near = (samples - X_O - 1.0).norm(dim=-1) < 0.1
    assert near.float().mean() > 0.99


def test_only_hopeless_observations_are_resampled_and_named_by_their_row():
    def spike_of_some(input, condition):
        return torch.where(condition[..., 0] > 0.0, spike(input, condition), 0.0)

    base = GaussianBase(0.5)
    posterior = hybrid_posterior(spike_of_some, base=base, ceiling_quantile=1.0)
    x = torch.tensor([[-1.0, 0.0]]).repeat(120, 1)
    x[110], x[119] = X_O, torch.tensor([-2.0, 0.0])
    with pytest.warns(UserWarning, match=r"row 110 of x.*\(1 of 120 rows\)") as caught:
        samples = posterior.sample_batched((2_000,), x=x, **QUIET)
    assert sum("min_acceptance_rate" in str(one.message) for one in caught) == 1
    for row in (0, 2, 119):
        error = 0.5 / 2_000**0.5
        assert ((samples[:, row].mean(dim=0) - x[row]).abs() < 4 * error).all()


@pytest.mark.parametrize(
    "call, match",
    [
        (lambda p, x: draw(p, x=x[1:]), "None of 10000 draws.*row 0 of x.*far from"),
        (lambda p, x: p.log_prob_batched(x, x), "None of 10000 draws.*row 1 of x"),
        (
            lambda p, x: p.log_prob(
                THETA, x[1:], leakage_correction_params={"num_rejection_samples": 100}
            ),
            "None of 100 draws.*far from all",
        ),
    ],
)
def test_an_observation_without_any_mass_in_the_prior_is_refused(call, match):
    with pytest.raises(RuntimeError, match=match):
        call(hybrid_posterior(), torch.tensor([[0.0, 0.0], [50.0, 50.0]]))


def test_a_partition_function_that_was_trained_and_is_off_is_told():
    def off(input, condition):
        return torch.full(input.shape[:-1], 2.5)

    posterior = hybrid_posterior(off)
    posterior.posterior_estimator.trained_partition = True
    with pytest.warns(UserWarning, match="log Z is 2.50.*far from the simulations"):
        posterior.diagnostics(X_O)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        hybrid_posterior(off).diagnostics(X_O)


@pytest.mark.filterwarnings("ignore:Rejection would accept")
def test_time_is_limited():
    limited = {"max_sampling_time": 0.05, "max_sampling_batch_size": 10}
    for energy in (ring, spike):
        posterior = hybrid_posterior(energy, base=GaussianBase(0.5, seconds=0.02))
        posterior.diagnostics(X_O)  # which is kept: not to wait for batches of ten.
        with pytest.raises(RuntimeError, match="max_sampling_time is over"):
            draw(posterior, 1_000, **limited)
    posterior = hybrid_posterior(base=GaussianBase(seconds=0.02))
    posterior.diagnostics(X_O)
    limited |= {"return_partial_on_timeout": True}
    with pytest.warns(UserWarning, match="partial"):
        some = draw(posterior, 1_000, **limited)
    assert 0 < len(some) < 1_000
    limited |= {"max_sampling_batch_size": None, "max_sampling_time": 0.2}
    x = X_O.repeat(250, 1)
    with pytest.warns(UserWarning, match="partial"):
        samples = posterior.sample_batched((100_000,), x=x, **QUIET, **limited)
    assert samples.shape[1:] == (250, 2) and 0 < len(samples) < 100_000


@pytest.mark.parametrize(
    "call, match",
    [
        (
            lambda p: hybrid_posterior(ceiling_quantile=2.0),
            "ceiling_quantile=2.0 must be",
        ),
        (lambda p: draw(p, x=torch.zeros(1, 3)), r"x has shape \(1, 3\)"),
        (lambda p: draw(p, x=torch.tensor([[torch.nan, 0.0]])), "NaN"),
        (lambda p: draw(p, x=torch.zeros(2, 2)), "one observation.*has 2"),
        (
            lambda p: p.log_prob(THETA, torch.zeros(2, 2)),
            "one observation, and x has 2",
        ),
        (lambda p: p.diagnostics(), "default"),
        (
            lambda p: draw(hybrid_posterior(lambda t, x: zero(t, x) + math.nan)),
            "net returned NaN",
        ),
        (lambda p: HybridPosterior(GaussianBase(), PRIOR), "must be a HybridEst"),
    ],
)
def test_wrong_input_is_named(call, match):
    with pytest.raises((ValueError, TypeError), match=match):
        call(hybrid_posterior())


def test_outside_the_prior_samples_are_those_of_the_base():
    """Whatever an energy says where it was never trained."""

    def loud_outside(input, condition):
        return torch.where((input.abs() <= 3.0).all(dim=-1), 0.0, 5.0)

    posterior = hybrid_posterior(loud_outside, base=GaussianBase(3.0))
    x = torch.zeros(1, 2)
    torch.manual_seed(0)
    with pytest.warns(UserWarning, match="reject_outside_prior"):
        samples = draw(posterior, 4_000, x=x, reject_outside_prior=False)
    base = Normal(0.0, 3.0)
    share = 1.0 - (1.0 - 2.0 * base.cdf(torch.tensor(-3.0))) ** 2
    outside = (samples.abs() > 3.0).any(dim=-1).float().mean()
    assert outside.item() == pytest.approx(share.item(), abs=0.03)
    # Of all mass there is as much inside as the base has there.
    left = posterior.leakage_correction(x)
    assert left.item() == pytest.approx(1.0 - share.item(), abs=0.03)


@pytest.mark.parametrize("prior", [PRIOR, None])
def test_draws_that_are_not_finite_have_no_weight(prior):
    class Overflows(GaussianBase):
        def sample(self, sample_shape, condition, **kwargs):
            draws = super().sample(sample_shape, condition, **kwargs)
            draws[::7] = torch.inf
            return draws

    estimator = HybridEstimator(Overflows(), Energy(ring), prior=prior)
    assert estimator.sample(torch.Size((500,)), X_O).isfinite().all()
    # log Z of the draws that are there, six in seven.
    whole = HybridEstimator(GaussianBase(), Energy(ring), prior=prior)
    log_z, log_whole = (
        hybrid.measure_weights(X_O).log_partition for hybrid in (estimator, whole)
    )
    assert (log_whole - log_z).item() == pytest.approx(math.log(7 / 6), abs=0.05)
