r"""Two counts of an epidemic, with designs found, drawn at random, or spread evenly.

**The experiment.** True rates are :math:`(\beta, \gamma) = (0.8, 0.1)`. Twice, one
after the other, a time is chosen and the infected of one epidemic of 500 people are
counted at that time. Each count comes from an epidemic of its own, drawn by the
simulator at the true rates with the job's seed, the same for all methods; extinct
epidemics are not redrawn. Data are counts plus a uniform number from [0, 1), see
:class:`~sbi_boed_plugin.tasks.SIR`.

**Methods.** SBI-BOED searches each time anew, from what is known then, and trains its
likelihood on. Random and Sobol designs come with a likelihood that is trained for all
times alike, with as many simulations as the searches take together, by maximum
likelihood (NLE) or INCE-λ.

**Measures.** *Median distance*: both counts are repeated for each of 1,000 posterior
draws; the median over draws of the Euclidean distance between the two predicted and the
two observed counts, in people. It depends on the times as much as on what was learned:
late counts hardly vary, and close to the peak the distance is large even for the true
rates. `floor_distance` is the same with the true rates in the place of posterior draws:
what remains when everything is known. `common_distance` judges the same
posterior by what all methods have in common: by new counts at the ten times 10, 20,
..., 100, which no method chose. *L-C2ST*: 0 is calibrated, 0.25 the
worst. *Information*: the lower bounds that were reported before each experiment (from
the likelihood, for `barber_agakov` from the posterior network), summed, in nats.
"""

import time
from collections.abc import Sequence

import torch
from matplotlib.figure import Figure

from benchmarks.evaluation import median_predictive_distance
from benchmarks.papers._campaigns import dot_plot, evaluate, in_order, summarize
from benchmarks.papers._methods import Method, Observer, Settings, run_method
from benchmarks.study import Job, Row, Study
from sbi_boed_plugin.experiment import make_trainer
from sbi_boed_plugin.tasks.sir import SIR

__all__ = ["METHODS", "PUBLISHED", "STUDY"]

SETTINGS = {
    False: Settings(num_rounds=2, num_steps=500),
    True: Settings(num_rounds=2, num_steps=20, num_eig_samples=500),
}

METHODS = {
    "SBI-BOED, λ = 0.01": Method("search", 0.01),
    "SBI-BOED, λ = 0.1": Method("search", 0.1),
    "SBI-BOED, λ = 1": Method("search", 1.0),
    "barber_agakov, λ = 0.1": Method("search", 0.1, "barber_agakov"),
    "random, INCE-λ, λ = 0.01": Method("random", 0.01),
    "random, INCE-λ, λ = 0.1": Method("random", 0.1),
    "random, NLE": Method("random", 1.0, num_contrastive=0),
    "Sobol, INCE-λ, λ = 0.01": Method("sobol", 0.01),
    "Sobol, INCE-λ, λ = 0.1": Method("sobol", 0.1),
    "Sobol, NLE": Method("sobol", 1.0, num_contrastive=0),
}

# (median distance in people, L-C2ST) of Zaballa and Hui, UAI 2026, as far as reported.
PUBLISHED = {
    "SBI-BOED, λ = 0.01": (47.99, 0.005),
    "random, INCE-λ, λ = 0.01": (77.8, 0.005),
    "random, NLE": (79.0, 0.012),
    "Sobol, INCE-λ, λ = 0.1": (59.9, 0.005),
}


def jobs(num_seeds: int, quick: bool) -> list[Job]:
    """Return one job per method and seed.

    Args:
        num_seeds: Number of seeds.
        quick: Whether to take only two of the methods.

    Returns:
        The jobs.
    """
    names = ["SBI-BOED, λ = 0.1", "random, NLE"] if quick else list(METHODS)
    return [
        {"method": name, "seed": seed} for seed in range(num_seeds) for name in names
    ]


def run(job: Job, quick: bool) -> Row:
    """Run two experiments with one method and judge what was learned.

    Args:
        job: Name of the method and seed.
        quick: Whether to take few steps.

    Returns:
        Designs, data, measures and cost; seconds are those of one core.
    """
    method, seed = METHODS[job["method"]], int(job["seed"])
    torch.manual_seed(seed)
    task = SIR()
    started = time.process_time()
    inference = make_trainer(task, show_progress_bars=False)
    eigs, num_simulations = run_method(inference, task, method, SETTINGS[quick], seed)
    seconds = time.process_time() - started
    torch.manual_seed(seed)
    measures = evaluate(
        inference,
        task,
        seed=seed,
        x_transform=task.x_transform,
        theta_transform=task.theta_transform,
        num_pairs=100 if quick else 1_000,
    )
    designs = torch.stack([one.design for one in inference.observations])
    x = torch.cat([one.x for one in inference.observations])
    truth = task.true_parameters.expand(1_000, -1)
    floor = median_predictive_distance(task.simulator, truth, designs, x)
    assert inference.belief is not None
    times = torch.arange(10.0, 101.0, 10.0).unsqueeze(1)
    measure = Observer(task, seed=1_000 + seed)
    common = median_predictive_distance(
        task.simulator,
        inference.belief.sample(torch.Size((1_000,))),
        times,
        torch.cat([measure(time) for time in times]),
    )
    return {
        **{f"time_{i + 1}": round(d.item(), 2) for i, d in enumerate(designs)},
        **{f"infected_{i + 1}": int(value.item()) for i, value in enumerate(x)},
        "median_distance": round(measures["median_distance"], 2),
        "floor_distance": round(floor, 2),
        "common_distance": round(common, 2),
        "lc2st": round(measures["lc2st"], 5),
        "effective_prior_draws": round(measures["effective_prior_draws"], 1),
        "lc2st_update": round(measures["lc2st_update"], 5),
        "effective_update_draws": round(measures["effective_update_draws"], 1),
        "information": round(sum(eigs), 3),
        "num_simulations": num_simulations,
        "cpu_seconds": round(seconds, 1),
    }


def summary(rows: Sequence[Row]) -> Sequence[Row]:
    """Return means and standard errors of each method, beside published values.

    Args:
        rows: Rows of the study.

    Returns:
        One row per method.
    """
    columns = {
        "median_distance": 1,
        "floor_distance": 1,
        "common_distance": 1,
        "lc2st": 4,
        "lc2st_update": 4,
        "information": 2,
        "num_simulations": 0,
        "cpu_seconds": 0,
    }
    table = summarize(in_order(rows, METHODS), ["method"], columns)
    for line in table:
        distance, lc2st = PUBLISHED.get(line["method"], ("", ""))
        line["published_distance"], line["published_lc2st"] = distance, lc2st
    return table


def figure(rows: Sequence[Row]) -> Figure:
    """Draw distance, calibration and information of each method.

    Args:
        rows: Rows of the study.

    Returns:
        The figure; diamonds are published values.
    """
    figure = Figure(figsize=(12.0, 4.2), layout="constrained")
    rows = in_order(rows, METHODS)
    axes = figure.subplots(1, 4, sharey=True)
    distances = {name: values[0] for name, values in PUBLISHED.items()}
    statistics = {name: values[1] for name, values in PUBLISHED.items()}
    label = "median distance [people]"
    dot_plot(axes[0], rows, "median_distance", label, published=distances)
    dot_plot(axes[1], rows, "common_distance", "at common times [people]")
    dot_plot(axes[2], rows, "lc2st", "L-C2ST statistic", published=statistics)
    dot_plot(axes[3], rows, "information", "information [nats]")
    return figure


STUDY = Study(
    name="table-sir",
    title="SIR, two counts: found designs against random and Sobol designs",
    jobs=jobs,
    run=run,
    figure=figure,
    summary=summary,
    num_seeds=10,
)
