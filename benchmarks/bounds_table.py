"""Every bound of the information against its exact value, on a straight line.

    make reproduce NAME=bounds

`gaussian_linear` at its best design, half of the measurements at each end, where the
information is known in closed form. Likelihood, hybrid posterior and marginal are
trained there by `optimize_design`, from a policy that stays within a hundredth of the
box. "true" rows have the task's own likelihood in the place of the learned one.
"""

from typing import Any

import torch
from torch import Tensor

from benchmarks.study import Job, Row, Study
from sbi_boed_plugin import NLE_INCE, TruncatedNormalPolicy, estimate_eig, tasks
from sbi_boed_plugin.experiment import NoOpTracker
from sbi_boed_plugin.search.result import DesignResult

# Bound, the likelihood that it has, and its number of contrastive samples.
CASES = [
    ("pce", "learned", 15),
    ("pce", "learned", 1_023),
    ("snmc", "learned", 1_023),
    ("nwj", "learned", 1_023),
    ("marginal", "learned", None),
    ("barber_agakov", None, None),
    ("gkl", None, 1_023),
    ("pce", "true", 1_023),
    ("snmc", "true", 1_023),
    ("exact", "true", 16_383),
    ("marginal", "true", None),
]


def best_design(task: tasks.Task) -> Tensor:
    """Return the best design: half of the measurements at each end."""
    design = task.design_high.clone()
    design[: task.dim_design // 2] = task.design_low[: task.dim_design // 2]
    return design


def train_at(
    task: tasks.Task, design: Tensor, num_steps: int, training_batch_size: int = 256
) -> DesignResult:
    """Train likelihood, hybrid posterior and marginal around a design."""
    # As `experiment.make_trainer`, but with a policy that stays where it is. An
    # autoregressive flow of a single value is a Gaussian: a mixture there.
    model = "mdn" if task.dim_x == 1 else "maf"
    trainer = NLE_INCE(
        task.prior,
        model,
        posterior_estimator="maf",
        marginal_estimator=model,
        design_policy=TruncatedNormalPolicy(
            task.design_low, task.design_high, loc=design, scale=0.01
        ),
        tracker=NoOpTracker(),
        show_progress_bars=False,
    )
    settings = {
        "num_steps": num_steps,
        "training_batch_size": training_batch_size,
        "num_contrastive": 3,
        "design_learning_rate": 1e-8,
        "num_eig_samples": 100,
    }
    trainer.optimize_design(task.simulator, objective="gkl", **settings)
    return trainer.optimize_design(task.simulator, objective="marginal", **settings)


def columns_of(
    task: tasks.Task,
    design: Tensor,
    trained: DesignResult,
    bound: str,
    likelihood: str | None,
    num_contrastive: int | None,
    num_samples: int,
) -> dict[str, Any]:
    """Return an estimate, its standard error and its cap."""
    if bound in ("barber_agakov", "gkl"):
        estimator = trained.posterior_estimator
    elif likelihood == "true":
        estimator = task.log_likelihood
    else:
        estimator = trained.likelihood_estimator
    needs_marginal = bound in ("marginal", "nwj")
    eig = estimate_eig(
        estimator,
        task.simulator,
        prior=task.prior,
        design=design,
        bound=bound,
        marginal_estimator=trained.marginal_estimator if needs_marginal else None,
        num_samples=num_samples,
        num_contrastive=num_contrastive or 1,
        seed=0,
    )
    name = "_".join(str(part) for part in (bound, likelihood, num_contrastive) if part)
    return {
        name: round(eig.value, 3),
        f"{name}_se": round(eig.standard_error, 3),
        f"{name}_cap": "" if eig.cap is None else round(eig.cap, 3),
    }


def jobs(num_seeds: int, quick: bool) -> list[Job]:
    """Return one job for each number of measurements and seed."""
    return [{"dim_design": d, "seed": s} for s in range(num_seeds) for d in (1, 10)]


def run(job: Job, quick: bool) -> Row:
    """Return all bounds of one training, one column each."""
    num_steps, num_samples = (100, 200) if quick else (1_000, 2_000)
    torch.manual_seed(job["seed"])
    task = tasks.get_task("gaussian_linear", dim_design=job["dim_design"])
    design = best_design(task)
    trained = train_at(task, design, num_steps)
    row = {"exact": round(task.exact_eig(design)[0], 3)}
    for case in CASES:
        row |= columns_of(task, design, trained, *case, num_samples)
    return row


STUDY = Study(
    name="bounds",
    title="Bounds of the information of a straight line, learned and exact",
    jobs=jobs,
    run=run,
)
