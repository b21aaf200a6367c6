"""Data that are images or sets: the same contract, with embeddings of sbi."""

import pickle
from dataclasses import dataclass
from functools import cache

import pytest
import torch
from sbi.neural_nets import classifier_nn, posterior_nn
from sbi.neural_nets.embedding_nets import (
    CNNEmbedding,
    FCEmbedding,
    PermutationInvariantEmbedding,
)
from sbi.utils import BoxUniform

from sbi_boed_plugin import NLE_INCE, NPE_GKL, NRE_GKL, DataEmbedding, EnergyConfig
from tests.conftest import NoOpTracker
from tests.contract_cases import QUIET, SHORT, seed_everything

pytestmark = pytest.mark.filterwarnings(
    "ignore:When the inference object is pick", "ignore:Data has extreme"
)

PRIOR = BoxUniform(-torch.ones(2), torch.ones(2))
SHAPES = {"image": (1, 6, 6), "set": (4, 2)}


def embedding(kind):
    if kind == "image":
        sizes = {"out_channels_per_layer": [3], "kernel_size": 3}
        return CNNEmbedding((6, 6), num_conv_layers=1, output_dim=5, **sizes)
    return PermutationInvariantEmbedding(FCEmbedding(2, output_dim=5), 5, output_dim=5)


@dataclass(frozen=True)
class Case:
    trainer: type
    kind: str
    dim_design: int

    @property
    def shape(self):
        return SHAPES[self.kind]

    def make(self):
        net = embedding(self.kind)
        if self.dim_design:
            net = DataEmbedding(net, self.shape, self.dim_design)
        network = {
            NLE_INCE: "mdn",
            NPE_GKL: posterior_nn("mdn", embedding_net=net, z_score_x="none"),
            NRE_GKL: classifier_nn("mlp", embedding_net_x=net, z_score_x="none"),
        }[self.trainer]
        return self.trainer(PRIOR, network, tracker=NoOpTracker(), **QUIET)

    def simulate(self, theta):
        design = 0.5 + torch.rand(len(theta), 1) if self.dim_design else None
        scale = 1.0 if design is None else design[:, 0]
        mean = (theta.sum(dim=1) * scale).reshape(-1, *[1] * len(self.shape))
        return design, mean + 0.3 * torch.randn(len(theta), *self.shape)

    def at(self, num_designs=1):
        rows = torch.linspace(0.7, 1.2, num_designs).unsqueeze(1)
        return {"design": rows} if self.dim_design else {}


# sbi's likelihoods take rows; those with designs keep any data in rows.
CASES = [
    Case(trainer, kind, dim_design)
    for trainer in (NLE_INCE, NPE_GKL, NRE_GKL)
    for kind in SHAPES
    for dim_design in (0, 1)
    if trainer is not NLE_INCE or dim_design
]


def for_cases(wanted):
    return pytest.mark.parametrize(
        "case",
        [case for case in CASES if wanted(case)],
        ids=lambda c: f"{c.trainer.__name__}-{c.kind}{'-design' * c.dim_design}",
    )


@cache
def trained(case):
    with torch.random.fork_rng():
        torch.manual_seed(1)
        theta, trainer = PRIOR.sample((200,)), case.make()
        design, x = case.simulate(theta)
        given = {} if design is None else {"design": design}
        trainer.append_simulations(theta, x, **given)
        of_energy = {"energy": EnergyConfig(max_num_epochs=2)}
        settings = of_energy if case.trainer is NPE_GKL else {}
        trainer.train(**{**SHORT, **settings})
        return trainer


def observed(case, num=1):
    torch.manual_seed(2)
    return case.simulate(torch.full((num, 2), 0.4))[1]


@for_cases(lambda case: True)
def test_it_trains_samples_and_pickles(case):
    trainer, x_o = trained(case), observed(case)
    assert torch.tensor(trainer.summary["training_loss"]).isfinite().all()
    posterior = trainer.build_posterior(sample_with="importance", **case.at())
    posterior.set_default_x(x_o)
    seed_everything()
    samples = posterior.sample((5,), **QUIET)
    assert samples.shape == (5, 2)
    assert PRIOR.log_prob(samples).isfinite().all()
    seed_everything()
    again = pickle.loads(pickle.dumps(posterior)).sample((5,), **QUIET)
    assert torch.equal(again, samples)
    theta = PRIOR.sample((3,))
    assert posterior.potential(theta).isfinite().all()
    if case.trainer is NPE_GKL:  # The rows of others are independent observations.
        without_batch = posterior.potential(theta, x=x_o[0])
        assert torch.equal(without_batch, posterior.potential(theta))


# Others take batches of rows alone.
@for_cases(lambda case: case.trainer is NPE_GKL)
def test_batches_of_observations(case):
    posterior = trained(case).build_posterior(**case.at())
    samples = posterior.sample_batched((2,), x=observed(case, 3), **QUIET)
    assert samples.shape == (2, 3, 2)


@for_cases(lambda case: case.trainer is not NPE_GKL and case.dim_design)
def test_each_observation_has_its_own_design(case):
    theta, x_o, designs = PRIOR.sample((4,)), observed(case, 3), case.at(3)["design"]

    def potential(rows, design):
        posterior = trained(case).build_posterior(
            sample_with="importance", design=design
        )
        return posterior.potential(theta, x=rows)

    parts = [potential(x_o[i : i + 1], designs[i : i + 1]) for i in range(3)]
    total = torch.stack(parts).sum(dim=0) - 2 * PRIOR.log_prob(theta)
    assert torch.allclose(potential(x_o, designs), total, atol=1e-4)


@for_cases(lambda case: case.kind == "set" and case.trainer is not NLE_INCE)
def test_the_order_of_a_set_tells_nothing(case):
    posterior = trained(case).build_posterior(sample_with="importance", **case.at())
    theta, x_o = PRIOR.sample((4,)), observed(case)
    before, after = (posterior.potential(theta, x=x) for x in (x_o, x_o.flip(1)))
    assert torch.allclose(before, after, atol=1e-4)


@for_cases(lambda case: True)
def test_data_of_another_shape_are_refused(case):
    posterior = trained(case).build_posterior(sample_with="importance", **case.at())
    with pytest.raises((ValueError, RuntimeError, AssertionError)):
        posterior.sample((2,), x=torch.zeros(1, 5, 5, 5), **QUIET)
    theta, other = PRIOR.sample((4,)), torch.zeros(4, 3, 3)
    given = {"design": torch.ones(4, 1)} if case.dim_design else {}
    if given:
        with pytest.raises(ValueError, match="shape"):
            trained(case).append_simulations(theta, other, **given)
