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

import torch

from benchmarks.papers._amortised import (
    QUICK,
    AmortisedSettings,
    run_group,
    run_random,
)
from benchmarks.papers._pooled import pooled_study
from benchmarks.study import Job, Row
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
    True: QUICK,
}


def run(job: Job, quick: bool) -> Row:
    """Run one group of experiments."""
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
    """Return a trainer with a policy over all times."""
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


STUDY = pooled_study(
    "pharmacokinetic",
    "A drug in the blood, five samples: total information",
    METHODS,
    run,
    published=PUBLISHED_ADAPTIVE,
    published_label="policies trained for five rounds",
    num_seeds=10,
)
