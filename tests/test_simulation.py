"""Simulations on workers: the same numbers everywhere, and failures that cost a row."""

import math
import os
import random
import signal
import sys
import threading
import time
import warnings

import joblib
import numpy as np
import pytest
import torch
from sbi.utils import BoxUniform
from torch.distributions import Uniform

from sbi_boed_plugin import TruncatedNormalPolicy, vectorize
from sbi_boed_plugin._prior import draw_parameters
from sbi_boed_plugin.simulation import (
    CheckedSimulator,
    run_simulator,
    simulate_for_boed,
)
from tests.trainers.cases import message

PRIOR = BoxUniform(-2 * torch.ones(2), 2 * torch.ones(2))
POLICY = TruncatedNormalPolicy(torch.tensor([0.5]), torch.tensor([2.0]))
WORKERS = {"num_workers": 2, "simulation_batch_size": 8}
UNSENDABLE = {"simulator": vectorize(threading.Lock().acquire), **WORKERS}
BAD = [3, 17, 18, 40]


def noisy(theta, design):
    """Noise from every generator that a simulator may use."""
    noise = torch.tensor(np.random.randn(len(theta), 1)) + torch.randn(len(theta), 1)
    return torch.cat([theta * design, noise + random.random()], dim=1)


def echo(theta, design):
    """Data that tell which parameters and which design they are of."""
    return torch.cat([theta, design], dim=1)


def raises(error, *args):
    def simulator(theta, design):
        raise error(*args)

    return simulator


def raises_for_negative(theta, design):
    if (theta[:, 0] < 0).any():
        raise ZeroDivisionError("negative rate")
    return echo(theta, design)


def nan_for_negative(theta, design):
    return torch.where(theta[:, :1] < 0, torch.nan, echo(theta, design))


def simulate(simulator=noisy, num_workers=1, prior=PRIOR, policy=POLICY, **kwargs):
    settings = {"num_simulations": 50, "seed": 0, "show_progress_bar": False, **kwargs}
    return simulate_for_boed(
        simulator, prior, policy, num_workers=num_workers, **settings
    )


def rows(bad=()):
    """Parameters that are positive apart from the rows `bad`, and designs."""
    theta, design = torch.rand(50, 2) + 0.1, torch.rand(50, 1)
    theta[list(bad)] *= -1
    return theta, design


def global_states():
    return torch.get_rng_state().tolist(), str(np.random.get_state()), random.getstate()


def assert_only_bad_rows_are_missing(made, theta, design):
    expected = echo(theta, design)
    expected[BAD] = torch.nan
    assert torch.equal(made.valid, ~torch.isnan(expected[:, 0]))
    assert torch.equal(made.x.nan_to_num(99.0), expected.nan_to_num(99.0))


# --- The same numbers -----------------------------------------------------------------


@pytest.mark.parametrize(
    "backend, num_workers",
    [
        ("loky", 1),
        ("loky", 2),
        pytest.param("loky", None, marks=pytest.mark.slow),
        ("threading", 2),
    ],
)
def test_a_seed_gives_the_same_with_any_workers(backend, num_workers):
    reference = simulate()
    first = reference[0][0, 0]

    def slow_at_first(theta, design):  # Later chunks are done before the first.
        time.sleep(0.2 * bool(theta[0, 0] == first))
        return noisy(theta, design)

    before = global_states()
    with joblib.parallel_config(backend=backend):
        results = simulate(slow_at_first, num_workers)
    assert all(map(torch.equal, results, reference))
    assert global_states() == before


@pytest.mark.parametrize("num_workers", [1, 2])
def test_no_noise_is_used_twice(num_workers):
    settings = {"num_workers": num_workers, "simulation_batch_size": 1, "seed": None}
    x = torch.cat([simulate(**settings)[2] for _ in range(2)])
    assert len(x[:, 2].unique()) == len(x) == 100


# --- What the caller gets -------------------------------------------------------------


class Storage(BoxUniform):
    """A distribution that returns the same tensor at each draw."""

    def sample(self, sample_shape=torch.Size()):
        if not hasattr(self, "kept"):
            self.kept = super().sample(torch.Size((100,)))
        draw = self.kept[: torch.Size(sample_shape).numel()]
        return draw.copy_(super().sample(sample_shape))


@pytest.mark.parametrize("policy", [POLICY, Storage(torch.zeros(3), torch.ones(3))])
def test_rows_belong_together_and_what_is_returned_is_copied(policy):
    prior = Storage(torch.zeros(2), torch.ones(2))
    theta, design, x = simulate(echo, prior=prior, policy=policy)
    prior.sample((50,)), policy.sample((50,))
    assert torch.equal(x, echo(theta, design))
    assert not design.requires_grad and design.dtype == torch.float32
    theta = draw_parameters(prior, 50)
    before = theta.clone()
    prior.sample((50,))
    assert torch.equal(theta, before)


@pytest.mark.parametrize("num_workers", [1, 2])
@pytest.mark.parametrize("batch_size", [None, 1, 7])
def test_what_a_simulator_changes_is_its_own(num_workers, batch_size):
    buffer = torch.zeros(100, 3)

    def in_place(theta, design):
        out = buffer[: len(theta)]
        out.copy_(torch.cat([theta, design], dim=1))
        theta.mul_(2.0), design.add_(10.0)
        return out

    settings = {"num_workers": num_workers, "simulation_batch_size": batch_size}
    with joblib.parallel_config(backend="threading"):  # Threads share the buffer.
        changed, kept = (simulate(f, **settings) for f in (in_place, echo))
    assert all(map(torch.equal, changed, kept))


def test_simulators_may_write_to_what_joblib_maps_into_memory():
    theta = torch.zeros(200_000, 3)
    settings = {"num_workers": 2, "simulation_batch_size": 10**5}
    x = run_simulator(lambda t, d: t.add_(1.0), theta, theta, **settings).x
    assert x.eq(1.0).all() and theta.eq(0.0).all()


@pytest.mark.parametrize(
    "to, kwargs",
    [
        ("meta", {}),
        ("meta", {"simulation_batch_size": 8}),
        (torch.float64, {}),
        (torch.float64, WORKERS),
    ],
)
def test_data_have_the_precision_and_device_of_theta(to, kwargs):
    theta, design = (tensor.to(to) for tensor in rows())
    checked = CheckedSimulator(lambda t, d: (t * d).float(), is_checked=True)
    made = run_simulator(checked, theta, design, **kwargs)
    assert made.x.dtype == theta.dtype and made.x.shape == (50, 2)
    assert made.x.device == made.valid.device == theta.device


def test_progress_counts_rows_and_failures(capsys):
    simulate(num_workers=2, show_progress_bar=True)
    shown = capsys.readouterr().err
    assert "50/50" in shown and "failed=0" in shown
    theta, design = rows(BAD)
    settings = {"simulation_batch_size": 1, "show_progress_bar": True, "warn": False}
    run_simulator(raises_for_negative, theta, design, **settings)
    assert "50/50" in (shown := capsys.readouterr().err) and "failed=4" in shown


# --- Failures -------------------------------------------------------------------------


@pytest.mark.parametrize(
    "simulator, kwargs",
    [
        (raises_for_negative, {}),
        (raises_for_negative, {"simulation_batch_size": 8}),
        (raises_for_negative, WORKERS),
        (vectorize(lambda t, d: raises_for_negative(t[None], d[None])[0]), {}),
    ],
    ids=["one call", "chunks", "workers", "vectorized"],
)
def test_rows_that_raise_are_the_only_ones_missing(simulator, kwargs):
    theta, design = rows(BAD)
    expected = message("4 of 50 simulations", "ZeroDivisionError: negative rate")
    with pytest.warns(UserWarning, match=expected) as caught:
        made = run_simulator(simulator, theta, design, **kwargs)
    assert len(caught) == 1
    assert caught[0].filename != run_simulator.__code__.co_filename
    assert_only_bad_rows_are_missing(made, theta, design)
    assert (made.num_calls == 50) == (simulator is not raises_for_negative)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        made = run_simulator(nan_for_negative, theta, design, **kwargs)
    assert_only_bad_rows_are_missing(made, theta, design)


@pytest.mark.parametrize("num_workers", [1, 2])
def test_a_simulator_that_always_raises_is_a_mistake(num_workers):
    calls = []

    def broken(theta, design):
        calls.append(len(theta))
        return theta @ "a matrix"

    with pytest.raises(TypeError, match="must be Tensor|unsupported") as caught:
        simulate(broken, num_workers, num_simulations=4_000)
    notes = "".join(getattr(caught.value, "__notes__", ["each of 4000"]))
    assert "each of 4000 simulations" in notes
    assert len(calls) < 1_500  # it gives up on chunks rather than try every row.


class NeedsTwoArguments(Exception):
    def __init__(self, first, second):
        super().__init__(f"{first} and {second}")


@pytest.mark.parametrize("error", [KeyboardInterrupt, SystemExit])
@pytest.mark.parametrize("kwargs", [{}, WORKERS], ids=["one call", "workers"])
def test_interrupts_are_not_failures(error, kwargs):
    with pytest.raises(error, match="stop"):
        run_simulator(raises(error, "stop"), *rows(), **kwargs)
    assert run_simulator(noisy, *rows(), **kwargs).valid.all()


def test_errors_arrive_as_text_or_where_a_gradient_is_kept_as_they_are():
    with pytest.raises(RuntimeError, match="NeedsTwoArguments: this and that"):
        simulate(raises(NeedsTwoArguments, "this", "that"), num_workers=2)
    with pytest.raises(ZeroDivisionError, match="negative rate"):
        run_simulator(raises_for_negative, *rows(BAD), keep_gradient=True)


@pytest.mark.parametrize("num_workers", [1, 2])
@pytest.mark.parametrize(
    "wrong, size, error, parts",
    [
        (lambda t, d: t[:, 0], 8, ValueError, ("x of shape", "dim_x)", "one row per")),
        (lambda t, d: None, 1, TypeError, ("must return", "NoneType")),
        (lambda t, d: t[:, : 1 + int(t[0, 0] > 0)], 8, ValueError, ("=1", "dim_x=2")),
    ],
    ids=["shape", "type", "width"],
)
def test_nonsense_is_refused_rather_than_counted(
    wrong, size, error, parts, num_workers
):
    with pytest.raises(error, match=message(*parts)):
        simulate(wrong, num_workers, simulation_batch_size=size)


@pytest.mark.parametrize(
    "wrong, error, parts",
    [
        ({"num_workers": 0}, ValueError, ("num_workers=0", "-1", "None")),
        (
            {"simulator": vectorize(threading.Lock().acquire), **WORKERS},
            TypeError,
            ("num_workers=1",),
        ),
        ({"policy": "box"}, TypeError, ("design_policy", "got str", "Policy(")),
        ({"policy": Uniform(0.0, 1.0)}, ValueError, ("(9,)", "Independent")),
        ({"prior": Uniform(0.0, 1.0)}, ValueError, ("prior", "(9,)", "Independent")),
    ],
)
def test_arguments_that_make_no_sense(wrong, error, parts):
    with pytest.raises(error, match=message(*parts)):
        simulate(**{"num_simulations": 9, **wrong})


# --- What a simulator promises --------------------------------------------------------


def one_vector(theta, design):
    """The user's own function of one parameter vector, with as many outputs."""
    return np.array([theta[1] * design[0] + 1, theta[0] * design[0] + 2])


MIXING = {
    "as many outputs as rows": one_vector,
    "first row": lambda t, d: t[0] * d + 0.1 * torch.randn(1),
    "last row": lambda t, d: t[-1] * d + 0.1 * torch.randn_like(t),
    "sum": lambda t, d: t.sum() * d,
    "matrix of all pairs": lambda t, d: (t @ t[0]) * d,
    "standardized": lambda t, d: (t - t.mean(0)) * d,
    "numpy noise": lambda t, d: t[0].numpy() * d.numpy() + np.random.randn(len(t), 2),
    "one by one only": lambda t, d: t[:1] * d[0] + 0.1,
    "second row": lambda t, d: t[1] * d,
    "five rows": lambda t, d: torch.stack([t[4], t[3], t[2], t[1], t[0]]),
}


@pytest.mark.parametrize("number", [1, 2, 3, 5, 20, 100])
@pytest.mark.parametrize("name", MIXING)
def test_functions_of_one_vector_are_refused_for_every_size(name, number):
    if number == 1 and name not in ("as many outputs as rows", "second row"):
        return  # Of one row there is nothing to mix.
    for options in ({}, {"simulation_batch_size": 2}, {"simulation_batch_size": 5}):
        with pytest.raises((ValueError, IndexError)) as caught:
            simulate(MIXING[name], num_simulations=number, **options)
        notes = getattr(caught.value, "__notes__", ["vectorize"])
        assert "vectorize" in str(caught.value) + "".join(notes)


def test_rows_that_differ_in_their_design_alone_are_compared():
    theta, design = torch.ones(20, 1), torch.rand(20, 1)
    with pytest.raises(ValueError, match="mixes rows"):
        run_simulator(lambda t, d: t + 0.3 + d - d.mean(), theta, design)


def own_generator(make_x):
    generator = np.random.default_rng(0)
    return lambda t, d: make_x(
        torch.from_numpy(generator.random((len(t), 1))).float(), t * d
    )


def rejects(theta, design):
    """Noise whose random numbers are as many as the parameters of all rows want."""
    x = torch.randn(len(theta), 1)
    while (outside := x.abs() > theta.abs().mean(1, keepdim=True)).any():
        x[outside] = torch.randn(int(outside.sum()))
    return x + design


def unlucky(theta, design):
    if random.random() < 0.3:
        raise RuntimeError("diverged")
    return theta * design


RIGHT = {
    "own generator": own_generator(lambda u, mean: mean + u),
    "own generator, yes or no": own_generator(lambda u, mean: (u < 0.5).float()),
    "own generator, censored": own_generator(lambda u, mean: u.clamp(0.4, 0.6)),
    "number of draws depends on rows": rejects,
    "common noise": lambda t, d: t * d + torch.randn(2),
    "count": lambda t, d: torch.poisson(t.abs() * d),
    "steps for all rows": lambda t, d: t * d * (1 + 1e-4 * t.max()),
    "raises by chance": unlucky,
}


@pytest.mark.filterwarnings("ignore:.*raised an error")
@pytest.mark.parametrize("name", RIGHT)
def test_simulators_of_rows_are_taken_whatever_their_noise(name):
    for seed in range(20):
        x = simulate(RIGHT[name], seed=seed, num_simulations=20)[2]
        assert x.isfinite().all() or name == "raises by chance"


def test_small_counts_are_not_rows_that_mix():
    """By chance, counts take as many random numbers for other rows as for their own."""

    def counts(theta, design):
        number = np.random.poisson((3.0 * theta * design).numpy())
        return torch.as_tensor(np.sqrt(number + np.random.uniform(size=number.shape)))

    for seed in range(300):
        theta = 1.0 + torch.rand(4, 1, generator=torch.Generator().manual_seed(seed))
        np.random.seed(seed)
        run_simulator(counts, theta, torch.ones(4, 1))


@pytest.mark.filterwarnings("ignore:.*raised an error")
def test_a_simulator_that_raises_in_all_of_its_check_gets_rows_one_by_one():
    theta, design = rows([0, 24, 25, 49])
    sizes = []

    def simulator(theta, design):
        sizes.append(len(theta))
        return raises_for_negative(theta, design)

    made = run_simulator(simulator, theta, design)
    assert sizes == [1] * 8 + [3] + [1] * 50
    assert made.num_calls == sum(sizes)
    assert torch.equal(made.valid, theta[:, 0] > 0)


@pytest.mark.parametrize("num_workers", [1, 2])
def test_the_check_changes_no_simulation(num_workers):
    theta, design = rows()
    results = []
    for is_checked in (False, True):
        torch.manual_seed(0), np.random.seed(0), random.seed(0)
        checked = CheckedSimulator(noisy, is_checked=is_checked)
        for _ in range(2):
            made = run_simulator(checked, theta, design, num_workers=num_workers)
            results.append(made)
    assert torch.equal(results[0].x, results[2].x)
    assert [made.num_calls for made in results] == [57, 50, 50, 50]


@pytest.mark.parametrize(
    "function",
    [
        one_vector,
        lambda t, d: [t[1] * d[0] + 1, t[0] * d[0] + 2],
        lambda t, d: torch.stack([t[1] * d[0] + 1, t[0] * d[0] + 2]).reshape(1, 2),
        lambda t, d: (t.flip(0) * d + torch.tensor([1, 2])).double(),
    ],
    ids=["numpy", "list", "one row", "double"],
)
@pytest.mark.parametrize("number", [1, 2, 20])
def test_functions_of_one_vector_can_be_vectorized(function, number):
    theta, design, x = simulate(vectorize(function), num_simulations=number)
    expected = theta.flip(1) * design + torch.tensor([1.0, 2.0])
    torch.testing.assert_close(x, expected)


def test_vectorized_functions_may_return_a_number_and_run_on_workers():
    def number(theta, design):
        return float(theta.sum() * design[0]) + torch.randn(())

    results = [simulate(vectorize(number), num_workers)[2] for num_workers in (1, 2)]
    assert torch.equal(*results) and results[0].shape == (50, 1)
    with pytest.raises(TypeError, match="simulator must be a function"):
        vectorize(3)


# --- What is counted ------------------------------------------------------------------


@pytest.mark.filterwarnings("ignore:.*raised an error")
@pytest.mark.parametrize("max_calls", [math.inf, 0, 5, 20, 50, 60, 100, 300])
@pytest.mark.parametrize("batch_size", [None, 7])
@pytest.mark.parametrize("limit", [0.5, 0.95, 2.0])
@pytest.mark.parametrize("one_by_one", [False, True])
def test_the_calls_that_are_counted_are_the_calls_that_are_made(
    max_calls, batch_size, limit, one_by_one
):
    torch.manual_seed(0)
    theta, design, sizes = torch.rand(50, 2), torch.rand(50, 1), []

    def diverges(theta, design):
        sizes.append(len(theta))
        if (theta > limit).any() or len(theta) == 0:
            raise RuntimeError("the solver diverged")
        return echo(theta, design)

    simulator = CheckedSimulator(diverges, max_calls, one_by_one, one_by_one)
    made = run_simulator(simulator, theta, design, simulation_batch_size=batch_size)
    assert made.num_calls == sum(sizes) <= max_calls
    works = (theta <= limit).all(dim=1)
    assert not (made.valid & ~works).any()
    if made.tried.all():
        assert torch.equal(made.valid, works)
    else:
        assert max_calls < (300 if batch_size is None else math.inf)


# --- A time limit --------------------------------------------------------------------


def hangs_or_crashes(theta, design):
    """Sleep for an hour, end the process, raise or succeed, by the parameter."""
    if theta[0] < -1.0:
        time.sleep(3_600.0)
    if theta[0] < 0.0:
        os._exit(1)
    if theta[0] < 1.0:
        raise ZeroDivisionError("small rate")
    return torch.cat([theta + torch.randn(2), design])


@pytest.mark.slow
def test_calls_that_hang_or_end_their_process_cost_their_row():
    theta = torch.tensor([[1.5, 0.0], [-1.5, 0.0], [1.6, 0.0], [-0.5, 0.0], [0.5, 0.0]])
    simulator, x = vectorize(hangs_or_crashes, max_seconds=5.0), []
    for num_workers in (1, 2):
        torch.manual_seed(0)
        with pytest.warns(UserWarning, match="3 of 5 simulations raised an error"):
            made = run_simulator(
                simulator,
                theta,
                torch.ones(5, 1),
                num_workers=num_workers,
                simulation_batch_size=3,
            )
        assert made.valid.tolist() == [True, False, True, False, False]
        x.append(made.x[made.valid])
    # On any workers the same, and no noise twice.
    assert torch.equal(*x) and x[0][0, 0] - 1.5 != x[0][1, 0] - 1.6


@pytest.mark.slow
def test_a_call_has_an_end_and_says_so():
    simulator = vectorize(hangs_or_crashes, max_seconds=0.5)
    rows = torch.tensor([[-2.0, 0.0]]), torch.zeros(1, 1)
    with pytest.raises(TimeoutError, match="longer than max_seconds=0.5"):
        simulator(*rows)
    with pytest.raises(ValueError, match="max_seconds"):
        vectorize(hangs_or_crashes, max_seconds=0.0)


@pytest.mark.slow
def test_a_process_that_has_died_is_replaced():
    simulator = vectorize(lambda t, d: t, max_seconds=60.0)
    theta = torch.ones(1, 2)
    assert torch.equal(simulator(theta, theta), theta)
    (process,) = simulator._process._processes
    os.kill(process, signal.SIGKILL)
    assert torch.equal(simulator(theta, theta), theta)


def test_a_simulator_that_exits_does_not_end_the_program():
    simulator = vectorize(lambda t, d: sys.exit(1), max_seconds=60.0)
    with pytest.raises(RuntimeError, match="simulator exits, with 1"):
        simulator(torch.ones(1, 2), torch.ones(1, 1))


def test_a_simulator_that_only_fails_is_soon_given_up():
    calls = []

    def fails(theta, design):
        calls.append(theta)
        raise ZeroDivisionError("no rate")

    rows = torch.ones(500, 2), torch.ones(500, 1)
    with pytest.raises(ZeroDivisionError, match="no rate"):
        run_simulator(vectorize(fails), *rows, simulation_batch_size=1)
    assert len(calls) == 32


# --- A cluster ------------------------------------------------------------------------


@pytest.fixture(scope="module")
def cluster(tmp_path_factory):
    distributed = pytest.importorskip("distributed")
    with (
        distributed.LocalCluster(
            n_workers=2,
            threads_per_worker=1,
            processes=True,
            dashboard_address=None,
            local_directory=tmp_path_factory.mktemp("dask"),
        ) as cluster,
        distributed.Client(cluster),
        joblib.parallel_config(backend="dask"),
    ):
        yield cluster


@pytest.mark.slow
@pytest.mark.usefixtures("cluster")
def test_a_dask_cluster_gives_the_same_unless_there_is_one_worker():
    def slow(theta, design):
        time.sleep(0.1)
        noise = torch.from_numpy(np.random.randn(len(theta), 1))
        process = torch.full((len(theta), 1), os.getpid())
        return torch.cat([theta * design + torch.randn_like(theta) + noise, process], 1)

    here, *there = (simulate(slow, num_workers)[2] for num_workers in (1, 2, None))
    assert here[:, 2].eq(os.getpid()).all()
    for x in there:
        assert torch.equal(here[:, :2], x[:, :2])
        assert not x[:, 2].eq(os.getpid()).any()


@pytest.mark.slow
@pytest.mark.usefixtures("cluster")
def test_on_a_dask_cluster_errors_cost_rows_and_interrupts_are_raised():
    theta, design = rows(BAD)
    with pytest.warns(UserWarning, match="4 of 50 .* ZeroDivisionError: negative"):
        made = run_simulator(raises_for_negative, theta, design, **WORKERS)
    assert_only_bad_rows_are_missing(made, theta, design)
    with pytest.raises(KeyboardInterrupt, match="stop"):
        simulate(raises(KeyboardInterrupt, "stop"), num_workers=2)
    simulate(num_workers=2)


@pytest.mark.slow
@pytest.mark.usefixtures("cluster")
def test_a_time_limit_on_daemons_is_refused_with_the_remedy():
    simulator = vectorize(echo, max_seconds=1.0)
    with pytest.raises(RuntimeError, match=r"distributed.worker.daemon.: False"):
        run_simulator(simulator, *rows(), **WORKERS)
