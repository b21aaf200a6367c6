import math
import pickle

import pytest
import torch
from torch.distributions import Independent, Normal, Uniform

from sbi_boed_plugin import estimate_eig
from sbi_boed_plugin.objectives.eig import NoEstimateError
from tests.oracles import LinearGaussian as Model
from tests.trainers.cases import CHECK

UNIT = Independent(Uniform(torch.zeros(1), torch.ones(1)), 1)


def estimate(design, log_likelihood=Model.log_likelihood, **kwargs):
    settings = {"simulator": Model.simulate, "prior": Model.prior, **kwargs}
    return estimate_eig(log_likelihood, design=torch.tensor([design]), **settings)


@pytest.mark.filterwarnings("ignore:The pce estimate")
@pytest.mark.parametrize("design", [0.0, 0.5, 1.0, 3.0, 10.0])
@pytest.mark.parametrize("num_contrastive", [15, 255])
def test_bounds_enclose_the_exact_value(design, num_contrastive):
    exact = Model.eig(torch.tensor([design])).item()
    settings = {"num_samples": 2_000, "num_contrastive": num_contrastive, "seed": 0}
    lower, upper, best = (
        estimate(design, bound=bound, **settings) for bound in ("pce", "snmc", "exact")
    )
    assert lower.value <= exact + 3 * lower.standard_error
    assert upper.value >= exact - 3 * upper.standard_error
    assert abs(best.value - exact) <= 3 * best.standard_error
    assert lower.cap == pytest.approx(math.log(num_contrastive + 1))
    assert lower.value <= lower.cap
    assert upper.cap is None and best.cap is None


def test_standard_error_is_that_of_repeated_estimates():
    repeats = [
        estimate(1.0, num_samples=200, num_contrastive=63, seed=seed)
        for seed in range(60)
    ]
    values = torch.tensor([eig.value for eig in repeats])
    errors = torch.tensor([eig.standard_error for eig in repeats])
    # The spread of 60 repeats is known to 1/sqrt(120) = 9 %.
    assert values.std().item() == pytest.approx(errors.mean().item(), rel=0.3)


def test_seed_reproduces_and_leaves_the_global_state_alone():
    before = torch.get_rng_state()
    first = estimate(1.0, num_samples=100, num_contrastive=31, seed=7)
    assert torch.equal(torch.get_rng_state(), before)
    torch.rand(3)
    assert estimate(1.0, num_samples=100, num_contrastive=31, seed=7) == first
    assert estimate(1.0, num_samples=100, num_contrastive=31, seed=8) != first


def test_it_warns_near_the_cap_and_below_zero():
    with pytest.warns(UserWarning, match="within 1 nat of the largest value"):
        estimate(100.0, num_contrastive=31, seed=0)

    def misfit(x, theta, design):
        return Normal(-theta * design, 1.0).log_prob(x).sum(-1)

    with pytest.warns(UserWarning, match="is negative"):
        eig = estimate(1.0, misfit, seed=0)
    assert eig.value < 0


def test_without_a_valid_simulation_there_is_no_estimate():
    with pytest.raises(NoEstimateError, match="All 1000 simulations") as raised:
        estimate(1.0, simulator=lambda t, d: t * torch.nan, seed=0)
    # Also when it comes back from another process.
    for error in (raised.value, pickle.loads(pickle.dumps(raised.value))):
        assert error.num_simulations == 1000 + CHECK
        assert error.num_invalid_simulations == 1000


def test_failures_that_depend_on_the_parameters_are_no_information():
    """The data are noise; which runs fail depends on theta, but that is not used."""

    def simulate(theta, design):
        return torch.where(theta < design, torch.nan, torch.randn_like(theta))

    def log_likelihood(x, theta, design):
        # What a flow would learn: no mass where no run succeeds.
        inside = (theta >= design).squeeze(-1)
        return torch.where(inside, Normal(0.0, 1.0).log_prob(x).sum(-1), -1e3)

    with pytest.warns(UserWarning, match="tell nothing"):
        settings = {"simulator": simulate, "num_samples": 4_000, "seed": 0}
        eig = estimate(0.8, log_likelihood, prior=UNIT, **settings)
    # Whether a run fails is all that an experiment tells, at most its entropy.
    entropy = -(0.8 * math.log(0.8) + 0.2 * math.log(0.2))
    assert eig.value <= entropy


def test_terms_without_explanation_are_refused():
    def log_likelihood(x, theta, design):
        return Uniform(theta, theta + 1e-3, validate_args=False).log_prob(x).sum(-1)

    with pytest.raises(ValueError, match="terms of bound='snmc' are not finite"):
        estimate(
            0.0,
            log_likelihood,
            simulator=lambda theta, design: theta + 1e-3 * torch.rand_like(theta),
            prior=UNIT,
            bound="snmc",
            num_contrastive=63,
            num_samples=100,
            seed=0,
        )
