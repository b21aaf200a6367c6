"""A search from many designs, on models whose best designs are known."""

import warnings

import pytest
import torch

from benchmarks.exact_estimators import (
    exact_estimators,
    information,
    normal_prior,
    slope,
    straight_line,
)
from sbi_boed_plugin.estimators.energy import EnergyRatio
from sbi_boed_plugin.estimators.hybrid import HybridEstimator
from sbi_boed_plugin.policies import (
    CategoricalPolicy,
    NormalPolicy,
    PointPolicy,
    TruncatedNormalPolicy,
)
from sbi_boed_plugin.search.information import POLICY_OBJECTIVES
from sbi_boed_plugin.search.learned_model import LearnedModel
from sbi_boed_plugin.search.multi_start import (
    MultiStartConfig,
    multi_start_search,
)
from sbi_boed_plugin.simulation import CheckedSimulator

QUICK = MultiStartConfig(num_starts=24, num_climb_steps=45, num_candidate_samples=400)

CLIMBED = [
    name
    for name, kind in POLICY_OBJECTIVES.items()
    if not kind.by_score and name != "target"
]


def bumps(design):
    """Two modes of the information: at -2, of a third of the signal of that at 2."""
    low, high = torch.exp(-((design + 2) ** 2)), torch.exp(-((design - 2) ** 2))
    return (2.0 * low + 6.0 * high).unsqueeze(-1)


def round_peak(design):
    """The best design is 30, in a space without bounds."""
    return (4.0 * torch.exp(-0.01 * (design - 30.0) ** 2)).unsqueeze(-1)


def exact(features, objective, prior_scale=1.0, dim=1):
    """Exact densities, for "gkl" with an energy that has learned nothing."""
    dims = {"dim_theta": dim, "dim_design": 1}
    estimators = exact_estimators(features, **dims, prior_scale=prior_scale)
    if objective == "gkl":
        energy = EnergyRatio(torch.randn(10, dim), torch.randn(10, 2))
        estimators.posterior = HybridEstimator(estimators.posterior, energy)
    return estimators


def search(
    features, policy, *, objective="barber_agakov", config=QUICK, prior_scale=1.0, dim=1
):
    """The candidates of a model with exact densities."""
    estimators = exact(features, objective, prior_scale, dim)

    def simulate(theta, design):
        mean = (features(design) @ theta.unsqueeze(-1)).squeeze(-1)
        return mean + torch.randn_like(mean)

    model = LearnedModel(estimators, normal_prior(dim, prior_scale), objective)
    quiet = {"show_progress_bar": False}
    return multi_start_search(model, policy, simulate, config, **quiet)[0]


def box(low, high, **kwargs):
    return TruncatedNormalPolicy(torch.tensor([low]), torch.tensor([high]), **kwargs)


def assert_ranked(candidates, distance):
    """Best first, and no two the same."""
    values = [estimate.value for _, estimate in candidates]
    assert values == sorted(values, reverse=True)
    for i, (design, _) in enumerate(candidates):
        assert design.shape == candidates[0][0].shape
        for other, _ in candidates[:i]:
            assert (design - other).abs().max() > distance


@pytest.mark.filterwarnings("ignore:The pce estimate")
@pytest.mark.parametrize("objective", CLIMBED)
def test_both_ends_of_a_straight_line_are_found(objective):
    """With one measurement of `gaussian_linear`, either end of the box is best."""
    policy = box(-10.0, 10.0)
    candidates = search(
        straight_line, policy, objective=objective, prior_scale=3.0, dim=2
    )
    assert_ranked(candidates, distance=0.02 * 20)
    ends = [design.item() for design, _ in candidates]
    assert abs(ends[0]) > 9.5
    # Near the ends the information is flat to within a hundredth of a nat.
    assert min(ends) < -9.0 and max(ends) > 9.0
    for design, estimate in candidates:
        expected = information(straight_line, design, 3.0).item()
        assert estimate.bound == POLICY_OBJECTIVES[objective].bound
        # 400 simulations; the contrastive bound is lower by less than 0.1.
        assert estimate.value == pytest.approx(
            expected, abs=4 * estimate.standard_error + 0.1
        )


def test_the_better_of_two_modes_is_found():
    best = information(bumps, torch.tensor([2.0])).item()
    # The policy starts at the worse mode, but all of its box is searched.
    policy = box(-4.0, 4.0, loc=torch.tensor([-2.0]), scale=0.05)
    for objective in ("barber_agakov", "info_nce"):
        (design, estimate), *others = search(bumps, policy, objective=objective)
        assert design.item() == pytest.approx(2.0, abs=0.3)
        assert information(bumps, design).item() > 0.99 * best
        assert_ranked([(design, estimate), *others], distance=0.02 * 8)


def test_a_categorical_policy_offers_its_candidates_unchanged():
    offered = torch.tensor([[-2.1], [0.1], [1.7], [2.2], [3.9]])
    policy = CategoricalPolicy(offered)
    candidates = search(bumps, policy)
    designs = torch.stack([design for design, _ in candidates])
    # To the last bit, in another order.
    assert {d.item() for d in designs} == {d.item() for d in offered}
    assert designs[0].item() == offered[3].item()
    assert_ranked(candidates, distance=0.1)
    assert policy.box is None
    (single,) = search(bumps, CategoricalPolicy(offered[:1]))
    assert torch.equal(single[0], offered[0])


def test_designs_without_bounds_start_from_draws_of_the_policy():
    policy = NormalPolicy(loc=torch.tensor([20.0]), scale=torch.tensor([8.0]))
    assert policy.box is None
    candidates = search(round_peak, policy)
    assert candidates[0][0].item() == pytest.approx(30.0, abs=2.0)
    best = information(round_peak, torch.tensor([30.0]))
    assert information(round_peak, candidates[0][0]) > 0.99 * best


def test_a_single_start_climbs_as_well():
    config = MultiStartConfig(num_climb_steps=30, num_candidate_samples=100)
    policy = PointPolicy(loc=torch.tensor([25.0]))
    ((design, _),) = search(round_peak, policy, config=config)
    start, best = (information(round_peak, torch.tensor([x])) for x in (25.0, 30.0))
    assert information(round_peak, design) > 0.5 * (start + best)


@pytest.mark.parametrize("objective", CLIMBED)
def test_information_of_the_model_is_exact_with_exact_densities(objective):
    model = LearnedModel(exact(slope, objective), normal_prior(1), objective)
    designs = torch.tensor([[0.0], [0.5], [1.0], [2.0]], requires_grad=True)
    repeats, gradients = [], []
    for _ in range(20):
        values = model.information(designs, num_samples=200)
        repeats.append(values.detach())
        gradients.append(torch.autograd.grad(values.sum(), designs)[0])
    expected = information(slope, designs.detach())
    slopes = designs.detach() / (1.0 + designs.detach() ** 2)
    # With 199 contrastive parameters the bound and its slope are low by under 0.02.
    bias = 0.02 if objective == "info_nce" else 1e-4
    for found, right in ((repeats, expected), (gradients, slopes)):
        stacked = torch.stack(found)
        error = 4 * stacked.std(dim=0) / 20**0.5 + bias
        assert ((stacked.mean(dim=0) - right).abs() < error).all(), objective


def test_contrasts_keep_up_with_the_information():
    """Where 16 parameters could tell 2.77 nats, there are 5.70."""
    policy, scale = box(0.0, 1.0), 300.0
    with warnings.catch_warnings():
        # What scores the candidates says for itself that it is capped.
        warnings.filterwarnings("ignore", "The pce estimate")
        warnings.filterwarnings("error", "The information of the learned model")
        found = search(slope, policy, objective="info_nce", prior_scale=scale)
    # Equally informative to within the error of 256 parameters, 0.05 nats.
    assert found[0][0].item() > 0.9
    estimators = exact(slope, "info_nce", scale)
    model = LearnedModel(estimators, normal_prior(1, scale), "info_nce")
    values = model.information(torch.ones(1, 1), 400, num_contrastive=4_096)
    expected = information(slope, torch.ones(1, 1), scale).item()
    # 400 terms of standard deviation 0.7; 0.05 of bias that 4,096 contrasts leave.
    assert values.item() == pytest.approx(expected, abs=4 * 0.7 / 400**0.5 + 0.05)


@pytest.mark.slow
def test_a_climb_at_its_cap_says_so():
    with (
        pytest.warns(UserWarning, match="within a nat of its cap 8.32"),
        warnings.catch_warnings(),
    ):
        warnings.filterwarnings("ignore", "The pce estimate")
        search(slope, box(0.5, 1.0), objective="info_nce", prior_scale=1e5)


def test_designs_that_always_fail_are_left_out():
    """Networks know nothing of them, and may think them the best."""
    estimators = exact(bumps, "barber_agakov")
    model = LearnedModel(estimators, normal_prior(1, 1.0), "barber_agakov")
    made = []

    def simulate(theta, design):
        x = (bumps(design) @ theta.unsqueeze(-1)).squeeze(-1)
        x = x + torch.randn_like(x)
        made.append(torch.where(design > 0.0, torch.nan, x))
        return made[-1]

    def candidates(policy):
        checked = CheckedSimulator(simulate, is_checked=True)
        return multi_start_search(
            model, policy, checked, QUICK, show_progress_bar=False
        )

    torch.manual_seed(0)
    with pytest.warns(UserWarning, match="cannot be scored with simulations"):
        found = candidates(box(-4.0, 4.0))
    ranked, num_simulations, num_invalid = found
    assert ranked[0][0].item() == pytest.approx(-2.0, abs=0.3)
    assert num_simulations == sum(map(len, made))
    assert num_invalid == sum(int(x.isnan().sum()) for x in made) > 0
    with (
        pytest.warns(UserWarning, match="left out. All 400 simulations"),
        pytest.raises(ValueError, match="None of the designs"),
    ):
        candidates(box(1.0, 4.0))


def test_policies_in_double_precision_without_a_box():
    policy = NormalPolicy(torch.zeros(1, dtype=torch.float64), 1.0)
    candidates = search(bumps, policy)
    assert_ranked(candidates, 0.0)
    options = torch.linspace(-3.0, 3.0, 4, dtype=torch.float64).unsqueeze(1)
    candidates = search(bumps, CategoricalPolicy(options))
    assert candidates[0][0].item() == pytest.approx(1.0)
