"""Policies that adapt, against designs chosen at random or all beforehand.

    make reproduce NAME=adaptive

For each task, method and seed, the information of all experiments together, by the
*true* likelihood: sPCE is a lower and sNMC an upper bound, with contrastive parameters
of the prior, a million where that matters and 100,000 elsewhere, and `lace` encloses it
by draws of the policy's posterior over histories. Of `sir`, whose likelihood is not
known, there is only what results report. Methods are

- `random`: designs drawn uniformly;
- `fixed`: the best list of designs, `optimize_policy(adapts=False)`;
- `policy`: `optimize_policy(looks_ahead=False)`, inside the learned likelihood, with
  more simulations and rounds where designs go very near to hidden sources;
- `look_ahead`: `optimize_policy()`, with steps that were chosen for it;
- `simulator`: `optimize_policy(method="simulator")`, by the score gradient.

`reported` is what the result says, a lower bound by the simulator's data and the
learned likelihood. Simulators are black boxes: none is differentiated. `rank_error` is
how far the ranks of true parameters among draws of the amortised posterior are from
uniform: the largest Kolmogorov distance, of any parameter, after the first experiment,
half of them and all; with 500 rollouts, chance alone makes it 0.07 to 0.08 in one of
twenty studies.
"""

import math
import time
from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from benchmarks.study import Job, Row, Study, averages
from sbi_boed_plugin import tasks
from sbi_boed_plugin.adaptive.config import PolicyResult
from sbi_boed_plugin.adaptive.objective import contrastive_terms
from sbi_boed_plugin.adaptive.policy import HistoryPolicy
from sbi_boed_plugin.adaptive.posterior import AmortizedPosterior
from sbi_boed_plugin.adaptive.rollout import Rollouts, roll_out
from sbi_boed_plugin.experiment import make_trainer


class Case(NamedTuple):
    """Simulations, steps of a policy and of one that looks ahead, and what scores.

    `budget_of_policy` are the simulations of a policy that does not look ahead, where
    they are others, and `num_rounds` are its rounds.
    """

    budget: int
    num_steps: int
    num_steps_ahead: int
    num_contrastive: int
    num_rollouts: int = 500
    budget_of_policy: int | None = None
    num_rounds: int = 3


CASES: dict[tuple[str, int], Case] = {
    ("death_process", 4): Case(20_000, 1_000, 2_000, 100_000),
    ("psychometric", 10): Case(20_000, 1_000, 1_000, 100_000),
    ("hyperbolic_discounting", 20): Case(50_000, 1_000, 1_500, 100_000),
    ("prey_population", 10): Case(50_000, 1_000, 2_000, 100_000),
    ("pharmacokinetic", 5): Case(50_000, 1_000, 2_000, 100_000),
    ("location_finding", 10): Case(100_000, 2_500, 7_000, 1_000_000, 500, 300_000, 5),
    ("location_finding", 30): Case(100_000, 2_500, 3_000, 1_000_000, 200, 300_000, 5),
    ("ces", 10): Case(100_000, 2_000, 4_000, 1_000_000),
    ("sir", 5): Case(50_000, 1_000, 2_000, 0),
}
METHODS = ("random", "fixed", "policy", "look_ahead", "simulator")
NUM_OF_POSTERIOR, NUM_RANKED = 1_023, 500
_CHUNK = 5_000


class TrueExperiment:
    """A task in the place of a learned experiment."""

    def __init__(self, task: tasks.Task) -> None:
        self.task = task

    def log_likelihoods(self, theta: Tensor, rollouts: Rollouts) -> Tensor:
        """Return `(num_experiments, num, batch_dim)` of `(num, batch_dim, dim)`."""
        pairs = zip(rollouts.design, rollouts.x, strict=True)
        return torch.stack([self.task.log_likelihood(x, theta, d) for d, x in pairs])


def random_rollouts(task: tasks.Task, num: int, num_experiments: int) -> Rollouts:
    """Return histories at designs that are drawn uniformly."""
    theta = task.prior.sample(torch.Size((num,)))
    design = task.design_space.sample(torch.Size((num_experiments, num)))
    x = torch.stack([task.simulator(theta, each) for each in design])
    return Rollouts(theta, design, x, torch.zeros(num_experiments, num))


@torch.no_grad()
def true_bounds(task: tasks.Task, rollouts: Rollouts, num: int) -> dict[str, float]:
    """Return sPCE and sNMC of histories, with their standard errors, in nats."""
    true = TrueExperiment(task)
    own = true.log_likelihoods(rollouts.theta[None], rollouts)[:, 0].sum(dim=0)
    total = torch.full_like(own, -torch.inf)
    for size in torch.arange(num).split(_CHUNK):
        theta = task.prior.sample(torch.Size((len(size),))).unsqueeze(1)
        each = torch.zeros(len(size), len(own))
        for design, x in zip(rollouts.design, rollouts.x, strict=True):
            each += task.log_likelihood(x, theta, design)
        total = torch.logaddexp(total, each.logsumexp(dim=0))
    lower = own - torch.logaddexp(own, total) + math.log(num + 1)
    upper = own - total + math.log(num)
    # Where no contrast has any likelihood, there is no upper bound.
    return {
        "lower": float(lower.double().mean()),
        "lower_se": float(lower.double().std()) / math.sqrt(len(lower)),
        "upper": float(upper.double().mean()),
    }


def deployment(policy: HistoryPolicy, rollouts: Rollouts) -> float:
    """Return milliseconds of proposing one design, at the end of a history."""
    history = rollouts.design[:-1, 0], rollouts.x[:-1, 0]
    started = time.perf_counter()
    for _ in range(100):
        policy.propose(*history)
    return 10.0 * (time.perf_counter() - started)


@torch.no_grad()
def rank_error(posterior: AmortizedPosterior, rollouts: Rollouts) -> float:
    """Return the largest distance of ranks in the posterior from a uniform law."""
    conditions = posterior.conditions(rollouts.design, rollouts.x)
    num, rows = len(conditions), len(rollouts.theta)
    expected = (torch.arange(rows) + 0.5) / rows
    errors = []
    for step in {0, (num - 1) // 2, num - 1}:
        draws = posterior.net.sample(torch.Size((NUM_RANKED,)), conditions[step])
        ranks = (draws < rollouts.theta).float().mean(dim=0).sort(dim=0).values
        errors.append((ranks - expected.unsqueeze(1)).abs().max())
    return float(torch.stack(errors).max())


def jobs(num_seeds: int, quick: bool) -> list[Job]:
    """Return one job for each seed, task and method."""
    cases = list(CASES)[:1] if quick else list(CASES)
    return [
        {"task": name, "experiments": number, "method": method, "seed": seed}
        for seed in range(num_seeds)
        for name, number in cases
        for method in METHODS
        # Without a likelihood there is what results report alone.
        if method != "random" or tasks.get_task(name).has_log_likelihood
    ]


def run(job: Job, quick: bool) -> Row:
    """Train a policy and evaluate it."""
    torch.manual_seed(job["seed"])
    task = tasks.get_task(job["task"])
    num_experiments = job["experiments"]
    case = CASES[job["task"], num_experiments]
    budget, num_steps, num_ahead, num_contrastive, num_rollouts = case[:5]
    is_greedy = job["method"] == "policy"
    if is_greedy:
        budget = case.budget_of_policy or budget
    else:
        num_steps = num_ahead
    if quick:
        budget, num_steps, num_rollouts, num_contrastive = 3_000, 20, 50, 5_000
    if job["method"] == "random":
        rollouts = random_rollouts(task, num_rollouts, num_experiments)
        return true_bounds(task, rollouts, num_contrastive)
    settings: dict[str, Any] = {"num_steps": num_steps}
    if is_greedy:
        settings |= {"looks_ahead": False, "num_rounds": case.num_rounds}
    if job["method"] == "simulator":
        # Each simulation is used once: ten times as many.
        settings = {"method": "simulator"}
        budget = budget if quick else 10 * budget
    trainer = make_trainer(task, show_progress_bars=False)
    started = time.process_time()
    result: PolicyResult = trainer.optimize_policy(
        task.simulator,
        num_experiments,
        max_num_simulations=budget,
        adapts=job["method"] != "fixed",
        training_batch_size=32 if quick else 128,
        **settings,
    )
    seconds = time.process_time() - started
    theta = task.prior.sample(torch.Size((num_rollouts,)))
    with torch.no_grad():
        rollouts = roll_out(result.policy, theta, task.simulator)
    row: dict[str, Any] = {}
    if task.has_log_likelihood:
        networks: Any = TrueExperiment(task), result.posterior, task.prior
        lace = contrastive_terms(*networks, rollouts, NUM_OF_POSTERIOR)
        row |= true_bounds(task, rollouts, num_contrastive)
        row |= {"lace_lower": float(lace[0].mean())}
        row |= {"lace_upper": float(lace[1].mean())}
    row |= {
        "reported": result.eig.value,
        "reported_se": result.eig.standard_error,
        "rank_error": rank_error(result.posterior, rollouts),
        "doubts": len(result.doubts),
        "calls": result.num_simulations,
        "cpu_seconds": seconds,
        "milliseconds": deployment(result.policy, rollouts),
    }
    return {k: round(v, 4) if isinstance(v, float) else v for k, v in row.items()}


def summary(rows: Sequence[Row]) -> list[Row]:
    """Return means over seeds, with the error of the rollouts of one seed."""
    errors = {"error": "lower_se", "reported_error": "reported_se"}
    bounds = ["lower", "error", "upper", "lace_lower", "lace_upper"]
    bounds += ["reported", "reported_error", "rank_error"]
    values = [*bounds, "calls", "cpu_seconds", "milliseconds"]
    filled = [
        {**dict.fromkeys(values), **row, **{k: row.get(v) for k, v in errors.items()}}
        for row in rows
    ]
    return averages(filled, ["task", "experiments", "method"], values)


STUDY = Study(
    name="adaptive",
    title="Information of all experiments together, by policy",
    jobs=jobs,
    run=run,
    summary=summary,
    num_seeds=3,
)
