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
    on_each_device,
    seed_everything,
    trained,
    trained_estimator,
)

pickle_warning = pytest.mark.filterwarnings("ignore:When the inference object is pick")


def through_pickle(value):
    return pickle.loads(pickle.dumps(value))


@for_each_case
def test_a_pickled_trainer_is_the_same_without_what_does_not_pickle(case):
    trainer = trained(case)
    with pytest.warns(UserWarning, match="inference object is pickled"):
        loaded = through_pickle(trainer)
    assert loaded._build_neural_net is None
    assert type(loaded._tracker) is type(trainer._tracker)  # not TensorBoard's
    assert vars(loaded).keys() == vars(trainer).keys()
    assert loaded.summary == trainer.summary
    samples = []
    for each in (trainer, loaded):
        seed_everything()
        samples.append(draw(case.build_posterior(each), 4, x=case.observe()))
    assert torch.equal(*samples)


@pickle_warning
@pytest.mark.parametrize("copy", [through_pickle, deepcopy])
@for_each_case
def test_a_copied_trainer_goes_on_as_the_original_does(case, copy):
    trainer = case.trainer_of(100)
    copied = copy(trainer)
    losses = []
    for each in (trainer, copied):
        seed_everything()
        case.train(each, resume_training=True, max_num_epochs=4)
        losses.append(each.summary["validation_loss"])
    assert losses[0] == losses[1]
    assert len(losses[0]) == 5
    # It takes further rounds, which are not the original's.
    before = deepcopy(trainer._neural_net.state_dict())
    case.append(copied, case.simulate(60), from_round=1)
    case.train(copied)
    assert len(copied.train_indices) + len(copied.val_indices) == 160
    assert len(trainer.get_simulations()[0]) == 100
    after = trainer._neural_net.state_dict()
    assert all(torch.equal(after[key], before[key]) for key in before)


@for_each_sampler
def test_pickled_and_copied_posteriors_give_the_same_samples(case, sampler):
    posterior = case.build_posterior(trained(case), sampler)
    posterior.set_default_x(case.observe())
    if sampler == "vi":
        draw(posterior)
    samples = []
    for each in (posterior, through_pickle(posterior), deepcopy(posterior)):
        seed_everything()
        samples.append(each.sample((3,), **QUIET))
    assert torch.equal(samples[0], samples[1])
    assert torch.equal(samples[0], samples[2])


@for_each_case
def test_saved_weights_evaluate_to_the_same(case):
    estimator, new = trained_estimator(case), case.simulate(5)
    expected = case.log_term(estimator, new.parameters, new.x)
    other = case.train(case.append(case.make(), case.simulate(60)))
    assert not torch.equal(case.log_term(other, new.parameters, new.x), expected)
    file = io.BytesIO()
    torch.save(estimator.state_dict(), file)
    file.seek(0)
    other.load_state_dict(torch.load(file, weights_only=True))
    assert torch.equal(case.log_term(other, new.parameters, new.x), expected)


@on_each_device
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
    ]
    for part in vars(posterior.potential_fn).values():
        tensors += [*part.buffers()] if isinstance(part, torch.nn.Module) else []
    assert {tensor.device.type for tensor in tensors} == {device}
