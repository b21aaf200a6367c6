"""sbi's expectations of a trainer, held against ours: arguments, training, rounds.

`tests/sbi_contract/` continues with networks, posteriors and saved state. The trainers
are the cases of `tests/contract_cases.py`; `pytest -k sbi_contract` runs everything.
"""

import inspect
import warnings
from collections import defaultdict
from dataclasses import replace

import pytest
import sbi.inference
import torch
from sbi.inference import infer
from sbi.inference.posteriors.base_posterior import NeuralPosterior
from sbi.neural_nets.estimators.base import ConditionalEstimator

import sbi_boed_plugin  # noqa: F401 (importing it registers the trainers)
from tests.conftest import NoOpTracker
from tests.contract_cases import (
    DIM_X,
    QUIET,
    SHORT,
    draw,
    for_cases,
    for_each_case,
)

SBI_SUMMARY = {
    "epochs_trained",
    "best_validation_loss",
    "validation_loss",
    "training_loss",
    "epoch_durations_sec",
}
PER_ROUND = {"epochs_trained", "best_validation_loss"}


def per_epoch(case):
    """Keys with one value for each epoch of sbi's loop."""
    return (SBI_SUMMARY - PER_ROUND) | set(case.extra_summary)


class RecordingTracker(NoOpTracker):
    """Keeps `(step, value)` pairs by name."""

    def __init__(self):
        self.metrics = defaultdict(list)

    def log_metric(self, name, value, step=None):
        self.metrics[name].append((step, value))


def same_state(network, other):
    """Whether networks have bit-identical parameters and buffers."""
    own, states = network.state_dict(), other.state_dict()
    assert own.keys() == states.keys()
    return all(torch.equal(own[key], states[key]) for key in own)


@pytest.mark.parametrize(
    "method", ["__init__", "append_simulations", "train", "build_posterior"]
)
@for_each_case
def test_arguments_are_those_of_sbi_and_more_by_keyword_only(case, method):
    ours, theirs = (
        list(inspect.signature(getattr(trainer, method)).parameters.values())
        for trainer in (case.trainer, case.peer)
    )
    shared, added = ours[: len(theirs)], ours[len(theirs) :]
    assert [(p.name, p.kind) for p in shared] == [(p.name, p.kind) for p in theirs]
    renamed = dict(case.renamed_defaults)
    if method == "__init__":
        # Ours give a network by its name; sbi does so in 0.27 alone.
        renamed[case.estimator_argument] = case.default_model
    assert {p.name: p.default for p in shared} == {
        p.name: renamed.get(p.name, p.default) for p in theirs
    }
    assert {p.kind for p in added} <= {inspect.Parameter.KEYWORD_ONLY}
    assert inspect.Parameter.empty not in {p.default for p in added}


@for_each_case
def test_training_returns_an_estimator_and_fills_summary_and_tracker(case):
    tracker = RecordingTracker()
    trainer = case.make(tracker=tracker)
    assert case.append(trainer, case.simulate()) is trainer
    estimator = case.train(trainer, max_num_epochs=3)
    assert isinstance(estimator, ConditionalEstimator)
    assert not any(p.grad is not None for p in estimator.parameters())

    summary = trainer.summary
    all_keys = per_epoch(case) | PER_ROUND | {*case.own_summary}
    all_keys |= {*case.own_summary_per_epoch}
    assert set(summary) == set(tracker.metrics) == all_keys
    (num_epochs,) = summary["epochs_trained"]
    assert num_epochs == 4  # sbi counts from zero up to and including the maximum.
    assert summary["best_validation_loss"] == [min(summary["validation_loss"])]
    for key in per_epoch(case):
        assert len(summary[key]) == num_epochs, key
    for key in case.own_summary_per_epoch:
        assert len(summary[key]) == 3, key
    for key, values in summary.items():
        assert torch.tensor(values).isfinite().all(), key
    for key in per_epoch(case) | set(case.own_summary_per_epoch):
        assert tracker.metrics[key] == list(enumerate(summary[key])), key


@for_each_case
def test_training_without_simulations_is_refused(case):
    with pytest.raises(RuntimeError, match="append_simulations"):
        case.train(case.make())


@for_cases(lambda case: not case.like_npe)
def test_validation_loss_of_an_unchanged_network_stays_the_same(case):
    # The validation set needs several batches, the last of them incomplete.
    trainer = case.trainer_of(
        120,
        learning_rate=1e-30,  # changes no weight; sbi refuses zero.
        validation_fraction=0.4,
        training_batch_size=20,
        max_num_epochs=4,
    )
    for key in ("validation_loss", *case.extra_summary):
        assert len(set(trainer.summary[key])) == 1, key


@for_cases(lambda case: case.has_designs and "eig_lower_bound" in case.extra_summary)
def test_what_data_tell_about_the_design_is_not_information(case):
    # The data name the design almost exactly, and know nothing of the parameters.
    simulations = case.simulate(300)
    x = simulations.design.sum(dim=-1, keepdim=True).expand(-1, DIM_X)
    x = x + 0.02 * torch.randn_like(x)
    trainer = case.append(case.make(), replace(simulations, x=x))
    case.train(trainer, max_num_epochs=10)
    log_likelihoods = trainer.summary["validation_log_likelihood"]
    assert log_likelihoods[-1] > log_likelihoods[0] + 1.0
    assert trainer.summary["eig_lower_bound"][-1] < 0.1


@pytest.mark.parametrize(
    ("num_simulations", "kwargs"),
    [
        (30, {}),
        (5, {}),
        (60, {"training_batch_size": 10_000}),
        (60, {"dataloader_kwargs": {"batch_size": 4, "drop_last": False}}),
    ],
)
@for_each_case
def test_any_batch_size_trains_on_any_number_of_data(case, num_simulations, kwargs):
    trainer = case.append(case.make(), case.simulate(num_simulations))
    trainer.train(max_num_epochs=2, **kwargs)
    for key in ("training_loss", "validation_loss"):
        assert torch.tensor(trainer.summary[key]).isfinite().all()


@for_each_case
def test_invalid_simulations_are_excluded_with_their_designs_or_refused(case):
    simulations = case.simulate(60)
    x = simulations.x.clone()
    x[3, 0], x[7, 1] = torch.nan, torch.inf
    invalid = replace(simulations, x=x)
    kept = [row for row in range(60) if row not in (3, 7)]
    trainer = case.make()
    if not case.like_npe:
        name = case.renamed_defaults["algorithm"]
        with pytest.raises(ValueError, match=f"1 NaN.*{name} does not allow"):
            case.append(trainer, invalid)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        case.append(trainer, invalid, exclude_invalid_x=True)
    # A posterior of valid simulations is right where it is asked for; others are not.
    told = any("systematically wrong" in str(warning.message) for warning in caught)
    assert told != case.like_npe
    stored = trainer.get_simulations()[:2]
    for values, expected in zip(stored, case.stored(simulations), strict=True):
        assert torch.equal(values, expected[kept])
    case.train(trainer)


@for_each_case
def test_a_resumed_training_equals_an_uninterrupted_one(case):
    def train(*max_num_epochs):
        torch.manual_seed(2)
        trainer = case.append(case.make(), case.simulate())
        for call, epochs in enumerate(max_num_epochs):
            estimator = case.train(
                trainer, max_num_epochs=epochs, resume_training=call > 0
            )
        return trainer, estimator

    whole, expected = train(5)
    parts, resumed = train(2, 5)
    losses = whole.summary["validation_loss"]
    assert losses == sorted(losses, reverse=True)  # the last network is the best one.
    assert parts.summary["epochs_trained"] == [3, 6]
    for key in ("training_loss", "validation_loss", *case.extra_summary):
        assert parts.summary[key] == whole.summary[key], key
    assert torch.equal(parts.val_indices, whole.val_indices)
    assert same_state(resumed, expected)


@for_cases(lambda case: case.objective)
def test_resuming_with_another_objective_is_refused(case):
    trainer = case.trainer_of(60)
    with pytest.raises(ValueError, match="resume_training=True.*cannot be compared"):
        case.train(trainer, resume_training=True, **case.objective)
    # The refused call left the training as it was.
    case.train(trainer, resume_training=True, max_num_epochs=3)
    assert trainer.summary["epochs_trained"] == [3, 4]


@for_each_case
def test_a_network_is_built_anew_only_from_scratch(case):
    built = []

    def build(theta, x):
        built.append((theta.shape, x.shape))
        return case.user_builder(theta, x)

    trainer = case.trainer_of(100, build)
    first = trainer._neural_net
    case.train(trainer)
    assert trainer._neural_net is first
    assert len(built) == 1
    case.append(trainer, case.simulate(100), from_round=1)
    case.train(trainer, retrain_from_scratch=True)
    assert trainer._neural_net is not first
    sizes = [part.shape[-1] for part in case.stored(case.simulate(1))]
    assert built == [tuple((rows, size) for size in sizes) for rows in (90, 180)]


@for_each_case
def test_rounds_add_simulations_from_the_posterior(case):
    tracker = RecordingTracker()
    trainer = case.append(case.make(tracker=tracker), case.simulate(100))
    case.train(trainer)
    proposal = case.build_posterior(trainer).set_default_x(case.observe())
    simulations = case.simulate(theta=draw(proposal, 60))
    case.append(trainer, simulations, proposal=proposal, from_round=1)
    case.train(trainer)
    assert len(trainer.train_indices) + len(trainer.val_indices) == 160
    assert trainer.summary["epochs_trained"] == [3, 3]
    for key in ("validation_loss", *case.extra_summary):
        assert [step for step, _ in tracker.metrics[key]] == list(range(6)), key
    posterior = case.build_posterior(trainer)
    assert draw(posterior, 5, x=case.observe()).isfinite().all()


@pytest.mark.parametrize(
    "model, num_rounds",
    [("mdn", 2), ("maf", 1), pytest.param("nsf", 2, marks=pytest.mark.slow)],
)
@for_cases(lambda case: case.as_peer is not None)
def test_it_is_its_peer_to_the_last_bit(case, model, num_rounds):
    rounds = [case.simulate(100) for _ in range(num_rounds)]

    def run(trainer, train_kwargs, in_one_row):
        torch.manual_seed(4)
        # The validation set is not a multiple of the batch: sbi drops the rest.
        settings = {**SHORT, "training_batch_size": 15, "validation_fraction": 0.2}
        for round_, rows in enumerate(rounds):
            case.append(trainer, rows, from_round=round_, in_one_row=in_one_row)
            estimator = trainer.train(**settings, **train_kwargs)
        return estimator, trainer.summary, torch.get_rng_state()

    network = case.builder(model)
    peer = case.peer(case.prior(), network, tracker=NoOpTracker(), **QUIET)
    expected, their_summary, their_state = run(peer, {}, in_one_row=True)
    ours, our_summary, our_state = run(case.make(model), case.as_peer, in_one_row=False)
    assert torch.equal(our_state, their_state)
    if case.name == "NLE_INCE-design":
        # The network of a search takes its units from the first simulations: what is
        # standardized afterwards is the same, but densities are rounded otherwise.
        condition, x = case.stored(rounds[0])
        pair = [
            network.log_prob(x.unsqueeze(0), condition) for network in (ours, expected)
        ]
        assert torch.allclose(*pair, rtol=1e-4, atol=1e-4)
        return
    assert same_state(case.trained_by_sbi(ours), expected)
    for key in SBI_SUMMARY - {"epoch_durations_sec"}:
        assert our_summary[key] == their_summary[key], key


@for_cases(lambda case: not case.has_designs)
def test_the_simple_interface_finds_the_method(case):
    assert getattr(sbi.inference, case.name) is case.trainer
    with pytest.warns(UserWarning, match="simple interface"):
        posterior = infer(
            case.simulator,
            case.prior(),
            method=case.name.lower(),
            num_simulations=60,
            init_kwargs={"tracker": NoOpTracker(), **QUIET},
            train_kwargs=SHORT,
            build_posterior_kwargs={"sample_with": "importance"},
        )
    assert isinstance(posterior, NeuralPosterior)
    assert draw(posterior, 5, x=case.observe()).shape == (5, 2)
