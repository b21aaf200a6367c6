r"""Three responses of a cell, with designs found or drawn at random.

**The experiment.** Affinity and efficiency are :math:`(K, \varepsilon) = (0.85, 0.85)`.
Three times, one after the other, a concentration in [1e-6, 1000] is chosen and the
response :math:`x = \varepsilon T(K \xi) \in [0, 1]` is measured.

**Designs.** Concentrations span nine decades; searches move in their logarithms, as
does the network. *random* designs are uniform on [1e-6, 1000], nearly all of them
above 10; *random decades* are uniform in the logarithm.

**Noise.** Published results are for `noise = 0`. The response is then a function of the
parameters, there is no likelihood, and the information of every design is infinite:
what is reported is as high as the precision of the learned likelihood and the cap of
the bound, `log(num_eig_contrastive + 1)`, allow, and says nothing about the design.
With `noise = 0.02` the information is finite and known: `exact_first` is that of the
first design, `best_first` the largest of all designs, and `exact_all` that of the three
designs together, by numerical integration with the true likelihood.

**Measures.** *Median distance*: all responses are predicted for each of 1,000
posterior draws; the median of the Euclidean distance between three predictions and
three observations, in the natural scale, where the largest response is one.
`distance_percent` is 100 times that. Published distances of 0.60 to 11.5 cannot be in
natural units, in which three responses are never further apart than
:math:`\sqrt 3`; the published scale is not known, percent are a guess. `floor_distance`
is the distance with the true parameters in the place of posterior draws. *L-C2ST*: 0
is calibrated, 0.25 the worst; it is to be trusted while posteriors hold many of the
prior draws that it resamples (`effective_prior_draws`). It simulates at parameters from
the prior, which likelihoods of later rounds did not learn from; `lc2st_update` is the
largest of single updates, from the belief before to the belief after. *Information*:
the bounds that were reported before each experiment, each given the data until then,
summed; unlike `exact_all`, which averages over data, it may lie above it.
"""

import time
from collections.abc import Sequence

import torch
from matplotlib.figure import Figure
from torch import Tensor
from torch.distributions.transforms import (
    SigmoidTransform,
    identity_transform,
)

from benchmarks.evaluation import median_predictive_distance
from benchmarks.papers._campaigns import dot_plot, evaluate, in_order, summarize
from benchmarks.papers._methods import Method, Settings, run_method
from benchmarks.study import Job, Row, Study
from sbi_boed_plugin.estimators.transformed import transformed_likelihood_nn
from sbi_boed_plugin.experiment import NoOpTracker
from sbi_boed_plugin.policies import TruncatedNormalPolicy
from sbi_boed_plugin.tasks.bmp import BMP
from sbi_boed_plugin.trainers.nle_ince import NLE_INCE

__all__ = ["METHODS", "PUBLISHED", "STUDY"]

NUM_ROUNDS = 3
SETTINGS = {
    False: Settings(
        NUM_ROUNDS,
        num_steps=800,
        num_refinement_steps=400,
        num_eig_samples=500,
        num_eig_contrastive=16_383,
        # Gradients grow with precision: clipped, a likelihood never gets there.
        clip_max_norm=None,
    ),
    True: Settings(
        NUM_ROUNDS, num_steps=20, num_eig_samples=100, num_eig_contrastive=511
    ),
}

METHODS = {
    "SBI-BOED, λ = 0.01": Method("search", 0.01),
    "SBI-BOED, λ = 0.1": Method("search", 0.1),
    "SBI-BOED, λ = 1": Method("search", 1.0),
    "barber_agakov, λ = 0.1": Method("search", 0.1, "barber_agakov"),
    "random, INCE-λ, λ = 0.1": Method("random", 0.1),
    "random, NLE": Method("random", 1.0, num_contrastive=0),
    "random decades, NLE": Method("random", 1.0, num_contrastive=0),
}

# Distance in units that are not known, and L-C2ST, of Zaballa and Hui, UAI 2026. Their
# SBI-BOED reports 10.38 nats of at most 12.48; MINEBED-BO has 0.82 ± 0.06 and 0.25.
PUBLISHED = {
    "SBI-BOED, λ = 0.01": (0.60, 0.01),
    "random, INCE-λ, λ = 0.1": (10.9, 0.01),
    "random, NLE": (11.5, 0.01),
}


class _LogBMP(BMP):
    """The task with logarithms of concentrations as designs."""

    def __init__(self, *, noise: float) -> None:
        super().__init__(noise=noise)
        self.design_low, self.design_high = (
            self.design_low.log(),
            self.design_high.log(),
        )
        self.design_transform = identity_transform

    def _simulate(self, theta: Tensor, design: Tensor) -> Tensor:
        return super()._simulate(theta, design.exp())


def jobs(num_seeds: int, quick: bool) -> list[Job]:
    """Return one job per noise, method and seed.

    Args:
        num_seeds: Number of seeds.
        quick: Whether to take only one method of each kind.

    Returns:
        The jobs.
    """
    names = ["SBI-BOED, λ = 0.1", "random, NLE"] if quick else list(METHODS)
    return [
        {"noise": noise, "method": name, "seed": seed}
        # The settings were chosen with seed 0.
        for seed in range(1, num_seeds + 1)
        for noise in ((0.02,) if quick else (0.0, 0.02))
        for name in names
    ]


def run(job: Job, quick: bool) -> Row:
    """Run three experiments with one method and judge what was learned.

    Args:
        job: Noise, name of the method and seed.
        quick: Whether to take few steps.

    Returns:
        Designs, data, measures and cost; seconds are those of one core.
    """
    method, seed = METHODS[job["method"]], int(job["seed"])
    torch.manual_seed(seed)
    natural = BMP(noise=float(job["noise"]))
    in_logs = method.designs == "search" or "decades" in job["method"]
    task = _LogBMP(noise=natural.noise) if in_logs else natural
    logit = SigmoidTransform().inv
    # With noise, responses may lie outside of [0, 1].
    x_transform = identity_transform if task.noise else logit
    started = time.process_time()
    build = transformed_likelihood_nn(
        "mdn",
        dim_design=1,
        hidden_features=64,
        num_components=5,
        x_transform=x_transform,
        theta_transform=logit,
        design_transform=task.design_transform,
    )
    inference = NLE_INCE(
        task.prior,
        build,
        tracker=NoOpTracker(),
        show_progress_bars=False,
        # Narrow in the end: precision is had by learning about one design.
        design_policy=TruncatedNormalPolicy(
            task.design_low, task.design_high, scale=(0.3, 0.02)
        ),
    )
    eigs, num_simulations = run_method(inference, task, method, SETTINGS[quick], seed)
    seconds = time.process_time() - started
    torch.manual_seed(seed)
    measures = evaluate(
        inference,
        task,
        seed=seed,
        x_transform=x_transform,
        num_pairs=100 if quick else 1_000,
        num_prior=4_096 if quick else 16_384,
    )
    designs = torch.stack([one.design for one in inference.observations])
    designs = designs.exp() if in_logs else designs
    x = torch.cat([one.x for one in inference.observations])
    truth = task.true_parameters.expand(1_000, -1)
    floor = median_predictive_distance(natural.simulator, truth, designs, x)
    distance = measures["median_distance"]
    return {
        **{f"design_{i + 1}": float(f"{d.item():.4g}") for i, d in enumerate(designs)},
        "median_distance": round(distance, 6),
        "distance_percent": round(100.0 * distance, 4),
        "floor_distance": round(floor, 6),
        "lc2st": round(measures["lc2st"], 5),
        "effective_prior_draws": round(measures["effective_prior_draws"], 1),
        "lc2st_update": round(measures["lc2st_update"], 5),
        "effective_update_draws": round(measures["effective_update_draws"], 1),
        **{f"information_{i + 1}": round(eig, 3) for i, eig in enumerate(eigs)},
        "information": round(sum(eigs), 3),
        **_exact(natural, designs, quick),
        "num_simulations": num_simulations,
        "cpu_seconds": round(seconds, 1),
    }


def _exact(task: BMP, designs: Tensor, quick: bool) -> dict[str, float | str]:
    """Return exact information in nats, empty where it is infinite."""
    if not task.has_exact_eig:
        return {"exact_first": "", "best_first": "", "exact_all": ""}
    num_samples = 512 if quick else 4_096
    grid = torch.logspace(-2.0, 3.0, 51).unsqueeze(1)
    first, _ = task.exact_eig(designs[0], num_samples=num_samples)
    values, _ = task.exact_eig_grid(grid, num_samples=num_samples)
    together = BMP(dim_design=len(designs), noise=task.noise)
    total, _ = together.exact_eig(designs.flatten(), num_samples=num_samples // 4)
    return {
        "exact_first": round(first, 3),
        "best_first": round(float(values.max()), 3),
        "exact_all": round(total, 3),
    }


def summary(rows: Sequence[Row]) -> Sequence[Row]:
    """Return means and standard errors of each setting, beside published values.

    Args:
        rows: Rows of the study.

    Returns:
        One row per noise and method.
    """
    columns = {
        "distance_percent": 3,
        "floor_distance": 4,
        "lc2st": 4,
        "lc2st_update": 4,
        "information_1": 2,
        "exact_first": 2,
        "best_first": 2,
        "information": 2,
        "exact_all": 2,
        "num_simulations": 0,
        "cpu_seconds": 0,
    }
    rows = in_order(rows, METHODS, by=["noise"])
    table = summarize(rows, ["noise", "method"], columns)
    for line in table:
        known = PUBLISHED.get(line["method"]) if line["noise"] == 0.0 else None
        line["published_distance"], line["published_lc2st"] = known or ("", "")
    return table


def figure(rows: Sequence[Row]) -> Figure:
    """Draw distance, calibration and information of each method and noise.

    Args:
        rows: Rows of the study.

    Returns:
        The figure; diamonds are published values, whose scale of distance is unknown.
    """
    rows = in_order(rows, METHODS)
    noises = sorted({float(row["noise"]) for row in rows})
    figure = Figure(figsize=(11.0, 0.8 + 2.6 * len(noises)), layout="constrained")
    axes = figure.subplots(len(noises), 3, sharey="row", squeeze=False)
    for line, noise in zip(axes, noises, strict=True):
        group = [row for row in rows if float(row["noise"]) == noise]
        published = PUBLISHED if noise == 0.0 else {}
        statistics = {name: values[1] for name, values in published.items()}
        dot_plot(line[0], group, "distance_percent", "median distance [% of largest]")
        if not noise:  # With noise they are close to the floor, all of one size.
            line[0].set_xscale("log")
        line[0].set_title(f"noise {noise:g}", loc="left")
        dot_plot(line[1], group, "lc2st", "L-C2ST statistic", published=statistics)
        name = "exact_all" if noise else "information"
        label = "exact information of the designs [nats]"
        label = label if noise else "information reported (not finite) [nats]"
        dot_plot(line[2], group, name, label)
    return figure


STUDY = Study(
    name="table-bmp",
    title="BMP, three responses: found designs against random designs",
    jobs=jobs,
    run=run,
    figure=figure,
    summary=summary,
    num_seeds=3,
)
