"""The schedule that takes the place of sbi's training loop."""

import copy
import pickle
import warnings

import pytest
import torch
from sbi.inference import NLE
from sbi.inference.posteriors import DirectPosterior
from sbi.neural_nets import likelihood_nn, posterior_nn
from sbi.neural_nets.embedding_nets import FCEmbedding
from sbi.utils import BoxUniform
from torch import nn

from sbi_boed_plugin import NLE_INCE, NPE_GKL, NRE_GKL, AveragedSchedule, EnergyConfig
from sbi_boed_plugin._fit import Batches, Fit
from tests.conftest import NoOpTracker

PRIOR = BoxUniform(-torch.ones(2), torch.ones(2))
MODELS = {NLE_INCE: "maf", NPE_GKL: "maf", NRE_GKL: "mlp", NLE: likelihood_nn("maf")}
OURS = (NLE_INCE, NPE_GKL, NRE_GKL)
BRIEF = {NPE_GKL: {"energy": EnergyConfig(max_num_epochs=2)}}


def simulations(num=400):
    torch.manual_seed(0)
    theta = PRIOR.sample((num,))
    return theta, theta.abs() + 0.1 * torch.randn_like(theta)


def make(cls, rows=None, **kwargs):
    quiet = {"show_progress_bars": False, "tracker": NoOpTracker(), **kwargs}
    return cls(PRIOR, MODELS[cls], **quiet).append_simulations(*(rows or simulations()))


def train(trainer, **kwargs):
    given = {"schedule": "averaged", **BRIEF.get(type(trainer), {}), **kwargs}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return trainer.train(**given)


@pytest.mark.parametrize("cls", OURS)
def test_a_schedule_has_the_summary_and_the_posteriors_of_sbi(cls):
    trainer = make(cls)
    train(trainer, max_num_epochs=8)
    summary = trainer.summary
    assert summary["epochs_trained"] == [8]
    losses = torch.tensor(summary["validation_loss"])
    assert len(summary["training_loss"]) == len(summary["epoch_durations_sec"]) == 8
    assert losses[-1] < losses[0]
    assert summary["best_validation_loss"] == pytest.approx([losses.min().item()])
    kwargs = {} if cls is NPE_GKL else {"sample_with": "importance"}
    posterior = trainer.build_posterior(**kwargs)
    x = torch.tensor([[0.3, 0.2]])
    assert posterior.sample((9,), x=x, show_progress_bars=False).shape == (9, 2)


@pytest.mark.parametrize(
    "through", [copy.deepcopy, lambda t: pickle.loads(pickle.dumps(t))]
)
def test_training_goes_on_as_if_it_had_not_ended(through):
    whole, parts = make(NLE_INCE), make(NLE_INCE)
    torch.manual_seed(1)
    train(whole, max_num_epochs=5)
    torch.manual_seed(1)
    train(parts, max_num_epochs=2)
    state = torch.get_rng_state()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        parts = through(parts)
    torch.set_rng_state(state)
    train(parts, max_num_epochs=5, resume_training=True)
    pairs = zip(
        whole._neural_net.parameters(), parts._neural_net.parameters(), strict=True
    )
    assert all(torch.equal(*pair) for pair in pairs)
    assert whole.summary["validation_loss"] == parts.summary["validation_loss"]


@pytest.mark.parametrize("cls", OURS)
def test_rounds_have_schedules_of_their_own(cls):
    trainer = make(cls)
    train(trainer, max_num_epochs=4)
    x = torch.tensor([[0.3, 0.2]])
    kwargs = {} if cls is NPE_GKL else {"sample_with": "importance"}
    proposal = trainer.build_posterior(**kwargs).set_default_x(x)
    theta = proposal.sample((300,), show_progress_bars=False)
    x = theta.abs() + 0.1 * torch.randn_like(theta)
    proposals = {"proposal": proposal} if cls is NPE_GKL else {}
    trainer.append_simulations(theta, x, **proposals)
    train(trainer, max_num_epochs=3)
    assert trainer.summary["epochs_trained"] == [4, 3]
    first, second = trainer.summary["best_validation_loss"]
    assert second < first or cls is not NLE_INCE


def test_embedded_data_and_failed_simulations_are_learned_from():
    theta, x = simulations(600)
    x = torch.cat([x, torch.randn(600, 30)], dim=1)
    x[::7, 3] = torch.nan
    network = posterior_nn("maf", embedding_net=FCEmbedding(32, output_dim=4))
    trainer = NPE_GKL(PRIOR, network, show_progress_bars=False, tracker=NoOpTracker())
    trainer.append_simulations(theta, x, exclude_invalid_x=True)
    hybrid = train(trainer, max_num_epochs=30)
    assert len(trainer.train_indices) + len(trainer.val_indices) == 600 - 86
    losses = trainer.summary["validation_loss"]
    assert trainer.summary["best_validation_loss"][0] < losses[0] - 0.1
    refined = NPE_GKL.refine(
        DirectPosterior(hybrid.base, PRIOR),
        theta[1:6],
        x[1:6],
        energy=EnergyConfig(max_num_epochs=1),
        show_progress_bars=False,
        tracker=NoOpTracker(),
    )
    samples = refined.build_posterior().sample((3,), x=x[1:2], show_progress_bars=False)
    assert samples.isfinite().all()


def test_it_learns_more_than_the_loop_of_sbi():
    """Held-out log-densities, on modes that a flow takes many steps for."""
    theta, x = simulations(1_200)
    rows, (theta, x) = (theta[:600], x[:600]), (theta[600:], x[600:])
    torch.manual_seed(2)
    sbis = make(NLE, rows)
    sbis.train(max_num_epochs=60)
    torch.manual_seed(2)
    ours = make(NLE_INCE, rows)
    train(ours, max_num_epochs=20, num_contrastive=0)
    values = [
        trainer._neural_net.log_prob(x.unsqueeze(0), theta).mean()
        for trainer in (sbis, ours)
    ]
    assert values[1] > values[0] + 0.1


@pytest.mark.parametrize(
    "given, match",
    [
        ({"schedule": "one_cycle"}, "'averaged', or an AveragedSchedule"),
        ({"learning_rate": 1e-3}, r"AveragedSchedule\(learning_rate"),
        ({"stop_after_epochs": 5}, r"AveragedSchedule\(patience"),
        ({"dataloader_kwargs": {"num_workers": 1}}, "in memory"),
        ({"resume_training": True, "schedule": "constant"}, "had AveragedSchedule"),
    ],
)
def test_arguments_that_do_not_go_together_are_refused(given, match):
    trainer = make(NLE_INCE)
    train(trainer, max_num_epochs=1)
    with pytest.raises(ValueError, match=match):
        train(trainer, **given)


class Line(nn.Module):
    """A line through the origin."""

    def __init__(self):
        super().__init__()
        self.slope = nn.Parameter(torch.zeros(1))
        self.norm = nn.BatchNorm1d(1, affine=False)


def fit_line(noise, num=1_000, **schedule):
    torch.manual_seed(0)
    x = torch.randn(num, 1)
    y = 2.0 * x + noise * torch.randn(num, 1)
    line = Line()

    def losses(batch):
        line.norm(batch[0])
        return (batch[1] - line.slope * batch[0]).square().sum(dim=1)

    rows = torch.arange(num).split(num // 2)
    fit = Fit(line, AveragedSchedule(weight_decay=0.0, **schedule))
    validation = Batches((x, y), rows[1], 400, shuffle=False)
    fit.run(
        Batches((x, y), rows[0], 50),
        losses,
        lambda: torch.cat([losses(batch) for batch in validation]).mean().item(),
        max_num_epochs=2_000,
    )
    exact = (x[rows[0]] * y[rows[0]]).sum() / x[rows[0]].square().sum()
    return line, fit, exact.item()


def test_the_average_is_closer_than_single_steps_are():
    line, fit, exact = fit_line(noise=1.0, learning_rate=0.1)
    # Steps at this rate wander by more than 0.1.
    assert line.slope.item() == pytest.approx(exact, abs=0.05)
    assert fit.finished and fit.epoch < 2_000
    assert line.norm.running_var.item() == pytest.approx(1.0, abs=0.2)


@pytest.mark.parametrize(
    "num_rows, given, expected", [(50, None, 0.1), (10_000, None, 0.01), (50, 0.3, 0.3)]
)
def test_weights_decay_less_the_more_simulations_there_are(num_rows, given, expected):
    assert AveragedSchedule(weight_decay=given).decay(num_rows) == expected


@pytest.mark.parametrize(
    "most, num_rows, expected, without",
    [
        (200, 100_000, 200, 200),
        (200, 1_600, 100, 200),
        (200, 270, 50, 200),
        (20, 270, 20, 20),
    ],
)
def test_batches_of_few_simulations_are_small(most, num_rows, expected, without):
    assert AveragedSchedule().batch_size(most, num_rows) == expected
    one = AveragedSchedule(min_num_batches=1)
    assert one.batch_size(most, num_rows) == without


def test_a_batch_of_the_schedule_holds_all_contrasts():
    trainer = make(NLE_INCE)
    train(trainer, num_contrastive=120, max_num_epochs=1)
    assert trainer._batch_size(200) == 121


def test_a_rate_ends_where_the_average_overfits():
    """A twentieth of the gain is lost: no rate waits for its patience."""
    validation = iter([1.0, 0.0, *[0.06] * 100])
    rows = torch.ones(10, 1)
    layer = nn.Linear(1, 1)
    fit = Fit(layer, AveragedSchedule(min_patience=1_000))
    fit.run(
        Batches((rows,), torch.arange(10), 1),
        lambda batch: layer(batch[0]).square(),
        lambda: next(validation),
        max_num_epochs=1_000,
    )
    # Epochs have ten steps, and the first hundred of a rate are its warm-up.
    assert fit.finished and fit.num_steps == 220


def test_networks_that_were_trained_go_on_at_a_lower_rate():
    """A rate that is too high for them brings nothing, and the next one does."""
    torch.manual_seed(5)
    layer, rows = nn.Linear(1, 1), torch.randn(100, 1)
    nn.init.constant_(layer.weight, 1.05)
    nn.init.zeros_(layer.bias)

    def losses(batch):
        noise = torch.randn(len(batch[0]), 1)
        return (layer(batch[0]) - batch[0] + noise).square()

    with torch.no_grad():
        before = (layer(rows) - rows).square().mean().item()
    schedule = AveragedSchedule(learning_rate=3.0, min_gain=1e-9, max_num_rates=8)
    fit = Fit(layer, schedule)
    fit.run(
        Batches((rows,), torch.arange(100), 10),
        losses,
        lambda: (layer(rows) - rows).square().mean().item(),
        max_num_epochs=300,
    )
    assert fit.best_loss < before / 2.0 and fit.rate < 1.0


def test_a_gradient_that_is_not_finite_costs_its_step_alone():
    layer = nn.Linear(1, 1)
    rows = torch.tensor([[1.0]] * 9 + [[torch.nan]])
    fit = Fit(layer, AveragedSchedule())
    batches = Batches((rows,), torch.arange(10), 1)
    settings = {"max_num_epochs": 20}
    fit.run(batches, lambda b: (layer(b[0]) - 3.0).square(), lambda: 0.0, **settings)
    assert layer(torch.ones(1)).isfinite().all() and fit.num_steps == 200
    with pytest.raises(ValueError, match="No gradient of epoch 1 is finite"):
        Fit(layer, AveragedSchedule()).run(
            Batches((rows,), torch.tensor([9]), 1),
            lambda b: layer(b[0]).square(),
            lambda: 0.0,
            max_num_epochs=2,
        )


def test_batches_are_rows_each_once_and_validation_is_even():
    values = torch.arange(1_050)
    shuffled = list(Batches((values,), values[50:], 300))
    assert [len(batch[0]) for batch in shuffled] == [300, 300, 300]
    seen = torch.cat([batch[0] for batch in shuffled])
    assert len(seen.unique()) == 900 and seen.min() >= 50
    even = list(Batches((values,), values[50:], 300, shuffle=False))
    assert torch.equal(torch.cat([batch[0] for batch in even]), values[50:])
