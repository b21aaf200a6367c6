"""NRE_GKL: neural ratio estimation with the generalized Kullback-Leibler divergence."""

import warnings
from typing import Any, Literal

import torch
from sbi.inference import NRE_B
from sbi.inference.posteriors.base_posterior import NeuralPosterior
from sbi.inference.posteriors.posterior_parameters import (
    ImportanceSamplingPosteriorParameters,
    MCMCPosteriorParameters,
    RejectionPosteriorParameters,
    VIPosteriorParameters,
)
from sbi.neural_nets.ratio_estimators import RatioEstimator
from sbi.utils import mcmc_transform
from sbi.utils.torchutils import assert_all_finite
from torch import Tensor
from torch.distributions import Distribution
from torch.utils.data import DataLoader
from typing_extensions import Self

from sbi_boed_plugin._rng import isolated_rng
from sbi_boed_plugin._sbi_compat import SbiTrainerMixin
from sbi_boed_plugin.estimators.coordinates import warn_of_scales
from sbi_boed_plugin.estimators.ratio import (
    DesignConditionedRatio,
    DesignRatioPotential,
    RatioPairs,
    embed_parameters,
)
from sbi_boed_plugin.objectives.generalized_kl import (
    draw_by_ratio,
    partition_by_draws,
    ratio_loss,
)
from sbi_boed_plugin.objectives.info_nce import in_batch_contrast
from sbi_boed_plugin.trainers._checks import check_design, check_designs_given
from sbi_boed_plugin.trainers._conditions import append_design_to_data

__all__ = ["NRE_GKL"]

# Atoms of a row that its partition function is estimated from. Only `num_atoms` of them
# are evaluated with a gradient: without one, they cost a third.
_NUM_CANDIDATES = 200

# In validation, which sees a tenth of the simulations, and chooses among hundreds of
# epochs: the noise that is left is what early stopping fits.
_NUM_VALIDATION = 1_000

# Parameters of training rows of which a batch has its atoms, where it has not enough
# itself.
_NUM_STORED = 10_000

# One that nobody seeds the simulations with, whose random numbers it would repeat.
_VALIDATION_SEED = 20_231_005


class NRE_GKL(SbiTrainerMixin, NRE_B):
    r"""Neural ratio estimation with the generalized-KL objective [1].

    The ratio-only variant of the family: :math:`q(\theta \mid x) = p(\theta) \,
    e^{\rho(\theta, x)}`, trained to minimise

    .. math:: -E_{p(\theta, x)}[\rho] + E_{p(\theta) p(x)}[e^{\rho}].

    Unlike that of `NRE_B`, the ratio is normalized: at the optimum
    :math:`\rho = \log p(\theta \mid x) / p(\theta)`, for every :math:`x`. Where
    posteriors are narrow, few draws from the prior tell anything of the second term. It
    is estimated from the parameters of all other simulations of the batch, up to 200,
    and its gradient from `num_atoms - 1` of these for each row, drawn with
    probabilities proportional to :math:`e^{\rho}`, which leaves its expectation as it
    is. Where even these are few, `NPE_GKL` is the better choice, whose draws come from
    a base.

    It takes the place of `sbi.inference.NRE` in any pipeline, with the same arguments,
    summary, trackers and posteriors.

    [1] Miller, Federici, Weniger and Forré, *Simulation-based Inference with the
        Generalized Kullback-Leibler Divergence*, 2023,
        https://arxiv.org/abs/2310.01808

    Example:
    --------
    ::

        from sbi_boed_plugin import NRE_GKL

        inference = NRE_GKL(prior, classifier="resnet")
        inference.append_simulations(theta, x).train()
        samples = inference.build_posterior().sample((1000,), x=x_o)
    """

    # Number of values of a design, known once there are simulations.
    _dim_design: int | None = None
    # The first round that the present training uses, and the atoms of its validation:
    # `None` while it trains.
    _first_round: int = 0
    _validation_atoms: Tensor | None = None
    _warned_of_few_atoms: bool = False

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
        r"""Store parameters, simulation outputs and their designs for training.

        Args:
            theta: Parameter sets of shape `(num_simulations, dim_theta)`.
            x: Simulation outputs of shape `(num_simulations, *x_event_shape)`; with
                designs of shape `(num_simulations, dim_x)`.
            exclude_invalid_x: Whether invalid simulations are discarded during
                training. If `False`, an error is raised when they are found. If
                `True`, training can proceed, but gives systematically wrong results.
            from_round: Which round the data stemmed from. Round 0 means from the prior.
            algorithm: Name of the algorithm in warnings and errors.
            data_device: Where to store the data, default is on the same device where
                the training is happening.
            design: Designs of the simulations, of shape
                `(num_simulations, dim_design)`, or `None` if the experiment has none.
                They must be drawn independently of `theta`. Data are stored as
                `(x, design)` in one row.

        Returns:
            The trainer (returned so that this function is chainable).

        Raises:
            ValueError: If designs are missing, superfluous, of a wrong shape or not
                finite.
        """
        if self._data_round_index or self._neural_net is not None:
            check_designs_given(design, self._dim_design)
        dim_design = 0
        if design is not None:
            x, dim_design = append_design_to_data(x, design, self._dim_design)
        super().append_simulations(
            theta=theta,
            x=x,
            exclude_invalid_x=exclude_invalid_x,
            from_round=from_round,
            algorithm=algorithm,
            data_device=data_device,
        )
        self._dim_design = dim_design
        warn_of_scales(self._build_neural_net, theta, x)
        return self

    def build_posterior(
        self,
        density_estimator: RatioEstimator | None = None,
        prior: Distribution | None = None,
        sample_with: Literal["mcmc", "rejection", "vi", "importance"] = "mcmc",
        mcmc_method: Literal[
            "slice_np",
            "slice_np_vectorized",
            "hmc_pyro",
            "nuts_pyro",
            "slice_pymc",
            "hmc_pymc",
            "nuts_pymc",
        ] = "slice_np_vectorized",
        vi_method: Literal["rKL", "fKL", "IW", "alpha"] = "rKL",
        mcmc_parameters: dict[str, Any] | None = None,
        vi_parameters: dict[str, Any] | None = None,
        rejection_sampling_parameters: dict[str, Any] | None = None,
        importance_sampling_parameters: dict[str, Any] | None = None,
        posterior_parameters: MCMCPosteriorParameters
        | VIPosteriorParameters
        | RejectionPosteriorParameters
        | ImportanceSamplingPosteriorParameters
        | None = None,
        *,
        design: Tensor | None = None,
    ) -> NeuralPosterior:
        r"""Build the posterior from the ratio.

        Args:
            density_estimator: The ratio that the posterior is based on. If `None`, use
                the latest that was trained.
            prior: Prior distribution.
            sample_with: Method to use for sampling from the posterior. Must be one of
                [`mcmc` | `rejection` | `vi` | `importance`].
            mcmc_method: As in `sbi.inference.NRE.build_posterior`, like the following.
            vi_method: Method used for VI, one of [`rKL`, `fKL`, `IW`, `alpha`].
            mcmc_parameters: Additional kwargs passed to `MCMCPosterior`.
            vi_parameters: Additional kwargs passed to `VIPosterior`.
            rejection_sampling_parameters: Additional kwargs passed to
                `RejectionPosterior`.
            importance_sampling_parameters: Additional kwargs passed to
                `ImportanceSamplingPosterior`.
            posterior_parameters: Configuration passed to the init method for the
                posterior, in the place of the arguments above.
            design: Designs at which the observation was or will be made: shape
                `(dim_design,)`, or `(num_designs, dim_design)` with one row for each
                row of `x_o`. Needed if and only if the simulations have designs.

        Returns:
            Posterior :math:`p(\theta|x)` with `.sample()` and `.log_prob()` methods
            (the returned log-probability is unnormalized).

        Raises:
            ValueError: If a design is missing, superfluous or of a wrong shape.
            RuntimeError: If a design is given and nothing was trained.
        """
        if not isinstance(density_estimator, DesignConditionedRatio):
            # With an estimator handed over, the trainer may know of no designs.
            check_designs_given(design, self._dim_design)
        if design is not None:
            ratio = density_estimator or self._neural_net
            if ratio is None:
                raise RuntimeError(
                    "There is no ratio yet: call append_simulations() and train() "
                    "before build_posterior()."
                )
            density_estimator = DesignConditionedRatio(
                ratio, check_design(design, self._dim_design, None)
            )
        return super().build_posterior(
            density_estimator=density_estimator,
            prior=prior,
            sample_with=sample_with,
            mcmc_method=mcmc_method,
            vi_method=vi_method,
            mcmc_parameters=mcmc_parameters,
            vi_parameters=vi_parameters,
            rejection_sampling_parameters=rejection_sampling_parameters,
            importance_sampling_parameters=importance_sampling_parameters,
            posterior_parameters=posterior_parameters,
        )

    def _get_potential_function(self, prior: Distribution, estimator: Any) -> Any:
        device = str(next(estimator.parameters()).device)
        potential_fn = DesignRatioPotential(estimator, prior, None, device=device)
        return potential_fn, mcmc_transform(prior, device=device)

    def _loss(self, theta: Tensor, x: Tensor, num_atoms: int) -> Tensor:
        """Return the loss of each row; atoms are parameters of other rows.

        Where a posterior is narrow, hardly any of a few atoms is within it, and the
        mean of exponentials tells nothing. It is taken over many atoms, and its
        gradient from those that make up the mean.
        """
        is_training = self._validation_atoms is None
        num_candidates = _NUM_CANDIDATES if is_training else _NUM_VALIDATION
        pairs = RatioPairs(self._neural_net, theta, x)
        atoms = self._atoms(pairs, max(num_atoms, num_candidates) - 1)
        num_drawn = min(num_atoms - 1, len(atoms))
        with torch.no_grad():
            log_ratio = pairs.evaluate(atoms)
        assert_all_finite(log_ratio, "NRE-GKL ratio")
        if not is_training:
            return ratio_loss(pairs.evaluate(pairs.theta.unsqueeze(0))[0], log_ratio)

        chosen = draw_by_ratio(log_ratio, num_drawn)
        drawn = pairs.evaluate(
            torch.cat([pairs.theta.unsqueeze(0), _gather(atoms, chosen)])
        )
        before = _gather(log_ratio, chosen)
        if torch.allclose(before, drawn[1:].detach(), rtol=1e-3, atol=1e-3):
            loss = partition_by_draws(log_ratio, drawn[1:]) - drawn[0]
        else:
            # With batch normalization or dropout, ratios of one pass cannot be
            # compared with those of another.
            self._warn_of_few_atoms(num_drawn)
            few = torch.cat([pairs.theta.unsqueeze(0), atoms[:num_drawn]])
            ratios = pairs.evaluate(few)
            loss = ratio_loss(ratios[0], ratios[1:])
        assert_all_finite(loss, "NRE-GKL loss")
        return loss

    def _warn_of_few_atoms(self, num_drawn: int) -> None:
        if self._warned_of_few_atoms:
            return
        self._warned_of_few_atoms = True
        warnings.warn(
            "The classifier differs from pass to pass, as with dropout: the partition "
            f"function of each row is estimated from {num_drawn} atoms, in the place "
            "of all others of the batch. Use a classifier without dropout, or a larger "
            "num_atoms.",
            stacklevel=4,
        )

    def _atoms(self, pairs: RatioPairs, num_atoms: int) -> Tensor:
        """Return parameters of other rows, of shape `(num_atoms, batch_dim, ...)`."""
        batch_dim = len(pairs.theta)
        stored = self._validation_atoms
        if stored is None and batch_dim > 1:
            return in_batch_contrast(pairs.theta, min(num_atoms, batch_dim - 1))
        # A batch has fewer others than validation needs, and a batch of one has none:
        # those of the training rows serve as well.
        if stored is None:
            stored = _without(self._some_stored(), pairs.theta[0])
            if not len(stored):
                raise ValueError(
                    "There is one training row, and no other whose parameters could be "
                    "contrasted with its own: append more simulations."
                )
        rows = torch.randint(len(stored), (num_atoms, batch_dim))
        return stored[rows.to(stored.device)]

    def _some_stored(self) -> Tensor:
        """Return parameters of training rows, as the ratio embeds them.

        No validation row is among them: its own ratio, which is the largest of all
        where posteriors are narrow, must not count as that of an independent draw.
        """
        theta, _, _ = self.get_simulations(self._first_round)
        rows = self.train_indices
        rows = rows[torch.randperm(len(rows))[:_NUM_STORED]]
        theta = theta[rows.to(theta.device)].to(self._device)
        return embed_parameters(self._neural_net, theta)

    def get_dataloaders(
        self, starting_round: int = 0, *args: Any, **kwargs: Any
    ) -> tuple[DataLoader, DataLoader]:
        """Return loaders as `sbi.inference.NRE` does, with the same arguments."""
        self._first_round = starting_round
        return super().get_dataloaders(starting_round, *args, **kwargs)

    def _validate_epoch(self, val_loader: Any, loss_args: Any) -> float:
        """Validate with the same atoms each time, so that epochs can be compared."""
        with isolated_rng(_VALIDATION_SEED):
            with torch.no_grad():
                self._validation_atoms = self._some_stored()
            try:
                return super()._validate_epoch(val_loader, loss_args)
            finally:
                self._validation_atoms = None


def _gather(values: Tensor, chosen: Tensor) -> Tensor:
    """Return those of values `(num_atoms, batch_dim, ...)` that each row has chosen."""
    rows = torch.arange(values.shape[1], device=values.device)
    return values[chosen, rows]


def _without(values: Tensor, value: Tensor) -> Tensor:
    """Return the values without one that equals the given one, if there is any."""
    equal = (values == value).flatten(1).all(dim=1)
    # Repeated parameters are other simulations.
    first = equal & (equal.cumsum(0) == 1)
    return values[~first]
