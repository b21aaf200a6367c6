r"""Two hidden sources, found with ten measurements one after the other.

**The experiment.** Sources :math:`\theta_1, \theta_2 \sim N(0, I)` in the plane; a
sensor at a chosen place measures the logarithm of their signal with noise of scale
0.5, see :class:`~sbi_boed_plugin.tasks.LocationFinding`. Ten times a place is chosen,
measured, and learned from.

**Methods.** *found*: a likelihood is trained once per group of experiments, from
simulations alone, at places drawn like a source from :math:`N(0, I)`: near a source
the signal varies most, and that is where a search wants to measure. Every place is then
found by a multi-start search of the greedy information given all data before. The
network gets the two distances between sensor and sources (their logarithms, and the
sum over sources of what it makes of them): what is known about an instrument, not what
it shows. *found, plain network* has a network that gets coordinates as they are.
*random, uniform* draws places uniformly from [-4, 4]², *random, Normal* from
:math:`N(0, I)`; there, nothing is learned.

**Measures.** sPCE and sNMC: lower and upper bound of the total information under the
true likelihood, with a million draws from the prior, in nats; means over truths drawn
from the prior, the same for all methods. `kl_prior`: mean divergence of the true from
the learned likelihood at held-out parameters and places from :math:`N(0, I)`;
`kl_chosen`: at the chosen places and parameters of the belief at that time.
"""

import torch
from torch import Tensor, nn

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
from sbi_boed_plugin.policies import NormalPolicy
from sbi_boed_plugin.tasks.location_finding import LocationFinding
from sbi_boed_plugin.trainers.nle_ince import NLE_INCE

__all__ = ["METHODS", "STUDY"]

METHODS = ("found", "found, plain network", "random, uniform", "random, Normal")

# About what policies that are trained for all ten measurements together reach in the
# literature.
PUBLISHED_ADAPTIVE = 7.8

SETTINGS = {
    False: AmortisedSettings(num_steps=2_000),
    True: QUICK,
}


class _SourceDistances(nn.Module):
    """Features of rows `(sources, place)`: of each distance, summed over sources.

    The logarithm keeps near and far distances apart.
    """

    def __init__(self, num_sources: int, dim_space: int, num_features: int = 8) -> None:
        super().__init__()
        self.shape = (num_sources, dim_space)
        width = 32
        self.features = nn.Sequential(
            nn.Linear(1, width),
            nn.SiLU(),
            nn.Linear(width, width),
            nn.SiLU(),
            nn.Linear(width, num_features),
        )

    def forward(self, rows: Tensor) -> Tensor:
        """Return features of shape `(batch_dim, num_features)`."""
        num_sources, dim_space = self.shape
        sources = rows[..., : num_sources * dim_space].unflatten(-1, self.shape)
        place = rows[..., num_sources * dim_space :].unsqueeze(-2)
        squared = (sources - place).square().sum(dim=-1, keepdim=True)
        return self.features(0.5 * torch.log(squared + 1e-6)).sum(dim=-2)


def jobs(num_seeds: int, quick: bool) -> list[Job]:
    """Return one job per method and group of experiments."""
    return [
        {"method": name, "seed": seed}
        for seed in range(num_seeds)
        for name in METHODS
        # For comparison only: one group is enough.
        if not ("plain" in name and (quick or seed >= 1))
    ]


def run(job: Job, quick: bool) -> Row:
    """Run one group of experiments."""
    task = LocationFinding()
    settings, seed = SETTINGS[quick], int(job["seed"])
    low, high = task.design_low, task.design_high
    if job["method"] == "random, uniform":
        draw = lambda num: low + torch.rand(num, task.dim_design) * (high - low)
        return run_random(task, draw, settings, seed)
    if job["method"] == "random, Normal":
        draw = lambda num: torch.randn(num, task.dim_design)
        return run_random(task, draw, settings, seed)
    plain = job["method"] == "found, plain network"
    return run_group(task, lambda: make_inference(task, plain), settings, seed)


def make_inference(task: LocationFinding, plain: bool = False) -> NLE_INCE:
    """Return a trainer whose designs are drawn like a source."""
    embedding = (
        {}
        if plain
        else {
            "embedding_net": _SourceDistances(task.num_sources, task.dim_space),
            "z_score_theta": "none",
        }
    )
    build = transformed_likelihood_nn(
        "mdn",
        dim_design=task.dim_design,
        hidden_features=128 if plain else 64,
        num_components=4,
        **embedding,
    )
    return NLE_INCE(
        task.prior,
        build,
        tracker=NoOpTracker(),
        show_progress_bars=False,
        design_policy=NormalPolicy(torch.zeros(task.dim_design), 1.0),
    )


STUDY = pooled_study(
    "location",
    "Two hidden sources, ten measurements: total information",
    METHODS,
    run,
    published=PUBLISHED_ADAPTIVE,
    published_label="policies trained for ten rounds",
    num_seeds=4,
    jobs=jobs,
)
