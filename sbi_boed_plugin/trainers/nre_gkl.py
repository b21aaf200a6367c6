"""NRE_GKL: neural ratio estimation with the generalized Kullback-Leibler divergence."""

import warnings
from collections.abc import Callable
from typing import Any

import torch
from sbi.inference import NRE_B
from sbi.inference.posteriors.base_posterior import NeuralPosterior
from sbi.inference.posteriors.posterior_parameters import PosteriorParameters
from sbi.neural_nets import classifier_nn
from sbi.neural_nets.ratio_estimators import RatioEstimator
from sbi.sbi_types import Tracker
from sbi.utils import del_entries, mcmc_transform
from sbi.utils.torchutils import assert_all_finite
from torch import Tensor
from torch.distributions import Distribution
from torch.utils.data import DataLoader
from torch.utils.tensorboard.writer import SummaryWriter
from typing_extensions import Self

from sbi_boed_plugin._rng import isolated_rng
from sbi_boed_plugin._sbi_compat import as_builder, check_default_dtype
from sbi_boed_plugin.estimators.coordinates import warn_of_scales
from sbi_boed_plugin.estimators.ratio import (
    DesignConditionedRatio,
    DesignRatioPotential,
    RatioPairs,
    embed_parameters,
)
from sbi_boed_plugin.objectives import generalized_kl
from sbi_boed_plugin.objectives.info_nce import in_batch_contrast
from sbi_boed_plugin.simulation import joint_shape
from sbi_boed_plugin.trainers import _checks
from sbi_boed_plugin.trainers._scheduled import Schedule, ScheduledTrainer

__all__ = ["NRE_GKL"]

# Atoms that the partition function of a row is estimated from, in training (where most
# have no gradient, which makes them cheap) and in validation, whose noise early
# stopping would fit; and training rows that atoms of validation are drawn from.
_NUM_CANDIDATES, _NUM_VALIDATION, _NUM_STORED = 128, 500, 10_000
# One that nobody seeds the simulations with, whose random numbers it would repeat.
_VALIDATION_SEED = 20_231_005


class NRE_GKL(ScheduledTrainer, NRE_B):
    r"""Neural ratio estimation with the generalized-KL objective [1].

    It takes the place of `sbi.inference.NRE` in any pipeline. The ratio-only variant of
    the family is :math:`q(\theta \mid x) = p(\theta) \, e^{\rho(\theta, x)}`, trained
    to minimise

    .. math:: -E_{p(\theta, x)}[\rho] + E_{p(\theta) p(x)}[e^{\rho}].

    Unlike that of `NRE_B`, the ratio is normalized: at the optimum
    :math:`\rho = \log p(\theta \mid x) / p(\theta)`, for every :math:`x`. The second
    term is estimated from the parameters of other simulations of the batch, up to
    127, and its gradient without bias from `num_atoms - 1` of these for each row, drawn
    with probabilities proportional to :math:`e^{\rho}`. Where posteriors are so narrow
    that 127 draws of the prior tell little, `NPE_GKL` is the better choice.

    [1] Miller et al., *Simulation-based Inference with the Generalized
        Kullback-Leibler Divergence*, 2023, https://arxiv.org/abs/2310.01808

    Example:
    --------
    ::

        inference = NRE_GKL(prior, classifier="resnet")
        inference.append_simulations(theta, x).train()
        samples = inference.build_posterior().sample((1000,), x=x_o)
    """

    _dim_design: int | None = None
    # Shape of the data, which are in rows where there are designs.
    _x_shape: torch.Size | None = None
    # The first round that the present training uses.
    _first_round: int = 0
    # Atoms of validation, while it goes on.
    _validation_atoms: Tensor | None = None

    def __init__(
        self,
        prior: Distribution | None = None,
        classifier: str | Callable | None = "resnet",
        device: str = "cpu",
        logging_level: int | str = "warning",
        summary_writer: SummaryWriter | None = None,
        tracker: Tracker | None = None,
        show_progress_bars: bool = True,
    ):
        """Initialize as `sbi.inference.NRE`."""
        build = as_builder(classifier, classifier_nn)
        given = (prior, build, device, logging_level, summary_writer)
        super().__init__(*given, tracker, show_progress_bars)

    def append_simulations(
        self,
        theta: Tensor,
        x: Tensor,
        exclude_invalid_x: bool = False,
        from_round: int = 0,
        algorithm: str = "NRE_GKL",
        data_device: str | None = None,
        *,
        design: Tensor | None = None,
    ) -> Self:
        """Store simulations as `NRE` does, and return the trainer.

        With `design` of shape `(num_simulations, dim_design)`, drawn independently of
        `theta`, or `None` if the experiment has none; `(x, design)` is one row then,
        of which :class:`~sbi_boed_plugin.DataEmbedding` embeds the data alone.

        Raises:
            ValueError: If designs are missing, superfluous, misshapen or not finite.
        """
        event = x.shape[1:]
        x, dim_design = _checks.append_design(x, design, self._dim_design)
        x_shape = joint_shape(self._x_shape, event) if dim_design else None
        super().append_simulations(
            theta, x, exclude_invalid_x, from_round, algorithm, data_device
        )
        self._dim_design, self._x_shape = dim_design, x_shape
        warn_of_scales(self._build_neural_net, theta, x)
        return self

    def train(
        self,
        num_atoms: int = 10,
        training_batch_size: int = 200,
        learning_rate: float = 5e-4,
        validation_fraction: float = 0.1,
        stop_after_epochs: int = 20,
        max_num_epochs: int = 2**31 - 1,
        clip_max_norm: float | None = 5.0,
        resume_training: bool = False,
        discard_prior_samples: bool = False,
        retrain_from_scratch: bool = False,
        show_train_summary: bool = False,
        dataloader_kwargs: dict | None = None,
        *,
        schedule: Schedule = "constant",
    ) -> RatioEstimator:
        """Train and return the ratio, with the arguments of `NRE`.

        `schedule="averaged"` takes the place of sbi's loop, which is the default:
        :class:`~sbi_boed_plugin.AveragedSchedule` has its settings.
        """
        given = del_entries(locals(), ("self", "__class__", "schedule"))
        self._choose_schedule(schedule, given)
        return super().train(**given)

    def build_posterior(
        self,
        density_estimator: RatioEstimator | None = None,
        prior: Distribution | None = None,
        sample_with: Any = "mcmc",
        mcmc_method: Any = "slice_np_vectorized",
        vi_method: Any = "rKL",
        mcmc_parameters: dict[str, Any] | None = None,
        vi_parameters: dict[str, Any] | None = None,
        rejection_sampling_parameters: dict[str, Any] | None = None,
        importance_sampling_parameters: dict[str, Any] | None = None,
        posterior_parameters: PosteriorParameters | None = None,
        *,
        design: Tensor | None = None,
    ) -> NeuralPosterior:
        """Build the posterior as `NRE` does.

        At `design`, of shape `(dim_design,)`, or `(num_designs, dim_design)` with one
        row for each row of `x_o`: needed if and only if the simulations have designs.

        Raises:
            ValueError: If a design is missing, superfluous or of a wrong shape.
            RuntimeError: If a design is given and nothing was trained.
        """
        given = del_entries(locals(), ("self", "__class__", "design"))
        if not isinstance(density_estimator, DesignConditionedRatio):
            _checks.check_designs_given(design, self._dim_design)
        if design is not None:
            ratio = density_estimator or self._neural_net
            if ratio is None:
                raise RuntimeError("There is no ratio yet: call train() first.")
            design = _checks.check_design(design, self._dim_design, None)
            given["density_estimator"] = DesignConditionedRatio(
                ratio, design, self._x_shape
            )
        return super().build_posterior(**given)

    def _get_potential_function(self, prior: Distribution, estimator: Any) -> Any:
        device = str(next(estimator.parameters()).device)
        potential_fn = DesignRatioPotential(estimator, prior, None, device=device)
        return potential_fn, mcmc_transform(prior, device=device)

    def _batch_size(self, most: int) -> int:
        """Return the size of batches of the schedule: rows are others' candidates."""
        return most

    def _loss(self, theta: Tensor, x: Tensor, num_atoms: int) -> Tensor:
        """Return the loss of each row; atoms are parameters of other rows.

        The mean of exponentials is taken over many atoms, of which few are within a
        narrow posterior, and its gradient from those that make up the mean.
        """
        stored = self._validation_atoms
        pairs = RatioPairs(self._neural_net, theta, x)
        own, num_rows = pairs.theta.unsqueeze(0), len(theta)
        if stored is not None:
            size = (max(num_atoms, _NUM_VALIDATION) - 1, num_rows)
            atoms = stored[torch.randint(len(stored), size).to(stored.device)]
        else:
            most = max(num_atoms, _NUM_CANDIDATES) - 1
            atoms = in_batch_contrast(pairs.theta, min(most, num_rows - 1))
        with torch.no_grad():
            log_ratio = pairs.evaluate(atoms)
        assert_all_finite(log_ratio, "NRE-GKL ratio")
        if stored is not None:
            return generalized_kl.ratio_loss(pairs.evaluate(own)[0], log_ratio)
        num_drawn = min(num_atoms - 1, len(atoms))
        chosen = generalized_kl.draw_by_ratio(log_ratio, num_drawn)
        rows = torch.arange(num_rows, device=atoms.device)
        drawn = pairs.evaluate(torch.cat([own, atoms[chosen, rows]]))
        before = log_ratio[chosen, rows]
        if torch.allclose(before, drawn[1:].detach(), rtol=1e-3, atol=1e-3):
            loss = generalized_kl.partition_by_draws(log_ratio, drawn[1:]) - drawn[0]
        else:
            # Ratios of one pass cannot be compared with those of another.
            warnings.warn(
                "The classifier differs from pass to pass, as with dropout: the "
                f"partition function of each row is estimated from {num_drawn} atoms "
                "only. Use a classifier without dropout, or a larger num_atoms.",
                stacklevel=2,
            )
            ratios = pairs.evaluate(torch.cat([own, atoms[:num_drawn]]))
            loss = generalized_kl.ratio_loss(ratios[0], ratios[1:])
        assert_all_finite(loss, "NRE-GKL loss")
        return loss

    def _some_stored(self) -> Tensor:
        """Return parameters of training rows, as the ratio embeds them.

        No validation row is among them: its own ratio, which may be the largest of all,
        must not count as that of an independent draw.
        """
        theta, _, _ = self.get_simulations(self._first_round)
        rows = self.train_indices
        rows = rows[torch.randperm(len(rows))[:_NUM_STORED]].to(theta.device)
        theta = theta[rows].to(self._device)
        return embed_parameters(self._neural_net, theta)

    def get_dataloaders(
        self, starting_round: int = 0, *args: Any, **kwargs: Any
    ) -> tuple[DataLoader, DataLoader]:
        """Return loaders as `sbi.inference.NRE` does, with the same arguments."""
        check_default_dtype()
        self._first_round = starting_round
        loaders = super().get_dataloaders(starting_round, *args, **kwargs)
        size, num_rows = loaders[0].batch_size or 1, len(self.train_indices)
        if size == 1 or (num_rows % size == 1 and not loaders[0].drop_last):
            raise ValueError(
                f"{num_rows} training rows in batches of {size} give a batch of one, "
                "which has no other parameters to contrast with: use another "
                "training_batch_size, or batches that drop_last."
            )
        return loaders

    def _validate_epoch(self, val_loader: Any, loss_args: Any) -> float:
        """Validate with the same atoms each time, so that epochs can be compared."""
        with isolated_rng(_VALIDATION_SEED):
            with torch.no_grad():
                self._validation_atoms = self._some_stored()
            try:
                return super()._validate_epoch(val_loader, loss_args)
            finally:
                self._validation_atoms = None
