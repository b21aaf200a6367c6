r"""When to take five blood samples one after the other.

**The experiment.** A drug is absorbed and eliminated at rates that vary between
patients, as does the volume that it spreads in; see
:class:`~sbi_boed_plugin.tasks.Pharmacokinetic`. Five times a time in [0, 24] hours is
chosen, blood is taken from the same patient, and its concentration learned from. Each
sample has noise of its own; times need not be in order, as in the literature, though
that would take a patient who goes back in time.

**Methods.** *found*: a likelihood is trained once per group of experiments, from
simulations at times uniform on [0, 24]; every time is then found by a multi-start
search of the greedy information given all data before. *random, uniform* draws times
uniformly; *evenly spaced* takes every 24/5 hours. Nothing is
learned there.

**Measures.** sPCE and sNMC: lower and upper bound of the total information under the
true likelihood, with a million draws from the prior, in nats; means over truths drawn
from the prior, the same for all methods. `kl_prior` and `kl_chosen`: mean divergence of
the true from the learned likelihood, at held-out parameters and times, and at the
chosen times and parameters of the belief at that time.
"""

from collections.abc import Sequence

import torch
from matplotlib.figure import Figure

from benchmarks.papers._amortised import (
    AmortisedSettings,
    run_group,
    run_random,
)
from benchmarks.papers._campaigns import in_order
from benchmarks.papers._pooled import pooled, pooled_plot
from benchmarks.study import Job, Row, Study
from sbi_boed_plugin.estimators.transformed import transformed_likelihood_nn
from sbi_boed_plugin.experiment import NoOpTracker
from sbi_boed_plugin.policies import TruncatedNormalPolicy
from sbi_boed_plugin.search.multi_start import MultiStartConfig
from sbi_boed_plugin.tasks.pharmacokinetic import Pharmacokinetic
from sbi_boed_plugin.trainers.nle_ince import NLE_INCE

__all__ = ["METHODS", "STUDY"]

METHODS = ("found", "evenly spaced", "random, uniform")
NUM_ROUNDS = 5

# About what policies that are trained for all five samples together reach in the
# literature.
PUBLISHED_ADAPTIVE = 3.2

SETTINGS = {
    False: AmortisedSettings(
        num_rounds=NUM_ROUNDS,
        search=MultiStartConfig(
            num_starts=48,
            num_samples=32,
            num_climb_steps=24,
            num_candidates=2,
            num_candidate_samples=256,
        ),
    ),
    True: AmortisedSettings(
        num_experiments=2,
        num_rounds=2,
        num_steps=30,
        batch_size=256,
        num_particles=512,
        num_contrastive=10_000,
        search=MultiStartConfig(
            num_starts=16,
            num_climb_steps=6,
            num_candidates=2,
            num_candidate_samples=50,
        ),
    ),
}


def jobs(num_seeds: int, quick: bool) -> list[Job]:
    """Return one job per method and group of experiments.

    Args:
        num_seeds: Number of groups.
        quick: Not used: all methods are quick then.

    Returns:
        The jobs.
    """
    return [
        {"method": name, "seed": seed} for seed in range(num_seeds) for name in METHODS
    ]


def run(job: Job, quick: bool) -> Row:
    """Run one group of experiments.

    Args:
        job: Name of the method and seed.
        quick: Whether to take few steps and measurements.

    Returns:
        Bounds of the total information, their values for each experiment separated by
        spaces, divergences, and seconds on one core.
    """
    task = Pharmacokinetic()
    settings, seed = SETTINGS[quick], int(job["seed"])
    latest = float(task.design_high)
    if job["method"] == "random, uniform":
        draw = lambda num: latest * torch.rand(num, 1)
        return run_random(task, draw, settings, seed)
    if job["method"] == "evenly spaced":
        draw = lambda num: latest * torch.arange(1, num + 1).unsqueeze(1) / num
        return run_random(task, draw, settings, seed)
    return run_group(task, lambda: make_inference(task), settings, seed)


def make_inference(task: Pharmacokinetic) -> NLE_INCE:
    """Return a trainer with a policy over all times.

    Args:
        task: Simulator.

    Returns:
        The trainer.
    """
    build = transformed_likelihood_nn(
        "mdn",
        dim_design=1,
        hidden_features=64,
        num_components=3,
        theta_transform=task.theta_transform,
        design_transform=task.design_transform,
    )
    return NLE_INCE(
        task.prior,
        build,
        tracker=NoOpTracker(),
        show_progress_bars=False,
        design_policy=TruncatedNormalPolicy(task.design_low, task.design_high),
    )


def summary(rows: Sequence[Row]) -> Sequence[Row]:
    """Return bounds of each method, means and standard errors over all experiments.

    Args:
        rows: Rows of the study.

    Returns:
        One row per method.
    """
    return pooled(in_order(rows, METHODS))


def figure(rows: Sequence[Row]) -> Figure:
    """Draw the bounds of each method.

    Args:
        rows: Rows of the study.

    Returns:
        The figure.
    """
    rows = in_order(rows, METHODS)
    return pooled_plot(rows, PUBLISHED_ADAPTIVE, "policies trained for five rounds")


STUDY = Study(
    name="pharmacokinetic",
    title="A drug in the blood, five samples: total information",
    jobs=jobs,
    run=run,
    figure=figure,
    summary=summary,
    num_seeds=10,
)
