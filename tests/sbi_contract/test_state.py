"""State: what pickle, torch.save and deepcopy keep, and where posteriors move."""

import io
import pickle
from copy import deepcopy

import pytest
import torch

from tests.contract_cases import (
    QUIET,
    draw,
    for_each_case,
    for_each_sampler,
    seed_everything,
    trained,
    trained_estimator,
)

pickle_warning = pytest.mark.filterwarnings("ignore:When the inference object is pick")


def seeded_samples(posterior, **kwargs):
    seed_everything()
    return draw(posterior, 4, **kwargs)


def through_pickle(value):
    return pickle.loads(pickle.dumps(value))


@for_each_case
def test_a_pickled_trainer_warns_and_leaves_out_what_does_not_pickle(case):
    trainer = case.append(case.make(), case.simulate(60))
    case.train(trainer)
    with pytest.warns(UserWarning, match="inference object is pickled"):
        content = pickle.dumps(trainer)
    loaded = pickle.loads(content)
    assert loaded._build_neural_net is None
    assert type(loaded._tracker) is type(trainer._tracker)  # not TensorBoard's
    assert vars(loaded).keys() == vars(trainer).keys()
    assert loaded.summary == trainer.summary


@pickle_warning
@for_each_case
def test_a_pickled_trainer_builds_the_same_posterior(case):
    loaded = through_pickle(trained(case))
    samples = [
        seeded_samples(case.build_posterior(trainer), x=case.observe())
        for trainer in (trained(case), loaded)
    ]
    assert torch.equal(*samples)


@pickle_warning
@for_each_case
def test_a_pickled_trainer_resumes_as_the_original_does(case):
    trainer = case.append(case.make(), case.simulate(100))
    case.train(trainer)
    loaded = through_pickle(trainer)
    losses = []
    for each in (trainer, loaded):
        seed_everything()
        case.train(each, resume_training=True, max_num_epochs=4)
        losses.append(each.summary["validation_loss"])
    assert losses[0] == losses[1]
    assert len(losses[0]) == 5


@pickle_warning
@for_each_case
def test_a_pickled_trainer_takes_further_rounds(case):
    trainer = case.append(case.make(), case.simulate(60))
    case.train(trainer)
    loaded = through_pickle(trainer)
    case.append(loaded, case.simulate(60), from_round=1)
    case.train(loaded)
    assert len(loaded.train_indices) + len(loaded.val_indices) == 120
    assert len(trainer.get_simulations()[0]) == 60


@pickle_warning
@for_each_case
def test_a_copied_trainer_is_independent(case):
    trainer = case.append(case.make(), case.simulate(60))
    case.train(trainer)
    before = deepcopy(trainer._neural_net.state_dict())
    copied = deepcopy(trainer)
    case.train(copied)
    after = trainer._neural_net.state_dict()
    assert all(torch.equal(after[key], before[key]) for key in before)
    assert trainer.summary["epochs_trained"] == [3]
    assert copied.summary["epochs_trained"] == [3, 3]


@for_each_sampler
def test_a_pickled_posterior_gives_the_same_samples(case, sampler):
    posterior = case.build_posterior(trained(case), sampler)
    posterior.set_default_x(case.observe())
    if sampler == "vi":
        draw(posterior)
    samples = []
    for each in (posterior, through_pickle(posterior)):
        seed_everything()
        samples.append(each.sample((3,), **QUIET))
    assert torch.equal(*samples)


@for_each_case
def test_a_copied_posterior_gives_the_same_samples(case):
    posterior = case.build_posterior(trained(case)).set_default_x(case.observe())
    copied = deepcopy(posterior)
    assert torch.equal(seeded_samples(posterior), seeded_samples(copied))


@for_each_case
def test_a_saved_estimator_evaluates_to_the_same(case):
    estimator, new = trained_estimator(case), case.simulate(5)
    file = io.BytesIO()
    torch.save(estimator, file)
    file.seek(0)
    loaded = torch.load(file, weights_only=False)
    terms = [case.log_term(each, new.parameters, new.x) for each in (estimator, loaded)]
    assert torch.equal(*terms)


@for_each_case
def test_saved_weights_load_into_another_network(case):
    estimator, new = trained_estimator(case), case.simulate(5)
    file = io.BytesIO()
    torch.save(estimator.state_dict(), file)
    file.seek(0)
    other = case.train(case.append(case.make(), case.simulate(60)))
    expected = case.log_term(estimator, new.parameters, new.x)
    assert not torch.equal(case.log_term(other, new.parameters, new.x), expected)
    other.load_state_dict(torch.load(file, weights_only=True))
    assert torch.equal(case.log_term(other, new.parameters, new.x), expected)


@pytest.mark.parametrize("device", ["cpu", pytest.param("cuda", marks=pytest.mark.gpu)])
@for_each_sampler
def test_a_posterior_moves_to_a_device(case, sampler, device):
    posterior = case.build_posterior(trained(case), sampler)
    posterior.set_default_x(case.observe())
    if sampler == "vi":
        draw(posterior)
    posterior.to(device)
    tensors = [
        posterior.default_x,
        posterior.potential(case.prior(device).sample((3,))),
        posterior.sample((2,), **QUIET),
        *getattr(posterior.potential_fn, case.in_potential).buffers(),
    ]
    assert {tensor.device.type for tensor in tensors} == {device}
