"""Every public number is refused before any work if it makes no sense."""

import math
from functools import partial

import numpy as np
import pytest
import torch
from sbi.utils import BoxUniform

from benchmarks.evaluation import total_information
from sbi_boed_plugin import (
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
from sbi_boed_plugin.benchmark.jobs import expand_jobs
from sbi_boed_plugin.search.belief import ParticleBelief
from sbi_boed_plugin.tasks import get_task
from tests.trainers.cases import SEARCH, make, message

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


information = partial(
    estimate_eig,
    lambda x, theta, design: x.sum(-1),
    simulator,
    prior=PRIOR,
    design=torch.ones(1),
)
simulate = partial(
    simulate_for_boed,
    simulator,
    PRIOR,
    TruncatedNormalPolicy(*BOX),
    num_simulations=9,
    show_progress_bar=False,
)
belief = partial(ParticleBelief, PRIOR)
bounds = partial(
    total_information,
    lambda x, theta, design: -(x - theta[:, :1]).square().sum(-1),
    PRIOR,
    torch.ones(2),
    torch.ones(1, 1),
    torch.ones(1, 1),
    num_contrastive=9,
)
lists = {"num_simulations": [9], "seeds": [0], "observations": [1]}
jobs = partial(expand_jobs, ["sir"], ["npe"], **lists)
embedding = partial(MeasurementSetEmbedding, num_measurements=2)
mixture = partial(TruncatedNormalMixturePolicy, *BOX)


def experiments(**kwargs):
    settings = {"num_rounds": 1, "show_progress_bar": False, **SEARCH, **kwargs}
    run_experiments(make(), simulator, lambda design: design, **settings)


def task(name):
    return partial(get_task, name)


def cases(function, value, *names):
    """A function, its arguments, and a value that makes sense for each."""
    return [(function, name, value) for text in names for name in text.split()]


INTEGERS = [
    *cases(search, 6, "num_steps num_refinement_steps num_contrastive"),
    *cases(search, 2, "num_warmup_steps"),
    *cases(search, 16, "training_batch_size num_eig_samples num_eig_contrastive"),
    *cases(search, 1_000, "max_num_simulations"),
    *cases(search, 1, "num_workers"),
    *cases(MultiStartConfig, 2, "num_starts num_samples num_climb_steps"),
    *cases(MultiStartConfig, 2, "num_candidates num_candidate_samples"),
    *cases(train, 2, "num_contrastive stop_after_epochs max_num_epochs"),
    *cases(train, 20, "training_batch_size"),
    *cases(EnergyConfig, 2, "num_partition_samples max_num_epochs stop_after_epochs"),
    *cases(EnergyConfig, 2, "training_batch_size"),
    *cases(energy_nn, 2, "hidden_features num_blocks"),
    *cases(embedding, 2, "num_measurements dim_x output_dim"),
    *cases(mixture, 2, "num_components"),
    *cases(information, 20, "num_samples num_contrastive seed"),
    *cases(information, 1, "num_workers"),
    *cases(simulate, 20, "num_simulations simulation_batch_size seed"),
    *cases(simulate, 1, "num_workers"),
    *cases(experiments, 20, "num_particles num_eig_samples seed"),
    *cases(experiments, 1, "num_rounds"),
    *cases(belief, 20, "num_particles"),
    *cases(bounds, 20, "num_contrastive seed"),
    *cases(jobs, 2, "num_rounds num_samples"),
    *cases(task("sir"), 20, "dim_design num_steps"),
    *cases(task("bmp"), 2, "dim_design"),
    *cases(task("noisy_linear"), 2, "dim_design"),
    *cases(task("gaussian_linear"), 2, "dim_design"),
    *cases(task("pharmacokinetic"), 2, "dim_design"),
    *cases(task("location_finding"), 2, "num_sources dim_space"),
]
# The same, and the values among `EXTREME` that make sense as well.
REALS = [
    (search, "learning_rate", 0.01, ()),
    (search, "design_learning_rate", 0.01, ()),
    (search, "regularization_strength", 0.1, (0,)),
    (search, "clip_max_norm", 5.0, (math.inf, 10**30)),
    (search, "max_seconds", 5.0, (math.inf, 10**30)),
    (train, "regularization_strength", 0.1, (0,)),
    (train, "learning_rate", 0.01, ()),
    (train, "validation_fraction", 0.1, ()),
    (train, "clip_max_norm", 5.0, (math.inf, 10**30)),
    (MultiStartConfig, "learning_rate", 0.01, ()),
    (EnergyConfig, "learning_rate", 0.01, ()),
    (EnergyConfig, "weight_decay", 0.01, (0,)),
    (EnergyConfig, "clip_max_norm", 5.0, (math.inf, 10**30)),
    (EnergyConfig, "min_standard_errors", 2.0, (0, -1, 10**30)),
    (energy_nn, "dropout", 0.1, (0,)),
    (lambda start: ScaleSchedule(start, 1.0), "start", 2.0, (10**30,)),
    (lambda end: ScaleSchedule(1.0, end), "end", 0.5, (10**30,)),
    (lambda **kw: TruncatedNormalPolicy(*BOX, **kw), "scale", 0.5, (10**30,)),
    (task("bmp"), "noise", 0.1, (0, 10**30)),
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
    assert check_real("n", torch.tensor(0.5)) == 0.5


@pytest.mark.parametrize(
    "check, args, options, parts",
    [
        (check_integer, (0, 1), {}, ("n=0 must be at least 1.",)),
        (check_integer, (9, 1, 5), {}, ("n=9 must be between 1 and 5.",)),
        (check_integer, (10**30,), {}, ("must be at most 9223372036854775807",)),
        (check_integer, (3.0, 1), {"or_none": True}, ("n=3.0", "an integer or None")),
        (check_integer, ("3",), {"remedy": "Use 3."}, ("n='3'", "an integer. Use 3.")),
        (check_integer, (True,), {}, ("n=True must be an integer.",)),
        (check_real, (math.nan,), {}, ("n=nan must be finite.",)),
        (check_real, (0,), {"above": 0.0}, ("n=0 must be positive and finite.",)),
        (check_real, (2, 0.0, 1.0), {}, ("n=2 must be between 0 and 1.",)),
        (check_real, (np.float64(1),), {"below": 1.0}, ("n=1.0 must be below 1",)),
    ],
)
def test_messages_say_what_is_right(check, args, options, parts):
    with pytest.raises((TypeError, ValueError), match=message(*parts)):
        check("n", *args, **options)
