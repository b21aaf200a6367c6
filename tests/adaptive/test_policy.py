"""What a policy over histories promises, whatever its weights."""

import pickle

import pytest
import torch
from torch.distributions.transforms import ExpTransform

from sbi_boed_plugin import (
    CategoricalPolicy,
    ConstrainedPolicy,
    HistoryPolicy,
    NormalPolicy,
    OrderedPolicy,
    ProductPolicy,
    SimplexPolicy,
    TruncatedNormalMixturePolicy,
    TruncatedNormalPolicy,
)
from sbi_boed_plugin.adaptive.encoder import HistoryEncoder

LOW, HIGH = torch.tensor([-4.0, 10.0]), torch.tensor([4.0, 11.0])
SQUARE = TruncatedNormalPolicy(LOW, HIGH)
LIST = CategoricalPolicy(torch.tensor([[1.0], [2.0], [5.0]]))
SPACES = {
    "box": SQUARE,
    "mixture": TruncatedNormalMixturePolicy(LOW, HIGH),
    "list": LIST,
    "product": ProductPolicy([SQUARE, LIST]),
    "ordered": OrderedPolicy(0.0, 12.0, dim_design=3),
    "shares": SimplexPolicy(3),
    "real": NormalPolicy(torch.zeros(2), scale=10.0),
    "possible": ConstrainedPolicy(SQUARE, lambda design: design[:, 0] > 2.0),
}


def history(policy, num, batch=()):
    generator = torch.Generator().manual_seed(num)
    design = torch.rand(*batch, num, policy.dim_design, generator=generator)
    return design, torch.randn(*batch, num, policy.dim_x, generator=generator)


@pytest.mark.parametrize("stochastic", [False, True])
@pytest.mark.parametrize("name", SPACES)
def test_designs_are_of_the_space(name, stochastic):
    policy = HistoryPolicy(SPACES[name], num_experiments=4, dim_x=2)
    batch = policy.propose(*history(policy, 3, (50,)), stochastic=stochastic)
    assert batch.shape == (50, policy.dim_design)
    assert SPACES[name].support.check(batch).all()
    one = policy.propose(stochastic=stochastic)
    assert one.shape == (policy.dim_design,)
    assert SPACES[name].support.check(one)


def test_the_order_of_experiments_tells_nothing_but_their_number_does():
    policy = HistoryPolicy(SQUARE, num_experiments=6)
    design, x = history(policy, 4)
    order = torch.tensor([2, 0, 3, 1])
    proposed = policy.propose(design, x)
    torch.testing.assert_close(policy.propose(design[order], x[order]), proposed)
    assert not torch.allclose(policy.propose(design[:3], x[:3]), proposed)
    assert not torch.allclose(policy.propose(design, x + 1.0), proposed)
    fixed = HistoryPolicy(SQUARE, num_experiments=6, adapts=False)
    assert torch.equal(fixed.propose(design, x), fixed.propose(design, x + 1.0))


def test_a_rollout_proposes_what_the_whole_history_does():
    policy = HistoryPolicy(SQUARE, num_experiments=6)
    design, x = history(policy, 4, (3,))
    pairs, seen = policy.start(3), []
    for step in range(4):
        pairs = policy.update(pairs, design[:, step], x[:, step])
        seen.append(policy.encoder.after_all(pairs))
    stepwise, _ = policy(pairs)
    torch.testing.assert_close(stepwise, policy.propose(design, x))
    torch.testing.assert_close(policy.encoder.after_each(pairs), torch.stack(seen))


@pytest.mark.parametrize("name", SPACES)
def test_designs_start_where_they_are_told_to(name):
    torch.manual_seed(0)
    space = SPACES[name]
    policy = HistoryPolicy(space, num_experiments=3)
    for design in space.spread(20):
        policy.start_at(design)
        started = policy.propose()
        if name != "list":  # Where all designs are tried anyway.
            # In reals, weights of a new network add less than one.
            width = space.width[: design.numel()]
            smooth = 2 if name == "product" else None
            distance = ((started - design) / width)[:smooth].abs()
            assert float(distance.max()) < 0.35
        assert space.support.check(started)


def test_failed_experiments_tell_nothing():
    """Neither the policy nor the posterior, but that there is one less to come."""
    policy = HistoryPolicy(SQUARE, num_experiments=6, dim_x=2)
    design, x = history(policy, 3, (2,))
    x[:, 1, 0] = torch.nan
    encoder, kept = policy.encoder, [0, 2]
    pairs = encoder.pairs(design, x).transpose(0, 1).detach()
    features = encoder.after_each(pairs)
    torch.testing.assert_close(features[1], features[0])
    torch.testing.assert_close(features[2], encoder.after_all(pairs[kept]))
    proposed = policy.propose(design, x)
    assert proposed.isfinite().all()
    assert not torch.equal(proposed, policy.propose(design[:, kept], x[:, kept]))
    # Where all failed, there is nothing.
    torch.testing.assert_close(
        encoder.after_all(pairs[1:2]), encoder.after_all(pairs[:0])
    )


def test_choices_are_drawn_by_their_probabilities():
    policy = HistoryPolicy(LIST, num_experiments=2)
    torch.manual_seed(0)
    pairs = policy.start(20_000)
    design, log_prob = policy(pairs, chooses=True)
    for value in (1.0, 2.0, 5.0):
        chosen = design[:, 0] == value
        share, expected = (
            float(chosen.float().mean()),
            float(log_prob[chosen][0].detach().exp()),
        )
        assert abs(share - expected) < 4.0 * (expected / 20_000) ** 0.5
    mode, _ = policy(pairs[:, :1])
    likeliest = design[log_prob.argmax()]
    assert torch.equal(mode[0], likeliest)


def test_the_density_of_noise_is_that_of_what_was_drawn():
    policy = HistoryPolicy(NormalPolicy(torch.zeros(1), scale=1.0), 2)
    torch.manual_seed(0)
    design, log_prob = policy(policy.start(5_000), explores=True)
    assert not design.requires_grad and log_prob.requires_grad
    centre, scale = policy.propose(), float(policy.scale)
    exact = torch.distributions.Normal(centre, scale).log_prob(design)[:, 0]
    torch.testing.assert_close(log_prob, exact)
    design, log_prob = policy(policy.start(5), explores=True, follows_noise=True)
    assert design.requires_grad and not log_prob.requires_grad


@pytest.mark.parametrize(
    ("design", "x", "message"),
    [
        (torch.zeros(2, 2), None, "belong together"),
        (torch.zeros(2, 3), torch.zeros(2, 1), r"history has designs \(num, 2\)"),
        (torch.zeros(2, 2), torch.zeros(3, 1), "history has"),
        (torch.zeros(2), torch.zeros(1), "history has"),
        (torch.full((2, 2), torch.nan), torch.zeros(2, 1), "designs may not"),
        (
            torch.zeros(3, 2),
            torch.zeros(3, 1),
            "has 3 experiments, .*num_experiments=3",
        ),
    ],
)
def test_histories_that_are_wrong_are_refused(design, x, message):
    policy = HistoryPolicy(SQUARE, num_experiments=3)
    with pytest.raises(ValueError, match=message):
        policy.propose(design, x)


def test_settings_that_are_wrong_are_refused():
    with pytest.raises(TypeError, match="design_policy must be a DesignPolicy"):
        HistoryPolicy(torch.zeros(2), 3)
    with pytest.raises(ValueError, match="num_experiments=0 must be at least 1"):
        HistoryPolicy(SQUARE, 0)

    class Unbounded(NormalPolicy):
        def from_reals(self, reals):
            return super(NormalPolicy, self).from_reals(reals)

    with pytest.raises(NotImplementedError, match="Unbounded has no map from real"):
        HistoryPolicy(Unbounded(torch.zeros(2), scale=1.0), 3)


@pytest.mark.parametrize("name", SPACES)
def test_saved_policies_are_the_same_and_of_the_same_designs(name, tmp_path):
    policy = HistoryPolicy(SPACES[name], num_experiments=4, num_features=8)
    policy.save(tmp_path / "policy.pt")
    loaded = HistoryPolicy.load(tmp_path / "policy.pt", SPACES[name])
    seen = history(policy, 3, (5,))
    assert torch.equal(loaded.propose(*seen), policy.propose(*seen))
    assert loaded.digest() == policy.digest()
    if name != "possible":  # Whose condition is a function of this test.
        again = pickle.loads(pickle.dumps(policy))
        assert torch.equal(again.propose(*seen), policy.propose(*seen))


@pytest.mark.parametrize(
    "other",
    [
        TruncatedNormalPolicy(LOW, HIGH + 1.0),
        TruncatedNormalPolicy(LOW[:1], HIGH[:1]),
        LIST,
    ],
)
def test_policies_over_other_designs_are_not_loaded(other, tmp_path):
    HistoryPolicy(SQUARE, num_experiments=4).save(tmp_path / "policy.pt")
    with pytest.raises(ValueError, match="over other designs"):
        HistoryPolicy.load(tmp_path / "policy.pt", other)


def test_policies_in_other_coordinates_are_not_loaded(tmp_path):
    box = TruncatedNormalPolicy(torch.zeros(1), torch.full((1,), 1e-6))
    wide = TruncatedNormalPolicy(torch.zeros(1), torch.full((1,), 1e-5))
    HistoryPolicy(box, num_experiments=4).save(tmp_path / "policy.pt")
    for space, transforms in ((wide, {}), (box, {"x_transform": ExpTransform()})):
        with pytest.raises(ValueError, match="other designs.*or in other coordinates"):
            HistoryPolicy.load(tmp_path / "policy.pt", space, **transforms)


def test_designs_are_exact_whatever_their_precision_and_size():
    double = torch.tensor([0.0, 0.1], dtype=torch.double)
    box = TruncatedNormalPolicy(double[:1], double[1:])
    for share in (-100.0, 100.0):
        design = box.from_reals(torch.tensor([share]))
        assert design.dtype == torch.float32 and box.support.check(design.double())
    few = CategoricalPolicy(torch.tensor([[0.1], [1_000.0]]))
    possible = ConstrainedPolicy(few, lambda design: design[:, 0] < 500.0)
    policy = HistoryPolicy(possible, num_experiments=2)
    with torch.no_grad():
        policy.head[-1].bias.copy_(torch.tensor([-9.0, 9.0]))  # The impossible one.
    assert torch.equal(policy.propose(), torch.tensor([0.1]))


def test_designs_do_not_move_with_the_policy_whose_space_they_are_of():
    space = NormalPolicy(torch.zeros(1), scale=2.0)
    before = space.from_reals(torch.ones(1))
    with torch.no_grad():
        space._unit_loc += 1.0
    assert torch.equal(space.from_reals(torch.ones(1)), before)
    torch.testing.assert_close(space.to_reals(before), torch.ones(1))


def test_units_of_pairs_are_theirs():
    small = {"hidden_features": 8, "num_features": 4}
    encoder, other = (HistoryEncoder(1, 1, 3, **small) for _ in range(2))
    other.load_state_dict(encoder.state_dict())
    design, x = torch.rand(200, 1), torch.randn(200, 1).exp()
    x[::20] = torch.nan
    encoder.standardize(design, x)
    other.standardize(1e6 * design, 1e-6 * x)
    expected = encoder.pairs(design, x)
    torch.testing.assert_close(other.pairs(1e6 * design, 1e-6 * x), expected)
    assert expected.isfinite().all()
    # Values that hardly vary, or are nearly all the same, keep a unit.
    encoder.standardize(torch.ones(200, 1), (torch.rand(200, 1) > 0.9).float())
    assert (encoder.spread > 0).all() and encoder.spread.isfinite().all()


def test_tensors_follow_the_device():
    """Torch's meta device stands for any that is not the CPU."""
    for space in (SQUARE, LIST, SPACES["product"], SPACES["ordered"]):
        policy = HistoryPolicy(space, num_experiments=3).to("meta")
        pairs = policy.start(4)
        design, log_prob = policy(pairs, chooses=True, explores=True)
        given = torch.cat([design, log_prob.unsqueeze(1)], dim=1)
        features = policy.encoder.of_pair(given)
        assert {t.device.type for t in (design, log_prob, features)} == {"meta"}


def test_a_policy_for_one_experiment_is_saved(tmp_path):
    policy = HistoryPolicy(SQUARE, num_experiments=1)
    policy.save(tmp_path / "policy.pt")
    loaded = HistoryPolicy.load(tmp_path / "policy.pt", SQUARE)
    assert torch.equal(loaded.propose(), policy.propose())
