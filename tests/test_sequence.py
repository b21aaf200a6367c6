"""Sequences of experiments, killed and continued."""

import pytest
import torch
from torch.distributions import Independent, Normal
from torch.distributions.transforms import AffineTransform

from sbi_boed_plugin import (
    NLE_INCE,
    TruncatedNormalPolicy,
    transformed_likelihood_nn,
)
from sbi_boed_plugin.search.multi_start import MultiStartConfig
from sbi_boed_plugin.sequence import run_experiments
from tests.conftest import NoOpTracker
from tests.oracles import LinearGaussian as Model
from tests.trainers.cases import CHECK, make_trainer, on_box

SEARCH = {
    "num_steps": 8,
    "training_batch_size": 32,
    "num_eig_samples": 40,
    "num_eig_contrastive": 15,
}
FEW = MultiStartConfig(num_starts=16, num_climb_steps=3, num_candidate_samples=50)


def make(prior=Model.prior, model="mdn", **policy):
    return on_box(0.5, 3.0, prior, model, policy=policy)


def measure(design):
    return Model.simulate(torch.ones(1, 1), design.unsqueeze(0))


def run(
    checkpoint=None,
    num_rounds=3,
    inference=None,
    observe=measure,
    simulate=Model.simulate,
    **kwargs,
):
    settings = {"seed": 3, "num_particles": 128, "show_progress_bar": False, **SEARCH}
    settings.update(checkpoint=checkpoint, **kwargs)
    return run_experiments(
        inference or make(), simulate, observe, num_rounds, **settings
    )


def assert_same(result, expected):
    assert torch.equal(result.designs, expected.designs)
    assert torch.equal(result.x, expected.x)
    for one, other in zip(result.records, expected.records, strict=True):
        assert one.eig == other.eig
        assert one.log_evidence == other.log_evidence
        assert torch.equal(one.posterior_samples, other.posterior_samples)


@pytest.fixture
def path(tmp_path):
    return tmp_path / "campaign.pt"


class FailsInRound:
    """An experiment that breaks once."""

    def __init__(self, call, error):
        self.call, self.error, self.num_calls = call, error, 0

    def __call__(self, design):
        self.num_calls += 1
        if self.num_calls == self.call:
            torch.rand(7)  # random numbers are used up before it breaks.
            raise self.error
        return measure(design)


def test_an_observer_may_change_what_it_gets_and_use_again_what_it_returned():
    data = torch.zeros(1)

    def observe(design):
        data.copy_(measure(design).reshape(1))
        design.mul_(0.5)
        return data

    expected = run(num_rounds=2)
    assert_same(run(num_rounds=2, observe=observe), expected)


def test_a_record_of_every_experiment():
    inference = make()
    before = torch.get_rng_state()
    result = run(inference=inference)
    assert torch.equal(torch.get_rng_state(), before)
    assert result.designs.shape == (3, 1)
    assert result.x.shape == (3, 1)
    assert result.posterior_samples.shape == (128, 1)
    assert result.num_simulations == 3 * (8 * 32 + 40) + CHECK
    assert len(inference.observations) == 3
    assert torch.equal(result.posterior_samples, inference.belief.particles)
    assert_same(run(), result)


@pytest.mark.parametrize(
    "objective, call",
    [
        ("barber_agakov", 2),
        *(
            pytest.param(objective, call, marks=pytest.mark.slow)
            for objective in ("barber_agakov", "gkl", "info_nce", "marginal")
            for call in (1, 2)
            if (objective, call) != ("barber_agakov", 2)
        ),
    ],
)
def test_an_interrupted_sequence_goes_on_as_if_it_had_not_been(path, objective, call):
    expected = run(objective=objective)
    inference, fails = make(), FailsInRound(call, KeyboardInterrupt())
    with pytest.raises(KeyboardInterrupt):
        run(path, 3, inference, fails, objective=objective)
    # With the very trainer that was left in the middle, and with a new one.
    for trainer in (inference, make()):
        copied = path.with_name(f"{id(trainer)}.pt")
        copied.write_bytes(path.read_bytes())
        assert_same(run(copied, inference=trainer, objective=objective), expected)


@pytest.mark.slow
def test_a_multi_start_sequence_trains_once_and_goes_on(path):
    kwargs = {"method": "multi_start", "multi_start": FEW, "num_warmup_steps": 2}
    num_scoring = 5 * 50 + 40 + CHECK
    # The first trains a posterior, the later ones are served by the likelihood.
    result = run(path, num_rounds=2, **kwargs)
    assert result.records[1].num_simulations <= num_scoring
    longer = run(path, num_rounds=3, **kwargs)
    assert torch.equal(longer.designs[:2], result.designs)
    assert longer.records[2].num_simulations <= num_scoring
    # Where a posterior network is asked for, it trains in every round.
    result = run(num_rounds=2, objective="barber_agakov", **kwargs)
    expected = SEARCH["num_steps"] * SEARCH["training_batch_size"]
    for record in result.records:
        assert 0 <= record.num_simulations - expected <= num_scoring


def test_rounds_can_be_added_and_finished_ones_are_not_repeated(path):
    inference = make()
    run(path, num_rounds=2, inference=inference)
    # The trainer is the same, and its policy is where the search left it.
    longer = run(path, num_rounds=3, inference=inference)
    assert_same(longer, run(num_rounds=3))
    calls = FailsInRound(1, AssertionError("experiment repeated"))
    assert_same(run(path, num_rounds=3, observe=calls), longer)


def test_data_that_are_not_finite_do_not_lose_the_search(path):
    with pytest.raises(ValueError, match="finite.*design found is kept"):
        run(path, observe=lambda design: torch.tensor([torch.nan]))

    def never(theta, design):
        raise AssertionError("the search was repeated")

    result = run(path, num_rounds=1, simulate=never)
    assert torch.equal(result.designs, run(num_rounds=1).designs)


@pytest.mark.slow
def test_networks_trained_beforehand_are_kept_whatever_they_measure(path):
    """Two values per experiment, and an interruption in the first round."""

    def simulate(theta, design):
        return Model.simulate(theta, design).repeat(1, 2) + torch.randn(len(theta), 2)

    def go(path, observe):
        torch.manual_seed(0)
        inference = make()
        inference.optimize_design(simulate, **SEARCH)
        return run(path, 2, inference, observe, simulate)

    def observe(design):
        return simulate(torch.ones(1, 1), design.unsqueeze(0))

    with pytest.raises(KeyboardInterrupt):
        go(path, FailsInRound(1, KeyboardInterrupt()))
    assert_same(go(path, observe), go(None, observe))


class WithSchedule(TruncatedNormalPolicy):
    """A policy of a user's own, with a function as its schedule."""

    def __init__(self, schedule):
        self.of_user = schedule
        super().__init__(torch.tensor([0.5]), torch.tensor([3.0]))

    def anneal(self, progress):
        self.scale = self.of_user(progress) * (self.high - self.low)


def scheduled(slope=0.2, power=1.0):
    return make_trainer(
        Model.prior, WithSchedule(lambda progress: 0.3 - slope * progress**power)
    )


WIDE = Independent(Normal(torch.zeros(1), 2.0), 1)


@pytest.mark.parametrize(
    "same, others",
    [
        (
            make,
            {
                "prior": [lambda: make(WIDE)],
                "policy": [lambda: on_box(0.0, 9.0), lambda: make(scale=(0.3, 0.01))],
                "policy.*make it anew": [lambda: make(loc=torch.tensor([0.6]))],
            },
        ),
        # Functions are told apart by what they do.
        (
            scheduled,
            {"policy": [lambda: scheduled(0.1), lambda: scheduled(power=2.0)]},
        ),
    ],
    ids=["named", "of a user"],
)
def test_another_prior_or_policy_is_another_sequence(path, same, others):
    run(path, num_rounds=1, inference=same())
    before = path.read_bytes()
    for name, trainers in others.items():
        for other in trainers:
            with pytest.raises(ValueError, match=f"other experiments: {name}"):
                run(path, inference=other())
    assert path.read_bytes() == before
    assert len(run(path, num_rounds=2, inference=same()).records) == 2


def test_other_settings_are_another_sequence(path):
    run(path, num_rounds=1)
    # One worker draws from the generators of this process.
    for kwargs in ({"seed": 4}, {"num_steps": 9}, {"num_workers": 2}):
        name = "seed" if "seed" in kwargs else "search"
        with pytest.raises(ValueError, match=f"other experiments: {name}"):
            run(path, **kwargs)
    assert len(run(path, num_rounds=1, num_workers=1).records) == 1


def test_other_networks_are_refused_and_change_nothing(path):
    def with_data_in(scale):
        # The inverse, as logarithms are that of the exponential.
        build = transformed_likelihood_nn(
            "mdn", dim_design=1, x_transform=AffineTransform(0.0, scale).inv
        )
        return make(model=build)

    run(path, num_rounds=1, inference=with_data_in(1.0))
    run(path, num_rounds=1, inference=with_data_in(1.0))
    others = [
        (with_data_in(7.0), "work in other coordinates"),
        (make(model="maf"), "likelihood network.*is another"),
    ]
    for other, told in others:
        with pytest.raises(ValueError, match=told):
            run(path, inference=other)
        assert other._neural_net is None and not other.observations


@pytest.mark.parametrize(
    ("told", "kwargs"),
    [
        ("num_rounds=0", {"num_rounds": 0}),
        ("resume_training", {"resume_training": True}),
        (
            "design policy",
            {"inference": NLE_INCE(Model.prior, tracker=NoOpTracker())},
        ),
    ],
)
def test_arguments_are_checked(told, kwargs):
    with pytest.raises(ValueError, match=told):
        run(**kwargs)
