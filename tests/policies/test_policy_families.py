"""What every family of policies keeps, whatever its designs."""

import pickle

import pytest
import torch
from torch import nn
from torch.distributions import Beta, Independent

from sbi_boed_plugin.policies import (
    CategoricalPolicy,
    ConstrainedPolicy,
    DesignPolicy,
    NormalPolicy,
    OrderedPolicy,
    PointPolicy,
    ProductPolicy,
    SimplexPolicy,
    TruncatedNormalMixturePolicy,
    TruncatedNormalPolicy,
)
from tests.policies.expectations import assert_unbiased, by_rsample, by_score
from tests.trainers.cases import SEARCH, make, message, simulator

LOW, HIGH = torch.tensor([0.5, -1.0]), torch.tensor([2.0, 3.0])
CANDIDATES = torch.tensor([[0.5, 0.0], [1.0, 1.0], [2.0, 3.0]])


def below_diagonal(design):
    return design[:, 1] < design[:, 0] + 1.0


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
    "product": lambda dtype=None: ProductPolicy(
        [
            TruncatedNormalPolicy(LOW[:1].to(dtype), HIGH[:1].to(dtype)),
            CategoricalPolicy(CANDIDATES[:, 1:].to(dtype)),
        ]
    ),
    "constrained": lambda dtype=None: ConstrainedPolicy(
        TruncatedNormalPolicy(LOW.to(dtype), HIGH.to(dtype)), below_diagonal
    ),
    "ordered": lambda dtype=None: OrderedPolicy(0.5, 2.0, 2).to(dtype or torch.float32),
    "simplex": lambda dtype=None: SimplexPolicy(2).to(dtype or torch.float32),
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


def draws(policy, shape):
    designs = [policy.sample(shape)]
    return [*designs, policy.rsample(shape)] if policy.has_rsample else designs


@for_each_family
@pytest.mark.parametrize("shape", [(), (3,), (2, 3)])
def test_shapes(family, shape):
    policy = changed(family)
    for designs in draws(policy, torch.Size(shape)):
        assert designs.shape == (*shape, policy.dim_design)
        assert policy.support.check(designs).all()
        if policy.has_log_prob:
            assert policy.log_prob(designs).shape == shape


@for_each_family
def test_mode_and_record(family):
    policy = changed(family)
    assert policy.mode.shape == (2,)
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
def test_what_a_policy_says_of_its_gradients_is_true(family):
    policy = FAMILIES[family]()
    (*parameters,) = policy.parameters()
    designs = policy.sample(torch.Size((5,)))
    assert not designs.requires_grad
    uses = (
        (policy.has_rsample, lambda: policy.rsample(torch.Size((5,))).square()),
        (policy.has_log_prob, lambda: policy.log_prob(designs)),
    )
    for has_gradient, use in uses:
        if has_gradient:
            torch.autograd.grad(use().sum(), parameters)
        else:
            with pytest.raises(NotImplementedError, match="score"):
                use()


@for_each_family
def test_pickle_and_state_dict(family):
    policy, loaded = changed(family), FAMILIES[family]()
    loaded.load_state_dict(policy.state_dict())
    for other in (pickle.loads(pickle.dumps(policy)), loaded):
        torch.testing.assert_close(other.describe(), policy.describe(), rtol=0, atol=0)
        designs = []
        for each in (policy, other):
            torch.manual_seed(1)
            designs.append(each.sample(torch.Size((6,))))
        assert torch.equal(*designs)
        if policy.has_log_prob:
            log_probs = policy.log_prob(designs[0]), other.log_prob(designs[0])
            assert torch.equal(*log_probs)


@for_each_family
def test_devices_and_precision(family):
    policy = FAMILIES[family](torch.float64)
    assert policy.mode.dtype == torch.float64
    assert policy.sample().dtype == torch.float64
    assert all(p.dtype == torch.float64 for p in policy.parameters())
    if family == "constrained":
        return  # What is possible depends on values.
    policy = changed(family).to("meta")
    policy.anneal(0.5)
    policy.project()
    *_, designs = draws(policy, torch.Size((3,)))
    assert designs.is_meta
    assert all(value.is_meta for value in policy.describe().values())
    if policy.has_log_prob:
        assert policy.log_prob(designs).is_meta


@for_each_family
def test_policies_keep_their_own_copy_of_the_arguments(family):
    before = LOW.clone(), HIGH.clone(), CANDIDATES.clone()
    changed(family)
    for value, old in zip((LOW, HIGH, CANDIDATES), before, strict=True):
        assert torch.equal(value, old)


@pytest.mark.parametrize(
    "policy",
    [
        TruncatedNormalMixturePolicy(LOW[:1], HIGH[:1], num_components=2),
        NormalPolicy(LOW[:1], 0.1),
        CategoricalPolicy(CANDIDATES[:, :1]),
        ProductPolicy([CategoricalPolicy(CANDIDATES[:, :1])]),
        ConstrainedPolicy(
            TruncatedNormalPolicy(LOW[:1], HIGH[:1]), lambda design: design[:, 0] > 1.0
        ),
        OrderedPolicy(0.5, 2.0, 1),
    ],
    ids=lambda policy: type(policy).__name__,
)
def test_searches_learn_every_family_by_its_score(policy):
    before = [parameter.detach().clone() for parameter in policy.parameters()]
    result = make(design_policy=policy).optimize_design(
        simulator, **SEARCH, method="joint"
    )
    assert policy.support.check(result.design)
    assert any(
        not torch.equal(a, b) for a, b in zip(before, policy.parameters(), strict=True)
    )


@pytest.mark.parametrize("surrogate", [by_score, by_rsample])
@pytest.mark.parametrize("family", ["truncated normal", "normal"])
def test_gradients_are_those_of_the_expectation(family, surrogate):
    if family == "normal":
        scale = torch.tensor([0.2, 0.5], dtype=torch.float64)
        policy = NormalPolicy(0.1 * LOW.double(), (scale, 0.1 * scale))
        # Eight scales to each side hold all the mass that double precision can tell.
        box = policy.loc.detach() - 8 * scale, policy.loc.detach() + 8 * scale
    else:
        box = torch.zeros(2).double(), torch.ones(2).double()
        policy = TruncatedNormalPolicy(*box, loc=torch.tensor([0.1, 1.0]))
    low, high = (corner.tolist() for corner in box)
    assert_unbiased(policy, surrogate, low, high, precision=0.02)


class BetaPolicy(DesignPolicy):
    """A policy of a user, with a density that is NaN outside of its support."""

    def distribution(self):
        beta = Beta(self.shape, 2 * self.shape, validate_args=False)
        return Independent(beta, 1, validate_args=False)


def test_a_policy_of_ones_own_needs_a_distribution():
    policy = BetaPolicy(3)
    policy.shape = nn.Parameter(torch.tensor([1.5, 2.0, 3.0]))
    designs = policy.sample((5,))
    assert not designs.requires_grad and policy.log_prob(designs).isfinite().all()
    assert (policy.log_prob(designs + 1.0) == -torch.inf).all()
    torch.autograd.grad(policy.rsample((4,)).sum(), list(policy.parameters()))
    for use in (lambda p: p.sample(), lambda p: p.mode, lambda p: p.support):
        with pytest.raises(NotImplementedError, match="DesignPolicy must define"):
            use(DesignPolicy(1))


ZERO, ONE, NAN = torch.zeros(1), torch.ones(1), torch.full((1,), torch.nan)
IN_A_BOX = [
    ({"low": torch.zeros(2)}, "same shape"),
    ({"low": ONE}, "must be less than"),
    ({"high": torch.tensor([torch.inf])}, "finite"),
    ({"loc": torch.zeros(3)}, "must have shape"),
    ({"scale": 0.0}, "must be positive"),
    ({"scale": (0.3, -1.0)}, "scale=-1.0"),
    ({"scale": (0.3, 0.2, 0.1)}, "a tuple"),
    ({"scale": [0.3, 0.1]}, "a tuple"),
]
SAME, CLOSE = torch.tensor([[1], [2], [1]]), torch.tensor([[2.0], [2.0 + 5e-7]])
BAD_ARGUMENTS = [
    *((TruncatedNormalPolicy, bad, match) for bad, match in IN_A_BOX),
    *((TruncatedNormalMixturePolicy, bad, match) for bad, match in IN_A_BOX),
    (TruncatedNormalPolicy, {"loc": 2 * ONE}, "lie in the box"),
    (TruncatedNormalMixturePolicy, {"loc": NAN.expand(4, 1)}, "lie in the box"),
    (TruncatedNormalMixturePolicy, {"num_components": 0}, "num_components=0 must be"),
    (NormalPolicy, {"loc": torch.zeros(2, 2)}, "loc has shape"),
    (NormalPolicy, {"loc": NAN}, "loc=.* must be finite"),
    (NormalPolicy, {"scale": torch.ones(3)}, "each of the 2 values"),
    (NormalPolicy, {"scale": None}, "scale=None must be a number"),
    (NormalPolicy, {"scale": torch.tensor([1.0, -1.0])}, "must be positive"),
    (PointPolicy, {}, "loc=None"),
    (PointPolicy, {"low": ZERO}, "high=None"),
    (PointPolicy, {"high": ZERO, "loc": ZERO}, "low=None"),
    (CategoricalPolicy, {"candidates": torch.zeros(3)}, r"candidates has shape \(3,\)"),
    (CategoricalPolicy, {"candidates": torch.zeros(0, 2)}, r"has shape \(0, 2\)"),
    (CategoricalPolicy, {"candidates": NAN.unsqueeze(1)}, "must be finite"),
    (CategoricalPolicy, {"candidates": SAME}, r"candidates\[0\].*candidates\[2\]"),
    (CategoricalPolicy, {"candidates": CLOSE}, "same in single precision"),
    (ProductPolicy, {"policies": []}, "at least one"),
    (OrderedPolicy, {"low": 1.0}, "high=1.0 must be"),
    (OrderedPolicy, {"dim_design": 0}, "dim_design=0"),
    (SimplexPolicy, {"dim_design": 1}, "dim_design=1"),
    (ConstrainedPolicy, {"feasible": lambda d: d[:, 0] > 2.0}, "only 0 of"),
    (ConstrainedPolicy, {"feasible": lambda d: d > 0.0}, "truth values"),
    (ConstrainedPolicy, {"feasible": lambda d: d[:, 0]}, "truth values"),
]
DEFAULTS = {
    TruncatedNormalPolicy: {"low": ZERO, "high": ONE},
    TruncatedNormalMixturePolicy: {"low": ZERO, "high": ONE},
    NormalPolicy: {"loc": torch.zeros(2), "scale": 1.0},
    CategoricalPolicy: {"candidates": torch.tensor([[1], [2]])},
    OrderedPolicy: {"low": 0.0, "high": 1.0, "dim_design": 2},
    SimplexPolicy: {"dim_design": 3},
    ConstrainedPolicy: {"policy": TruncatedNormalPolicy(ZERO, ONE)},
}


@pytest.mark.parametrize(("make_policy", "bad", "match"), BAD_ARGUMENTS)
def test_bad_arguments_are_named(make_policy, bad, match):
    with pytest.raises(ValueError, match=match):
        make_policy(**{**DEFAULTS.get(make_policy, {}), **bad})
