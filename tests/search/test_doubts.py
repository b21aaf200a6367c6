"""What speaks against a result is found where it is, and nowhere else."""

import math
import re
import warnings
from dataclasses import replace

import pytest
import torch
from sbi.neural_nets import likelihood_nn, posterior_nn
from torch.distributions import (
    Bernoulli,
    Independent,
    MultivariateNormal,
    Normal,
    Uniform,
)

from benchmarks.exact_estimators import (
    exact_estimators,
    information,
    normal_prior,
    slope,
)
from sbi_boed_plugin import EIGEstimate
from sbi_boed_plugin.search import assessment
from sbi_boed_plugin.search.assessment import estimate_bounds, likelihood_mismatch
from sbi_boed_plugin.search.batch import Batch, Progress
from sbi_boed_plugin.search.doubts import (
    find_doubts,
    find_slope,
    find_unsettled,
    is_steep,
)
from tests.oracles import LinearGaussian as Model
from tests.oracles import WithConstant
from tests.trainers.cases import on_box


def estimate(value):
    return EIGEstimate(value, 0.02, "pce", num_simulations=1_000)


CONSISTENT = {"barber_agakov": 1.9, "lace": 2.0, "lace_upper": 2.02}
CONSISTENT.update(pce=1.8, snmc=2.1, linear=1.7)


def doubts_of(found=None, **changed):
    bounds = {k: estimate(changed.pop(k, v)) for k, v in CONSISTENT.items()}
    return find_doubts(bounds, found, **changed)


@pytest.mark.parametrize(
    "changed, text",
    [
        ({"lace": 2.7, "lace_upper": 2.71}, "lace says at least 2.70 nats and snmc"),
        ({"pce": 2.6}, "pce says at least 2.60 nats and lace_upper at most 2.02"),
        ({"linear": 2.5}, "linear regression knows more .*2.50 against 2.00"),
        ({"lace": 1.0, "lace_upper": 1.01, "pce": 1.0}, "likelihood knows less"),
        ({"never_moved": True}, "took no step"),
        ({"overfit": (0.45, 0.2)}, "know 0.45 nats more of the simulations"),
        ({"num_learned_from": 900}, "learned from 900 simulations only"),
        ({"mismatch": 0.12}, "draws other data than the simulator .* 0.12"),
    ],
)
def test_each_contradiction_is_one_doubt(changed, text):
    (doubt,) = doubts_of(**changed)
    assert re.search(text, doubt)


@pytest.mark.parametrize(
    "changed",
    [
        {},
        {"overfit": (0.25, 0.01)},
        {"overfit": (0.45, 0.3)},
        # A posterior network that is too simple is no contradiction: LACE is reported.
        {"barber_agakov": 0.5, "linear": 0.4},
        # Nor is a contrastive bound at its cap, or one within errors.
        {"pce": 0.7, "snmc": 9.0},
        {"lace": 2.15, "lace_upper": 2.16, "snmc": 2.05},
    ],
)
def test_bounds_that_agree_and_bounds_that_are_loose_leave_no_doubt(changed):
    assert doubts_of(**changed) == []


def progress_with(coefficients, num_rows, noise=1.0):
    coefficients = torch.tensor(coefficients)
    design = 3.0 + 0.5 * torch.randn(num_rows, len(coefficients))
    terms = (design / 0.5) @ coefficients + noise * torch.randn(num_rows)
    rows = torch.zeros(num_rows, 1)
    parts = (rows, rows, design, rows[:, 0] == 0, terms)
    stored = [
        Batch(*values, information=information)
        for *values, information in zip(*(t.chunk(20) for t in parts), strict=True)
    ]
    return Progress(step=40, stored=stored)


def test_a_slope_is_found_with_its_error():
    found, error = find_slope(progress_with([0.3, 0.0], 4_000), torch.zeros(2))
    assert ((found - torch.tensor([0.3, 0.0])).abs() / error < 4.0).all()
    assert error == pytest.approx(torch.full((2,), 4_000**-0.5), rel=0.05)
    assert is_steep(found, error)
    assert "stopped on a slope" in doubts_of((found, error))[0]


def test_an_edge_is_no_slope():
    progress = progress_with([0.3, -0.3], 4_000)
    assert not is_steep(*find_slope(progress, torch.tensor([1.0, -1.0])))
    assert is_steep(*find_slope(progress, torch.tensor([-1.0, -1.0])))


@pytest.mark.parametrize("dim", [1, 10])
def test_a_flat_top_is_no_slope(dim):
    # Sixteen nats beyond the mean of a chi-squared variable hardly ever happen.
    for _ in range(100):
        progress = progress_with([0.0] * dim, 1_000)
        assert not is_steep(*find_slope(progress, torch.zeros(dim)))


def bounds_with(prior, num_samples=2_000):
    estimators = exact_estimators(slope, dim_theta=1, dim_design=1)
    design = torch.tensor([3.0])
    theta = prior.sample((num_samples,))
    settings = {"objective": "barber_agakov", "num_contrastive": 511}
    data = theta, Model.simulate(theta, design)
    return estimate_bounds(estimators, *data, prior=prior, design=design, **settings)


def unsettled(values, designs):
    """What networks leave open that differ by their values only, at a best of 1.0."""
    values = torch.tensor(values)
    best = torch.ones(len(values))
    return find_unsettled(best, designs, values, num_simulations=1_000)


def test_designs_that_networks_cannot_tell_apart_are_named():
    designs = torch.tensor([[3.0], [-2.0], [1.0], [-3.0]])
    # Three networks whose differences vary by 0.3: two standard errors are 0.3464.
    low, high = [0.7, 0.6, -0.5, 0.5], [1.3, 1.2, 0.1, 1.1]
    middle = [1.0, 0.9, -0.2, 0.8]
    (doubt,) = unsettled([low, middle, high], designs)
    assert "from -3 to -2 and at 3 are as good as far as 1,000" in doubt
    assert "0.35 nats more" in doubt
    (doubt,) = unsettled([low, middle, high], torch.randn(4, 2))
    assert "75% of 4 designs compared are as good" in doubt


def test_designs_that_networks_agree_about_leave_no_doubt():
    designs = torch.arange(3.0).unsqueeze(1)
    values = [[0.9, 0.5, math.nan], [0.95, 0.45, math.nan], [0.85, 0.55, math.nan]]
    assert unsettled(values, designs) == []
    assert unsettled(values[:1], designs) == []  # One network cannot disagree.
    values = [[0.9, 0.5, math.inf], [0.95, 0.45, 0.0], [0.85, 0.55, -math.inf]]
    assert unsettled(values, designs) == []


def test_exact_networks_leave_no_doubt_and_a_line_knows_as_much():
    bounds = bounds_with(normal_prior(1))
    assert find_doubts(bounds) == []
    exact = information(slope, torch.tensor([[3.0]])).item()
    for name, bound in bounds.items():
        # Contrasts from the prior are off by 0.01, the fit of the line likewise.
        limit = 4.0 * bound.standard_error + 0.02
        assert abs(bound.value - exact) < limit, name
    assert set(bounds) == set(CONSISTENT)


@pytest.mark.parametrize("constant", [-1.0, 1.0])
def test_a_constant_that_cannot_be_measured_is_a_contradiction(constant, monkeypatch):
    monkeypatch.setattr(assessment, "log_normalization", lambda prior: (0.0, 0.0))
    bounds = bounds_with(WithConstant(normal_prior(1), constant))
    (doubt, *_) = find_doubts(bounds)
    assert "of the prior and its draws do not belong together" in doubt


def test_lace_has_as_many_contrasts_as_its_proposal_needs():
    torch.manual_seed(4)
    bounds = bounds_with(normal_prior(1))
    assert bounds["lace"].num_contrastive == 15
    assert bounds["lace"].effective_sample_size == pytest.approx(15.0)
    # A proposal that does not know the data is the prior, and few of its draws count.
    wide = exact_estimators(lambda d: 1e-3 * slope(d), dim_theta=1, dim_design=1)
    narrow = exact_estimators(slope, dim_theta=1, dim_design=1)
    estimators = replace(narrow, posterior=wide.posterior)
    design, theta = torch.tensor([30.0]), normal_prior(1).sample((2_000,))
    bounds = estimate_bounds(
        estimators,
        theta,
        Model.simulate(theta, design),
        prior=normal_prior(1),
        design=design,
        objective="info_nce",
        num_contrastive=15,
    )
    lace, few = bounds["lace"], bounds["pce"]
    assert lace.num_contrastive >= 255 and lace.value > few.value + 0.8
    assert lace.effective_sample_size < 0.2 * lace.num_contrastive
    exact = information(slope, design.unsqueeze(0)).item()
    assert lace.value < exact + 4.0 * lace.standard_error


def test_bounds_to_compare_do_not_end_a_search():
    """Where every draw of the proposal leaves the prior, the others are still there."""
    prior = Independent(Uniform(torch.zeros(1), torch.full((1,), 1e-3)), 1)
    bounds = bounds_with(prior, num_samples=300)
    assert "barber_agakov" in bounds and "lace_upper" not in bounds


def search(low=0.1, high=4.0, design_learning_rate=3e-2, plain=False, **settings):
    start = torch.ones(1) if low < 1.0 else None
    networks = {}
    if plain:  # Networks of sbi, which do not start from a regression.
        networks = {"model": likelihood_nn("mdn")}
        networks["posterior_estimator"] = posterior_nn("mdn")
    trainer = on_box(low, high, policy={"loc": start}, **networks)
    return trainer.optimize_design(
        Model.simulate, design_learning_rate=design_learning_rate, **settings
    )


@pytest.mark.parametrize(
    ("told", "settings"),
    [
        # A box in which designs hardly differ.
        (
            "linear regression knows more",
            {"low": 7.9, "high": 8.0, "num_steps": 3, "plain": True},
        ),
        # A policy that cannot move, and one that only warms up.
        ("stopped on a slope", {"num_steps": 100, "design_learning_rate": 1e-7}),
        ("took no step", {"num_steps": 1_000, "max_num_simulations": 1_000}),
    ],
)
def test_a_search_that_went_wrong_says_so(told, settings):
    with pytest.warns(UserWarning, match=told):
        result = search(**settings)
    assert any(told in doubt for doubt in result.doubts)
    assert result.doubts[0] in str(result)


@pytest.mark.slow
def test_a_usual_search_is_quiet_and_says_no_more_than_it_knows():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        result = search(num_steps=200)
    assert result.doubts == ()
    text = str(result)
    assert text.startswith("design [") and "at least" in text and "lower bound" in text
    assert len(text) < 200
    exact = Model.eig(result.design).item()
    assert result.eig.value < exact + 3.0 * result.eig.standard_error


def test_parameters_of_two_values_have_no_linear_bound():
    coin = Independent(Bernoulli(torch.full((1,), 0.5)), 1)
    theta = coin.sample((500,))
    x = theta + 0.1 * torch.randn(500, 1)
    assert assessment.linear_bound(theta, x, coin, 0.0) is None


class Misfit(Model):
    """A straight line with another width and mean than it should have."""

    def __init__(self, width, shift):
        self.width, self.shift = width, shift

    def sample(self, sample_shape, condition):
        exact, mean = Model.sample(sample_shape, condition), condition.prod(-1, True)
        return mean + self.shift + self.width * (exact - mean)

    def log_prob(self, input, condition):
        mean = condition.prod(-1, True) + self.shift
        return Normal(mean, self.width).log_prob(input).sum(dim=-1)


@pytest.mark.parametrize(
    ("width", "shift", "expected"),
    # In a large sample 0, 0.22, 0.24 and 0.21.
    [(1.0, 0.0, 0.0), (1.6, 0.0, 0.22), (0.6, 0.0, 0.24), (1.0, 1.0, 0.21)],
)
def test_a_misfit_is_seen(width, shift, expected):
    torch.manual_seed(0)
    theta, design = torch.randn(1_000, 1), 2.0 * torch.ones(1_000, 1)
    x = Model.simulate(theta, design)
    # 1,000 rows: 0.03 of the statistic are noise.
    mismatch = likelihood_mismatch(Misfit(width, shift), theta, design, x)
    assert mismatch == pytest.approx(expected, abs=0.09)


@pytest.mark.parametrize("dim_x", [1, 20, 200, 500, 2_000])
def test_a_regression_of_many_data_is_a_bound(dim_x):
    torch.manual_seed(0)
    prior = MultivariateNormal(torch.zeros(2), torch.eye(2))
    weights = torch.randn(2, dim_x)
    theta = prior.sample((4_000,))
    x = theta @ weights + torch.randn(4_000, dim_x)
    exact = 0.5 * torch.logdet(torch.eye(2) + weights @ weights.T).item()
    bound = assessment.linear_bound(theta, x, prior, 0.0)
    if dim_x == 2_000:  # As many weights as rows.
        assert bound is None
        return
    assert bound.value < exact + 4 * bound.standard_error
    # It costs half a nat for each parameter where rows are twice the weights.
    assert bound.value > exact - 4 * bound.standard_error - 2 * 2 * dim_x / 4_000
