"""Joint searches: what they find, how long they take, and refinement at the end."""

import pytest
import torch

from sbi_boed_plugin import tasks
from sbi_boed_plugin.experiment import find_design, make_trainer
from tests.conftest import NoOpTracker
from tests.oracles import LinearGaussian as Model
from tests.trainers.cases import CHECK, on_box


def trainer(low=-2.0, high=2.0, **kwargs):
    return on_box(low, high, policy={"loc": torch.tensor([max(low, 0.3)])}, **kwargs)


@pytest.mark.slow
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
            if "design_eig" in metrics:  # Of a step, not of the result.
                logged.append((step, metrics["design_eig"]))

    inference = trainer(tracker=Tracker())
    # With this objective networks do not learn again at the end, from copies.
    settings = {"num_steps": 5, "objective": "info_nce"}
    result = inference.optimize_design(Model.simulate, **settings)
    assert {len(values) for values in result.history.values()} == {5}
    assert result.history["num_simulations"] == [256 * k + CHECK for k in range(1, 6)]
    assert logged == list(zip(range(1, 6), result.history["eig"], strict=True))
    # A further search trains the same network on.
    network = inference._neural_net
    inference.optimize_design(Model.simulate, **settings)
    assert inference._neural_net is network


def test_a_result_is_a_line_and_a_table():
    result = trainer().optimize_design(
        Model.simulate, num_steps=3, training_batch_size=64, objective="info_nce"
    )
    assert len(repr(result)) < 200 and f"{result.eig.value:.4g}" in repr(result)
    assert str(result).startswith("design [") and result.doubts[0] in str(result)
    html = result._repr_html_()
    assert html.startswith("<table>") and html.endswith("</table>")
    assert f"{result.num_simulations:,}" in html and html.count("<tr>") == 5


def test_the_policy_waits_for_the_likelihood():
    result = trainer().optimize_design(Model.simulate, num_steps=10, num_warmup_steps=4)
    modes = [mode[0] for mode in result.history["mode"]]
    assert modes[3] == pytest.approx(0.3, abs=1e-6)
    assert modes[4] != pytest.approx(0.3, abs=1e-6)


def test_a_bound_at_its_cap_is_told():
    settings = {"num_contrastive": 1, "num_eig_samples": 50, "num_eig_contrastive": 63}
    with pytest.warns(UserWarning, match="within a nat"):
        trainer(low=1e3, high=1e4).optimize_design(
            Model.simulate, num_steps=60, objective="info_nce", **settings
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
        modes.append(result.policy.mode)
    assert torch.equal(*modes)
    assert modes[0].item() != pytest.approx(0.3, abs=1e-6)


@pytest.mark.slow
def test_the_policy_rests_while_networks_learn_at_its_mode():
    modes = []
    for num_steps in (0, 4):
        torch.manual_seed(0)
        simulated = []

        def simulate(theta, design, simulated=simulated):
            simulated.append(design)
            return Model.simulate(theta, design)

        result = trainer().optimize_design(
            simulate, num_steps=6, num_warmup_steps=0, num_refinement_steps=num_steps
        )
        modes.append([mode[0] for mode in result.history["mode"]])
    # The search is the same with and without.
    assert modes[0] == modes[1][:6]
    assert len(set(modes[0])) == 6 and len(set(modes[1][5:])) == 1
    for designs in simulated[9:13]:
        assert (designs[::2] == result.design).all()
        assert (designs[1::2] != result.design).any()
    assert result.num_simulations == CHECK + 10 * 256 + result.eig.num_simulations
    assert result.stop_reason == "num_steps"


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
    # Standard errors are 0.02; measured: 0.09 nats.
    assert reported[1] > reported[0] + 0.05
