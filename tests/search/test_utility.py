"""Costs and constraints of designs, against the best of a grid."""

import math

import pytest
import torch
from torch.distributions import MultivariateNormal

from sbi_boed_plugin import (
    NLE_INCE,
    CategoricalPolicy,
    ConstrainedPolicy,
    OrderedPolicy,
    TruncatedNormalPolicy,
)
from sbi_boed_plugin.search.utility import Utility
from tests.trainers.cases import message

PRIOR = MultivariateNormal(torch.zeros(1), torch.eye(1))
GRID = torch.linspace(0.0, 10.0, 1_001)


def simulator(theta, design):
    return theta * design + torch.randn_like(design)


def information(design):
    return 0.5 * (1.0 + design.square()).log()


def make_trainer(policy=None):
    policy = policy or TruncatedNormalPolicy(torch.zeros(1), torch.full((1,), 10.0))
    return NLE_INCE(PRIOR, "mdn", design_policy=policy, show_progress_bars=False)


UTILITIES = {
    "eig_minus_cost": (lambda d: 0.3 * d[:, 0], lambda d: information(d) - 0.3 * d),
    "eig_per_cost": (
        lambda d: 1.0 + 0.3 * d[:, 0],
        lambda d: information(d) / (1.0 + 0.3 * d),
    ),
}


@pytest.mark.parametrize("maximize", UTILITIES)
@pytest.mark.parametrize(
    "settings",
    [
        pytest.param({"method": "joint", "num_steps": 300}, marks=pytest.mark.slow),
        pytest.param(
            {"method": "multi_start", "num_steps": 300}, marks=pytest.mark.slow
        ),
        pytest.param({"max_num_simulations": 1_000}, marks=pytest.mark.slow),
    ],
    ids=lambda settings: settings.get("method", "rounds"),
)
@pytest.mark.filterwarnings("ignore:The networks", "ignore:The policy")
def test_the_best_of_information_and_cost_is_found(maximize, settings):
    cost, exact = UTILITIES[maximize]
    result = make_trainer().optimize_design(
        simulator, cost=cost, maximize=maximize, **settings
    )
    best, found = exact(GRID).max(), exact(result.design)
    assert found > 0.95 * best
    assert result.cost == pytest.approx(float(cost(result.design[None])))
    own = information(result.design).item()
    assert result.eig.value == pytest.approx(own, abs=0.25)
    assert f"cost {result.cost:.4g} (utility" in str(result)


def test_a_cost_alone_is_told():
    result = make_trainer().optimize_design(
        simulator, num_steps=5, cost=lambda d: d[:, 0], num_eig_samples=50
    )
    assert result.cost == pytest.approx(result.design.item())
    assert result.utility == pytest.approx(result.eig.value)


@pytest.mark.parametrize(
    "settings",
    [
        {"num_steps": 300},
        {"max_num_simulations": 1_000},
    ],
    ids=["multi_start", "rounds"],
)
@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:The networks")
def test_the_best_possible_design_is_found(settings):
    """Two measurements that together may take six: all but one of it for one."""
    seen = []

    def two(theta, design):
        seen.append(design)
        return theta * design + torch.randn_like(design)

    box = TruncatedNormalPolicy(torch.zeros(2), torch.full((2,), 5.0))
    result = make_trainer(box).optimize_design(
        two, feasible=lambda design: design.sum(dim=1) <= 6.0, **settings
    )
    assert (torch.cat(seen).sum(dim=1) <= 6.0 + 1e-4).all()
    found = 0.5 * math.log(1.0 + float(result.design.square().sum()))
    assert found > 0.95 * 0.5 * math.log(1.0 + 26.0)
    assert isinstance(result.policy, ConstrainedPolicy)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:The networks", "ignore:The policy")
def test_ordered_times_stay_ordered():
    result = make_trainer(OrderedPolicy(0.0, 3.0, 2)).optimize_design(
        simulator, method="multi_start", num_steps=150, num_eig_samples=100
    )
    assert (result.design.diff() >= 0).all()
    # Both at the end would be best.
    assert result.design.min() > 2.5


def test_utilities_by_hand():
    design, eig = torch.tensor([[2.0], [4.0]]), torch.tensor([1.0, 2.0])
    half = Utility(lambda d: d[:, 0], lambda eig, cost: 0.5 * eig - cost**2)
    assert half(eig, design).tolist() == [-3.5, -15.0]
    assert Utility()(eig, design) is eig
    units = {"eig": "nats", "eig_minus_cost": "nats", "eig_per_cost": "nats per cost"}
    assert {m: Utility(lambda d: d[:, 0], m).unit for m in units} == units


NUMPY = lambda d: torch.from_numpy(d.numpy()[:, 0])  # noqa: E731


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"maximize": "eig_per_cost"}, "needs cost="),
        ({"maximize": "gain", "cost": lambda d: d[:, 0]}, "maximize='gain' is unknown"),
        ({"cost": lambda d: d}, "must return one number for each"),
        ({"cost": lambda d: d[:, 0] / 0.0}, "must be finite"),
        (
            {"cost": lambda d: 0.0 * d[:, 0], "maximize": "eig_per_cost"},
            "must be positive and finite",
        ),
        ({"cost": NUMPY, "maximize": "eig_minus_cost"}, "Compute it with torch"),
        (
            {"cost": lambda d: d[:, 0].detach(), "maximize": "eig_minus_cost"},
            "Compute it with torch",
        ),
        (
            {"cost": lambda d: d[:, 0], "maximize": lambda eig, cost: eig**2 - cost},
            "not linear in eig",
        ),
        ({"feasible": lambda d: d[:, 0] > 11.0}, "only 0 of"),
        ({"feasible": lambda d: d[:, 0]}, "truth values"),
    ],
)
def test_bad_settings_are_refused_before_any_work(settings, said):
    def never(theta, design):
        raise AssertionError("simulated")

    with pytest.raises(ValueError, match=message(said)):
        make_trainer().optimize_design(never, **settings)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:The networks")
def test_all_of_a_list_are_judged():
    """More candidates than a climb has starts."""
    candidates = torch.linspace(0.0, 10.0, 700).unsqueeze(1)
    result = make_trainer(CategoricalPolicy(candidates)).optimize_design(
        simulator,
        method="multi_start",
        num_steps=200,
        cost=lambda d: 0.3 * d[:, 0],
        maximize="eig_minus_cost",
    )
    exact = UTILITIES["eig_minus_cost"][1]
    assert exact(result.design) > 0.95 * exact(candidates[:, 0]).max()
