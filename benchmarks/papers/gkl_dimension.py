r"""Where rejection stops working: hybrids in up to 100 dimensions.

The posterior of `LinearGaussian` is a Normal with a dense covariance, known in every
dimension. Two bases are refined: *diagonal*, a Normal with a mean linear in the data
and a scale per parameter, which cannot be the posterior however long it learns; and
*maf*, a masked autoregressive flow, which can.

- `kl_base`, `kl_hybrid`: divergence from the exact posterior to either (nats), at
  draws of the exact posterior given new observations. The hybrid's needs
  :math:`\log Z`, told from draws of its base: where `effective_share` is a few draws'
  worth, that is too small, and `kl_hybrid` with it.
- `acceptance_rate`, `effective_share`, `truncated_mass`, `log_partition`: of the
  trained energy, means over these observations.
- `exact_acceptance_rate` and so on: the same of the exact ratio of posterior and base,
  which no training could better. What these lose, the base is to blame for.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import NullLocator
from sbi.neural_nets import posterior_nn
from sbi.neural_nets.estimators import ConditionalDensityEstimator
from torch import Tensor, nn
from torch.distributions import Independent, Normal

from benchmarks.papers._hybrids import (
    hybrid_of,
    refine_base,
    shares_below_one,
    train_base,
    weight_columns,
)
from benchmarks.papers._linear_gaussian import LinearGaussian
from benchmarks.study import Job, Row, Study, averages
from sbi_boed_plugin.estimators.rejection import draws_at_once, measure_weights
from sbi_boed_plugin.plotting._style import BLUE, GREY, VERMILLION, despine
from sbi_boed_plugin.trainers._energy_training import EnergyConfig

__all__ = ["STUDY", "DiagonalNormal"]

DIMS = (2, 10, 50, 100)
BASES = ("diagonal", "maf")
_COLORS = dict(zip(BASES, (BLUE, VERMILLION), strict=True))


@dataclass(frozen=True)
class _Size:
    num_simulations: int = 4_000
    base_epochs: int = 40
    energy_epochs: int = 60
    num_observations: int = 5
    num_draws: int = 4_000
    num_exact: int = 1_000


_FULL = _Size()
_QUICK = _Size(
    num_simulations=500,
    base_epochs=10,
    energy_epochs=6,
    num_observations=2,
    num_draws=1_000,
    num_exact=200,
)


class DiagonalNormal(ConditionalDensityEstimator):
    r"""A Normal with independent parameters and a mean that is linear in the data.

    Example:
        >>> import torch
        >>> theta, x = torch.randn(10, 2), torch.randn(10, 3)
        >>> DiagonalNormal(theta, x).sample(torch.Size((5,)), x).shape
        torch.Size([5, 10, 2])
    """

    def __init__(self, theta: Tensor, x: Tensor) -> None:
        """Initialize the estimator for data like those given.

        Args:
            theta: Parameters of shape `(num_simulations, dim_theta)`.
            x: Data of shape `(num_simulations, dim_x)`.
        """
        super().__init__(
            net=nn.Linear(x.shape[1], theta.shape[1]),
            input_shape=theta.shape[1:],
            condition_shape=x.shape[1:],
        )
        self.log_scale = nn.Parameter(torch.zeros(theta.shape[1]))

    def _normal(self, condition: Tensor) -> Independent:
        return Independent(Normal(self.net(condition), self.log_scale.exp()), 1)

    def log_prob(self, input: Tensor, condition: Tensor, **kwargs) -> Tensor:
        """Return log-densities of shape `(sample_dim, batch_dim)`, in nats."""
        return self._normal(condition).log_prob(input)

    def loss(self, input: Tensor, condition: Tensor, **kwargs) -> Tensor:
        """Return negative log-densities of shape `(batch_dim,)`, in nats."""
        return -self.log_prob(input, condition)

    def sample(self, sample_shape: torch.Size, condition: Tensor, **kwargs) -> Tensor:
        """Return samples of shape `(*sample_shape, batch_dim, dim_theta)`."""
        with torch.no_grad():
            return self._normal(condition).sample(sample_shape)

    def to_noise(self, input: Tensor, condition: Tensor) -> Tensor:
        """Return parameters of shape `(batch_dim, dim_theta)`, standardized."""
        return (input - self.net(condition)) * (-self.log_scale).exp()


def jobs(num_seeds: int, quick: bool) -> list[Job]:
    """Return the jobs, few dimensions first."""
    cells = [(dim, base) for dim in DIMS for base in BASES]
    if quick:
        cells = [(2, "diagonal"), (10, "diagonal"), (2, "maf"), (4, "maf")]
    return [
        {"dim": dim, "base": base, "seed": seed}
        for dim, base in cells
        for seed in range(num_seeds)
    ]


def run(job: Job, quick: bool) -> Row:
    """Train a base, refine it, and compare both with the exact posterior.

    Args:
        job: Number of parameters, kind of base, and seed.
        quick: Whether to train briefly on few simulations.

    Returns:
        Divergences, and what the weights of the trained and of the exact ratio tell.
    """
    size = _QUICK if quick else _FULL
    torch.manual_seed(job["seed"])
    target = LinearGaussian(job["dim"])
    theta = target.prior.sample(torch.Size((size.num_simulations,)))
    x = target.simulate(theta)
    truth = target.prior.sample(torch.Size((size.num_observations,)))
    observed = target.simulate(truth)
    build: Callable[[Tensor, Tensor], ConditionalDensityEstimator] = DiagonalNormal
    if job["base"] == "maf":
        # Drawing takes a pass per dimension and transform.
        build = posterior_nn("maf", num_transforms=2)
    base = train_base(
        target.prior,
        build,
        theta,
        x,
        batch_size=100,
        learning_rate=5e-3 if job["base"] == "diagonal" else 1e-3,
        max_num_epochs=size.base_epochs,
    )
    config = EnergyConfig(max_num_epochs=size.energy_epochs)
    trainer = refine_base(base, target.prior, theta, x, config)
    hybrid = hybrid_of(trainer).posterior_estimator
    trained = hybrid.measure_weights(observed, num_draws=size.num_draws)

    def draw_exactly_weighted(num: int, x: Tensor) -> tuple[Tensor, Tensor]:
        draws = hybrid.base.sample(torch.Size((num,)), x)
        log_weights = target.posterior(x).log_prob(draws)
        return draws, log_weights - hybrid.base.log_prob(draws, x)

    exact = measure_weights(
        draw_exactly_weighted,
        observed,
        at_once=draws_at_once(hybrid.base, observed),
        num_draws=size.num_draws,
    )
    with torch.no_grad():
        posterior = target.posterior(observed)
        draws = posterior.sample(torch.Size((size.num_exact,)))
        log_exact = posterior.log_prob(draws)
        kl_base = (log_exact - hybrid.base.log_prob(draws, observed)).mean()
        ratio = hybrid.log_ratio(draws, observed) - trained.log_partition
    columns = weight_columns(exact)
    # The exact ratio is normalized.
    del columns["log_partition"]
    return {
        "kl_base": round(float(kl_base), 4),
        "kl_hybrid": round(float(kl_base - ratio.mean()), 4),
        "kept": int(trainer.summary["energy_gain"][-1] > 0.0),
        **weight_columns(trained),
        **{f"exact_{name}": value for name, value in columns.items()},
    }


def summary(rows: Sequence[Row]) -> list[Row]:
    """Return means over seeds of each setting."""
    return averages(
        rows,
        by=["base", "dim"],
        values=[
            "kl_base",
            "kl_hybrid",
            "acceptance_rate",
            "effective_share",
            "truncated_mass",
            "exact_acceptance_rate",
            "exact_effective_share",
        ],
    )


def figure(rows: Sequence[Row]) -> Figure:
    """Return divergences, acceptance and effective share against the dimension."""
    table = summary(rows)
    made = Figure(figsize=(12.0, 4.2), layout="constrained")
    left, middle, right = made.subplots(1, 3, sharex=True)
    for base, color in _COLORS.items():
        chosen = [row for row in table if row["base"] == base]
        _line(left, chosen, "kl_base", color, "--")
        _line(left, chosen, "kl_hybrid", color, "-")
        for ax, name in ((middle, "acceptance_rate"), (right, "effective_share")):
            _line(ax, chosen, name, color, "-")
            _line(ax, chosen, f"exact_{name}", color, ":")
    left.set_ylabel("divergence from the exact posterior [nats]")
    # Differences of estimates can be less than zero.
    left.set_yscale("symlog", linthresh=0.1)
    left.set_ylim(bottom=1.1 * min(0.0, left.dataLim.y0))
    left.yaxis.set_major_formatter("{x:g}")
    middle.set_ylabel("acceptance rate")
    right.set_ylabel("effective sample size [share of draws]")
    shares_below_one(middle)
    shares_below_one(right)
    dims = sorted({row["dim"] for row in table})
    for ax in (left, middle, right):
        ax.set_xscale("log")
        ax.set_xticks(dims, [str(dim) for dim in dims])
        ax.xaxis.set_minor_locator(NullLocator())
        ax.set_xlabel("number of parameters")
        despine(ax)
    handles = [
        Line2D([], [], color=color, marker="o", linestyle="none", label=f"base: {base}")
        for base, color in _COLORS.items()
    ]
    for style, label in (
        ("--", "base alone"),
        ("-", "hybrid, trained energy"),
        (":", "hybrid, exact ratio"),
    ):
        handles.append(Line2D([], [], color=GREY, linestyle=style, label=label))
    made.legend(handles=handles, loc="outside upper center", ncols=5, frameon=False)
    return made


def _line(ax: Axes, rows: Sequence[Row], name: str, color: str, style: str) -> None:
    ax.errorbar(
        [row["dim"] for row in rows],
        [row[name] for row in rows],
        [row[f"{name}_se"] for row in rows],
        color=color,
        linestyle=style,
        marker="o",
        capsize=3,
    )


STUDY = Study(
    name="gkl-dimension",
    title="Normal posteriors of up to 100 parameters: hybrids of two bases",
    jobs=jobs,
    run=run,
    figure=figure,
    summary=summary,
    num_seeds=2,
)
