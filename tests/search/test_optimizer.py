import pytest
import torch

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


def test_it_finds_the_most_informative_design():
    result = trainer().optimize_design(Model.simulate, num_steps=250)
    best = Model.eig(torch.tensor([2.0])).item()
    found = Model.eig(result.design).item()
    print(f"design {result.design.tolist()}, information {found:.3f} of {best:.3f}")
    assert found > 0.98 * best
    assert result.eig.value == pytest.approx(found, abs=0.1)
    assert result.stop_reason == "num_steps"
    assert result.num_simulations == CHECK + 250 * 256 + result.eig.num_simulations


def test_history_has_one_entry_per_step_and_the_tracker_sees_it():
    logged = []

    class Tracker(NoOpTracker):
        def log_metrics(self, metrics, step=None):
            logged.append((step, metrics))

    result = trainer(tracker=Tracker()).optimize_design(Model.simulate, num_steps=5)
    assert {len(values) for values in result.history.values()} == {5}
    assert result.history["num_simulations"] == [256 * k + CHECK for k in range(1, 6)]
    assert [step for step, _ in logged] == [1, 2, 3, 4, 5]
    bounds = [metrics["design_eig"] for _, metrics in logged]
    assert bounds == result.history["eig"]


def test_a_result_is_a_line_and_a_table():
    result = trainer().optimize_design(Model.simulate, num_steps=3, **SMALL)
    assert len(repr(result)) < 200 and f"{result.eig.value:.4g}" in repr(result)
    assert str(result).startswith("design [") and result.doubts[0] in str(result)
    html = result._repr_html_()
    assert html.startswith("<table>") and html.endswith("</table>")
    assert f"{result.num_simulations:,}" in html and html.count("<tr>") == 5


def test_budgets_and_plateau():
    few = trainer().optimize_design(
        Model.simulate, num_steps=10, max_num_simulations=1_000, training_batch_size=256
    )
    assert few.stop_reason == "max_num_simulations"
    assert 3 * 256 + 190 < few.num_simulations <= 1_000
    assert len(few.history["loss"]) == 3
    timed = trainer().optimize_design(Model.simulate, max_seconds=0.2)
    assert timed.stop_reason == "max_seconds"
    # Data that tell nothing: the bound cannot grow.
    torch.manual_seed(0)
    flat = trainer().optimize_design(
        lambda theta, design: torch.randn_like(theta), stop_after_steps=20, **SMALL
    )
    assert flat.stop_reason == "plateau"
    assert len(flat.history["loss"]) < 500


def test_the_plateau_comes_after_the_climb():
    inference = trainer()
    result = inference.optimize_design(Model.simulate, stop_after_steps=25, **SMALL)
    assert result.stop_reason == "plateau"
    best = Model.eig(torch.tensor([2.0]))
    assert Model.eig(result.design) > 0.95 * best


def test_designs_are_shared_by_simulations_as_asked():
    seen = []

    def simulate(theta, design):
        seen.append(design)
        return Model.simulate(theta, design)

    trainer().optimize_design(
        simulate, num_steps=1, training_batch_size=64, num_simulations_per_design=4
    )
    first = seen[3].reshape(16, 4)
    assert (first == first[:, :1]).all()
    assert len(first[:, 0].unique()) == 16


def test_the_estimator_of_an_earlier_search_is_trained_further():
    inference = trainer()
    inference.optimize_design(Model.simulate, num_steps=5)
    network = inference._neural_net
    inference.optimize_design(Model.simulate, num_steps=5)
    assert inference._neural_net is network


def test_the_policy_waits_for_the_likelihood():
    history = (
        trainer()
        .optimize_design(Model.simulate, num_steps=10, num_warmup_steps=4)
        .history
    )
    modes = [mode[0] for mode in history["mode"]]
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
