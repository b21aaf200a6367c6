r"""Designs of up to 500 measurements, on a straight line whose optimum is known.

`noisy_linear`: where to measure a straight line with Gaussian plus Gamma noise. The
optimum puts half of the measurements at each end of the box, and the information of
any design is a quadrature with the true likelihood: no learned density judges itself.
Searches start from locations spread over the middle half of the box.

The objective `info_nce` is that of SBI-BOED, for three weights :math:`\lambda` of
maximum likelihood. Under `barber_agakov`, the default of `optimize_design`, they belong
to the likelihood alone and do not move the design, hence one is enough.

From 50 measurements on, the posterior of `barber_agakov` knows which value was measured
at which place (`MeasurementSetEmbedding`), and the networks are refined at the design
found; from 200 on there is no likelihood. `info_nce` takes half of the steps there and
runs for fewer seeds: contrastive samples of so many values take long.
"""

import time
from collections.abc import Sequence
from typing import Any

import torch
from matplotlib.figure import Figure
from torch import Tensor

from benchmarks.study import Job, Row, Study, averages
from sbi_boed_plugin import TruncatedNormalPolicy, transformed_posterior_nn
from sbi_boed_plugin._prior import to_real_numbers
from sbi_boed_plugin.estimators.measurement_set import MeasurementSetEmbedding
from sbi_boed_plugin.experiment import NoOpTracker, find_design, make_trainer
from sbi_boed_plugin.plotting._style import GREY, LINES, despine
from sbi_boed_plugin.tasks import get_task
from sbi_boed_plugin.tasks.task import Task
from sbi_boed_plugin.trainers.nle_ince import NLE_INCE

__all__ = ["STUDY"]

DIMS = (1, 10, 50, 100, 200, 500)
STRENGTHS = (0.0, 0.1, 1.0)
OBJECTIVES = ("barber_agakov", "info_nce")

# From this number of measurements on the search is not that of the defaults.
LARGE = 50
# From this number on there is a posterior alone: a likelihood takes hours.
HUGE = 200
NUM_SEEDS_LARGE = 1


def settings_of(dim_design: int, objective: str, quick: bool) -> dict[str, Any]:
    """Return the arguments of the search that are not its defaults.

    Args:
        dim_design: Number of measurements.
        objective: Objective of the search.
        quick: Whether to search briefly.

    Returns:
        Arguments of `optimize_design`.
    """
    if quick:
        return {"num_steps": 60, "num_eig_samples": 100, "num_eig_contrastive": 31}
    if dim_design < LARGE:
        return {}
    if objective == "info_nce":
        return {"num_steps": 500}
    return {
        "num_steps": 400,
        "training_batch_size": 1_024,
        "design_learning_rate": 0.1,
        # The mode of so many draws is in a corner where none of them are.
        "num_refinement_steps": 100,
    }


def make_search(task: Task, objective: str) -> NLE_INCE:
    """Return a trainer, with what the search over many measurements needs.

    Args:
        task: The task.
        objective: Objective of the search.

    Returns:
        The trainer.
    """
    if task.dim_design < LARGE or objective == "info_nce":
        return make_trainer(task, show_progress_bars=False)
    embedding = MeasurementSetEmbedding(task.dim_design)
    if task.dim_design < HUGE:
        return make_trainer(
            task, posterior_embedding=embedding, show_progress_bars=False
        )
    return NLE_INCE(
        task.prior,
        density_estimator=None,
        tracker=NoOpTracker(),
        show_progress_bars=False,
        design_policy=TruncatedNormalPolicy(task.design_low, task.design_high),
        posterior_estimator=transformed_posterior_nn(
            "mdn",
            dim_design=task.dim_design,
            embedding_net=embedding,
            theta_transform=to_real_numbers(task.prior),
        ),
    )


def optimum(task: Task) -> Tensor:
    """Return the best design: half of the measurements at each end.

    Args:
        task: The task.

    Returns:
        Design of shape `(dim_design,)`.
    """
    design = task.design_high.clone()
    design[: task.dim_design // 2] = task.design_low[: task.dim_design // 2]
    return design


def jobs(num_seeds: int, quick: bool) -> list[Job]:
    """Return the jobs, few measurements first."""
    cells = [
        (dim, objective, strength)
        for dim in DIMS
        for objective in (OBJECTIVES if dim < HUGE else OBJECTIVES[:1])
        for strength in (STRENGTHS if objective == "info_nce" else (0.1,))
    ]
    if quick:
        cells = [(1, "info_nce", 0.1), *((dim, OBJECTIVES[0], 0.1) for dim in (1, 10))]
    return [
        {
            "dim_design": dim,
            "objective": objective,
            "regularization_strength": strength,
            "seed": seed,
        }
        for dim, objective, strength in cells
        for seed in range(num_seeds)
        if seed < NUM_SEEDS_LARGE or dim < LARGE or objective != "info_nce"
    ]


def run(job: Job, quick: bool) -> Row:
    """Search for the best design, and score it exactly.

    Args:
        job: Number of measurements, objective, weight of maximum likelihood, seed.
        quick: Whether to search briefly.

    Returns:
        Exact information of the design found and of the best one (nats), their ratio,
        what the search reports, and what it took.
    """
    torch.manual_seed(job["seed"])
    task = get_task("noisy_linear", dim_design=job["dim_design"])
    settings = settings_of(job["dim_design"], job["objective"], quick)
    trainer = make_search(task, job["objective"])
    started = time.perf_counter()
    result = find_design(
        trainer,
        task,
        objective=job["objective"],
        regularization_strength=job["regularization_strength"],
        **settings,
    )
    seconds = time.perf_counter() - started
    accuracy = {"num_samples": 100} if quick and task.dim_x > 1 else {}
    found, error = task.exact_eig(result.design, **accuracy)
    best, _ = task.exact_eig(optimum(task), **accuracy)
    last = result.history.get("log_likelihood", [])
    last = last[-len(result.history["loss"]) // 10 :]
    return {
        "exact_eig": round(found, 4),
        "standard_error": round(error, 4),
        "optimum": round(best, 4),
        "share": round(found / best, 4),
        "root_mean_square": round(float(result.design.square().mean().sqrt()), 3),
        "reported_eig": round(result.eig.value, 4),
        "log_likelihood": round(sum(last) / len(last), 3) if last else None,
        "search_seconds": round(seconds, 1),
        "num_simulations": result.num_simulations,
    }


def summary(rows: Sequence[Row]) -> list[Row]:
    """Return means over seeds of each setting."""
    return averages(
        rows,
        by=["dim_design", "objective", "regularization_strength"],
        values=["exact_eig", "share", "log_likelihood", "search_seconds"],
    )


def figure(rows: Sequence[Row]) -> Figure:
    """Return the share of the optimum against the number of measurements."""
    table = summary(rows)
    made = Figure(figsize=(9.0, 3.8), layout="constrained")
    panels = made.subplots(1, 2, sharex=True, sharey=True)
    for ax, objective in zip(panels, OBJECTIVES, strict=True):
        for number, (strength, color) in enumerate(zip(STRENGTHS, LINES, strict=False)):
            chosen = [
                row
                for row in table
                if row["objective"] == objective
                and row["regularization_strength"] == strength
            ]
            if not chosen:
                continue
            ax.errorbar(
                # Side by side, where they would hide each other.
                [row["dim_design"] * 1.06 ** (number - 1) for row in chosen],
                [100.0 * row["share"] for row in chosen],
                [100.0 * row["share_se"] for row in chosen],
                color=color,
                marker="o",
                capsize=3,
                label=f"λ = {strength:g}",
            )
        ax.axhline(100.0, color=GREY, linestyle="--", linewidth=1.0)
        ax.set_xscale("log")
        ax.set_xticks(DIMS, [str(dim) for dim in DIMS])
        ax.minorticks_off()
        ax.set_xlabel("measurements D")
        ax.set_title(objective)
        despine(ax)
    panels[0].set_ylabel("exact information [% of optimum]")
    panels[1].legend(frameon=False, loc="lower left")
    return made


STUDY = Study(
    name="linear-scaling",
    title="Designs of up to 500 measurements, as a share of the best information",
    jobs=jobs,
    run=run,
    figure=figure,
    summary=summary,
    num_seeds=3,
)
