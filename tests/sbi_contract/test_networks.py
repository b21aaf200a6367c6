"""Networks: named ones, users' own, with embedding nets, and on which device they run.

No GPU is needed to find a tensor that was created without its device: with another
default device, here the meta device, such a tensor does not mix with the data.
"""

import pytest
import torch
from torch import nn

from sbi_boed_plugin import NLE_INCE, TruncatedNormalPolicy
from tests.contract_cases import (
    draw,
    for_cases,
    for_each,
    for_each_case,
    on_each_device,
)


def assert_learns(case, model):
    """The loss is finite and falls, and the network draws finite samples."""
    trainer = case.append(case.make(model), case.simulate())
    estimator = case.train(trainer, max_num_epochs=3)
    losses = torch.tensor(trainer.summary["training_loss"])
    assert losses.isfinite().all()
    assert losses[-1] < losses[0]
    posterior = case.build_posterior(trainer, "importance")
    assert draw(posterior, 5, x=case.observe()).isfinite().all()
    return estimator


@for_each("model", lambda case: (*case.models, case.user_builder))
def test_models_learn_by_their_names_or_as_builders(case, model):
    assert_learns(case, model)


@for_cases(lambda case: case.condition_index is not None)
def test_an_embedding_net_learns_with_the_rest(case):
    stored = case.stored(case.simulate(10))
    dim_condition = stored[case.condition_index].shape[-1]
    net = nn.Sequential(nn.Linear(dim_condition, 7), nn.Tanh())
    # Two components tell it from the network of that name.
    builder = case.builder("mdn", embedding_net=net, num_components=2)
    shared = builder(*stored).embedding_net
    before = [parameter.clone() for parameter in shared.parameters()]
    estimator = assert_learns(case, builder)
    assert case.trained_by_sbi(estimator).net.num_components == 2
    after = list(estimator.embedding_net.parameters())
    assert len(after) == len(before) > 0
    assert not any(torch.equal(*pair) for pair in zip(after, before, strict=True))


@on_each_device
@for_each_case
@pytest.mark.filterwarnings("ignore:Data x has device", "ignore:Parameters theta has")
def test_everything_follows_the_device(case, device):
    trainer = case.make(prior=case.prior(device), device=device)
    estimator = case.train(case.append(trainer, case.simulate(60), data_device="cpu"))
    assert {data.device.type for data in trainer.get_simulations()[:2]} == {"cpu"}
    tensors = [*estimator.parameters(), *estimator.buffers()]
    posterior = case.build_posterior(trainer)
    tensors.append(draw(posterior, 5, x=case.observe()))
    assert {tensor.device.type for tensor in tensors} == {device}


@for_each_case
def test_losses_do_not_depend_on_the_default_device(case):
    new, trainer = case.simulate(20), case.trainer_of(60, case.user_builder)
    with torch.device("meta"):
        losses = case.losses(trainer, new)
    assert losses.device.type == "cpu"
    assert losses.isfinite().all()


@on_each_device
@for_cases(lambda case: case.has_designs and case.trainer is NLE_INCE)
def test_learned_designs_follow_the_device(case, device):
    box = torch.tensor([[0.5], [2.0]]).expand(2, case.dim_design)
    policy = TruncatedNormalPolicy(*box)
    trainer = case.make(prior=case.prior(device), device=device, design_policy=policy)
    seen = set()

    def simulator(theta, design):
        seen.update({theta.device.type, design.device.type})
        return case.simulator(theta, design)

    few = {"num_contrastive": 3, "num_eig_samples": 4, "num_eig_contrastive": 3}
    result = trainer.optimize_design(
        simulator, num_steps=2, training_batch_size=8, **few
    )
    assert seen == {device}
    assert result.design.device.type == device
    assert result.policy.mode.device.type == device
