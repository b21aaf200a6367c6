"""Without a tracker nothing is written, and without progress bars nothing printed."""

import pytest
import torch

from sbi_boed_plugin import NLE_INCE, NPE_GKL, NRE_GKL
from tests.main_paths import for_each_path
from tests.path_parts import BRIEF, QUIET, normal, rows

# Warnings are no output: pytest catches them.
pytestmark = pytest.mark.filterwarnings("ignore")
CONVERGES = {"learning_rate": 0.1, "stop_after_epochs": 1, "training_batch_size": 64}


@for_each_path
def test_nothing_is_printed_or_logged(path, capfd, tmp_path):
    path("cpu")
    assert capfd.readouterr() == ("", "")
    # A campaign keeps its state.
    assert {file.name for file in tmp_path.iterdir()} <= {"campaign"}


@pytest.mark.parametrize("trainer", [NLE_INCE, NPE_GKL, NRE_GKL])
@pytest.mark.parametrize("asked", [{}, {"show_train_summary": True}])
def test_how_a_training_ended_is_told_with_progress_or_a_summary(trainer, asked, capfd):
    theta, _, x = rows("cpu")
    told = {}
    for shown in (False, True):
        torch.manual_seed(0)
        network = "mlp" if trainer is NRE_GKL else "mdn"
        inference = trainer(normal("cpu"), network, show_progress_bars=shown)
        of_energy = BRIEF if trainer is NPE_GKL else {}
        inference.append_simulations(theta, x)
        inference.train(**CONVERGES, **asked, **of_energy)
        told[shown] = "".join(capfd.readouterr())
    assert "successfully converged" in told[True]
    assert "converged" not in told[False]
    assert ("ROUND 1 STATS" in told[False]) == bool(asked)


def test_a_later_round_tells_its_loss_with_progress_or_a_summary(capfd):
    inference = NPE_GKL(normal("cpu"), "mdn", **QUIET)
    theta, _, x = rows("cpu")
    inference.append_simulations(theta, x).train(max_num_epochs=1, **BRIEF)
    proposal = inference.build_posterior().set_default_x(x[:1])
    inference.append_simulations(theta, x, proposal=proposal)
    inference.train(max_num_epochs=1, **BRIEF)
    assert capfd.readouterr() == ("", "")
    inference.train(max_num_epochs=1, show_train_summary=True, **BRIEF)
    told = capfd.readouterr().out
    assert "atomic loss" in told and "ROUND 2 STATS" in told
