"""Designs that are possible: draws, densities, gradients and steps."""

import itertools

import pytest
import torch

from sbi_boed_plugin.policies import (
    CategoricalPolicy,
    ConstrainedPolicy,
    OrderedPolicy,
    ProductPolicy,
    SimplexPolicy,
    TruncatedNormalPolicy,
)
from tests.policies.expectations import (
    by_score,
    finite_differences,
    grid_over,
    simulated,
    smooth,
)

SQUARE = torch.zeros(2).double(), torch.ones(2).double()


def in_triangle(design):
    return design.sum(dim=-1) <= 1.0


def triangle(loc=(0.3, 0.4)):
    policy = TruncatedNormalPolicy(*SQUARE, loc=torch.tensor(loc), scale=(0.3, 0.1))
    return ConstrainedPolicy(policy, in_triangle)


def test_the_score_needs_no_constant_of_what_is_possible():
    policy = triangle()
    grid, area = grid_over([0.0, 0.0], [1.0, 1.0], 400)
    possible = in_triangle(grid)

    def expectation():
        weights = policy.policy.log_prob(grid).exp() * possible * area
        return (weights * smooth(grid)).sum() / weights.sum()

    exact = finite_differences(policy, expectation)
    mean, error = simulated(policy, by_score)
    assert ((mean - exact).abs() < 5 * error + 1e-3).all()
    assert (error < 0.1 * exact.abs().max()).all()


def test_designs_are_possible_and_all_over():
    policy = triangle(loc=(0.9, 0.9))  # The mode is impossible.
    for designs in (policy.sample((200,)), policy.spread(200), policy.mode[None]):
        assert in_triangle(designs).all() and policy.support.check(designs).all()
    spread = policy.spread(200)
    assert spread.min() < 0.05 and spread.max() > 0.9
    assert (policy.log_prob(1.0 - 0.1 * policy.sample((5,))) == -torch.inf).all()


def test_steps_go_along_a_boundary():
    policy = triangle()
    start = torch.tensor([[0.5, 0.5], [0.1, 0.1], [0.5, 0.5]]).double()
    to = torch.tensor([[0.7, 0.3], [0.2, 0.2], [0.9, 0.9]]).double()
    moved = policy.moved(start, to)
    assert in_triangle(moved).all()
    assert torch.equal(moved[1], to[1])  # Inside, a step is a step.
    assert not torch.equal(moved[0], start[0])
    assert torch.equal(moved[2], start[2])  # No single value can grow.


def test_the_mode_does_not_leave():
    policy = triangle()
    for _ in range(30):
        with torch.no_grad():
            for parameter in policy.parameters():
                parameter += 0.05
        policy.project()
        assert in_triangle(policy.policy.mode)
    assert policy.policy.mode.sum() > 0.9


@pytest.mark.parametrize(
    "policy", [OrderedPolicy(0.0, 12.0, 3), SimplexPolicy(3)], ids=["ordered", "shares"]
)
def test_spaces_of_their_own(policy):
    designs = torch.cat([policy.sample((100,)), policy.spread(100)])
    assert policy.support.check(designs).all()
    far = policy.moved(designs, designs + policy.width * torch.randn_like(designs))
    assert policy.support.check(far).all()
    inside = policy.sample((100,))
    torch.testing.assert_close(policy.moved(inside, inside), inside)
    if isinstance(policy, OrderedPolicy):
        return  # Values that pass each other change places.
    # The nearest design: no other of many is nearer.
    away = designs[:5] + torch.randn(5, 3)
    nearest = (policy.moved(designs[:5], away) - away).square().sum(dim=1)
    others = (policy.spread(20_000)[:, None] - away).square().sum(dim=2)
    assert (nearest <= others.amin(dim=0) + 1e-5).all()


def test_ordered_densities_integrate_to_one():
    policy = OrderedPolicy(0.0, 2.0, 2).double()
    grid, area = grid_over([0.0, 0.0], [2.0, 2.0], 800)
    mass = policy.log_prob(grid.reshape(-1, 2)).exp().sum() * area
    assert mass.item() == pytest.approx(1.0, abs=0.01)


def test_shares_densities_integrate_to_one():
    policy = SimplexPolicy(3).double()
    grid, area = grid_over([0.0, 0.0], [1.0, 1.0], 800)
    flat = grid.reshape(-1, 2)
    flat = flat[flat.sum(dim=1) < 1.0]
    designs = torch.cat([flat, 1.0 - flat.sum(dim=1, keepdim=True)], dim=1)
    mass = policy.log_prob(designs).exp().sum() * area
    assert mass.item() == pytest.approx(1.0, abs=0.02)


def test_products_know_all_combinations_of_lists():
    first = CategoricalPolicy(torch.tensor([[1.0], [2.0], [3.0]]))
    second = CategoricalPolicy(torch.tensor([[0.0], [1.0]]))
    policy = ProductPolicy([first, second])
    assert policy.num_designs == 6 and not policy.can_move
    found = {tuple(row) for row in policy.spread(6).tolist()}
    assert found == set(itertools.product((1.0, 2.0, 3.0), (0.0, 1.0)))
    mixed = ProductPolicy([first, TruncatedNormalPolicy(*SQUARE)])
    assert mixed.num_designs is None and mixed.box is None and mixed.can_move
    start = mixed.spread(10)
    moved = mixed.moved(start, start + 0.5)
    assert torch.equal(moved[:, 0], start[:, 0]) and mixed.support.check(moved).all()
    box = ProductPolicy([TruncatedNormalPolicy(*SQUARE)] * 2)
    assert torch.equal(box.box[1], torch.ones(4).double())


def test_other_objects_than_policies_are_refused():
    for make in (ConstrainedPolicy, lambda policy, _: ProductPolicy([policy])):
        with pytest.raises(TypeError, match="DesignPolicy, got float"):
            make(1.0, in_triangle)
    with pytest.raises(TypeError, match="feasible=None must be a function"):
        ConstrainedPolicy(TruncatedNormalPolicy(*SQUARE), None)
