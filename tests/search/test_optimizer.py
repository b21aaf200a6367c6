"""Joint searches: what they find, how long they take, and refinement at the end."""

import pytest
import torch

from sbi_boed_plugin import TruncatedNormalPolicy, tasks
from sbi_boed_plugin.experiment import find_design, make_trainer
from sbi_boed_plugin.search.batch import DesignsAtMode
from tests.conftest import NoOpTracker
from tests.oracles import LinearGaussian as Model
from tests.trainers.cases import CHECK, on_box

SMALL = {
    "training_batch_size": 64,
    "objective": "info_nce",
    "num_contrastive": 15,
}


def trainer(low=-2.0, high=2.0, **kwargs):
    return on_box(low, high, policy={"loc": torch.tensor([max(low, 0.3)])}, **kwargs)


class Recorder:
    """The simulator, and the designs of each call."""

    def __init__(self):
        self.designs = []

    def __call__(self, theta, design):
        self.designs.append(design)
        return Model.simulate(theta, design)


def tells_nothing(theta, design):
    return torch.randn_like(theta)


def test_it_finds_the_most_informative_design():
    result = trainer().optimize_design(Model.simulate, num_steps=250)
    best = Model.eig(torch.tensor([2.0])).item()
    found = Model.eig(result.design).item()
    assert found > 0.98 * best
    assert result.eig.value == pytest.approx(found, abs=0.1)
    assert result.stop_reason == "num_steps"
    assert result.num_simulations == CHECK + 250 * 256 + result.eig.num_simulations


def test_history_has_one_entry_per_step_and_the_tracker_sees_it():
    logged = []

    class Tracker(NoOpTracker):
        def log_metrics(self, metrics, step=None):
            logged.append((step, metrics))

    inference = trainer(tracker=Tracker())
    result = inference.optimize_design(Model.simulate, num_steps=5)
    assert {len(values) for values in result.history.values()} == {5}
    assert result.history["num_simulations"] == [256 * k + CHECK for k in range(1, 6)]
    assert [step for step, _ in logged] == [1, 2, 3, 4, 5]
    bounds = [metrics["design_eig"] for _, metrics in logged]
    assert bounds == result.history["eig"]
    # A further search trains the same network on.
    network = inference._neural_net
    inference.optimize_design(Model.simulate, num_steps=5)
    assert inference._neural_net is network


def test_a_result_is_a_line_and_a_table():
    result = trainer().optimize_design(Model.simulate, num_steps=3, **SMALL)
    assert len(repr(result)) < 200 and f"{result.eig.value:.4g}" in repr(result)
    assert str(result).startswith("design [") and result.doubts[0] in str(result)
    html = result._repr_html_()
    assert html.startswith("<table>") and html.endswith("</table>")
    assert f"{result.num_simulations:,}" in html and html.count("<tr>") == 5


def test_time_or_a_plateau_end_a_search():
    timed = trainer().optimize_design(Model.simulate, max_seconds=0.2)
    assert timed.stop_reason == "max_seconds"
    climb = trainer().optimize_design(Model.simulate, stop_after_steps=25, **SMALL)
    assert climb.stop_reason == "plateau"
    best = Model.eig(torch.tensor([2.0]))
    assert Model.eig(climb.design) > 0.95 * best


def test_designs_are_shared_by_simulations_as_asked():
    simulator = Recorder()
    trainer().optimize_design(
        simulator, num_steps=1, training_batch_size=64, num_simulations_per_design=4
    )
    first = simulator.designs[3].reshape(16, 4)
    assert (first == first[:, :1]).all()
    assert len(first[:, 0].unique()) == 16


def test_the_policy_waits_for_the_likelihood():
    result = trainer().optimize_design(Model.simulate, num_steps=10, num_warmup_steps=4)
    modes = [mode[0] for mode in result.history["mode"]]
    assert modes[3] == pytest.approx(0.3, abs=1e-6)
    assert modes[4] != pytest.approx(0.3, abs=1e-6)


def test_a_bound_at_its_cap_is_told():
    with pytest.warns(UserWarning, match="within a nat"):
        trainer(low=1e3, high=1e4).optimize_design(
            Model.simulate,
            num_steps=60,
            objective="info_nce",
            num_contrastive=1,
            num_eig_samples=50,
            num_eig_contrastive=63,
        )


@pytest.mark.parametrize("objective", ["barber_agakov", "info_nce"])
def test_policy_ignores_lambda(objective):
    """One step of the policy is the same whatever weighs the likelihood."""
    modes = []
    for strength in (0.0, 10.0):
        inference = trainer()
        torch.manual_seed(3)
        result = inference.optimize_design(
            Model.simulate,
            num_steps=1,
            objective=objective,
            regularization_strength=strength,
            num_eig_samples=50,
        )
        modes.append(result.design)
    assert torch.equal(*modes)
    assert modes[0].item() != pytest.approx(0.3, abs=1e-6)


# --- Refinement -----------------------------------------------------------------------


class Expanding(TruncatedNormalPolicy):
    """A policy whose designs are views of one."""

    def sample(self, sample_shape=torch.Size()):
        return self.mode.expand(*sample_shape, -1)


def test_every_other_design_is_the_mode():
    box = torch.zeros(2), torch.ones(2)
    policy = TruncatedNormalPolicy(*box)
    designs = DesignsAtMode(policy).sample(torch.Size((9,)))
    assert designs.shape == (9, 2)
    assert (designs[::2] == policy.mode).all()
    assert len(designs[1::2].unique(dim=0)) == 4
    # Designs that are views are not written to.
    policy = Expanding(*box)
    assert (DesignsAtMode(policy).sample(torch.Size((4,))) == policy.mode).all()


def test_the_policy_rests_while_networks_learn_at_its_mode():
    simulator, modes = Recorder(), []
    for num_steps in (0, 4):
        torch.manual_seed(0)
        simulator = Recorder()
        result = trainer().optimize_design(
            simulator, num_steps=6, num_warmup_steps=0, num_refinement_steps=num_steps
        )
        modes.append([mode[0] for mode in result.history["mode"]])
    # The search is the same with and without.
    assert modes[0] == modes[1][:6]
    assert len(set(modes[0])) == 6 and len(set(modes[1][5:])) == 1
    for designs in simulator.designs[9:13]:
        assert (designs[::2] == result.design).all()
        assert (designs[1::2] != result.design).any()
    assert result.num_simulations == CHECK + 10 * 256 + result.eig.num_simulations
    assert result.stop_reason == "num_steps"


def test_a_plateau_ends_the_search_and_not_the_refinement():
    """Data that tell nothing: the bound cannot grow."""
    torch.manual_seed(0)
    result = trainer().optimize_design(
        tells_nothing, **SMALL, stop_after_steps=20, num_refinement_steps=7
    )
    assert result.stop_reason == "plateau"
    searched = len(result.history["loss"]) - 7
    assert searched < 500 and searched % 20 == 10  # after 50 steps of waiting.
    assert len({mode[0] for mode in result.history["mode"][searched - 1 :]}) == 1


def test_a_search_that_stopped_on_a_plateau_goes_on_when_it_is_resumed():
    torch.manual_seed(0)
    inference = trainer()
    # Each of the 39 comparisons stops it with a chance of one in six.
    first = inference.optimize_design(
        tells_nothing,
        num_steps=200,
        num_warmup_steps=0,
        training_batch_size=32,
        stop_after_steps=5,
    )
    assert first.stop_reason == "plateau" and len(first.history["loss"]) < 200
    result = inference.optimize_design(tells_nothing, resume_training=True)
    assert result.stop_reason == "num_steps" and len(result.history["loss"]) == 200


@pytest.mark.slow
def test_the_reported_bound_gets_tighter():
    """Ten measurements at the ends of a box, the corner of what the policy draws."""
    reported = []
    for num_steps in (0, 200):
        torch.manual_seed(0)
        task = tasks.get_task("noisy_linear", dim_design=10)
        inference = make_trainer(task, show_progress_bars=False)
        result = find_design(inference, task, num_refinement_steps=num_steps)
        exact, _ = task.exact_eig(result.design)
        # Of the network that drives the search; LACE is tighter before refinement.
        reported.append(result.bounds["barber_agakov"].value)
        assert reported[-1] <= result.eig.value < exact
    # Standard errors are 0.02; measured: 0.7 nats.
    assert reported[1] > reported[0] + 0.4
