"""What every family of policies keeps, whatever its designs."""

import pickle

import pytest
import torch

from sbi_boed_plugin import (
    CategoricalPolicy,
    DesignPolicy,
    NormalPolicy,
    PointPolicy,
    TruncatedNormalMixturePolicy,
    TruncatedNormalPolicy,
)
from tests.trainers.cases import SEARCH, make, message, simulator

LOW, HIGH = torch.tensor([0.5, -1.0]), torch.tensor([2.0, 3.0])
CANDIDATES = torch.tensor([[0.5, 0.0], [1.0, 1.0], [2.0, 3.0]])

FAMILIES = {
    "truncated normal": lambda dtype=None: TruncatedNormalPolicy(
        LOW.to(dtype), HIGH.to(dtype)
    ),
    "mixture": lambda dtype=None: TruncatedNormalMixturePolicy(
        LOW.to(dtype), HIGH.to(dtype)
    ),
    "normal": lambda dtype=None: NormalPolicy(LOW.to(dtype), (2.0, HIGH.to(dtype) + 2)),
    "point in a box": lambda dtype=None: PointPolicy(LOW.to(dtype), HIGH.to(dtype)),
    "point": lambda dtype=None: PointPolicy(loc=LOW.to(dtype)),
    "categorical": lambda dtype=None: CategoricalPolicy(CANDIDATES.to(dtype)),
}
for_each_family = pytest.mark.parametrize("family", FAMILIES)


def changed(family):
    """A policy whose parameters and schedule are no longer the initial ones."""
    policy = FAMILIES[family]()
    with torch.no_grad():
        for parameter in policy.parameters():
            parameter += 0.1 * torch.rand_like(parameter)
    policy.project()
    policy.anneal(0.7)
    return policy


def draw(policy, shape):
    return policy.rsample(shape) if policy.has_rsample else policy.sample(shape)


@for_each_family
@pytest.mark.parametrize("shape", [(), (3,), (2, 3)])
def test_shapes(family, shape):
    policy = changed(family)
    for designs in (policy.sample(torch.Size(shape)), draw(policy, torch.Size(shape))):
        assert designs.shape == (*shape, policy.dim_design)
        assert policy.support.check(designs).all()
        if policy.has_log_prob:
            assert policy.log_prob(designs).shape == shape


@for_each_family
def test_mode_and_record(family):
    policy = changed(family)
    assert policy.mode.shape == (2,)
    assert not policy.mode.requires_grad
    assert policy.support.check(policy.mode)
    record = policy.describe()
    assert torch.equal(record["mode"], policy.mode)
    assert not any(value.requires_grad for value in record.values())
    if policy.has_log_prob:
        log_prob = policy.log_prob(policy.sample(torch.Size((200,))))
        assert (log_prob <= policy.log_prob(policy.mode) + 1e-3).all()
        with pytest.raises(ValueError, match=message("(4, 3)", "dim_design=2")):
            policy.log_prob(torch.zeros(4, 3))


@for_each_family
def test_what_a_policy_says_of_itself_is_true(family):
    policy = FAMILIES[family]()
    (*parameters,) = policy.parameters()
    if policy.has_rsample:
        designs = policy.rsample(torch.Size((5,)))
        torch.autograd.grad(designs.square().sum(), parameters)
    else:
        with pytest.raises(NotImplementedError, match="score"):
            policy.rsample(torch.Size((5,)))
    designs = policy.sample(torch.Size((5,)))
    assert not designs.requires_grad
    if policy.has_log_prob:
        torch.autograd.grad(policy.log_prob(designs).sum(), parameters)
    else:
        with pytest.raises(NotImplementedError, match="score"):
            policy.log_prob(designs)


def assert_same(policy, other):
    assert torch.equal(policy.mode, other.mode)
    for name, value in policy.describe().items():
        assert torch.equal(other.describe()[name], value)
    torch.manual_seed(1)
    designs = policy.sample(torch.Size((6,)))
    torch.manual_seed(1)
    assert torch.equal(other.sample(torch.Size((6,))), designs)
    if policy.has_log_prob:
        assert torch.equal(other.log_prob(designs), policy.log_prob(designs))


@for_each_family
def test_pickle_and_state_dict(family):
    policy = changed(family)
    copy = pickle.loads(pickle.dumps(policy))
    assert_same(policy, copy)
    copy.anneal(1.0)
    other = FAMILIES[family]()
    other.load_state_dict(policy.state_dict())
    assert_same(policy, other)


@for_each_family
def test_devices_and_precision(family):
    policy = FAMILIES[family](torch.float64)
    assert policy.mode.dtype == torch.float64
    assert policy.sample().dtype == torch.float64
    assert all(p.dtype == torch.float64 for p in policy.parameters())
    policy = changed(family).to("meta")
    policy.anneal(0.5)
    policy.project()
    designs = draw(policy, torch.Size((3,)))
    assert designs.device.type == "meta"
    assert all(value.device.type == "meta" for value in policy.describe().values())
    if policy.has_log_prob:
        assert policy.log_prob(designs).device.type == "meta"


@for_each_family
def test_policies_keep_their_own_copy_of_the_arguments(family):
    low, high, candidates = LOW.clone(), HIGH.clone(), CANDIDATES.clone()
    policy = FAMILIES[family]()
    before = policy.mode.clone()
    with torch.no_grad():
        for parameter in policy.parameters():
            parameter += 0.3
    assert torch.equal(LOW, low) and torch.equal(HIGH, high)
    assert torch.equal(CANDIDATES, candidates)
    assert family == "categorical" or not torch.equal(policy.mode, before)


@pytest.mark.parametrize(
    "policy",
    [
        TruncatedNormalMixturePolicy(LOW[:1], HIGH[:1], num_components=2),
        NormalPolicy(LOW[:1], 0.1),
        CategoricalPolicy(CANDIDATES[:, :1]),
    ],
    ids=lambda policy: type(policy).__name__,
)
def test_searches_learn_every_family_by_its_score(policy):
    before = [parameter.detach().clone() for parameter in policy.parameters()]
    result = make(design_policy=policy).optimize_design(simulator, **SEARCH)
    assert policy.support.check(result.design)
    assert any(
        not torch.equal(a, b) for a, b in zip(before, policy.parameters(), strict=True)
    )


def test_policies_of_ones_own_have_gradients_unless_they_say_otherwise():
    assert DesignPolicy.has_rsample and DesignPolicy.has_log_prob
