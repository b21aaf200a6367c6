"""Targets, models, costs, constraints, instruments and answers, against exact values.

    make reproduce NAME=people

Problems whose best design is known by a closed form, by quadrature or by a grid:

- `target`: a parameter beside one that is nuisance and the same in all experiments;
- `models`: a line against a shifted parabola; `memory`: power against exponential
  forgetting by one answer of right or wrong;
- `cost`: information minus a cost; `per_cost`: information per cost;
- `constraint`: two measurements that share six hours;
- `list`: a time and one of two instruments, of which one comes late, as a list;
- `product`: the same with any time, as a product: the best one is where it comes;
- `yes_no`: the intensity at which answers tell most of a threshold.

`share` is the worth of the design found relative to the best one, `below` how far the
reported information is below that of the design; each with 1,000 simulations, and with
as many as are the default.
"""

import functools
import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from sbi.utils import BoxUniform
from torch import Tensor
from torch.distributions import Bernoulli, MultivariateNormal

from benchmarks.study import Job, Row, Study, averages
from sbi_boed_plugin import (
    NLE_INCE,
    CategoricalPolicy,
    ModelDiscrimination,
    ProductPolicy,
    TruncatedNormalPolicy,
    categorical_likelihood_nn,
)
from sbi_boed_plugin.experiment import NoOpTracker
from sbi_boed_plugin.policies import DesignPolicy

BUDGETS = {"1,000": {"max_num_simulations": 1_000}, "default": {}}


def normal(dim: int, mean: float = 0.0, sd: float = 1.0) -> MultivariateNormal:
    """Return independent Normals."""
    return MultivariateNormal(torch.full((dim,), mean), sd**2 * torch.eye(dim))


def interval(low: float, high: float, dim: int = 1) -> TruncatedNormalPolicy:
    """Return a policy on a box."""
    return TruncatedNormalPolicy(torch.full((dim,), low), torch.full((dim,), high))


@dataclass(frozen=True)
class Known:
    """A problem whose answer is known.

    `information` and `worth` are exact functions of one design, of which `best` is the
    largest worth.
    """

    policy: Callable[[], DesignPolicy]
    simulator: Any
    information: Callable[[Tensor], float]
    grid: Tensor
    prior: Any = None
    density_estimator: Any = "mdn"
    models: Any = None
    settings: dict[str, Any] = field(default_factory=dict)
    worth: Callable[[float, Tensor], float] = lambda eig, design: eig

    def trainer(self) -> NLE_INCE:
        """Return a new trainer."""
        kwargs = {
            "design_policy": self.policy(),
            "tracker": NoOpTracker(),
            "show_progress_bars": False,
        }
        if self.models is not None:
            return ModelDiscrimination(self.models, self.density_estimator, **kwargs)
        return NLE_INCE(self.prior, self.density_estimator, **kwargs)


def of_mixture(densities: Sequence[Tensor], step: float) -> float:
    """Return the information about which of equally likely densities holds."""
    mean = sum(densities) / len(densities)
    terms = [
        p * (p.clamp_min(1e-300) / mean.clamp_min(1e-300)).log() for p in densities
    ]
    return float(sum(terms).sum() * step / len(densities))


def _normal_density(x: Tensor, mean: Any, sd: Any) -> Tensor:
    return torch.exp(-0.5 * ((x - mean) / sd) ** 2) / (sd * math.sqrt(2.0 * math.pi))


def _target() -> Known:
    def simulator(theta: Tensor, design: Tensor) -> Tensor:
        signal = theta[:, :1] * design + 3.0 * theta[:, 1:] * (1.0 - design)
        return signal + 0.2 * torch.randn(len(theta), 1)

    def information(design: Tensor) -> float:
        d = float(design[0])
        return 0.5 * math.log(1.0 + d**2 / (9.0 * (1.0 - d) ** 2 + 0.04))

    grid = torch.linspace(-2.0, 2.0, 4_001).unsqueeze(1)
    settings = {"target": 0}
    return Known(
        lambda: interval(-2.0, 2.0),
        simulator,
        information,
        grid,
        normal(2),
        settings=settings,
    )


def _models() -> Known:
    prior, noise = normal(1), 0.3

    def information(design: Tensor) -> float:
        d = float(design[0])
        widths = math.hypot(d, noise), math.hypot(d**2, noise)
        x = torch.linspace(-12.0, 12.0, 20_001).double() * max(widths)
        both = [
            _normal_density(x, m, s) for m, s in zip((0.0, 1.0), widths, strict=True)
        ]
        return of_mixture(both, float(x[1] - x[0]))

    def line(theta: Tensor, design: Tensor) -> Tensor:
        return theta * design + noise * torch.randn_like(design)

    def parabola(theta: Tensor, design: Tensor) -> Tensor:
        return 1.0 + theta * design**2 + noise * torch.randn_like(design)

    grid = torch.linspace(0.0, 3.0, 151).unsqueeze(1)
    models = [(prior, line), (prior, parabola)]
    return Known(lambda: interval(0.0, 3.0), None, information, grid, models=models)


def _memory() -> Known:
    """Right or wrong after a time: a (t + 1)^-b or a exp(-b t)."""
    powers = BoxUniform(torch.tensor([0.7, 0.6]), torch.tensor([1.0, 1.0]))
    decays = BoxUniform(torch.tensor([0.7, 0.05]), torch.tensor([1.0, 0.2]))

    def power(theta: Tensor, t: Tensor) -> Tensor:
        return theta[:, :1] * (t + 1.0) ** (-theta[:, 1:])

    def decay(theta: Tensor, t: Tensor) -> Tensor:
        return theta[:, :1] * torch.exp(-theta[:, 1:] * t)

    def information(design: Tensor) -> float:
        means = []
        for prior, curve in ((powers, power), (decays, decay)):
            low, high = prior.base_dist.low, prior.base_dist.high
            parts = [
                torch.linspace(float(a), float(b), 201)
                for a, b in zip(low, high, strict=True)
            ]
            theta = torch.cartesian_prod(*parts)
            p = curve(theta, design.expand(len(theta), 1)).mean()
            means.append(torch.stack([p, 1.0 - p]).double())
        return of_mixture(means, 1.0)

    def answers(curve: Callable) -> Callable:
        return lambda theta, design: Bernoulli(curve(theta, design)).sample()

    return Known(
        lambda: interval(0.0, 40.0),
        None,
        information,
        torch.linspace(0.0, 40.0, 401).unsqueeze(1),
        density_estimator=categorical_likelihood_nn([0, 1]),
        models=[(powers, answers(power)), (decays, answers(decay))],
    )


def _line(theta: Tensor, design: Tensor) -> Tensor:
    return theta * design + torch.randn_like(design)


def _of_line(design: Tensor) -> float:
    return 0.5 * math.log(1.0 + float(design.square().sum()))


def _cost() -> Known:
    settings = {"cost": lambda d: 0.3 * d[:, 0], "maximize": "eig_minus_cost"}
    return Known(
        lambda: interval(0.0, 10.0),
        _line,
        _of_line,
        torch.linspace(0.0, 10.0, 1_001).unsqueeze(1),
        normal(1),
        settings=settings,
        worth=lambda eig, d: eig - 0.3 * float(d[0]),
    )


def _per_cost() -> Known:
    settings = {"cost": lambda d: 1.0 + 0.3 * d[:, 0], "maximize": "eig_per_cost"}
    return Known(
        lambda: interval(0.0, 10.0),
        _line,
        _of_line,
        torch.linspace(0.0, 10.0, 1_001).unsqueeze(1),
        normal(1),
        settings=settings,
        worth=lambda eig, d: eig / (1.0 + 0.3 * float(d[0])),
    )


def _constraint() -> Known:
    axis = torch.linspace(0.0, 5.0, 51)
    grid = torch.cartesian_prod(axis, axis)
    return Known(
        lambda: interval(0.0, 5.0, 2),
        _line,
        _of_line,
        grid[grid.sum(dim=1) <= 6.0],
        normal(1),
        settings={"feasible": lambda d: d.sum(dim=1) <= 6.0},
    )


def _list(is_product: bool = False) -> Known:
    prior = BoxUniform(torch.tensor([0.05]), torch.tensor([1.0]))
    times = torch.linspace(0.25, 12.0, 48)
    parts = [torch.stack([times, torch.full_like(times, k)], 1) for k in (0.0, 1.0)]
    candidates, rates = torch.cat(parts), torch.linspace(0.05, 1.0, 2_001)

    def level(theta: Tensor, t: Tensor, late: Tensor) -> Tensor:
        seen = torch.exp(-theta * t)
        return torch.where(late & (t < 5.0), torch.zeros_like(seen), seen)

    def simulator(theta: Tensor, design: Tensor) -> Tensor:
        late = design[:, 1:] > 0.5
        seen = level(theta, design[:, :1], late)
        return seen + torch.where(late, 0.02, 0.2) * torch.randn_like(seen)

    def information(design: Tensor) -> float:
        late = design[1] > 0.5
        means, sd = level(rates, design[0], late), 0.02 if late else 0.2
        ends = float(means.min()) - 6 * sd, float(means.max()) + 6 * sd
        x = torch.linspace(*ends, 1_500)
        density = _normal_density(x[:, None], means, sd).mean(dim=1)
        entropy = -(density * density.clamp_min(1e-30).log()).sum() * (x[1] - x[0])
        return float(entropy) - 0.5 * math.log(2.0 * math.pi * math.e * sd**2)

    def policy() -> DesignPolicy:
        instruments = CategoricalPolicy(torch.tensor([[0.0], [1.0]]))
        product = ProductPolicy([interval(0.25, 12.0), instruments])
        return product if is_product else CategoricalPolicy(candidates)

    return Known(policy, simulator, information, candidates, prior)


def _yes_no() -> Known:
    thetas = torch.linspace(0.0, 16.0, 4_001)

    def probability(theta: Tensor, design: Tensor) -> Tensor:
        return 0.02 + 0.96 * torch.sigmoid((design - theta) / 0.5)

    def information(design: Tensor) -> float:
        weights = torch.softmax(-0.5 * ((thetas - 8.0) / 2.0) ** 2, dim=0)
        p = probability(thetas, design[0])
        entropy = lambda q: -(q * q.log() + (1 - q) * (1 - q).log())  # noqa: E731
        return float(entropy((weights * p).sum()) - (weights * entropy(p)).sum())

    return Known(
        lambda: interval(0.0, 16.0),
        lambda theta, design: Bernoulli(probability(theta, design)).sample(),
        information,
        torch.linspace(0.0, 16.0, 321).unsqueeze(1),
        normal(1, 8.0, 2.0),
        categorical_likelihood_nn([0, 1]),
    )


PROBLEMS: dict[str, Callable[[], Known]] = {
    "target": _target,
    "models": _models,
    "memory": _memory,
    "cost": _cost,
    "per_cost": _per_cost,
    "constraint": _constraint,
    "list": _list,
    "product": functools.partial(_list, is_product=True),
    "yes_no": _yes_no,
}


def jobs(num_seeds: int, quick: bool) -> list[Job]:
    """Return one job for each seed, problem and budget."""
    return [
        {"problem": problem, "budget": budget, "seed": seed}
        for seed in range(num_seeds)
        for problem in (list(PROBLEMS)[3:4] if quick else PROBLEMS)
        for budget in (list(BUDGETS)[:1] if quick else BUDGETS)
    ]


def run(job: Job, quick: bool) -> Row:
    """Find the design of a problem, and compare it with the best one."""
    torch.manual_seed(job["seed"])
    known = PROBLEMS[job["problem"]]()
    trainer, started = known.trainer(), time.process_time()
    settings = {**known.settings, **BUDGETS[job["budget"]]}
    result = trainer.optimize_design(known.simulator, **settings)
    seconds = time.process_time() - started
    exact = known.information(result.design)
    worth = known.worth(exact, result.design)
    best = max(worth, *(known.worth(known.information(d), d) for d in known.grid))
    return {
        "design": " ".join(f"{value:.4g}" for value in result.design.tolist()),
        "method": result.config.method,
        "exact": round(exact, 4),
        "share": round(worth / best, 4),
        "reported": round(result.eig.value, 4),
        "standard_error": round(result.eig.standard_error, 4),
        "below": round(exact - result.eig.value, 4),
        "doubts": len(result.doubts),
        "num_simulations": result.num_simulations,
        "cpu_seconds": round(seconds, 1),
    }


def summary(rows: Sequence[Row]) -> Sequence[Row]:
    """Return means over seeds, and the worst seed."""
    by = ["problem", "budget"]
    lines = averages(rows, by=by, values=["share", "below", "cpu_seconds"])
    for line in lines:
        own = [row for row in rows if all(row[name] == line[name] for name in by)]
        line["worst"] = min(row["share"] for row in own)
        errors = [-row["below"] / row["standard_error"] for row in own]
        line["most_errors_above"] = round(max(errors), 1)
    return lines


STUDY = Study(
    name="people",
    title="Targets, models, costs, constraints and answers, against exact values",
    jobs=jobs,
    run=run,
    summary=summary,
    num_seeds=5,
)
