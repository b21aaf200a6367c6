"""The table of trainers that must keep sbi's contract, and what the rows share.

A new trainer joins by a subclass of `TrainerCase` in `CASES`. What differs between
trainers is in the subclasses; the tests themselves name none of them.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from typing import Any

import numpy as np
import pytest
import torch
from sbi.inference import NLE, NPE, NRE
from sbi.inference.posteriors.posterior_parameters import (
    DirectPosteriorParameters,
    ImportanceSamplingPosteriorParameters,
    MCMCPosteriorParameters,
    RejectionPosteriorParameters,
    VIPosteriorParameters,
)
from sbi.neural_nets import classifier_nn, likelihood_nn, posterior_nn
from sbi.utils import BoxUniform
from torch import Tensor, nn

from sbi_boed_plugin import NLE_INCE, NPE_GKL, NRE_GKL, EnergyConfig
from tests.conftest import TEST_DEVICE, NoOpTracker

DIM_THETA, DIM_X = 2, 3

# Without progress bars and printed text, and short enough for a whole suite.
QUIET = {"show_progress_bars": False}
SHORT = {"max_num_epochs": 2, "training_batch_size": 50, "learning_rate": 5e-3}

# Cheapest settings of each sampler; the samples need not be good ones.
SAMPLERS = {
    "direct": DirectPosteriorParameters(),
    "mcmc": MCMCPosteriorParameters(
        method="slice_np_vectorized",
        num_chains=2,
        warmup_steps=2,
        thin=1,
        init_strategy_parameters={"num_candidate_samples": 50},
    ),
    "rejection": RejectionPosteriorParameters(
        num_samples_to_find_max=100, num_iter_to_find_max=2
    ),
    "vi": VIPosteriorParameters(q="gaussian"),
    "importance": ImportanceSamplingPosteriorParameters(oversampling_factor=4),
}


@dataclass(frozen=True)
class Simulations:
    """Parameters, data and, where experiments have one, designs."""

    theta: Tensor
    x: Tensor
    design: Tensor | None = None

    @property
    def parameters(self) -> Tensor:
        """What networks see in the place of `theta`: with the design in one row."""
        if self.design is None:
            return self.theta
        return torch.cat([self.theta, self.design], dim=-1)


def split_design(parameters: Tensor, x: Tensor) -> tuple[Tensor, Tensor]:
    """Move designs from the rows of parameters to those of data."""
    theta, design = parameters[:, :DIM_THETA], parameters[:, DIM_THETA:]
    return theta, torch.cat([x, design], dim=-1)


class TrainerCase:
    """One trainer and what sbi's users may expect of it, with designs or without.

    Subclasses also have `log_term`, what each observation adds to the log-potential,
    and `losses` of training.
    """

    trainer: type
    peer: type  # the class of sbi whose place it takes.
    builder: Callable  # sbi's function for its networks.
    user_options: dict[str, Any] = {"num_components": 2}
    estimator_argument = "density_estimator"
    default_model = "maf"
    models = ("mdn", "made", "maf", "nsf", "zuko_maf", "zuko_nsf")  # by name.
    fast_model = "mdn"
    samplers = tuple(name for name in SAMPLERS if name != "direct")
    renamed_defaults: dict[str, Any] = {}  # that differ from the peer's on purpose.

    train_kwargs: dict[str, Any] = {}  # of every training,
    train_again: dict[str, Any] = {}  # of another one with the same simulations,
    as_peer: dict[str, Any] | None = None  # and of one that equals the peer's.
    objective: dict[str, Any] = {}  # other values, refused on resuming.
    # Summary keys beside sbi's: with a value per epoch; of a second stage, once and
    # for its every epoch.
    extra_summary: tuple[str, ...] = ()
    own_summary: tuple[str, ...] = ()
    own_summary_per_epoch: tuple[str, ...] = ()

    condition_index: int | None = None  # What embedding nets see of `stored()`.
    # Whether it is like NPE: later rounds are told by their proposal rather than by
    # `from_round`, invalid simulations are left out by default, several rows are no
    # observations of the same parameters, and validation draws anew each time.
    like_npe = False

    def __init__(self, dim_design: int) -> None:
        self.dim_design = dim_design
        self.has_designs = dim_design > 0
        self.name = self.trainer.__name__ + ("-design" if dim_design else "")

    def user_builder(self, parameters: Tensor, data: Tensor) -> nn.Module:
        """A builder as users write them, with a network of sbi inside."""
        builder = self.builder(self.fast_model, hidden_features=8, **self.user_options)
        return builder(parameters, data)

    def stored(self, simulations: Simulations) -> tuple[Tensor, Tensor]:
        """Parameters and data as networks see them, with designs in one of them."""
        return split_design(simulations.parameters, simulations.x)

    def trained_by_sbi(self, estimator: Any) -> Any:
        """The network that sbi's own loop trains."""
        return estimator

    def prior(self, device: str = "cpu") -> BoxUniform:
        corner = 2 * torch.ones(DIM_THETA, device=device)
        return BoxUniform(-corner, corner, device=device)

    def proposal(self) -> Any:
        """Where parameters of a later round come from; the loss does not ask."""
        return self.build_posterior(trained(self)).set_default_x(self.observe())

    def simulator(self, theta: Tensor, design: Tensor | None = None) -> Tensor:
        """Noisy data of another size than the parameters; a design scales them."""
        scale = 1.0 if design is None else design.sum(dim=-1, keepdim=True)
        mean = torch.cat([theta * scale, theta.sum(dim=-1, keepdim=True)], dim=-1)
        return mean + 0.3 * torch.randn_like(mean)

    def simulate(self, num: int = 200, theta: Tensor | None = None) -> Simulations:
        """Simulations at parameters from the prior, or at given ones."""
        theta = self.prior().sample((num,)) if theta is None else theta
        design = None
        if self.has_designs:
            design = 0.5 + 1.5 * torch.rand(len(theta), self.dim_design)
        return Simulations(theta, self.simulator(theta, design), design)

    def designs(self, num_designs: int = 1) -> Tensor | None:
        """Designs to build a posterior with: distinct, and known beforehand."""
        if not self.has_designs:
            return None
        rows = torch.linspace(0.7, 1.8, num_designs).unsqueeze(1)
        return rows.expand(num_designs, self.dim_design)

    def make(self, model: str | Callable | None = None, **kwargs: Any) -> Any:
        """The trainer, which writes no files unless asked to."""
        kwargs = {"tracker": NoOpTracker(), **QUIET, **kwargs}
        kwargs[self.estimator_argument] = model or self.fast_model
        return self.trainer(kwargs.pop("prior", self.prior()), **kwargs)

    def append(
        self,
        trainer: Any,
        simulations: Simulations,
        proposal: Any = None,
        in_one_row: bool = False,
        **kwargs: Any,
    ) -> Any:
        """Store simulations, with designs as ours take them or as sbi's own do."""
        theta, x = simulations.theta, simulations.x
        if in_one_row:
            theta, x = self.stored(simulations)
        elif simulations.design is not None:
            kwargs["design"] = simulations.design
        if self.like_npe:
            if kwargs.pop("from_round", 0) and proposal is None:
                proposal = self.proposal()
            kwargs["proposal"] = proposal
        return trainer.append_simulations(theta, x, **kwargs)

    def train(self, trainer: Any, **kwargs: Any) -> Any:
        """Train shortly, and return the estimator."""
        if trainer._neural_net is not None and not kwargs.get("resume_training"):
            kwargs = {**self.train_again, **kwargs}
        return trainer.train(**{**SHORT, **self.train_kwargs, **kwargs})

    def trainer_of(self, num: int = 60, model: Any = None, **kwargs: Any) -> Any:
        """A trainer of its own, trained shortly."""
        trainer = self.append(self.make(model), self.simulate(num))
        self.train(trainer, **kwargs)
        return trainer

    def build_posterior(
        self, trainer: Any, sampler: str = "rejection", num_designs: int = 1
    ) -> Any:
        """Posterior at as many designs, with the cheapest settings."""
        num_designs = 1 if self.like_npe else num_designs
        kwargs = {"design": self.designs(num_designs)} if self.has_designs else {}
        return trainer.build_posterior(
            sample_with=sampler, posterior_parameters=SAMPLERS[sampler], **kwargs
        )

    def observe(self, num_rows: int = 1) -> Tensor:
        """Data that somebody measured, one row after the other."""
        rows = torch.linspace(-0.5, 0.9, num_rows * DIM_X)
        return rows.reshape(num_rows, DIM_X)


class NLEInceCase(TrainerCase):
    trainer, peer = NLE_INCE, NLE
    builder = staticmethod(likelihood_nn)
    condition_index = 0
    # After a search that trained a posterior network, chains are not the default.
    renamed_defaults = {"algorithm": "NLE_INCE", "sample_with": None}
    as_peer = {"num_contrastive": 0, "regularization_strength": 1.0}
    objective = {"regularization_strength": 0.5}
    extra_summary = ("validation_log_likelihood", "eig_lower_bound")

    def stored(self, simulations):
        return simulations.parameters, simulations.x

    def log_term(self, estimator, parameters, x):
        return estimator.log_prob(x.unsqueeze(0), condition=parameters)[0]

    def losses(self, trainer, new):
        return trainer._get_losses(batch=(new.parameters, new.x))


class NPEGklCase(TrainerCase):
    trainer, peer = NPE_GKL, NPE
    builder = staticmethod(posterior_nn)
    condition_index = 1
    samplers = tuple(SAMPLERS)
    train_kwargs = {"energy": EnergyConfig(max_num_epochs=3)}
    train_again = {"force_first_round_loss": True}
    as_peer = {"energy": EnergyConfig(max_num_epochs=1)}
    objective = {"training": "joint"}
    own_summary = ("energy_epochs_trained", "energy_gain", "energy_gain_standard_error")
    own_summary_per_epoch = ("energy_training_loss", "energy_validation_loss")
    like_npe = True

    def log_term(self, estimator, parameters, x):
        """Unnormalized, as potentials are, and without the prior."""
        theta, data = split_design(parameters, x)
        log_prob = estimator.log_unnormalized(theta.unsqueeze(0), data)[0]
        return log_prob - estimator.prior.log_prob(theta)

    def losses(self, trainer, new):
        return trainer._hybrid.loss(*self.stored(new))

    def trained_by_sbi(self, estimator):
        return estimator.base


class NREGklCase(TrainerCase):
    trainer, peer = NRE_GKL, NRE
    builder = staticmethod(classifier_nn)
    estimator_argument = "classifier"
    default_model = "resnet"
    models = ("linear", "mlp", "resnet")
    fast_model = "mlp"
    renamed_defaults = {"algorithm": "NRE_GKL"}
    user_options = {}

    def log_term(self, estimator, parameters, x):
        return estimator(*split_design(parameters, x))

    def losses(self, trainer, new):
        return trainer._loss(*self.stored(new), num_atoms=5)


CASES = tuple(
    kind(dim_design)
    for kind in (NLEInceCase, NPEGklCase, NREGklCase)
    for dim_design in (0, 1)
)


def for_cases(wanted: Callable[[TrainerCase], Any]) -> Any:
    """Run a test for those trainers for which `wanted(case)` holds."""
    cases = [case for case in CASES if wanted(case)]
    return pytest.mark.parametrize("case", cases, ids=lambda case: case.name)


def for_each(name: str, values: Callable[[TrainerCase], Any]) -> Any:
    """Run a test for every trainer with each of `values(case)`."""
    rows = [
        pytest.param(case, value, id=f"{case.name}-{getattr(value, '__name__', value)}")
        for case in CASES
        for value in values(case)
    ]
    return pytest.mark.parametrize(("case", name), rows)


for_each_case = for_cases(lambda case: True)
for_each_sampler = for_each("sampler", lambda case: case.samplers)
on_each_device = pytest.mark.parametrize(
    "device", ["cpu", pytest.param(TEST_DEVICE, marks=pytest.mark.gpu, id="gpu")]
)


@cache
def trained(case: TrainerCase) -> Any:
    """A trained trainer to build posteriors from; tests must not change it."""
    with torch.random.fork_rng():
        torch.manual_seed(1)
        return case.trainer_of(300, max_num_epochs=10)


def trained_estimator(case: TrainerCase) -> Any:
    """The network of the trained trainer."""
    trainer = trained(case)
    return trainer._hybrid if case.trainer is NPE_GKL else trainer._neural_net


def seed_everything(seed: int = 0) -> None:
    """Seed what sbi's samplers draw from: torch, and numpy for slice sampling."""
    torch.manual_seed(seed)
    np.random.seed(seed)


def draw(posterior: Any, num_samples: int = 10, **kwargs: Any) -> Tensor:
    """Samples, without a progress bar; variational posteriors are fitted first."""
    if hasattr(posterior, "vi_method"):
        fit = {"max_num_iters": 10, "min_num_iters": 5, "n_particles": 16}
        posterior.train(**kwargs, **fit, quality_control=False, show_progress_bar=False)
    return posterior.sample((num_samples,), show_progress_bars=False, **kwargs)
