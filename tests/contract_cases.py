"""The table of trainers that must keep sbi's contract, and what the rows share.

A new trainer joins by adding a row to `CASES`. What differs between trainers is a
column; the tests themselves name none of them.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
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
    PosteriorParameters,
    RejectionPosteriorParameters,
    VIPosteriorParameters,
)
from sbi.neural_nets import classifier_nn, likelihood_nn, posterior_nn
from sbi.utils import BoxUniform
from torch import Tensor, nn

from sbi_boed_plugin import NLE_INCE, NPE_GKL, NRE_GKL, EnergyConfig
from tests.conftest import NoOpTracker

DIM_THETA, DIM_X = 2, 3

# Without progress bars and printed text, and short enough for a whole suite.
QUIET = {"show_progress_bars": False}
SHORT = {"max_num_epochs": 2, "training_batch_size": 50, "learning_rate": 5e-3}

# Cheapest settings of each sampler; the samples need not be good ones.
SAMPLERS: dict[str, tuple[str, PosteriorParameters]] = {
    "direct": ("direct", DirectPosteriorParameters()),
    "slice_np": (
        "mcmc",
        MCMCPosteriorParameters(
            method="slice_np",
            num_chains=1,
            warmup_steps=2,
            thin=1,
            init_strategy_parameters={"num_candidate_samples": 50},
        ),
    ),
    "slice_np_vectorized": (
        "mcmc",
        MCMCPosteriorParameters(
            method="slice_np_vectorized",
            num_chains=2,
            warmup_steps=2,
            thin=1,
            init_strategy_parameters={"num_candidate_samples": 50},
        ),
    ),
    "rejection": (
        "rejection",
        RejectionPosteriorParameters(
            num_samples_to_find_max=100, num_iter_to_find_max=2
        ),
    ),
    "vi": ("vi", VIPosteriorParameters(q="gaussian")),
    "importance": (
        "importance",
        ImportanceSamplingPosteriorParameters(oversampling_factor=4),
    ),
}


def build_user_likelihood(theta: Tensor, x: Tensor) -> nn.Module:
    """A builder as users write them, with a network of sbi inside."""
    return likelihood_nn("mdn", hidden_features=8, num_components=2)(theta, x)


def build_user_posterior(theta: Tensor, x: Tensor) -> nn.Module:
    return posterior_nn("mdn", hidden_features=8, num_components=2)(theta, x)


def build_user_ratio(theta: Tensor, x: Tensor) -> nn.Module:
    return classifier_nn("mlp", hidden_features=8)(theta, x)


def build_embedding_likelihood(dim_parameters: int, dim_x: int) -> Callable:
    """Builder of a likelihood with an embedding net on what it is conditioned on."""
    embedding_net = nn.Sequential(nn.Linear(dim_parameters, 7), nn.Tanh())
    return likelihood_nn("mdn", embedding_net=embedding_net)


def build_embedding_posterior(dim_parameters: int, dim_x: int) -> Callable:
    embedding_net = nn.Sequential(nn.Linear(dim_x, 7), nn.Tanh())
    return posterior_nn("mdn", embedding_net=embedding_net)


def sample_likelihood(estimator: Any, theta: Tensor, x: Tensor) -> Tensor:
    """Samples of an estimator of `x`, of shape `(3, *x.shape)`."""
    return estimator.sample(torch.Size((3,)), condition=theta)


def log_likelihood(estimator: Any, theta: Tensor, x: Tensor) -> Tensor:
    """What each observation in `x` adds to the log-potential, of shape `(len(x),)`."""
    return estimator.log_prob(x.unsqueeze(0), condition=theta)[0]


def split_design(parameters: Tensor, x: Tensor) -> tuple[Tensor, Tensor]:
    """Move designs from the rows of parameters to those of data."""
    theta, design = parameters[:, :DIM_THETA], parameters[:, DIM_THETA:]
    return theta, torch.cat([x, design], dim=-1)


def sample_posterior(estimator: Any, parameters: Tensor, x: Tensor) -> Tensor:
    _, data = split_design(parameters, x)
    return estimator.sample(torch.Size((3,)), condition=data)


def log_posterior_to_prior(estimator: Any, parameters: Tensor, x: Tensor) -> Tensor:
    """Unnormalized, as potentials are, and without the prior."""
    theta, data = split_design(parameters, x)
    log_prob = estimator.log_unnormalized(theta.unsqueeze(0), data)[0]
    return log_prob - estimator.prior.log_prob(theta)


def log_ratio(estimator: Any, parameters: Tensor, x: Tensor) -> Tensor:
    return estimator(*split_design(parameters, x))


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

    def replace(self, **values: Tensor | None) -> "Simulations":
        return Simulations(**{**vars(self), **values})


# Compared by identity: rows are keys of the cache of trained trainers.
@dataclass(frozen=True, eq=False)
class TrainerCase:
    """One trainer and what sbi's users may expect of it.

    Attributes:
        name: Name of the row.
        trainer: The class under test.
        peer: The class of sbi whose place it takes.
        dim_design: Number of values of a design, 0 without designs.
        estimator_argument: What the trainer calls its network.
        models: Networks that it takes by name or from a builder of sbi.
        embedding: From the sizes of `(theta, design)` and of what data are stored as
            to a builder with an embedding net, if networks can have one.
        sample_estimator: Draws from a trained network at given rows, if it can draw.
        log_term: From network, rows of `(theta, design)` and rows of `x` to what each
            observation adds to the log-potential.
        user_builder: A user's own builder.
        fast_model: Network for tests that do not care which.
        samplers: Keys of `SAMPLERS` that its posteriors support.
        method: Name for sbi's simple interface.
        renamed_defaults: Arguments whose default differs from the peer's on purpose,
            such as the trainer's own name.
        train_kwargs: Arguments of every training.
        extra_summary: Summary keys beside sbi's, one value per epoch.
        as_peer: Training arguments with which it equals its peer, if there are any.
        objective: Other values of its own training arguments, to change on resuming.
        later_rounds_by_proposal: Whether `append_simulations` tells a later round by
            its proposal, rather than by `from_round`.
        train_again: Arguments of another training with the same simulations.
        own_summary: Summary keys of a second stage, and of its every epoch.
        trained_by_sbi: From the estimator that training returns to the network that
            sbi's own loop trains.
        refuses_invalid: Whether invalid simulations are an error by default.
        repeats: Whether several rows of data are observations of the same parameters.
        positional: Arguments after the first two of `append_simulations`, and before
            `training_batch_size` of `train`, by position.
        in_potential: What potentials call the network.
        fixed_validation: Whether sbi's loop validates with the same draws each time.
        losses: From a trainer and simulations to training losses.
    """

    name: str
    trainer: type
    peer: type
    dim_design: int
    estimator_argument: str
    models: tuple[str, ...]
    embedding: Callable[[int, int], Callable] | None
    sample_estimator: Callable[[Any, Tensor, Tensor], Tensor] | None
    log_term: Callable[[Any, Tensor, Tensor], Tensor]
    user_builder: Callable
    fast_model: str
    samplers: tuple[str, ...]
    method: str
    renamed_defaults: Mapping[str, Any]
    extra_summary: tuple[str, ...]
    train_kwargs: Mapping[str, Any] = field(default_factory=dict)
    as_peer: Mapping[str, Any] | None = None
    objective: Mapping[str, Any] = field(default_factory=dict)
    later_rounds_by_proposal: bool = False
    train_again: Mapping[str, Any] = field(default_factory=dict)
    own_summary: tuple[str, ...] = ()
    own_summary_per_epoch: tuple[str, ...] = ()
    trained_by_sbi: Callable[[Any], Any] = lambda estimator: estimator
    refuses_invalid: bool = True
    repeats: bool = True
    positional: tuple[tuple, tuple, tuple] = (
        (False, 0),
        (),
        (False, False, False, False, None),
    )
    in_potential: str = "likelihood_estimator"
    fixed_validation: bool = True
    losses: Callable[[Any, Simulations], Tensor] = lambda trainer, new: (
        trainer._get_losses(batch=(new.parameters, new.x))
    )

    def proposal(self) -> Any:
        """Where parameters of a later round come from; the loss does not ask."""
        posterior = self.build_posterior(trained(self), "rejection")
        return posterior.set_default_x(self.observe())

    def stored(self, simulations: Simulations) -> tuple[Tensor, Tensor]:
        """Parameters and data as networks see them, with designs in one of them."""
        parameters, x = simulations.parameters, simulations.x
        if self.trainer is NLE_INCE:
            return parameters, x
        return split_design(parameters, x)

    @property
    def has_designs(self) -> bool:
        return self.dim_design > 0

    def prior(self, device: str = "cpu") -> BoxUniform:
        corner = 2 * torch.ones(DIM_THETA, device=device)
        return BoxUniform(-corner, corner, device=device)

    def simulator(self, theta: Tensor, design: Tensor | None = None) -> Tensor:
        """Noisy data of another size than the parameters; a design scales them."""
        scale = 1.0 if design is None else design.sum(dim=-1, keepdim=True)
        mean = torch.cat([theta * scale, theta.sum(dim=-1, keepdim=True)], dim=-1)
        return mean + 0.3 * torch.randn_like(mean)

    def simulate(
        self, num_simulations: int = 200, theta: Tensor | None = None
    ) -> Simulations:
        """Simulations at parameters from the prior, or at given ones."""
        if theta is None:
            theta = self.prior().sample((num_simulations,))
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
        proposal: Any | None = None,
        **kwargs: Any,
    ) -> Any:
        if simulations.design is not None:
            kwargs["design"] = simulations.design
        if self.later_rounds_by_proposal:
            if kwargs.pop("from_round", 0) and proposal is None:
                proposal = self.proposal()
            kwargs["proposal"] = proposal
        return trainer.append_simulations(simulations.theta, simulations.x, **kwargs)

    def train(self, trainer: Any, **kwargs: Any) -> Any:
        """Train shortly, and return the estimator."""
        if trainer._neural_net is not None and not kwargs.get("resume_training"):
            kwargs = {**self.train_again, **kwargs}
        return trainer.train(**{**SHORT, **self.train_kwargs, **kwargs})

    def build_posterior(
        self, trainer: Any, sampler: str = "rejection", num_designs: int = 1
    ) -> Any:
        """Posterior at as many designs, with the cheapest settings."""
        sample_with, parameters = SAMPLERS[sampler]
        num_designs = num_designs if self.repeats else 1
        kwargs = {"design": self.designs(num_designs)} if self.has_designs else {}
        return trainer.build_posterior(
            sample_with=sample_with, posterior_parameters=parameters, **kwargs
        )

    def observe(self, num_rows: int = 1) -> Tensor:
        """Data that somebody measured, one row after the other."""
        rows = torch.linspace(-0.5, 0.9, num_rows * DIM_X)
        return rows.reshape(num_rows, DIM_X)


def _nle_ince(name: str, dim_design: int) -> TrainerCase:
    return TrainerCase(
        name=name,
        trainer=NLE_INCE,
        peer=NLE,
        dim_design=dim_design,
        estimator_argument="density_estimator",
        models=("mdn", "made", "maf", "nsf", "zuko_maf", "zuko_nsf"),
        embedding=build_embedding_likelihood,
        sample_estimator=sample_likelihood,
        log_term=log_likelihood,
        user_builder=build_user_likelihood,
        fast_model="mdn",
        samplers=tuple(name for name in SAMPLERS if name != "direct"),
        method="nle_ince",
        renamed_defaults={"algorithm": "NLE_INCE"},
        extra_summary=("validation_log_likelihood", "eig_lower_bound"),
        as_peer={"num_contrastive": 0, "regularization_strength": 1.0},
        objective={"regularization_strength": 0.5},
    )


def _base(estimator: Any) -> Any:
    """The network of NPE_GKL that sbi's loop trains."""
    return estimator.base


def _hybrid_losses(trainer: Any, new: Simulations) -> Tensor:
    return trainer._stage.hybrid.loss(*split_design(new.parameters, new.x))


def _ratio_losses(trainer: Any, new: Simulations) -> Tensor:
    return trainer._loss(*split_design(new.parameters, new.x), num_atoms=5)


def _npe_gkl(name: str, dim_design: int) -> TrainerCase:
    return TrainerCase(
        name=name,
        trainer=NPE_GKL,
        peer=NPE,
        dim_design=dim_design,
        estimator_argument="density_estimator",
        models=("mdn", "made", "maf", "nsf", "zuko_maf", "zuko_nsf"),
        embedding=build_embedding_posterior,
        sample_estimator=sample_posterior,
        log_term=log_posterior_to_prior,
        user_builder=build_user_posterior,
        fast_model="mdn",
        samplers=tuple(SAMPLERS),
        method="npe_gkl",
        renamed_defaults={},
        extra_summary=(),
        train_kwargs={"energy": EnergyConfig(max_num_epochs=3)},
        as_peer={"energy": EnergyConfig(max_num_epochs=1)},
        objective={"training": "joint"},
        later_rounds_by_proposal=True,
        train_again={"force_first_round_loss": True},
        own_summary=(
            "energy_epochs_trained",
            "energy_gain",
            "energy_gain_standard_error",
        ),
        own_summary_per_epoch=("energy_training_loss", "energy_validation_loss"),
        trained_by_sbi=_base,
        refuses_invalid=False,
        repeats=False,
        positional=(
            (None, None),
            (10,),
            (None, False, False, False, False, False, False, None),
        ),
        in_potential="posterior_estimator",
        # As that of its peer, which draws validation rows anew.
        fixed_validation=False,
        losses=_hybrid_losses,
    )


def _nre_gkl(name: str, dim_design: int) -> TrainerCase:
    return TrainerCase(
        name=name,
        trainer=NRE_GKL,
        peer=NRE,
        dim_design=dim_design,
        estimator_argument="classifier",
        models=("linear", "mlp", "resnet"),
        embedding=None,
        sample_estimator=None,
        log_term=log_ratio,
        user_builder=build_user_ratio,
        fast_model="mlp",
        samplers=tuple(name for name in SAMPLERS if name != "direct"),
        method="nre_gkl",
        renamed_defaults={"algorithm": "NRE_GKL"},
        extra_summary=(),
        positional=((False, 0), (10,), (False, False, False, False, None)),
        in_potential="ratio_estimator",
        losses=_ratio_losses,
    )


CASES = (
    _nle_ince("NLE_INCE", 0),
    _nle_ince("NLE_INCE-design", 1),
    _npe_gkl("NPE_GKL", 0),
    _npe_gkl("NPE_GKL-design", 1),
    _nre_gkl("NRE_GKL", 0),
    _nre_gkl("NRE_GKL-design", 1),
)


def case_id(case: TrainerCase) -> str:
    return case.name


for_each_case = pytest.mark.parametrize("case", CASES, ids=case_id)
for_each_sampler = pytest.mark.parametrize(
    ("case", "sampler"),
    [
        pytest.param(case, sampler, id=f"{case.name}-{sampler}")
        for case in CASES
        for sampler in case.samplers
    ],
)


@cache
def trained(case: TrainerCase) -> Any:
    """A trained trainer to build posteriors from; tests must not change it."""
    with torch.random.fork_rng():
        torch.manual_seed(1)
        trainer = case.append(case.make(), case.simulate(300))
        case.train(trainer, max_num_epochs=10)
    return trainer


def trained_estimator(case: TrainerCase) -> Any:
    """The estimator that the trained trainer returned."""
    trainer = trained(case)
    return trainer._stage.hybrid if case.trainer is NPE_GKL else trainer._neural_net


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
