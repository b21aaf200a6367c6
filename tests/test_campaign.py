"""Campaigns over several processes: proposed, measured, taken back."""

import multiprocessing
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from sbi_boed_plugin import Campaign
from sbi_boed_plugin.sequence import run_experiments
from tests.oracles import LinearGaussian as Model
from tests.test_sequence import SEARCH, make, measure
from tests.trainers.cases import message

SETTINGS = {"seed": 3, "num_particles": 128, **SEARCH}


def begin(folder, inference=None, **kwargs):
    settings = {**SETTINGS, **kwargs}
    return Campaign(folder, inference or make(), Model.simulate, **settings)


def of(campaign):
    """All that a campaign knows, as numbers."""
    status = campaign.status()
    particles = [record.posterior_samples for record in campaign.result.records]
    parts = [status.designs, status.x, status.mean, status.std, *particles]
    parts += [] if status.pending is None else [status.pending]
    return torch.cat([part.flatten() for part in parts])


@pytest.mark.filterwarnings("ignore")
def day(folder, task):
    """What a process does in one day."""
    with begin(folder) as campaign:
        if task == "propose":
            campaign.propose()
        else:
            x = torch.tensor([float(task)])
            campaign.record(x, accept_surprise=True)


DAYS = ["propose", "1.1", "propose", "0.9", "propose"]


def undisturbed(folder, days=DAYS):
    with begin(folder) as campaign:
        for task in days:
            if task == "propose":
                campaign.propose()
            else:
                campaign.record(torch.tensor([float(task)]), accept_surprise=True)
        return of(campaign)


@pytest.mark.slow
@pytest.mark.parametrize("days", [DAYS[:2], pytest.param(DAYS, marks=pytest.mark.slow)])
def test_several_processes_are_as_good_as_one(tmp_path, days):
    expected = undisturbed(tmp_path / "one", days)
    context = multiprocessing.get_context("spawn")
    for task in days:
        process = context.Process(target=day, args=(tmp_path / "many", task))
        process.start()
        process.join(120)
        assert process.exitcode == 0
    with begin(tmp_path / "many") as campaign:
        assert torch.equal(of(campaign), expected)
        status = campaign.status()
        assert status.num_experiments == len(days) // 2
        assert ("waits for data" in str(status)) == (days[-1] == "propose")


KILLED = """
import os, signal, sys, warnings
warnings.simplefilter("ignore")
from tests.test_campaign import begin
import sbi_boed_plugin._campaign as module
# In the middle of the search, or once it is found and not saved yet.
name = sys.argv[2]
def kill(*args, **kwargs):
    os.kill(os.getpid(), signal.SIGKILL)
setattr(module.Rounds, name, kill) if name == "save" else None
campaign = begin(sys.argv[1])
if name == "learn":
    module.Rounds.learn = kill
    campaign.record([1.1], accept_surprise=True)
campaign.propose()
"""


@pytest.mark.parametrize(
    "name", [pytest.param("learn", marks=pytest.mark.slow), "save"]
)
def test_a_killed_process_loses_no_step(tmp_path, name):
    expected = undisturbed(tmp_path / "one")
    folder = tmp_path / "killed"
    with begin(folder) as campaign:
        campaign.propose()
        if name == "save":
            campaign.record(torch.tensor([1.1]), accept_surprise=True)
    root = Path(__file__).parents[1]
    command = [sys.executable, "-c", KILLED, str(folder), name]
    killed = subprocess.run(command, cwd=root, timeout=120, check=False)
    assert killed.returncode == -9
    with begin(folder) as campaign:
        if name == "learn":
            campaign.record(torch.tensor([1.1]), accept_surprise=True)
        campaign.propose()
        campaign.record(torch.tensor([0.9]), accept_surprise=True)
        campaign.propose()
        assert torch.equal(of(campaign), expected)


def test_it_is_the_loop_by_hand(tmp_path):
    looped = run_experiments(
        make(), Model.simulate, measure, 2, show_progress_bar=False, **SETTINGS
    )
    with begin(tmp_path) as campaign:
        for record in looped.records:
            design = campaign.propose()
            assert torch.equal(design, record.design)
            campaign.record(record.x, accept_surprise=True)
            # The loop draws its data from the same generator; here they come by hand.
            break
        assert torch.equal(campaign.result.x, looped.x[:1])


def test_undo_gives_what_was_before(tmp_path):
    with begin(tmp_path / "a") as campaign:
        states = [of(campaign)]
        campaign.propose()
        states.append(of(campaign))
        campaign.record(torch.tensor([1.1]), accept_surprise=True)
        for before in states[::-1]:
            campaign.undo()
            assert torch.equal(of(campaign), before)
        with pytest.raises(RuntimeError, match="nothing to take back"):
            campaign.undo()
        # And goes on from there as it would have.
        first = campaign.propose()
        campaign.record(torch.tensor([1.1]), accept_surprise=True)
        again = of(campaign)
    with begin(tmp_path / "b") as campaign:
        assert torch.equal(campaign.propose(), first)
        campaign.record(torch.tensor([1.1]), accept_surprise=True)
        assert torch.equal(of(campaign), again)


def test_a_proposal_stays_until_there_are_data(tmp_path):
    with begin(tmp_path) as campaign:
        design = campaign.propose()
        assert torch.equal(campaign.propose(), design)
        other = design - 0.01
        record = campaign.record(
            torch.tensor([1.0]), design=other, accept_surprise=True
        )
        torch.testing.assert_close(record.design, other)
        with pytest.raises(RuntimeError, match=r"call propose\(\) first"):
            campaign.record(torch.tensor([1.0]))


def test_data_that_nothing_predicts_are_questioned(tmp_path):
    with begin(tmp_path) as campaign:
        campaign.propose()
        before = of(campaign)
        with pytest.raises(ValueError, match="accept_surprise=True"):
            campaign.record(torch.tensor([1e4]))
        for x in (torch.tensor([torch.nan]), torch.ones(3)):
            with pytest.raises(ValueError, match="1 finite value"):
                campaign.record(x)
        with pytest.raises(ValueError, match="outside the support"):
            campaign.record(torch.ones(1), design=torch.tensor([99.0]))
        assert torch.equal(of(campaign), before)


def test_one_process_at_a_time(tmp_path):
    with begin(tmp_path) as campaign:
        with pytest.raises(RuntimeError, match="in use by another"):
            begin(tmp_path)
        campaign.propose()
    with pytest.raises(RuntimeError, match="closed"):
        campaign.propose()
    begin(tmp_path).close()


def test_another_campaign_is_refused(tmp_path):
    begin(tmp_path).close()
    with pytest.raises(ValueError, match="of other experiments: seed was 3 and is 4"):
        begin(tmp_path, seed=4)
    newest = max(tmp_path.glob("state-*.pt"))
    newest.write_bytes(newest.read_bytes()[:-40])
    with pytest.raises(ValueError, match="damaged"):
        begin(tmp_path)
    shutil.rmtree(tmp_path)
    tmp_path.touch()
    with pytest.raises(ValueError, match="is a file"):
        begin(tmp_path)


def cost_of(design):
    return 1.0 + design[:, 0]


@pytest.mark.slow
def test_no_more_is_spent_than_there_is(tmp_path):
    """A design costs from 1.5 to 4; the largest tell most."""
    settings = {"cost": cost_of, "max_cost": 6.0}
    with begin(tmp_path, **settings) as campaign:
        while True:
            try:
                design = campaign.propose()
            except ValueError as error:
                assert "no design costs as little" in str(error)
                break
            campaign.record(design, accept_surprise=True)
        status = campaign.status()
        assert 4.5 < status.cost <= 6.0 and "cost" in str(status)
        assert campaign.result.cost == pytest.approx(status.cost)
    looped = run_experiments(
        make(), Model.simulate, measure, 9, show_progress_bar=False,
        **SETTINGS, **settings,
    )  # fmt: skip
    assert 1 < len(looped.records) < 5 and looped.cost <= 6.0


def test_arguments_are_checked(tmp_path):
    for said, kwargs in {
        "max_cost=5.0 needs cost=": {"max_cost": 5.0},
        "max_cost=-1.0 must be": {"max_cost": -1.0, "cost": cost_of},
        "num_particles=2 must be": {"num_particles": 2},
        "resume_training": {"resume_training": True},
        "simulations_file": {"simulations_file": "a.csv", "num_steps": None},
    }.items():
        with pytest.raises(ValueError, match=message(said)):
            begin(tmp_path / "none", **kwargs)
    assert not (tmp_path / "none").exists()
