"""Simulations that are on the disk as soon as they are finished."""

import warnings

import pytest
import torch

from sbi_boed_plugin import vectorize
from sbi_boed_plugin.search.simulation_file import SimulationFile
from tests.oracles import LinearGaussian
from tests.trainers.cases import make_trainer, message

SETTINGS = {
    "max_num_simulations": 150,
    "num_rounds": 2,
    "num_networks": 2,
    "num_eig_samples": 20,
}


@pytest.fixture(autouse=True)
def quiet():
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # Results of few simulations raise doubts.
        yield


class Killed(BaseException):
    """Ends a process."""


class Simulator:
    """Simulates one row after another, until it is killed."""

    def __init__(self, most):
        self.most, self.num_rows = most, 0

    def __call__(self, theta, design):
        if self.num_rows == self.most:
            raise Killed
        self.num_rows += 1
        return theta * design + torch.randn(1)


def lines_of(path):
    return path.read_text().splitlines()


@pytest.mark.slow
@pytest.mark.parametrize("most", [1, 20, 60, 140])
def test_a_search_that_was_killed_has_every_finished_simulation(tmp_path, most):
    path, simulator = tmp_path / "simulations.csv", Simulator(most)
    torch.manual_seed(0)
    with pytest.raises(Killed):
        make_trainer().optimize_design(
            vectorize(simulator), simulations_file=path, **SETTINGS
        )
    assert simulator.num_rows == most == len(lines_of(path)) - 1
    # A new process; what scored the design counts as simulated, too.
    again, trainer = Simulator(10_000), make_trainer()
    settings = {**SETTINGS, "max_num_simulations": max(150, most + 20)}
    result = trainer.optimize_design(
        vectorize(again), simulations_file=path, **settings
    )
    assert most + again.num_rows == result.num_simulations
    assert result.num_simulations <= settings["max_num_simulations"]
    assert len(lines_of(path)) - 1 == result.num_simulations
    theta, design, x = trainer.simulations
    assert len(theta) == result.num_simulations - SETTINGS["num_eig_samples"]
    first = torch.tensor([float(v) for v in lines_of(path)[1].split(",")])
    torch.testing.assert_close(first[:3], torch.cat([theta, design, x], dim=1)[0])
    log_prior = LinearGaussian.prior.log_prob(theta[:1])
    torch.testing.assert_close(first[3:], log_prior)


def test_simulators_of_many_rows_are_kept_in_parts(tmp_path):
    path = tmp_path / "simulations.csv"

    class OfMany:
        num_calls = 0

        def __call__(self, theta, design):
            self.num_calls += 1
            if self.num_calls == 12:
                raise Killed
            return LinearGaussian.simulate(theta, design)

    torch.manual_seed(1)
    with pytest.raises(Killed):
        make_trainer().optimize_design(OfMany(), simulations_file=path, **SETTINGS)
    assert 10 < len(lines_of(path)) < 60


@pytest.mark.slow
def test_failures_are_kept_as_such(tmp_path):
    path = tmp_path / "simulations.csv"

    def fails(theta, design):
        if theta > 0.5:
            raise RuntimeError("no solution")
        return torch.where(theta < -1.0, torch.nan, theta * design)

    torch.manual_seed(2)
    trainer = make_trainer()
    result = trainer.optimize_design(
        vectorize(fails), simulations_file=path, **SETTINGS
    )
    rows = SimulationFile(path).read(1, 1)
    is_failed = (rows.theta > 0.5) | (rows.theta < -1.0)
    assert bool((is_failed[:, 0] == ~rows.valid).all())
    assert bool((rows.theta > 0.5).any()) and bool((rows.theta < -1.0).any())
    assert len(rows.theta) == result.num_simulations <= 150


def test_failures_before_any_data_wait_for_their_columns(tmp_path):
    file, rows = SimulationFile(tmp_path / "simulations.csv"), torch.rand(2, 1)
    nothing = torch.empty(2, 0)
    file.append(rows, rows, nothing, rows[:, 0])
    assert not file.path.exists()
    file.append(rows + 1, rows, torch.ones(2, 3), rows[:, 0])
    file.append(rows + 2, rows, nothing, rows[:, 0])
    read = SimulationFile(file.path).read(1, 1)
    torch.testing.assert_close(read.theta, torch.cat([rows, rows + 1, rows + 2]))
    assert read.valid.tolist() == [False, False, True, True, False, False]


def test_a_line_that_is_not_complete_is_cut_off(tmp_path):
    path = tmp_path / "simulations.csv"
    rows = torch.rand(3, 1)
    SimulationFile(path).append(rows, rows, rows, rows[:, 0])
    path.write_text(path.read_text() + "0.1,0.2,0.")
    read = SimulationFile(path).read(1, 1)
    torch.testing.assert_close(read.theta, rows)
    SimulationFile(path).append(rows, rows, rows, rows[:, 0])
    assert len(SimulationFile(path).read(1, 1).theta) == 6
    assert SimulationFile(tmp_path / "other.csv").read(1, 1) is None


def test_wrong_files_are_refused_before_any_simulation(tmp_path):
    path, simulator = tmp_path / "simulations.csv", Simulator(10_000)
    path.write_text("a,b\n1,2\n")
    with pytest.raises(ValueError, match=message("simulations_file=", "'a,b'")):
        make_trainer().optimize_design(
            vectorize(simulator), simulations_file=path, **SETTINGS
        )
    with pytest.raises(ValueError, match=message("method='joint'", "rounds")):
        make_trainer().optimize_design(
            vectorize(simulator), simulations_file=path, method="joint"
        )
    rows = torch.rand(150, 1)
    path.unlink()
    SimulationFile(path).append(rows, rows + 0.1, rows, rows[:, 0])
    with pytest.raises(ValueError, match="max_num_simulations=150 is too few"):
        make_trainer().optimize_design(
            vectorize(simulator), simulations_file=path, **SETTINGS
        )
    assert simulator.num_rows == 0
