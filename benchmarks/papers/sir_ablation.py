r"""When to count the infected: what distribution, gradient and objective matter.

One measurement of the SIR model. A distribution over designs (`truncated_normal`) or a
single design (`point`) follows one of three gradients of one of two objectives, from
starts at both ends and the middle of the epidemic. `info_nce` with `partial` is the
paper's code, `info_nce` with `score` its text; `barber_agakov` with `score` is the
default here. A point has no density and hence no score.

Designs are judged without the networks that found them, by brute force: entropies of
histograms of many trajectories on a grid of times, always the same trajectories, so
that the distance to the best time has next to no noise of its own.
"""

import time
from collections.abc import Sequence
from functools import lru_cache

import numpy as np
import torch
from matplotlib.figure import Figure

from benchmarks.study import Job, Row, Study, averages
from sbi_boed_plugin.experiment import find_design, make_trainer
from sbi_boed_plugin.plotting._style import GREY, LINES, despine
from sbi_boed_plugin.policies import PointPolicy, TruncatedNormalPolicy
from sbi_boed_plugin.tasks import get_task
from sbi_boed_plugin.tasks.sir import brute_force_eig

__all__ = ["STUDY"]

STARTS = (10.0, 50.0, 90.0)
METHODS = (
    ("truncated_normal", "score"),
    ("truncated_normal", "surrogate"),
    ("truncated_normal", "partial"),
    ("point", "surrogate"),
    ("point", "partial"),
)
OBJECTIVES = ("barber_agakov", "info_nce")
_POLICIES = {"truncated_normal": TruncatedNormalPolicy, "point": PointPolicy}

# Times are close enough for straight lines between them: the curve is smooth.
_GRID_SPACING = 2.0


def jobs(num_seeds: int, quick: bool) -> list[Job]:
    """Return the jobs; the seed chooses the start, too."""
    methods = [METHODS[0], METHODS[-1]] if quick else METHODS
    objectives = OBJECTIVES[:1] if quick else OBJECTIVES
    return [
        {"policy": policy, "gradient": gradient, "objective": objective, "seed": seed}
        for objective in objectives
        for policy, gradient in methods
        for seed in range(num_seeds)
    ]


def run(job: Job, quick: bool) -> Row:
    """Search for the best time, and score it by brute force.

    Args:
        job: Policy, gradient, objective, and seed.
        quick: Whether to search briefly, and score roughly.

    Returns:
        Start and time found, its information by brute force and how much less this is
        than the best (nats), what the search reports, and the whole curve as text.
    """
    torch.manual_seed(job["seed"])
    task = get_task("sir")
    start = torch.tensor([STARTS[job["seed"] % len(STARTS)]])
    policy = _POLICIES[job["policy"]](task.design_low, task.design_high, loc=start)
    trainer = make_trainer(task, policy=policy, show_progress_bars=False)
    started = time.perf_counter()
    result = find_design(
        trainer,
        task,
        objective=job["objective"],
        gradient=job["gradient"],
        num_steps=60 if quick else None,
        **({"num_eig_samples": 200, "num_eig_contrastive": 63} if quick else {}),
    )
    seconds = time.perf_counter() - started
    times, eig, error = _brute_force(
        float(task.design_low), float(task.design_high), quick
    )
    design = float(result.design)
    found = float(np.interp(design, times, eig))
    return {
        "start": float(start),
        "design": round(design, 3),
        "brute_force_eig": round(found, 4),
        "standard_error": round(float(np.interp(design, times, error)), 4),
        "shortfall": round(float(eig.max()) - found, 4),
        "reported_eig": round(result.eig.value, 4),
        "reported_standard_error": round(result.eig.standard_error, 4),
        "search_seconds": round(seconds, 1),
        "num_simulations": result.num_simulations,
        "curve": " ".join(
            f"{t:g}:{value:.4f}" for t, value in zip(times, eig, strict=True)
        ),
    }


@lru_cache(maxsize=2)
def _brute_force(
    earliest: float, latest: float, quick: bool
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return times, information and its standard error; once for each process."""
    times = torch.arange(_GRID_SPACING, latest + 0.5, _GRID_SPACING)
    # Bad searches end at the very beginning, which is not like the next time.
    times = torch.cat([torch.tensor([earliest]), times])
    result = brute_force_eig(
        times,
        num_parameters=64 if quick else 1_024,
        num_trajectories=128 if quick else 2_048,
        num_replicates=4 if quick else 16,
        num_steps=200 if quick else 800,
        seed=1_000,
    )
    return times.numpy(), result.eig.numpy(), result.standard_error.numpy()


def summary(rows: Sequence[Row]) -> list[Row]:
    """Return means over seeds of each method."""
    return averages(
        rows,
        by=["objective", "policy", "gradient"],
        values=["design", "brute_force_eig", "shortfall", "search_seconds"],
    )


def figure(rows: Sequence[Row]) -> Figure:
    """Return found times on the curve of brute force, and how far below its top."""
    made = Figure(figsize=(10.0, 4.0), layout="constrained")
    left, right = made.subplots(1, 2, width_ratios=(1.4, 1.0))
    points = [point.split(":") for point in rows[0]["curve"].split()]
    left.plot(*np.array(points, dtype=float).T, color=GREY, label="brute force")
    table = {(r["objective"], r["policy"], r["gradient"]): r for r in summary(rows)}
    markers = dict(zip(OBJECTIVES, ("o", "s"), strict=True))
    for (policy, gradient), color in zip(METHODS, LINES, strict=False):
        for objective, marker in markers.items():
            row = table.get((objective, policy, gradient))
            if row is None:
                continue
            chosen = [
                r
                for r in rows
                if (r["objective"], r["policy"], r["gradient"])
                == (objective, policy, gradient)
            ]
            name = f"{policy.replace('_', ' ')}, {gradient}, {objective}"
            left.scatter(
                [r["design"] for r in chosen],
                [r["brute_force_eig"] for r in chosen],
                color=color,
                marker=marker,
                s=22,
                alpha=0.7,
            )
            right.errorbar(
                row["shortfall"],
                name,
                xerr=row["shortfall_se"],
                color=color,
                marker=marker,
                capsize=3,
            )
    left.set_xlabel("time")
    left.set_ylabel("information [nats]")
    left.set_title("designs found, one per seed")
    left.legend(frameon=False, loc="lower right")
    right.invert_yaxis()
    right.set_xlabel("below the best time [nats]")
    right.set_title("mean over seeds")
    for ax in (left, right):
        despine(ax)
    return made


STUDY = Study(
    name="sir-ablation",
    title="SIR, one count: information lost by policy, gradient and objective",
    jobs=jobs,
    run=run,
    figure=figure,
    summary=summary,
    num_seeds=6,
)
