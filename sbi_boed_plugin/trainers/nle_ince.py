"""NLE_INCE: neural likelihood estimation with the InfoNCE-λ objective and designs."""

from collections.abc import Callable
from typing import Any, Literal

from sbi.inference.posteriors.base_posterior import NeuralPosterior
from sbi.inference.posteriors.posterior_parameters import PosteriorParameters
from sbi.neural_nets.estimators import ConditionalDensityEstimator
from sbi.sbi_types import Tracker
from sbi.utils.torchutils import process_device
from torch import Tensor
from torch.distributions import Distribution
from torch.distributions.transforms import Transform
from torch.utils import data
from torch.utils.tensorboard.writer import SummaryWriter
from typing_extensions import Self

from sbi_boed_plugin._sbi_compat import (
    ConditionalEstimatorBuilder,
    LikelihoodEstimatorTrainer,
    check_default_dtype,
    if_it_pickles,
)
from sbi_boed_plugin.estimators.units import warn_if_gaussian, warn_of_scales
from sbi_boed_plugin.objectives.eig import EIGEstimate
from sbi_boed_plugin.policies.policy import DesignPolicy
from sbi_boed_plugin.search.belief import ParticleBelief
from sbi_boed_plugin.search.builders import NetworkModels
from sbi_boed_plugin.search.config import (
    DesignSearchConfig,
    Gradient,
    Method,
    MultiStartConfig,
    Objective,
)
from sbi_boed_plugin.search.design_search import DesignSearch
from sbi_boed_plugin.search.experiments import Observation
from sbi_boed_plugin.search.result import DesignResult
from sbi_boed_plugin.trainers._checks import (
    check_designs_given,
    check_training,
    join_designs,
)
from sbi_boed_plugin.trainers._design_posteriors import direct_posterior, likelihood_at
from sbi_boed_plugin.trainers._info_nce import EPOCH_KEYS, InfoNCEObjective

__all__ = ["NLE_INCE"]

Builder = ConditionalEstimatorBuilder[ConditionalDensityEstimator]


class NLE_INCE(LikelihoodEstimatorTrainer):
    r"""Neural likelihood estimation with the InfoNCE-λ objective (SBI-BOED) [1].

    Like NLE it trains a normalized density estimator of the likelihood, but maximises

    .. math::
        E\Big[(1 + \lambda) \log q(x \mid \theta_0, \xi)
        - \log \frac{1}{L + 1} \sum_{l=0}^{L} q(x \mid \theta_l, \xi)\Big],

    a lower bound of the mutual information between parameters and data plus
    :math:`\lambda` times the log-likelihood. Experiments can have a design
    :math:`\xi`, stored with the simulations, or learned together with the likelihood
    by `optimize_design`. Without designs it takes the place of `sbi.inference.NLE` in
    any pipeline, with the same arguments, summary, trackers and posteriors. With
    `num_contrastive=0` and `regularization_strength=1` it is NLE, to the last bit.

    [1] Zaballa and Hui, *Optimizing Likelihoods via Mutual Information: Bridging
        Simulation-Based Inference and Bayesian Optimal Experimental Design*, UAI 2026,
        https://arxiv.org/abs/2502.08004

    What is learned and kept between searches and experiments is the attribute `search`,
    with `state_dict()` and `load_state_dict()`.

    Example:
    --------
    ::

        inference = NLE_INCE(prior, "nsf", design_policy=policy)
        result = inference.optimize_design(simulator)  # simulator(theta, design) -> x
        posterior = inference.build_posterior(design=result.design)
        samples = posterior.sample((1000,), x=x_o)
    """

    def __init__(
        self,
        prior: Distribution | None = None,
        density_estimator: str | Builder = "maf",
        device: str = "cpu",
        logging_level: int | str = "WARNING",
        summary_writer: SummaryWriter | None = None,
        tracker: Tracker | None = None,
        show_progress_bars: bool = True,
        *,
        design_policy: DesignPolicy | None = None,
        posterior_estimator: str | Builder = "mdn",
        marginal_estimator: str | Builder = "mdn",
        x_transform: Transform | Literal["auto"] | None = "auto",
    ):
        """Initialize as `sbi.inference.NLE`, with designs.

        With one value of `x` a maf is no more than a Gaussian: use mdn or nsf for other
        shapes. A `density_estimator` that is a function builds the network from `theta`
        (with designs: `(theta, design)` in one row) and `x`. Without a `prior`,
        `optimize_design` is not available. The arguments beside sbi's:

        - `design_policy`: distribution over designs to learn by `optimize_design`.
        - `posterior_estimator`: network of the posterior that a search trains where its
          objective needs one: a model of `posterior_nn`, or a function that builds it
          from `theta` and `(x, design)` in one row.
        - `marginal_estimator`: network of the data alone, likewise: a model of
          `likelihood_nn`, or a function that builds it from `design` and `x`.
        - `x_transform`: coordinates of the data for networks that are given by name,
          where there are designs: a `Transform` from natural units, `None` for these,
          or `"auto"`, which takes (almost) logarithms of data over decades, see
          :func:`~sbi_boed_plugin.transformed_likelihood_nn`.

        Raises:
            ValueError: If `x_transform` is none of these, or is for a function.
        """
        models = NetworkModels.of(
            density_estimator, posterior_estimator, marginal_estimator, x_transform
        )
        device = process_device(device)
        self.search = DesignSearch(prior, design_policy, models, device=device)
        of_sbi = (logging_level, summary_writer, tracker, show_progress_bars)
        super().__init__(prior, density_estimator, device, *of_sbi)
        self._objective = InfoNCEObjective()
        self._summary.update({key: [] for key in EPOCH_KEYS})

    @property
    def _neural_net(self) -> ConditionalDensityEstimator | None:
        """The likelihood, where sbi's trainer keeps its network."""
        return self.search.likelihood

    @_neural_net.setter
    def _neural_net(self, network: ConditionalDensityEstimator | None) -> None:
        self.search.likelihood = network

    @property
    def design_policy(self) -> DesignPolicy | None:
        """Distribution over designs."""
        return self.search.policy

    @property
    def observations(self) -> tuple[Observation, ...]:
        """What was observed so far, oldest first."""
        return self.search.experiments.observations

    @property
    def belief(self) -> ParticleBelief | None:
        """Belief about the parameters after all observations, `None` before."""
        return self.search.experiments.belief

    def append_simulations(
        self,
        theta: Tensor,
        x: Tensor,
        exclude_invalid_x: bool = False,
        from_round: int = 0,
        algorithm: str = "NLE_INCE",
        data_device: str | None = None,
        *,
        design: Tensor | None = None,
    ) -> Self:
        """Store simulations and their designs for training.

        The arguments are those of `sbi.inference.NLE`, and `design` of shape
        `(num_simulations, dim_design)`, drawn independently of `theta`, or `None` if
        the experiment has none. With `exclude_invalid_x=True` the likelihood is that of
        outcomes that do not fail, and wrong where failing depends on the parameters.

        Raises:
            ValueError: If designs are missing, superfluous, of a wrong shape, not
                finite or outside the support of the policy.
        """
        if self._data_round_index or self._neural_net is not None:
            # Without simulations and network there is nothing to be consistent with.
            check_designs_given(design, self.search.dim_design)
        theta, dim_design = join_designs(theta, x, design, self.search)
        super().append_simulations(
            theta, x, exclude_invalid_x, from_round, algorithm, data_device
        )
        self.search.dim_design, models = dim_design, self.search.models
        if dim_design and models.likelihood is not None:
            self._build_neural_net = models.likelihood
        warn_of_scales(self._build_neural_net, theta, x)
        if not dim_design:
            warn_if_gaussian(models.likelihood_name, x)
        return self

    def train(
        self,
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
        num_contrastive: int | None = None,
        regularization_strength: float = 1.0,
    ) -> ConditionalDensityEstimator:
        r"""Train the density estimator on the stored simulations.

        The arguments are those of `sbi.inference.NLE.train`, and the number
        `num_contrastive` (:math:`L`) of contrastive parameters of each simulation,
        other rows of its batch (`None`: 3, or as many as the batch allows; 0: the
        objective is :math:`\lambda` times the log-likelihood), and the weight
        `regularization_strength` (:math:`\lambda \geq 0`) of maximum likelihood.

        Early stopping uses the same objective on the validation set, with contrastive
        parameters that stay the same. The summary and the tracker also get the
        `validation_log_likelihood` and the `eig_lower_bound` (nats) of each epoch; the
        latter averages over the designs of the simulations and never exceeds
        :math:`\log(L + 1)`.

        Returns:
            Density estimator of :math:`p(x \mid \theta)`, or of
            :math:`p(x \mid \theta, \xi)` if the simulations have designs.

        Raises:
            RuntimeError: If there are no simulations.
            ValueError: If `num_contrastive` or `regularization_strength` is out of
                range, or is changed on resuming.
        """
        objective = InfoNCEObjective(num_contrastive, regularization_strength)
        numbers = check_training(
            training_batch_size,
            learning_rate,
            validation_fraction,
            stop_after_epochs,
            max_num_epochs,
            clip_max_norm,
        )
        if resume_training and self._objective.metrics:
            objective.check_resumes(self._objective)
        else:
            self._objective = objective
        return super().train(
            **numbers,
            resume_training=resume_training,
            discard_prior_samples=discard_prior_samples,
            retrain_from_scratch=retrain_from_scratch,
            show_train_summary=show_train_summary,
            dataloader_kwargs=dataloader_kwargs,
        )

    def optimize_design(
        self,
        simulator: Callable[[Tensor, Tensor], Tensor],
        *,
        method: Method = "joint",
        objective: Objective | None = None,
        gradient: Gradient = "score",
        num_steps: int | None = None,
        num_warmup_steps: int | None = None,
        num_refinement_steps: int = 0,
        training_batch_size: int | None = None,
        num_simulations_per_design: int = 1,
        num_contrastive: int | None = None,
        regularization_strength: float = 0.1,
        learning_rate: float = 5e-3,
        design_learning_rate: float = 3e-2,
        clip_max_norm: float | None = 5.0,
        stop_after_steps: int | None = None,
        max_num_simulations: int | None = None,
        max_seconds: float | None = None,
        num_workers: int | None = 1,
        resume_training: bool = False,
        num_eig_samples: int | None = None,
        num_eig_contrastive: int = 511,
        multi_start: MultiStartConfig | None = None,
    ) -> DesignResult:
        """Learn the most informative design and the likelihood together.

        Every step simulates anew: designs from the policy, parameters from what is
        known about them (the prior or, after `observe`, the belief). Simulations with
        NaN or infinite values count as experiments that tell nothing; if there are any,
        the likelihood contains the probability that a simulation does not fail. A
        further call trains the same policy and likelihood on.

        `simulator` is a function from `theta` of shape `(batch_dim, dim_theta)` and
        `design` of shape `(batch_dim, dim_design)` to `x` of shape
        `(batch_dim, dim_x)`. With `resume_training` the previous call, which Ctrl-C, an
        error or a budget has ended, goes on from its last completed step, with its
        settings but the budgets, scoring and `multi_start` of this call. All other
        arguments are described by :class:`~sbi_boed_plugin.DesignSearchConfig`.

        Returns:
            The design with its expected information gain, what speaks against either
            (also as warnings), the policy, and the history.

        Raises:
            ValueError: If there is no policy or prior, an argument is out of range, or
                the simulator returns wrong shapes or too few finite values.
            RuntimeError: If there is nothing to resume.
        """
        # All arguments but two are fields of the settings.
        config = DesignSearchConfig.from_arguments(locals())
        return self.search.run(
            simulator,
            config,
            resume=resume_training,
            tracker=self._tracker,
            show_progress_bar=self._show_progress_bars,
        )

    def observe(self, design: Tensor, x: Tensor, *, num_particles: int = 4_096) -> Self:
        """Take the data of experiments into account.

        The next `optimize_design` starts from what is known then, with the policy as it
        was at first, and `build_posterior()` without a design returns the posterior
        given all observations. See :meth:`DesignSearch.observe` for the arguments. The
        trainer is returned.
        """
        self.search.observe(design, x, num_particles)
        return self

    def forget(self, num_observations: int = 1) -> Self:
        """Take the last observations back, see :meth:`DesignSearch.forget`."""
        self.search.forget(num_observations)
        return self

    def estimate_eig(
        self,
        simulator: Callable[[Tensor, Tensor], Tensor],
        design: Tensor,
        *,
        objective: str = "info_nce",
        **kwargs: Any,
    ) -> EIGEstimate:
        """Return the information of a design beyond what is known, in nats.

        With the networks as they are; see :meth:`DesignSearch.estimate_eig`.
        """
        return self.search.estimate_eig(simulator, design, objective, **kwargs)

    def build_posterior(
        self,
        density_estimator: ConditionalDensityEstimator | None = None,
        prior: Distribution | None = None,
        sample_with: str = "mcmc",
        mcmc_method: str = "slice_np_vectorized",
        vi_method: str = "rKL",
        mcmc_parameters: dict[str, Any] | None = None,
        vi_parameters: dict[str, Any] | None = None,
        rejection_sampling_parameters: dict[str, Any] | None = None,
        importance_sampling_parameters: dict[str, Any] | None = None,
        posterior_parameters: PosteriorParameters | None = None,
        *,
        design: Tensor | None = None,
    ) -> NeuralPosterior:
        r"""Build the posterior from the likelihood.

        The arguments are those of `sbi.inference.NLE.build_posterior`, and `design`, at
        which the observation was or will be made: of shape `(dim_design,)`, or
        `(num_designs, dim_design)` with one row for each row of `x_o`. If `None` after
        `observe`, the posterior is the one given all observations, which are its
        default `x`. `sample_with="direct"` takes the amortised posterior that a search
        trained beside the likelihood, from what was known at that time.

        Returns:
            Posterior :math:`p(\theta|x)` with `.sample()` and `.log_prob()` methods
            (the returned log-probability is unnormalized).

        Raises:
            ValueError: If a design is missing, superfluous or outside the support of
                the policy.
            RuntimeError: If a design is given and nothing was trained.
        """
        of_design = self.search, density_estimator, design
        if sample_with == "direct":
            return direct_posterior(*of_design, prior, self._device)
        estimator, x_o = likelihood_at(*of_design)
        posterior = super().build_posterior(
            estimator,
            prior,
            sample_with,
            mcmc_method,
            vi_method,
            mcmc_parameters,
            vi_parameters,
            rejection_sampling_parameters,
            importance_sampling_parameters,
            posterior_parameters,
        )
        return posterior if x_o is None else posterior.set_default_x(x_o)

    # --- What sbi's training loop asks for --------------------------------------------

    def get_dataloaders(
        self,
        starting_round: int = 0,
        training_batch_size: int = 200,
        validation_fraction: float = 0.1,
        resume_training: bool = False,
        dataloader_kwargs: dict | None = None,
    ) -> tuple[data.DataLoader, data.DataLoader]:
        """Return sbi's dataloaders; with contrasts validation has a fixed order."""
        check_default_dtype()
        train_loader, val_loader = super().get_dataloaders(
            starting_round,
            training_batch_size,
            validation_fraction,
            resume_training,
            dataloader_kwargs,
        )
        self._objective.fit_to_batches(train_loader.batch_size, resume_training)
        self._objective.dim_design = self.search.dim_design or 0
        if self._objective.num_contrastive:
            rounds = [r for r in self._data_round_index if r >= starting_round]
            val_loader = self._objective.fix_validation(
                val_loader,
                self.get_simulations(starting_round)[0],
                self.train_indices,
                self.val_indices,
                dataloader_kwargs,
                is_pooled=len(rounds) > 1,
            )
        return train_loader, val_loader

    def _loss(self, theta: Tensor, x: Tensor) -> Tensor:
        if self._objective.num_contrastive == 0:
            # lambda * NLE, also for estimators whose loss is more than -log_prob.
            return self._objective.regularization_strength * super()._loss(theta, x)
        return self._objective.loss(self._neural_net, theta, x)

    def _validate_epoch(
        self, val_loader: data.DataLoader, loss_args: Any | None = None
    ) -> float:
        if self._objective.num_contrastive == 0:
            loss = super()._validate_epoch(val_loader, loss_args)
            return self._objective.report_likelihood(loss)
        return self._objective.validate(self._neural_net, val_loader, self._device)

    def _summarize_epoch(self, *args: Any, **kwargs: Any) -> None:
        super()._summarize_epoch(*args, **kwargs)
        for key, value in self._objective.metrics.items():
            self._summary[key].append(value)

    def _summarize(self, round_: int) -> None:
        offset = sum(self._summary["epochs_trained"][:-1])
        for key in EPOCH_KEYS:
            for epoch, value in enumerate(self._summary[key][offset:], start=offset):
                self._tracker.log_metric(name=key, value=value, step=epoch)
        super()._summarize(round_)

    def __getstate__(self) -> dict[str, Any]:
        """Return the state of sbi's trainer, with a tracker that can be pickled."""
        return {**super().__getstate__(), "_tracker": if_it_pickles(self._tracker)}

    def __setstate__(self, state: dict[str, Any]) -> None:
        """Set the state; without a tracker as sbi does."""
        if state["_tracker"] is None:
            super().__setstate__(state)
        else:
            vars(self).update(state)
