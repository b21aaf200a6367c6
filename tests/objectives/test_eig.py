"""Every bound with exact densities is exact, and with wrong ones still a bound."""

import math
import pickle

import pytest
import torch
from sbi.utils import BoxUniform
from torch import nn
from torch.distributions import Independent, Normal, Poisson, Uniform

from benchmarks.exact_estimators import (
    GaussianEstimator,
    exact_estimators,
    information,
    normal_prior,
    slope,
    straight_line,
)
from sbi_boed_plugin import estimate_eig
from sbi_boed_plugin.estimators.hybrid import HybridEstimator
from sbi_boed_plugin.objectives import eig as eig_module
from sbi_boed_plugin.objectives.eig import BOUNDS, NoEstimateError
from tests.oracles import EnergyBetween, LinearGaussian, WithConstant
from tests.trainers.cases import CHECK

LINE = {"dim_theta": 2, "dim_design": 3}
SLOPE = {"dim_theta": 1, "dim_design": 1}
MODELS = {
    "slope": (slope, SLOPE, torch.tensor([2.0])),
    "line": (straight_line, LINE, torch.tensor([-1.0, 0.3, 1.5])),
    "long line": (
        straight_line,
        {**LINE, "dim_design": 10},
        torch.tensor([30.0, -30.0] * 5),
    ),
}
for_each_model = pytest.mark.parametrize("model", ["slope", "line"])
UNIT = BoxUniform(torch.zeros(1), torch.ones(1))


class Energy(nn.Module):
    """An energy ratio that is a function of parameters and condition."""

    def __init__(self, function):
        super().__init__()
        self.forward = function


NOISE = Energy(lambda theta, data: 0.5 * torch.sin(3.0 * theta.sum(-1) + data.sum(-1)))


def hybrid(model, energy=None, **wrong):
    """A hybrid posterior from a wrong base, by default with the exact correction."""
    features, dims, _ = MODELS[model]
    base = exact_estimators(features, **dims, **wrong).posterior
    exact = exact_estimators(features, **dims).posterior
    return HybridEstimator(base, energy or EnergyBetween(exact, base))


def no_posterior():
    """The prior, as a posterior that learns nothing."""
    return exact_estimators(lambda design: 0 * slope(design), **SLOPE).posterior


def estimate(model, bound, estimator=None, simulator=None, **kwargs):
    """An estimate with exact densities, except for those given."""
    features, dims, design = MODELS[model]
    exact = exact_estimators(features, **dims)

    def simulate(theta, design):
        mean = (features(design) @ theta.unsqueeze(-1)).squeeze(-1)
        return mean + torch.randn_like(mean)

    def log_likelihood(x, theta, design):
        condition = torch.cat([theta, design], dim=-1)
        return exact.likelihood.log_prob(x.unsqueeze(0), condition)[0]

    defaults = {
        "gkl": hybrid(model, noise_scale=1.5),
        "barber_agakov": exact.posterior,
        "exact": log_likelihood,
    }
    settings = {
        "prior": normal_prior(dims["dim_theta"]),
        "design": design,
        "num_samples": 2_000,
        "num_contrastive": 500,
        "seed": 0,
    }
    if bound == "marginal":
        settings["marginal_estimator"] = exact.marginal
    if bound.startswith("lace"):
        settings["posterior_estimator"] = exact.posterior
    return estimate_eig(
        estimator or defaults.get(bound, exact.likelihood),
        simulator or simulate,
        bound=bound,
        **{**settings, **kwargs},
    )


def exact_value(model):
    features, _, design = MODELS[model]
    return information(features, design).item()


@for_each_model
@pytest.mark.parametrize("bound", BOUNDS)
def test_with_exact_densities_each_is_the_information(model, bound):
    eig, exact = estimate(model, bound), exact_value(model)
    # Nested estimates with 500 contrastive samples are off by less than 0.01.
    assert abs(eig.value - exact) < 3.5 * eig.standard_error + 0.01
    assert eig.standard_error < 0.1
    assert eig.bound == bound and eig.num_simulations == 2_000 + CHECK
    caps = {"pce": math.log(501), "lace": eig.value + math.log(501)}
    cap = caps.get(bound)
    # The exact posterior has the exact information, whatever the contrasts.
    assert eig.cap == (None if cap is None else pytest.approx(cap, abs=1e-3))


WRONG = [{"noise_scale": 0.6}, {"noise_scale": 2.0}, {"error": 0.7}]


@pytest.mark.filterwarnings("ignore:The estimated information gain")
@pytest.mark.parametrize("wrong", WRONG, ids=str)
@for_each_model
def test_lower_bounds_are_below_with_wrong_densities(model, wrong):
    features, dims, _ = MODELS[model]
    bad = exact_estimators(features, **dims, **wrong)
    good = exact_estimators(features, **dims)
    small = {"num_samples": 1_000, "num_contrastive": 100}
    of_marginal = {"marginal_estimator": bad.marginal, **small}
    of_posterior = {"posterior_estimator": bad.posterior, **small}
    estimates = [
        estimate(model, "pce", bad.likelihood, **small),
        estimate(model, "lace", bad.likelihood, **of_posterior),
        estimate(model, "nwj", bad.likelihood, **small),
        estimate(model, "nwj", bad.likelihood, **of_marginal),
        estimate(model, "nwj", good.likelihood, **of_marginal),
        estimate(model, "barber_agakov", bad.posterior, **small),
        estimate(model, "gkl", hybrid(model, NOISE, **wrong), **small),
        estimate(model, "gkl", hybrid(model, NOISE), **small),
        # With the true marginal the difference is a lower bound, too.
        estimate(model, "marginal", bad.likelihood, **small),
    ]
    exact = exact_value(model)
    for eig in estimates:
        assert eig.value < exact + 3 * eig.standard_error, (eig, exact)
    assert sum(e.value < exact - 3 * e.standard_error for e in estimates) >= 5


@pytest.mark.parametrize("wrong", WRONG, ids=str)
@for_each_model
def test_the_marginal_bound_is_above_with_the_true_likelihood(model, wrong):
    features, dims, _ = MODELS[model]
    bad = exact_estimators(features, **dims, **wrong).marginal
    loose = estimate(model, "marginal", marginal_estimator=bad)
    assert loose.value > exact_value(model) - 3 * loose.standard_error


@pytest.mark.filterwarnings("ignore:The pce estimate")
@pytest.mark.parametrize("design", [0.0, 0.5, 1.0, 3.0, 10.0])
@pytest.mark.parametrize("num_contrastive", [8, 15, 255])
def test_nested_bounds_enclose_the_information(design, num_contrastive):
    settings = {"design": torch.tensor([design]), "num_contrastive": num_contrastive}
    bounds = ("pce", "snmc", "exact")
    lower, upper, best = (estimate("slope", bound, **settings) for bound in bounds)
    exact = information(slope, settings["design"]).item()
    assert lower.value <= min(exact + 3 * lower.standard_error, lower.cap)
    assert upper.value >= exact - 3 * upper.standard_error
    assert abs(best.value - exact) <= 3 * best.standard_error
    assert lower.cap == pytest.approx(math.log(num_contrastive + 1))
    # With few contrasts the gap is larger than the noise.
    gap = upper.value - lower.value
    assert num_contrastive > 8 or design < 3.0 or gap > 6 * upper.standard_error


@pytest.mark.slow
@pytest.mark.parametrize("width", [1.0, 0.5, 3.0])
@pytest.mark.parametrize("model", ["slope", "long line"])
def test_lace_encloses_the_information_with_any_proposal(model, width):
    features, dims, _ = MODELS[model]
    proposal = exact_estimators(features, **dims, noise_scale=width).posterior
    exact = exact_value(model)
    lower, upper = (
        estimate(model, bound, posterior_estimator=proposal)
        for bound in ("lace", "lace_upper")
    )
    assert lower.value <= exact + 3.0 * lower.standard_error
    assert upper.value >= exact - 3.0 * upper.standard_error
    # A proposal that covers the posterior needs few contrasts.
    assert width < 1.0 or abs(lower.value - exact) < 0.1
    assert lower.value <= lower.cap


def test_the_cap_of_lace_is_that_of_the_proposal_and_the_contrasts():
    """A proposal as wide as the prior gives what contrasts from the prior give."""
    settings = {"num_contrastive": 31, "num_samples": 1_000}
    lace = estimate("slope", "lace", posterior_estimator=no_posterior(), **settings)
    pce = estimate("slope", "pce", **settings)
    assert lace.cap == pytest.approx(pce.cap) == pytest.approx(math.log(32))
    error = math.hypot(lace.standard_error, pce.standard_error)
    assert abs(lace.value - pce.value) < 4.0 * error


def test_draws_outside_of_the_prior_have_no_weight():
    class Wide:
        def sample(self, sample_shape, condition):
            draws = Normal(0.5, 2.0).sample((*sample_shape, len(condition), 1))
            draws[..., 0, :, :] = torch.nan
            return draws

        def log_prob(self, input, condition):
            return Normal(0.5, 2.0).log_prob(input).squeeze(-1)

    lace = estimate("slope", "lace", posterior_estimator=Wide(), prior=UNIT)
    exact = estimate("slope", "exact", prior=UNIT)
    assert abs(lace.value - exact.value) < 3.0 * exact.standard_error + 0.02


@pytest.mark.parametrize("bound", ["barber_agakov", "lace", "lace_upper"])
def test_the_constant_of_a_prior_is_noticed_and_allowed_for(bound):
    settings = {"num_samples": 500, "num_contrastive": 64}
    usual = estimate("line", bound, **settings)
    with pytest.warns(UserWarning, match="prior.log_prob is not normalized"):
        prior = WithConstant(normal_prior(2), 2.0)
        other = estimate("line", bound, prior=prior, **settings)
    # The integral is told with a standard error of less than 0.01 nats.
    assert other.value == pytest.approx(usual.value, abs=0.03)


@pytest.mark.parametrize("error", [0.2, 0.5])
def test_the_gap_of_barber_agakov_is_the_divergence(error):
    """A posterior whose mean is off by δ loses δ²/2 of its precision, in nats."""
    bad = exact_estimators(slope, **SLOPE, error=error).posterior
    eig = estimate("slope", "barber_agakov", bad)
    precision = 1.0 + 2.0**2
    expected = exact_value("slope") - 0.5 * error**2 * precision
    assert abs(eig.value - expected) < 3.5 * eig.standard_error


@pytest.mark.filterwarnings("ignore:The estimated information gain")
@pytest.mark.parametrize("wrong", [{}, *WRONG], ids=str)
def test_gkl_without_energy_is_barber_agakov(wrong):
    zero = Energy(lambda theta, data: torch.zeros_like(theta[..., 0]))
    estimator = hybrid("line", zero, **wrong)
    by_base = estimate("line", "barber_agakov", estimator.base)
    assert estimate("line", "gkl", estimator).value == pytest.approx(by_base.value)


def share_in_box(x):
    return torch.special.ndtr(1.0 - x) - torch.special.ndtr(-1.0 - x)


@pytest.mark.filterwarnings("ignore:The estimated information gain")
@pytest.mark.parametrize("has_prior", [True, False])
@pytest.mark.parametrize("factor", [0.0, 0.5, 1.0])
def test_gkl_counts_the_support_of_the_prior_alone(factor, has_prior):
    """Uniform on (-1, 1), x = theta + noise; with the exact energy it is exact."""

    def flat(data):
        """The posterior under a flat prior."""
        return data[:, :1], torch.ones(len(data), 1, 1)

    def energy(theta, data):
        """Minus the logarithm of the share of N(x, 1) in the box, times a factor."""
        return -factor * share_in_box(data[..., 0]).log().expand(theta.shape[:-1])

    prior = BoxUniform(-torch.ones(1), torch.ones(1))
    estimator = HybridEstimator(
        GaussianEstimator(flat, 1, 2),
        Energy(energy),
        prior=prior if has_prior else None,
    )
    settings = {"prior": prior, "design": torch.ones(1), "num_samples": 4_000}
    eig = estimate("slope", "gkl", estimator, num_contrastive=200, **settings)
    # The density of the data is half of the share, the entropy of the noise known.
    x = torch.linspace(-9.0, 9.0, 20_001).double()
    share = share_in_box(x)
    entropy = 0.5 * math.log(2.0 * math.pi * math.e)
    terms = -factor * share.log() + 1.0 - share.pow(1.0 - factor)
    terms = terms.where(share > 0.0, 0.0)
    exact = torch.trapezoid(0.5 * share * terms, x).item() - entropy + math.log(2.0)
    assert abs(eig.value - exact) < 3.5 * eig.standard_error
    assert eig.standard_error < 0.02
    if factor == 1.0:
        information = -torch.xlogy(share, 0.5 * share) * 0.5
        information = torch.trapezoid(information, x).item() - entropy
        assert exact == pytest.approx(information, abs=1e-6)


def test_gkl_on_the_prior_is_nwj():
    """The same critic, log q(x|θ) - log r(x), as energy on the prior."""
    densities = exact_estimators(slope, **SLOPE)

    def critic(theta, data):
        x, design = data[..., :1], data[..., 1:]
        pairs = torch.cat([theta, design.expand_as(theta)], dim=-1)
        log_likelihood = densities.likelihood.log_prob(x, pairs)
        return log_likelihood - densities.marginal.log_prob(x, design)

    by_energy = estimate(
        "slope", "gkl", HybridEstimator(no_posterior(), Energy(critic))
    )
    by_critic = estimate("slope", "nwj", marginal_estimator=densities.marginal)
    error = math.hypot(by_energy.standard_error, by_critic.standard_error)
    assert abs(by_energy.value - by_critic.value) < 3.5 * error
    assert abs(by_critic.value - exact_value("slope")) < 3.5 * error
    assert by_critic.standard_error == pytest.approx(by_energy.standard_error, rel=0.3)


def fails(theta, design):
    """One run of four."""
    x = LinearGaussian.simulate(theta, design)
    x[::4] = torch.nan
    return x


@pytest.mark.parametrize("bound", ["pce", "nwj", "barber_agakov", "gkl"])
def test_failed_simulations_count_as_zero_for_lower_bounds(bound):
    with pytest.warns(UserWarning, match="(?s)500 of 2000 simulations.*tell nothing"):
        eig = estimate("slope", bound, simulator=fails)
    expected = 0.75 * exact_value("slope")
    assert abs(eig.value - expected) < 3.5 * eig.standard_error + 0.01
    assert eig.num_simulations == 2_000 + CHECK and eig.num_invalid_simulations == 500


@pytest.mark.parametrize("bound", BOUNDS)
def test_the_seed_reproduces_and_chunks_do_not_matter(bound, monkeypatch):
    small = {"num_samples": 200, "num_contrastive": 30}
    before = torch.get_rng_state()
    first = estimate("line", bound, **small, seed=3)
    assert torch.equal(torch.get_rng_state(), before)
    torch.rand(3)
    assert estimate("line", bound, **small, seed=3) == first
    assert estimate("line", bound, **small, seed=4) != first
    monkeypatch.setattr(eig_module, "rows_at_once", lambda *_: 500)
    chunked = estimate("line", bound, **small, seed=3)
    error = math.hypot(first.standard_error, chunked.standard_error)
    assert abs(first.value - chunked.value) < 3.5 * error


def test_standard_error_is_that_of_repeated_estimates():
    settings = {"num_samples": 200, "num_contrastive": 63}
    repeats = [estimate("slope", "pce", **settings, seed=seed) for seed in range(60)]
    values = torch.tensor([eig.value for eig in repeats])
    errors = torch.tensor([eig.standard_error for eig in repeats])
    # The spread of 60 repeats is known to 1/sqrt(120) = 9 %.
    assert values.std().item() == pytest.approx(errors.mean().item(), rel=0.3)


@pytest.mark.parametrize("bound", BOUNDS)
def test_no_more_densities_are_evaluated_at_once_than_are_allowed(bound, monkeypatch):
    """Also where the contrasts of a single simulation are more."""
    most = 0

    def counted(method, num_rows):
        def call(self, first, condition):
            nonlocal most
            most = max(most, num_rows(first, condition))
            return method(self, first, condition)

        return call

    num_rows_of = {
        "log_prob": lambda input, condition: input.shape[:2].numel(),
        "sample": lambda shape, condition: shape.numel() * len(condition),
    }
    for name, num_rows in num_rows_of.items():
        method = getattr(GaussianEstimator, name)
        monkeypatch.setattr(GaussianEstimator, name, counted(method, num_rows))
    monkeypatch.setattr(eig_module, "rows_at_once", lambda *_: 7)
    estimate("line", bound, num_samples=20, num_contrastive=30)
    assert 0 < most <= 7


def test_what_a_network_was_trained_with_does_not_come_again():
    """With the seed of the caller, who drew parameters and data for training."""
    seen = []

    def simulator(theta, design):
        seen.append(theta)
        return LinearGaussian.simulate(theta, design)

    estimate("slope", "barber_agakov", simulator=simulator, seed=3)
    torch.manual_seed(3)
    trained = normal_prior(1).sample((2_000,))
    assert not torch.isin(seen[0], trained).any()


def test_estimators_and_data_may_differ_in_precision():
    estimator = nn.Linear(1, 1)  # whose weights are in single precision.
    likelihood = exact_estimators(slope, **SLOPE).likelihood
    likelihood.add_module("weights", estimator)
    eig = estimate("slope", "pce", likelihood, simulator=lambda t, d: (t * d).double())
    assert math.isfinite(eig.value)


def test_it_warns_near_the_cap_and_below_zero():
    with pytest.warns(UserWarning, match="within 1 nat of the largest value"):
        estimate("slope", "pce", design=torch.tensor([100.0]), num_contrastive=31)

    def misfit(x, theta, design):
        return LinearGaussian.log_likelihood(x, -theta, design)

    with pytest.warns(UserWarning, match="is negative"):
        assert estimate("slope", "pce", misfit).value < 0


def test_without_a_valid_simulation_there_is_no_estimate():
    with pytest.raises(NoEstimateError, match="All 2000 simulations") as raised:
        estimate("slope", "pce", simulator=lambda theta, design: theta * torch.nan)
    # Also when it comes back from another process.
    for error in (raised.value, pickle.loads(pickle.dumps(raised.value))):
        assert error.num_simulations == 2_000 + CHECK
        assert error.num_invalid_simulations == 2_000


def test_failures_that_depend_on_the_parameters_are_no_information():
    """The data are noise; which runs fail depends on theta, but that is not used."""

    def simulate(theta, design):
        return torch.where(theta < 0.8, torch.nan, torch.randn_like(theta))

    def log_likelihood(x, theta, design):
        # What a flow would learn: no mass where no run succeeds.
        inside = (theta >= 0.8).squeeze(-1)
        return torch.where(inside, Normal(0.0, 1.0).log_prob(x).sum(-1), -1e3)

    with pytest.warns(UserWarning, match="tell nothing"):
        eig = estimate("slope", "pce", log_likelihood, simulate, prior=UNIT)
    # Whether a run fails is all that an experiment tells, at most its entropy.
    assert eig.value <= -(0.8 * math.log(0.8) + 0.2 * math.log(0.2))


def test_terms_without_explanation_are_refused():
    def log_likelihood(x, theta, design):
        return Uniform(theta, theta + 1e-3, validate_args=False).log_prob(x).sum(-1)

    def simulate(theta, design):
        return theta + 1e-3 * torch.rand_like(theta)

    with pytest.raises(NoEstimateError, match="terms of bound='snmc' are not finite"):
        estimate("slope", "snmc", log_likelihood, simulate, prior=UNIT)


NEEDS_ALL = "500 of 2000 simulations.*bound='pce'"
BAD = [
    *((b, {"simulator": fails}, NEEDS_ALL) for b in ("snmc", "exact", "marginal")),
    ("nmc", {}, "bound='nmc' is unknown"),
    ("pce", {"num_samples": 1}, "num_samples=1"),
    ("pce", {"num_contrastive": 0}, "num_contrastive=0"),
    ("nwj", {"num_contrastive": 1}, "num_contrastive=1 .* at least 2"),
    ("pce", {"design": torch.zeros(2, 1)}, r"design has shape \(2, 1\)"),
    ("pce", {"estimator": lambda x, t, d: x}, "sum over the data of a"),
    ("pce", {"estimator": "likelihood"}, "must be an estimator"),
    ("lace", {"posterior_estimator": None}, "posterior_estimator"),
    ("exact", {"estimator": hybrid("slope")}, "needs the true likelih"),
    ("marginal", {"marginal_estimator": None}, "needs marginal_estim"),
    ("barber_agakov", {"estimator": lambda x, t, d: x}, r"posterior.*\(x, design\)"),
    ("barber_agakov", {"estimator": hybrid("slope")}, "normalized.*estimator.base"),
    ("gkl", {"estimator": hybrid("slope").base}, "HybridEstimator.*'barber_agakov'"),
]


COUNTS = {"prior": Independent(Poisson(torch.full((1,), 3.0)), 1)}
BAD += [(b, COUNTS, r"\[0\].*bound='pce'") for b in ("barber_agakov", "lace")]


@pytest.mark.parametrize(("bound", "kwargs", "match"), BAD)
def test_bad_arguments_are_named_with_their_remedy(bound, kwargs, match):
    with pytest.raises((ValueError, TypeError), match="(?s)" + match):
        estimate("slope", bound, **kwargs)
