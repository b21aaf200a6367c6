"""What every task promises."""

import math
import pickle

import pytest
import torch

from sbi_boed_plugin.tasks import Task, available_tasks, get_task

NAMES = available_tasks()
# Tasks that measure once per value of the design, and the size of the other designs.
REPEATED = ["bmp", "gaussian_linear", "noisy_linear", "pharmacokinetic", "sir"]
FIXED = {
    "camera": 1,
    "ces": 6,
    "death_process": 1,
    "hyperbolic_discounting": 2,
    "location_finding": 2,
    "prey_population": 1,
    "psychometric": 1,
    "trace": 1,
}
SHAPES = {"camera": (1, 16, 16), "trace": (100,)}
TRACTABLE = sorted(set(NAMES) - {"sir"})


def make(name: str, dim_design: int = 1) -> Task:
    return get_task(name, **({} if name in FIXED else {"dim_design": dim_design}))


def draw(task: Task, num: int) -> tuple[torch.Tensor, torch.Tensor]:
    return task.prior.sample((num,)), task.design_space.sample((num,))


@pytest.mark.parametrize("dim_design", [1, 3])
@pytest.mark.parametrize("name", NAMES)
def test_shapes_agree_with_the_dimensions(name, dim_design):
    task = make(name, dim_design)
    theta, design = draw(task, 7)
    assert task.name == name
    assert task.dim_design == FIXED.get(name, dim_design)
    x_shape = SHAPES.get(name, (1 if name in FIXED else dim_design,))
    assert task.x_shape == SHAPES.get(name) and task.dim_x == math.prod(x_shape)
    assert theta.shape == (7, task.dim_theta)
    assert design.shape == (7, task.dim_design)
    assert task.simulator(theta, design).shape == (7, *x_shape)
    assert task.true_parameters.shape == (1, task.dim_theta)
    assert task.prior.log_prob(task.true_parameters).isfinite().all()
    assert len(task.parameter_names) == task.dim_theta
    assert len(task.design_names) == task.dim_design
    assert len(task.x_names) == task.dim_x
    assert (task.design_low < task.design_high).all()
    assert task.simulator(theta[:0], design[:0]).shape == (0, *x_shape)


@pytest.mark.parametrize("name", NAMES)
def test_pickles_and_then_simulates_the_same(name):
    task = make(name, dim_design=2)
    theta, design = draw(task, 5)
    simulator = pickle.loads(pickle.dumps(task.simulator))
    torch.manual_seed(1)
    x = task.simulator(theta, design)
    torch.manual_seed(1)
    assert torch.equal(simulator(theta, design), x)
    for transform in (task.theta_transform, task.x_transform, task.design_transform):
        pickle.loads(pickle.dumps(transform))
    prior = pickle.loads(pickle.dumps(task.prior))
    torch.testing.assert_close(prior.log_prob(theta), task.prior.log_prob(theta))


@pytest.mark.parametrize("name", NAMES)
def test_simulator_draws_new_noise_in_the_dtype_of_theta(name):
    task = get_task(name)
    theta, design = draw(task, 200)
    first, second = task.simulator(theta, design), task.simulator(theta, design)
    assert not torch.equal(first, second)
    assert task.simulator(theta.double(), design).dtype == torch.float64
    assert task.simulator(theta, design.double()).dtype == torch.float32


@pytest.mark.gpu
@pytest.mark.parametrize("name", NAMES)
def test_simulator_follows_device_of_theta(name, device):
    task = make(name, dim_design=2)
    theta, design = draw(task, 5)
    x = task.simulator(theta.to(device), design)
    assert x.device.type == torch.device(device).type


@pytest.mark.parametrize("name", NAMES)
def test_transforms_invert(name):
    task = make(name, dim_design=2)
    theta, design = draw(task, 100)
    x = task.simulator(theta, design)
    for transform, value in (
        (task.theta_transform, theta),
        (task.x_transform, x),
        (task.design_transform, design),
    ):
        transformed = transform(value)
        assert transformed.isfinite().all()
        # Single precision: logarithm and exponential lose a few last digits.
        torch.testing.assert_close(
            transform.inv(transformed), value, rtol=1e-5, atol=1e-4
        )


@pytest.mark.parametrize("name", NAMES)
def test_flags_say_what_is_known(name):
    task = get_task(name)
    design = task.design_space.sample()
    theta = task.true_parameters
    x = task.simulator(theta, design[None])
    if task.has_log_likelihood:
        assert task.log_likelihood(x, theta, design[None]).shape == (1,)
    else:
        with pytest.raises(NotImplementedError, match="has_log_likelihood"):
            task.log_likelihood(x, theta, design[None])
    if task.has_exact_eig:
        assert len(task.exact_eig(design)) == 2
    else:
        with pytest.raises(NotImplementedError, match="has_exact_eig"):
            task.exact_eig(design)


@pytest.mark.parametrize("name", TRACTABLE)
def test_log_likelihood_broadcasts_over_leading_dimensions(name):
    task = make(name, dim_design=3)
    theta, design = draw(task, 4)
    x = task.simulator(theta, design)
    pairs = task.log_likelihood(x[None], theta[:, None], design[None])
    assert pairs.shape == (4, 4)
    torch.testing.assert_close(pairs.diagonal(), task.log_likelihood(x, theta, design))
    one = task.log_likelihood(x[2], theta[1], design[2])
    torch.testing.assert_close(pairs[1, 2], one)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda t, d: (t[0], d), r"`theta` must be a .* got \({0},\)"),
        (lambda t, d: (t[:, 1:], d), r"`theta` .* \(batch, {0}\) .*got \(3, {1}\)"),
        (lambda t, d: (t, d.repeat(1, 2)), r"`design` .* got \(3, {2}\)"),
        (lambda t, d: (t, d[:1]), "`theta` has 3 rows and `design` 1"),
        (lambda t, d: (t, torch.nan * d), "`design` must be finite"),
        (lambda t, d: (t.new_full(t.shape, torch.inf), d), "`theta` must be finite"),
        (lambda t, d: (t.long(), d), "`theta` must .*floating point"),
        (lambda t, d: (t.tolist(), d), "`theta` must be a torch.Tensor .* got list"),
    ],
)
@pytest.mark.parametrize("name", NAMES)
def test_simulator_refuses_what_it_cannot_use(name, change, message):
    task = get_task(name)
    sizes = task.dim_theta, task.dim_theta - 1, 2 * task.dim_design
    theta = task.true_parameters.expand(3, -1)
    with pytest.raises(ValueError, match=message.format(*sizes)):
        task.simulator(*change(theta, task.design_high.expand(3, -1)))


@pytest.mark.parametrize(
    ("name", "argument"),
    [
        *((name, "dim_design") for name in REPEATED),
        ("location_finding", "num_sources"),
        ("location_finding", "dim_space"),
    ],
)
def test_sizes_must_be_positive(name, argument):
    with pytest.raises(ValueError, match=f"{argument}=0 must be at least 1"):
        get_task(name, **{argument: 0})


@pytest.mark.parametrize("name", TRACTABLE)
def test_exact_eig_takes_one_design(name):
    task = get_task(name)
    design = 0.5 * task.design_high
    assert task.exact_eig(design) == task.exact_eig(design[None])
    with pytest.raises(ValueError, match="single design, got 5 rows"):
        task.exact_eig(design.expand(5, -1))


@pytest.mark.parametrize("name", FIXED)
def test_arguments_that_a_task_does_not_have_are_named(name):
    message = f"Task '{name}' does not take `dim_design`, got 3. Arguments: n"
    with pytest.raises(ValueError, match=message):
        get_task(name, dim_design=3)


def test_unknown_task_is_named_with_the_closest_one():
    with pytest.raises(ValueError, match="'noisy_liner'.* mean 'noisy_linear'.*sir"):
        get_task("noisy_liner")
    with pytest.raises(
        ValueError, match="'zzz'. Available: bmp, camera, ces, death_process"
    ):
        get_task("zzz")
