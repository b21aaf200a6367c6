r"""A critic in the place of the likelihood: what is lost without a normalizer.

    make reproduce NAME=unnormalized

Networks of :math:`(x, \theta, \xi)` learn from 10,000 simulations at designs all over
the space of `noisy_linear` (one measurement) and `sir`, by InfoNCE-λ with 15
contrastive parameters or by NWJ, :math:`f_0 - e^{-1} \, \text{mean}_l \, e^{f_l}`. A
`likelihood` is a mixture whose density integrates to one, a `critic` a network of the
same size that returns any number; at :math:`\lambda > 0` its own value counts as the
likelihood would.

With x of one value, integrals are sums over a grid. `log_normalizer` is the mean of
:math:`\log \int e^{f} dx` over parameters and designs, and `drift` its standard
deviation: a likelihood has zeros. `share` is the exact information of the best design
of a grid, by the bound of 2,000 new simulations at each, over the largest; `reported`
the bound there, and `exact` the exact value. `lc2st` is the local two-sample test of
the posterior :math:`\propto p(\theta) \, e^{f}` there, as ratio estimation uses a
critic, by 2,000 draws of the prior that are reweighted (0 is calibrated, 0.25 the
most). `distance` is how far predicted data are from simulated ones: the Wasserstein
distance, in standard deviations of the data, of :math:`e^{f}` that is normalized on the
grid, and `distance_as_is` that of :math:`e^f` taken for a density, which counts what is
missing to one as mass at the far end of the grid.
"""

import contextlib
import io
import math
import time
from collections.abc import Callable, Sequence
from typing import Any

import torch
from sbi.diagnostics.lc2st import LC2ST
from torch import Tensor, nn

from benchmarks.few_simulations import CASES as LARGEST
from benchmarks.few_simulations import information
from benchmarks.study import Job, Row, Study, averages
from sbi_boed_plugin import tasks, transformed_likelihood_nn
from sbi_boed_plugin._fit import AveragedSchedule, Batches, Fit
from sbi_boed_plugin.experiment import measure
from sbi_boed_plugin.objectives.info_nce import in_batch_contrast, info_nce_loss

TASKS = {"noisy_linear": 1, "sir": 0}
LOSSES = {"lambda=0": 0.0, "lambda=0.1": 0.1, "lambda=1": 1.0, "nwj": None}
NUM_SIMULATIONS, NUM_CONTRASTIVE, BATCH_SIZE = 10_000, 15, 128
NUM_DESIGNS, NUM_SCORING, NUM_CONTRASTS_OF_SCORE = 20, 2_000, 255
NUM_GRID, NUM_PAIRS, NUM_PRIOR, NUM_NULL = 2_000, 300, 2_000, 50


def jobs(num_seeds: int, quick: bool) -> list[Job]:
    """Return one job for each seed, task, model and loss."""
    return [
        {"task": name, "model": model, "loss": loss, "seed": seed}
        for seed in range(num_seeds)
        for name in (list(TASKS)[:1] if quick else TASKS)
        for model in ("likelihood", "critic")
        for loss in LOSSES
    ]


class Critic(nn.Module):
    """Any function of data, parameters and design, in units of the simulations."""

    def __init__(self, x: Tensor, condition: Tensor) -> None:
        """Take the units."""
        super().__init__()
        rows = torch.cat([x, condition], dim=1)
        self.centre, self.spread = rows.mean(dim=0), rows.std(dim=0)
        self.net = nn.Sequential(
            nn.Linear(rows.shape[1], 100),
            nn.SiLU(),
            nn.Linear(100, 100),
            nn.SiLU(),
            nn.Linear(100, 1),
        )

    def log_prob(self, x: Tensor, condition: Tensor) -> Tensor:
        """Return values `(sample_dim, batch_dim)`, as a density would."""
        rows = torch.cat([x, condition.expand(*x.shape[:2], -1)], dim=-1)
        return self.net((rows - self.centre) / self.spread)[..., 0]


def units(task: tasks.Task) -> tuple[Callable, Callable]:
    """Return what networks see of parameters beside designs, and of data."""
    if task.name == "sir":
        both = lambda theta, design: torch.cat([theta.log(), design.log()], dim=-1)
        # Counts of people are spread over an interval of one.
        return both, lambda x: (x + torch.rand_like(x)).log1p()
    return lambda theta, design: torch.cat([theta, design], dim=-1), lambda x: x


def matrix(net: Any, x: Tensor, conditions: Tensor) -> Tensor:
    """Return values `(num, batch_dim)` of conditions `(num, batch_dim, dim)`."""
    pairs, data = conditions.flatten(0, 1), x.repeat(len(conditions), 1)
    values = net.log_prob(data.unsqueeze(0), pairs)[0]
    return values.reshape(conditions.shape[:2])


def loss_of(values: Tensor, strength: float | None) -> Tensor:
    """Return losses of a matrix whose first row is that of simulated pairs."""
    if strength is not None:
        return info_nce_loss(values, strength)
    return math.exp(-1.0) * values[1:].exp().mean(dim=0) - values[0]


def bound_of(values: Tensor, strength: float | None) -> Tensor:
    """Return the terms of the bound that belongs to a loss."""
    return -loss_of(values, None if strength is None else 0.0)


def train(net: Any, task: tasks.Task, strength: float | None, quick: bool) -> None:
    """Train a network from new simulations, with contrasts at the same design."""
    num = 1_000 if quick else NUM_SIMULATIONS
    theta, design = (
        d.sample(torch.Size((num,))) for d in (task.prior, task.design_space)
    )
    of_condition, of_x = units(task)
    rows = theta, design, of_x(task.simulator(theta, design))

    def losses(batch: tuple[Tensor, ...]) -> Tensor:
        own, at, x = batch
        contrast = in_batch_contrast(own, NUM_CONTRASTIVE)
        every = torch.cat([own.unsqueeze(0), contrast])
        conditions = of_condition(every, at.expand(len(every), *at.shape))
        return loss_of(matrix(net, x, conditions), strength)

    order = torch.randperm(num)
    left_out = Batches(rows, order[: num // 10], BATCH_SIZE, shuffle=False)

    def validate() -> float:
        with torch.random.fork_rng():
            torch.manual_seed(0)
            return float(torch.cat([losses(batch) for batch in left_out]).mean())

    used = Batches(rows, order[num // 10 :], BATCH_SIZE)
    schedule = AveragedSchedule(learning_rate=3e-3, min_gain=2e-3)
    Fit(net, schedule).run(used, losses, validate, max_num_epochs=2 if quick else 60)


@torch.no_grad()
def scores(net: Any, task: tasks.Task, strength: float | None) -> tuple[Tensor, Tensor]:
    """Return designs of a grid, and their bounds by new simulations."""
    of_condition, of_x = units(task)
    steps = torch.linspace(0.0, 1.0, NUM_DESIGNS).unsqueeze(1)
    designs = task.design_low + steps * (task.design_high - task.design_low)
    values = []
    for design in designs:
        theta = task.prior.sample(torch.Size((NUM_SCORING,)))
        at = design.expand(NUM_SCORING, -1)
        x = of_x(task.simulator(theta, at))
        every = torch.cat(
            [theta[None], in_batch_contrast(theta, NUM_CONTRASTS_OF_SCORE)]
        )
        conditions = of_condition(every, at.expand(len(every), *at.shape))
        values.append(bound_of(matrix(net, x, conditions), strength).mean())
    return designs, torch.stack(values)


@torch.no_grad()
def predictions(net: Any, task: tasks.Task) -> dict[str, float]:
    """Return normalizers, and how far predicted data are from simulated ones."""
    of_condition, of_x = units(task)
    theta, design = (
        d.sample(torch.Size((200,))) for d in (task.prior, task.design_space)
    )
    x = of_x(task.simulator(*(t.repeat_interleave(500, 0) for t in (theta, design))))
    spread, low, high = x.std(), x.min(), x.max()
    grid = torch.linspace(float(low - spread), float(high + spread), NUM_GRID)
    step = grid[1] - grid[0]
    data = grid.reshape(-1, 1, 1).expand(-1, 200, 1)
    log_prob = net.log_prob(data, of_condition(theta, design))  # (grid, 200)
    log_normalizer = torch.logsumexp(log_prob, dim=0) + step.log()
    simulated = x.reshape(200, 500).T.unsqueeze(0) <= grid[:, None, None]
    simulated = simulated.float().mean(dim=1)
    as_is = (log_prob.exp() * step).cumsum(dim=0).clamp(max=1.0)
    normalized = torch.softmax(log_prob, dim=0).cumsum(dim=0)
    distance = [
        float(((each - simulated).abs().sum(dim=0) * step / spread).mean())
        for each in (normalized, as_is)
    ]
    return {
        "log_normalizer": float(log_normalizer.mean()),
        "drift": float(log_normalizer.std()),
        "distance": distance[0],
        "distance_as_is": distance[1],
    }


@torch.no_grad()
def local_test(net: Any, task: tasks.Task, design: Tensor, seed: int) -> Row:
    """Return the local two-sample test of the posterior at a design."""
    of_condition, of_x = units(task)

    def draws(x: Tensor, num: int) -> Tensor:
        theta = task.prior.sample(torch.Size((NUM_PRIOR,)))
        conditions = of_condition(theta, design.expand(NUM_PRIOR, -1))
        values = net.log_prob(x.expand(1, NUM_PRIOR, -1), conditions)[0]
        return theta[torch.multinomial(torch.softmax(values, 0), num, True)]

    theta = task.prior.sample(torch.Size((NUM_PAIRS,)))
    x = of_x(task.simulator(theta, design.expand(NUM_PAIRS, -1)))
    x_o = of_x(measure(task, design))
    own = torch.cat([draws(row, 1) for row in x])
    seen = torch.log if task.name == "sir" else (lambda v: v)
    with torch.enable_grad(), contextlib.redirect_stdout(io.StringIO()):
        test = LC2ST(seen(theta), x, seen(own), seed=seed, num_trials_null=NUM_NULL)
        test.train_under_null_hypothesis(verbosity=0)
        test.train_on_observed_data(verbosity=0)
    local = {"theta_o": seen(draws(x_o[0], 1_000)), "x_o": x_o}
    return {
        "lc2st": float(test.get_statistic_on_observed_data(**local)),
        "lc2st_p": float(test.p_value(**local)),
    }


def run(job: Job, quick: bool) -> Row:
    """Train and evaluate one network."""
    torch.manual_seed(job["seed"])
    started = time.process_time()
    dim_design, strength = TASKS[job["task"]], LOSSES[job["loss"]]
    sizes = {"dim_design": dim_design} if dim_design else {}
    task = tasks.get_task(job["task"], **sizes)
    of_condition, of_x = units(task)
    theta, design = (
        d.sample(torch.Size((1_000,))) for d in (task.prior, task.design_space)
    )
    first = of_x(task.simulator(theta, design)), of_condition(theta, design)
    if job["model"] == "critic":
        net: Any = Critic(*first)
    else:
        build = transformed_likelihood_nn("mdn", dim_design=1, linear_start=True)
        net = build(first[1], first[0])
    train(net, task, strength, quick)
    seconds = time.process_time() - started
    designs, values = scores(net, task, strength)
    design = designs[values.argmax()]
    exact = information(task, design)
    row = {
        "share": exact / LARGEST[job["task"], dim_design],
        "exact": exact,
        "reported": float(values.max()),
        **predictions(net, task),
        **local_test(net, task, design, job["seed"]),
        "cpu_seconds": seconds,
    }
    return {key: round(value, 4) for key, value in row.items()}


def summary(rows: Sequence[Row]) -> list[Row]:
    """Return means over seeds."""
    values = ["share", "exact", "reported", "log_normalizer", "drift", "distance"]
    values += ["distance_as_is", "lc2st", "lc2st_p", "cpu_seconds"]
    return averages(rows, ["task", "model", "loss"], values)


STUDY = Study(
    name="unnormalized",
    title="Normalized likelihoods and critics: information, designs, predictions",
    jobs=jobs,
    run=run,
    summary=summary,
    num_seeds=3,
)
