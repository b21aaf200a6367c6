"""Every public number is refused before any work if it makes no sense."""

import math
from functools import partial

import numpy as np
import pytest
import torch
from sbi.utils import BoxUniform

from sbi_boed_plugin import (
    AveragedSchedule,
    EnergyConfig,
    MeasurementSetEmbedding,
    MultiStartConfig,
    ScaleSchedule,
    TruncatedNormalMixturePolicy,
    TruncatedNormalPolicy,
    energy_nn,
    estimate_eig,
    run_experiments,
    simulate_for_boed,
)
from sbi_boed_plugin._numbers import check_integer, check_real
from sbi_boed_plugin.benchmark import run_benchmark
from sbi_boed_plugin.search.belief import ParticleBelief
from sbi_boed_plugin.tasks import get_task
from tests.trainers.cases import SEARCH, make

PRIOR = BoxUniform(torch.zeros(2), torch.ones(2))
BOX = torch.zeros(1), torch.ones(1)


class Simulated(BaseException):
    """The first simulation, hence the arguments are accepted."""


def simulator(theta, design):
    raise Simulated


def search(**kwargs):
    make().optimize_design(simulator, **{**SEARCH, "num_warmup_steps": 0, **kwargs})


def train(**kwargs):
    """Without simulations, of which sbi complains once the numbers are right."""
    with pytest.raises((RuntimeError, AssertionError, IndexError)):
        make().train(**kwargs)
    raise Simulated


def constant(x, theta, design):
    return x.sum(-1)


design = torch.ones(1)
information = partial(estimate_eig, constant, simulator, prior=PRIOR, design=design)
few = {"num_simulations": 9, "show_progress_bar": False}
policy = TruncatedNormalPolicy(*BOX)
simulate = partial(simulate_for_boed, simulator, PRIOR, policy, **few)
belief = partial(ParticleBelief, PRIOR)
embedding = partial(MeasurementSetEmbedding, num_measurements=2)
mixture = partial(TruncatedNormalMixturePolicy, *BOX)


def experiments(**kwargs):
    settings = {"num_rounds": 1, "show_progress_bar": False, **SEARCH, **kwargs}
    run_experiments(make(), simulator, lambda design: design, **settings)


def jobs(**kwargs):
    lists = {"num_simulations": [9], "seeds": [0], "observations": [1]}
    try:
        run_benchmark(["?"], ["npe"], metrics=["mmd"], output="", **lists, **kwargs)
    except ValueError as error:
        if "no task '?'" in str(error):
            raise Simulated from error
        raise


def task(name):
    return partial(get_task, name)


def cases(function, value, names, *also):
    """A function, its arguments, a value that makes sense for each, and what else."""
    return [(function, name, value, *also) for name in names.split()]


INTEGERS = [
    *cases(search, 6, "num_steps num_refinement_steps num_contrastive"),
    *cases(search, 2, "num_warmup_steps"),
    *cases(search, 16, "training_batch_size num_eig_samples num_eig_contrastive"),
    *cases(search, 1_000, "max_num_simulations"),
    *cases(MultiStartConfig, 2, "num_starts num_samples num_climb_steps"),
    *cases(MultiStartConfig, 2, "num_candidates num_candidate_samples"),
    *cases(train, 2, "num_contrastive stop_after_epochs max_num_epochs"),
    *cases(EnergyConfig, 2, "num_partition_samples max_num_epochs"),
    *[(function, "training_batch_size", 20) for function in (train, EnergyConfig)],
    *cases(energy_nn, 2, "hidden_features num_blocks"),
    *cases(embedding, 2, "num_measurements dim_x output_dim"),
    *cases(mixture, 2, "num_components"),
    *cases(information, 20, "num_samples num_contrastive seed"),
    *cases(simulate, 20, "num_simulations simulation_batch_size seed"),
    *[(function, "num_workers", 1) for function in (search, information, simulate)],
    *cases(experiments, 20, "num_particles num_eig_samples seed"),
    *cases(experiments, 1, "num_rounds"),
    *cases(belief, 20, "num_particles"),
    *cases(jobs, 2, "num_rounds num_samples"),
    *cases(task("sir"), 20, "dim_design"),
    *[(task(name), "dim_design", 2) for name in ("bmp", "noisy_linear")],
    *[(task(name), "dim_design", 2) for name in ("gaussian_linear", "pharmacokinetic")],
    *cases(task("location_finding"), 2, "num_sources dim_space"),
]
# The same, and the values among `EXTREME` that make sense as well.
REALS = [
    *cases(search, 0.01, "learning_rate design_learning_rate", ()),
    *cases(search, 0.1, "regularization_strength", (0,)),
    *cases(search, 5.0, "clip_max_norm max_seconds", (math.inf, 10**30)),
    *cases(train, 0.1, "regularization_strength", (0,)),
    *cases(train, 0.1, "learning_rate validation_fraction", ()),
    *cases(train, 5.0, "clip_max_norm", (math.inf, 10**30)),
    *cases(MultiStartConfig, 0.01, "learning_rate", ()),
    *cases(EnergyConfig, 0.01, "learning_rate", ()),
    *cases(EnergyConfig, 0.01, "weight_decay", (0,)),
    *cases(AveragedSchedule, 0.01, "learning_rate", ()),
    *cases(AveragedSchedule, 0.01, "weight_decay", (0,)),
    *cases(EnergyConfig, 5.0, "clip_max_norm", (math.inf, 10**30)),
    *cases(EnergyConfig, 2.0, "min_standard_errors", (0, -1, 10**30)),
    *cases(energy_nn, 0.1, "dropout", (0,)),
    *cases(partial(ScaleSchedule, end=1.0), 2.0, "start", (10**30,)),
    *cases(partial(ScaleSchedule, 1.0), 0.5, "end", (10**30,)),
    *cases(partial(TruncatedNormalPolicy, *BOX), 0.5, "scale", (10**30,)),
    *cases(task("bmp"), 0.1, "noise", (0, 10**30)),
]
EXTREME = (0, -1, math.inf, 10**30)
NONSENSE = (math.nan, True, "3", "0.1", torch.ones(2), [3], 1j)
TAKES_NEGATIVE = ("seed", "num_workers")
TAKES_ZERO = (
    *("seed", "num_steps", "num_warmup_steps", "num_refinement_steps"),
    *("num_climb_steps", "num_blocks", "num_contrastive"),
)


def describe(value):
    value = getattr(value, "func", value)
    return value if isinstance(value, str) else getattr(value, "__name__", repr(value))


def accepted(function, name, value):
    """Whether a value is taken; if not, the message names argument and value."""
    try:
        function(**{name: value})
    except Simulated:
        return True
    except (TypeError, ValueError) as error:
        assert name in str(error)
        return False
    return True


@pytest.mark.parametrize("function, name, value", INTEGERS, ids=describe)
def test_whole_numbers(function, name, value):
    for right in (value, np.int64(value), torch.tensor(value), np.array(value)):
        assert accepted(function, name, right), right
    for wrong in (float(value), np.float64(value), torch.tensor(float(value))):
        assert not accepted(function, name, wrong), wrong
    for wrong in (*NONSENSE, math.inf, 10**30):
        assert not accepted(function, name, wrong), wrong
    if name not in TAKES_NEGATIVE:
        assert not accepted(function, name, -1)
    if name not in TAKES_ZERO:
        assert not accepted(function, name, 0)


@pytest.mark.parametrize("function, name, value, also", REALS, ids=describe)
def test_real_numbers(function, name, value, also):
    for right in (value, np.float64(value), np.float32(value), torch.tensor(value)):
        assert accepted(function, name, right), right
    for wrong in NONSENSE:
        assert not accepted(function, name, wrong), wrong
    for extreme in EXTREME:
        assert accepted(function, name, extreme) == (extreme in also), extreme


def test_what_is_returned_are_numbers_of_python():
    for three in (3, np.uint8(3), torch.tensor(3), np.array(3)):
        assert type(check_integer("n", three)) is int
        assert type(check_real("n", three)) is float
    assert check_integer("n", None, or_none=True) is None


def test_messages_say_what_is_right():
    with pytest.raises(TypeError, match="n=3.0 must be an integer or None. Use 3."):
        check_integer("n", 3.0, or_none=True, remedy="Use 3.")
    with pytest.raises(ValueError, match="n=9 must be at most 5"):
        check_integer("n", np.array(9), 1, 5)
    with pytest.raises(ValueError, match="n=0 must be positive"):
        check_real("n", 0, above=0.0)
