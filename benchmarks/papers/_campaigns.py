"""What the studies of sequences of experiments share."""

from collections.abc import Callable, Iterable, Sequence
from copy import deepcopy
from typing import Any

import numpy as np
import pandas as pd
import torch
from matplotlib.axes import Axes
from torch import Tensor
from torch.distributions.transforms import Transform, identity_transform

from benchmarks.evaluation import lc2st_statistic, median_predictive_distance
from benchmarks.study import Row
from sbi_boed_plugin.plotting._style import LINES, despine
from sbi_boed_plugin.search.measurements import Observation
from sbi_boed_plugin.tasks.task import Task
from sbi_boed_plugin.trainers.nle_ince import NLE_INCE

__all__ = [
    "dot_plot",
    "evaluate",
    "in_order",
    "likelihood_matrix",
    "resampled_posterior",
    "summarize",
    "with_error",
]


def in_order(
    rows: Sequence[Row], methods: Iterable[str], by: Sequence[str] = ()
) -> list[Row]:
    """Return rows in the order of their methods, whichever was finished first.

    Args:
        rows: Rows of a study.
        methods: Names of the column `"method"`, in the order wanted.
        by: Columns that come before the method.

    Returns:
        Rows in the order of `by`, method and seed.

    Example:
        >>> in_order([{"method": "b", "seed": 0}, {"method": "a", "seed": 0}], "ab")
        [{'method': 'a', 'seed': 0}, {'method': 'b', 'seed': 0}]
    """
    place = {name: number for number, name in enumerate(methods)}
    key = lambda r: (*(r[name] for name in by), place[r["method"]], r["seed"])
    return sorted(rows, key=key)


def with_error(values: Iterable[float], decimals: int) -> str:
    """Return mean ± standard error, without what cannot be told.

    Example:
        >>> with_error([1.0, 3.0], 1), with_error([2.0], 1), with_error([], 1)
        ('2.0 ± 1.0', '2.0', '')
    """
    column = pd.Series(list(values), dtype=float)
    shown = [f"{v:.{decimals}f}" for v in (column.mean(), column.sem()) if v == v]
    return " ± ".join(shown)


def summarize(
    rows: Sequence[Row], by: Sequence[str], columns: dict[str, int]
) -> list[dict[str, Any]]:
    """Return one row per setting, with mean ± standard error of columns.

    Args:
        rows: Rows of a study; empty texts are no values.
        by: Names whose values make up a setting; settings keep their order.
        columns: Names of columns with the number of decimals to show.

    Returns:
        Rows of the summary, with the number of rows behind each as `"rows"`.

    Example:
        >>> summarize([{"a": 1, "x": 2.0}, {"a": 1, "x": 4.0}], ["a"], {"x": 1})
        [{'a': 1, 'rows': 2, 'x': '3.0 ± 1.0'}]
    """
    table = []
    for setting, group in pd.DataFrame(list(rows)).groupby(list(by), sort=False):
        line: dict[str, Any] = dict(zip(by, setting, strict=True))
        line["rows"] = len(group)
        for name, decimals in columns.items():
            cells = group.get(name, pd.Series("", group.index))
            values = cells[cells != ""].astype(float)
            if values.isna().all():  # A column that only other settings have.
                values = values.dropna()
            finite = values[np.isfinite(values)]
            line[name] = with_error(finite, decimals)
            if len(finite) < len(values):
                line[name] += f" ({len(values) - len(finite)} not finite)"
        table.append(line)
    return table


@torch.no_grad()
def resampled_posterior(
    log_likelihoods: Callable[[Tensor, Tensor], Tensor],
    theta: Tensor,
    x: Tensor,
    *,
    max_pairs: int = 1_000_000,
) -> tuple[Tensor, Tensor]:
    r"""Draw one parameter from the posterior of each of many data sets.

    Sampling-importance-resampling: draws :math:`\theta_k` from the prior, the same for
    all data sets, are chosen with probabilities proportional to their likelihood. It is
    as good as the number of prior draws that the posterior covers, which is returned.

    Args:
        log_likelihoods: Function from `x` of shape `(num_x, ...)` and `theta` of shape
            `(num_theta, dim_theta)` to log-likelihoods of each pair, of shape
            `(num_x, num_theta)`.
        theta: Draws from the prior, of shape `(num_theta, dim_theta)`, independent of
            those that `x` was simulated with.
        x: Data sets of shape `(num_x, ...)`.
        max_pairs: Number of pairs evaluated at once.

    Returns:
        Draws of shape `(num_x, dim_theta)`, and the effective number of prior draws of
        each, of shape `(num_x,)`.

    Example:
        >>> _ = torch.manual_seed(0)
        >>> theta = torch.randn(4_096, 1)  # With x = theta + noise: a mean of x / 2.
        >>> x = torch.full((1_000, 1), 2.0)
        >>> draws, effective = resampled_posterior(
        ...     lambda x, theta: -0.5 * (x - theta.T).square(), theta, x
        ... )
        >>> f"{draws.mean():.1f} ± {draws.std():.1f}"
        '1.0 ± 0.7'
    """
    draws, effective = [], []
    for rows in x.split(max(1, max_pairs // len(theta))):
        matrix = torch.nan_to_num(log_likelihoods(rows, theta), nan=-torch.inf)
        # A data set that no parameter explains says nothing: all are alike.
        hopeless = matrix.isneginf().all(dim=1, keepdim=True)
        weights = torch.where(hopeless, 0.0, matrix).softmax(dim=1)
        draws.append(theta[torch.multinomial(weights, 1).squeeze(1)])
        effective.append(weights.square().sum(dim=1).reciprocal())
    return torch.cat(draws), torch.cat(effective)


@torch.no_grad()
def likelihood_matrix(
    observations: Sequence[Observation], x: Tensor, theta: Tensor
) -> Tensor:
    """Return the log-likelihood of many data sets for many parameters.

    Args:
        observations: Experiments, of which designs and likelihoods are used.
        x: Data of shape `(num_x, num_experiments, dim_x)`.
        theta: Parameters of shape `(num_theta, dim_theta)`.

    Returns:
        Sums over experiments, of shape `(num_x, num_theta)`, in nats.
    """
    total = x.new_zeros(len(x), len(theta))
    for one, data in zip(observations, x.unbind(dim=1), strict=True):
        condition = torch.cat([theta, one.design.expand(len(theta), -1)], dim=1)
        rows = data.unsqueeze(1).expand(-1, len(theta), -1)
        total = total + one.likelihood_estimator.log_prob(rows, condition)
    return total


def evaluate(
    inference: NLE_INCE,
    task: Task,
    *,
    seed: int,
    x_transform: Transform = identity_transform,
    theta_transform: Transform = identity_transform,
    num_samples: int = 1_000,
    num_pairs: int = 1_000,
    num_prior: int = 4_096,
) -> dict[str, float]:
    """Judge what was learned from a sequence of experiments.

    The posterior is that of all observations, each with the likelihood of its round,
    as particles. For L-C2ST, whole sequences are simulated at parameters from the prior
    and the same designs; the estimated posterior of each is drawn from by
    sampling-importance-resampling of prior draws. That asks likelihoods of later rounds
    for parameters which they never saw: they learned from those that were still likely.
    Each update by itself asks them for what they are used for: parameters from the
    belief before it, data of its design alone, and the belief after it.

    Args:
        inference: Trainer that has observed all experiments.
        task: Simulator.
        seed: Seed of the classifier.
        x_transform: Transform of the data to what the classifier sees.
        theta_transform: Transform of the parameters to what the classifier sees.
        num_samples: Number of posterior-predictive draws.
        num_pairs: Number of simulated sequences for L-C2ST.
        num_prior: Number of prior draws to resample from.

    Returns:
        `"median_distance"` in units of the data, `"lc2st"`, and
        `"effective_prior_draws"`, the median number of prior draws that a posterior
        covers: well above one if resampling is to be trusted. `"lc2st_update"` is the
        largest statistic of a single update, and `"effective_update_draws"` the least
        median number of draws.
    """
    observations = inference.observations
    belief = inference.belief
    assert belief is not None
    designs = torch.stack([one.design for one in observations])
    x_o = torch.cat([one.x for one in observations])
    rows = torch.randperm(len(belief.particles))[:num_samples]
    samples = belief.particles[rows]
    distance = median_predictive_distance(task.simulator, samples, designs, x_o)

    theta = task.prior.sample(torch.Size((num_pairs,)))
    x = torch.stack(
        [task.simulator(theta, design.expand(num_pairs, -1)) for design in designs],
        dim=1,
    )
    draws, effective = resampled_posterior(
        lambda x, theta: likelihood_matrix(observations, x, theta),
        task.prior.sample(torch.Size((num_prior,))),
        x,
    )
    statistic = lc2st_statistic(
        _mapped(theta_transform, theta),
        _mapped(x_transform, x).flatten(1),
        _mapped(theta_transform, draws),
        theta_o=_mapped(theta_transform, samples),
        x_o=_mapped(x_transform, x_o).reshape(1, -1),
        seed=seed,
    )
    updates = [
        _update_statistic(
            inference, task, number, seed, x_transform, theta_transform, num_pairs
        )
        for number in range(len(observations))
    ]
    return {
        "median_distance": distance,
        "lc2st": statistic,
        "effective_prior_draws": float(effective.median()),
        "lc2st_update": max(value for value, _ in updates),
        "effective_update_draws": min(number for _, number in updates),
    }


def _update_statistic(
    inference: NLE_INCE,
    task: Task,
    number: int,
    seed: int,
    x_transform: Transform,
    theta_transform: Transform,
    num_pairs: int,
) -> tuple[float, float]:
    """Return L-C2ST of one observation given those before it, and effective draws."""
    observations = inference.observations
    earlier = deepcopy(inference).forget(len(observations) - number)
    known = earlier.belief or task.prior
    later = deepcopy(inference)
    if number + 1 < len(observations):
        later.forget(len(observations) - number - 1)
    assert later.belief is not None
    one = observations[number]
    theta = known.sample(torch.Size((num_pairs,)))
    x = task.simulator(theta, one.design.expand(num_pairs, -1))
    draws, effective = resampled_posterior(
        lambda x, theta: likelihood_matrix([one], x.unsqueeze(1), theta),
        known.sample(torch.Size((4_096,))),
        x,
    )
    theta_o = later.belief.particles
    statistic = lc2st_statistic(
        _mapped(theta_transform, theta),
        _mapped(x_transform, x).flatten(1),
        _mapped(theta_transform, draws),
        theta_o=_mapped(theta_transform, theta_o[torch.randperm(len(theta_o))[:1_000]]),
        x_o=_mapped(x_transform, one.x).reshape(1, -1),
        seed=seed,
    )
    return statistic, float(effective.median())


def _mapped(transform: Any, value: Tensor) -> Tensor:
    return transform(value)


def dot_plot(
    ax: Axes,
    rows: Sequence[Row],
    column: str,
    label: str,
    *,
    by: str = "method",
    published: dict[str, float] | None = None,
) -> None:
    """Draw a value of each row, settings below each other, with their means.

    Args:
        ax: Axes to draw in.
        rows: Rows of a study.
        column: Name of the value.
        label: What it is, with its unit.
        by: Name of the setting.
        published: Published values of settings, drawn as open diamonds.
    """
    names = list(dict.fromkeys(str(row[by]) for row in rows))
    for place, name in enumerate(names):
        cells = [row.get(column, "") for row in rows if str(row[by]) == name]
        values = np.array([float(cell) for cell in cells if cell != ""])
        values = values[np.isfinite(values)]
        if len(values):
            ax.plot(values, [place] * len(values), "o", ms=4, alpha=0.4, color=LINES[0])
            ax.plot([values.mean()], [place], "|", ms=18, mew=2, color=LINES[0])
        if published and name in published:
            ax.plot([published[name]], [place], "D", mfc="none", color=LINES[1])
    ax.set_yticks(range(len(names)), names)
    ax.set_ylim(len(names) - 0.5, -0.5)
    ax.set_xlabel(label)
    if published:
        ax.set_title("◇ published", loc="right", fontsize="small", color=LINES[1])
    despine(ax)
