"""NLE_INCE: neural likelihood estimation with the InfoNCE-λ objective and designs."""

from typing import Any, Literal

from sbi.inference.posteriors.base_posterior import NeuralPosterior
from sbi.inference.posteriors.posterior_parameters import PosteriorParameters
from sbi.neural_nets import likelihood_nn
from sbi.neural_nets.estimators import ConditionalDensityEstimator
from sbi.sbi_types import Tracker
from sbi.utils.sbiutils import del_entries
from sbi.utils.torchutils import process_device
from torch import Tensor
from torch.distributions import Distribution
from torch.distributions.transforms import Transform
from torch.utils.data import DataLoader
from torch.utils.tensorboard.writer import SummaryWriter
from typing_extensions import Self

from sbi_boed_plugin._sbi_compat import (
    LikelihoodEstimatorTrainer,
    as_builder,
    check_default_dtype,
)
from sbi_boed_plugin.estimators.coordinates import warn_if_gaussian, warn_of_scales
from sbi_boed_plugin.policies.policy import DesignPolicy
from sbi_boed_plugin.posteriors.target_posterior import TargetPosterior
from sbi_boed_plugin.search.design_search import DesignSearch
from sbi_boed_plugin.search.estimators import Builder, NetworkModels
from sbi_boed_plugin.search.target import TargetLike, probed_target
from sbi_boed_plugin.simulation import joint_shape
from sbi_boed_plugin.trainers._checks import (
    append_design,
    check_is_tensor,
    check_training,
)
from sbi_boed_plugin.trainers._design_methods import DesignMethods
from sbi_boed_plugin.trainers._design_posteriors import (
    default_sampler,
    direct_posterior,
    history_posterior,
    hybrid_posterior,
    likelihood_at,
)
from sbi_boed_plugin.trainers._info_nce import EPOCH_KEYS, InfoNCEObjective
from sbi_boed_plugin.trainers._proposal import Proposal
from sbi_boed_plugin.trainers._scheduled import Schedule, ScheduledTrainer

__all__ = ["NLE_INCE"]


class NLE_INCE(DesignMethods, ScheduledTrainer, LikelihoodEstimatorTrainer):
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

    The attribute `search` holds what is kept between searches and experiments, with
    `state_dict()` and `load_state_dict()`; a pickle also keeps an unfinished search.
    """

    def __init__(
        self,
        prior: Distribution | None = None,
        density_estimator: str | Builder | None = "maf",
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
        """Initialize as `sbi.inference.NLE`, with designs, and log only to a `tracker`.

        A `density_estimator` gets `(theta, design)` in one row in the place of `theta`,
        and data of any shape flattened; with one value of `x` a maf is but a Gaussian.
        With `None` there is no likelihood: searches train posteriors alone, as suits
        images, which :class:`~sbi_boed_plugin.DataEmbedding` embeds.
        `posterior_estimator` and `marginal_estimator` are the networks that a search
        trains where its objective needs one: models of `posterior_nn` and
        `likelihood_nn`, or functions that build them from `theta` and `(x, design)` in
        one row, and from `design` and `x`. `x_transform` is where networks that are
        given by name work, with designs: a `Transform` of the data, `None` for natural
        units, or `"auto"` for (almost) logarithms of data that spread over decades.
        """
        networks = density_estimator, posterior_estimator, marginal_estimator
        models = NetworkModels(*networks, x_transform)
        device = process_device(device)
        self.search = DesignSearch(prior, design_policy, models, device)
        of_sbi = (logging_level, summary_writer, tracker, show_progress_bars)
        # Names that sbi does not know as those of likelihoods.
        build = models.likelihood if models.likelihood_flows else density_estimator
        build = as_builder(build or "maf", likelihood_nn)
        super().__init__(prior, build, device, *of_sbi)
        self._objective = InfoNCEObjective()
        self._proposal = Proposal()
        # What `train` was asked for, and whether it goes on.
        self._asked = self._objective, False
        self._summary.update({key: [] for key in EPOCH_KEYS})

    @property
    def _neural_net(self) -> ConditionalDensityEstimator | None:
        """The likelihood, where sbi's trainer keeps its network."""
        return self.search.likelihood

    @_neural_net.setter
    def _neural_net(self, network: ConditionalDensityEstimator | None) -> None:
        self.search.likelihood = network

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
        proposal: Distribution | None = None,
    ) -> Self:
        """Store simulations and their designs for training, and for searches in rounds.

        With `design` of shape `(num_simulations, dim_design)`, drawn independently of
        `theta`, or `None` if the experiment has none. `proposal` is what `theta` was
        drawn from, if not the prior. Other arguments are sbi's. The likelihood with
        `exclude_invalid_x=True` is wrong where failing depends on the parameters.

        Raises:
            ValueError: If designs are missing, superfluous, not finite, of a wrong
                shape or outside the support of the policy.
        """
        of_search = self.search.dim_design, self.search.policy
        parameters = theta
        theta, dim_design = append_design(theta, design, *of_search, "theta", len(x))
        if dim_design:
            check_is_tensor(x, "x")
            joint_shape(self.search.simulations.x_shape, x.shape[1:])
        rows = x.flatten(1) if dim_design and x.dim() > 2 else x
        super().append_simulations(
            theta, rows, exclude_invalid_x, from_round, algorithm, data_device
        )
        self._use_designs(dim_design)
        warn_of_scales(self._build_neural_net, theta, rows)
        if dim_design:
            rows = parameters, x, theta[:, -dim_design:]
            self.search.simulations.add(*rows, proposal or self.search.prior)
        else:
            warn_if_gaussian(self.search.models.likelihood_name, x)
        return self

    def _store(self, batches: list[tuple[Tensor, Tensor, int]]) -> None:
        for theta, x, dim_design in batches:
            self._use_designs(dim_design)
            if not self.search.models.has_likelihood:
                continue
            super().append_simulations(theta, x, from_round=len(self.observations))

    def _use_designs(self, dim_design: int) -> None:
        self.search.dim_design, build = dim_design, self.search.models.likelihood
        if dim_design and build is not None:
            self._build_neural_net = build

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
        schedule: Schedule = "constant",
    ) -> ConditionalDensityEstimator:
        r"""Train and return the density estimator of the stored simulations.

        With :math:`L` = `num_contrastive` contrastive parameters of each simulation,
        other rows of its batch (`None`: 3, or as many as it allows; 0: the objective is
        :math:`\lambda` times the log-likelihood), and the weight :math:`\lambda` =
        `regularization_strength` of maximum likelihood. Other arguments are sbi's.
        `schedule="averaged"` trains better networks than sbi's loop, which is the
        default: :class:`~sbi_boed_plugin.AveragedSchedule` has its settings.

        Early stopping uses the same objective on the validation set, with contrastive
        parameters that stay the same. Summary and tracker also get, for each epoch, the
        `validation_log_likelihood` and the `eig_lower_bound`, in nats, at most
        :math:`\log(L + 1)` and averaged over the designs of the simulations. A flow
        matching or score model learns by its own loss, with :math:`L = 0`; its
        log-likelihood there is NaN.

        Raises:
            RuntimeError: If there are no simulations.
            ValueError: If an argument is out of range, or changed on resuming.
        """
        if not self.search.models.has_likelihood:
            raise RuntimeError(
                "density_estimator=None: there is no likelihood to train. Make the "
                "trainer with one, or use NPE_GKL for a posterior."
            )
        given = del_entries(locals(), ("self", "__class__"))
        own = given.pop("num_contrastive"), given.pop("regularization_strength")
        in_nats = not self.search.models.likelihood_flows
        objective = InfoNCEObjective(*own, in_nats)
        of_steps = training_batch_size, learning_rate, validation_fraction
        of_ends = stop_after_epochs, max_num_epochs, clip_max_norm
        given |= check_training(*of_steps, *of_ends)
        self._choose_schedule(given.pop("schedule"), given)
        self._asked = objective, resume_training
        return super().train(**given)

    def build_posterior(
        self,
        density_estimator: ConditionalDensityEstimator | None = None,
        prior: Distribution | None = None,
        sample_with: str | None = None,
        mcmc_method: str = "slice_np_vectorized",
        vi_method: str = "rKL",
        mcmc_parameters: dict[str, Any] | None = None,
        vi_parameters: dict[str, Any] | None = None,
        rejection_sampling_parameters: dict[str, Any] | None = None,
        importance_sampling_parameters: dict[str, Any] | None = None,
        posterior_parameters: PosteriorParameters | None = None,
        *,
        design: Tensor | None = None,
        target: TargetLike | None = None,
        history: tuple[Tensor, Tensor] | None = None,
    ) -> NeuralPosterior:
        r"""Build the posterior from the likelihood.

        At `design`, of shape `(dim_design,)`, or `(num_designs, dim_design)` with one
        row for each row of `x_o`; if `None` after `observe`, given all observations.
        With a `history` of `optimize_policy`, designs `(num, dim_design)` and data
        `(num, dim_x)` that are NaN where an experiment failed, its amortised posterior
        is the network below. With a `target`, as in a search, a
        :class:`~sbi_boed_plugin.TargetPosterior`.

        `sample_with="hybrid"` takes no chains: a posterior network proposes, and the
        likelihood corrects it, by :class:`~sbi_boed_plugin.HybridPosterior`, whose
        settings are `posterior_parameters`. The network is that of a search, or trained
        on the stored simulations now. It is the default after a search that trained
        one, and `"mcmc"` otherwise. `sample_with="direct"` takes the network alone,
        from what was known when it was trained. Other arguments are sbi's.

        Raises:
            ValueError: If a design is missing, superfluous or outside the support of
                the policy.
            RuntimeError: If a design is given and nothing was trained.
        """
        given = del_entries(locals(), ("self", "__class__", "target"))
        if target is not None:
            target = probed_target(target, known := prior or self.search.prior)
            return TargetPosterior(self.build_posterior(**given), target, known)
        if (history := given.pop("history")) is not None:
            return history_posterior(self._policy_search, history, given)
        if sample_with is None:
            given["sample_with"] = sample_with = default_sampler(self.search, given)
        if sample_with == "hybrid":
            network = self._proposal.network(self, prior)
            return hybrid_posterior(self.search, network, given, self._device)
        of_design = self.search, density_estimator, given.pop("design")
        if sample_with == "direct":
            return direct_posterior(*of_design, prior, self._device)
        given["density_estimator"], x_o = likelihood_at(*of_design)
        posterior = super().build_posterior(**given)
        return posterior if x_o is None else posterior.set_default_x(x_o)

    def get_dataloaders(
        self, starting_round: int = 0, *args: Any, **kwargs: Any
    ) -> tuple[DataLoader, DataLoader]:
        """Return loaders as `sbi.inference.NLE` does, with the same arguments."""
        check_default_dtype()
        loaders = super().get_dataloaders(starting_round, *args, **kwargs)
        objective, resumes = self._asked
        earlier = self._objective if resumes else None
        objective.fit_to_batches(loaders[0].batch_size, earlier)
        objective.dim_design = self.search.dim_design or 0
        stored, _, _ = self.get_simulations(starting_round)
        objective.parameters = stored[self.train_indices]
        self._objective = objective
        objective.warn_of_calls(
            sum(r >= starting_round for r in self._data_round_index)
        )
        return loaders

    def _batch_size(self, most: int) -> int:
        """Return the size of batches of the schedule, which hold all contrasts."""
        least = (self._objective.num_contrastive or 0) + 1
        return max(least, super()._batch_size(most))

    def _loss(self, theta: Tensor, x: Tensor) -> Tensor:
        if self._objective.num_contrastive == 0:
            # lambda * NLE, also for estimators whose loss is more than -log_prob.
            return self._objective.regularization_strength * super()._loss(theta, x)
        return self._objective.loss(self._neural_net, theta, x)

    def _validate_epoch(self, *args: Any, **kwargs: Any) -> float:
        validate = super()._validate_epoch
        return self._objective.validate(lambda: validate(*args, **kwargs))

    def _summarize_epoch(self, *args: Any, **kwargs: Any) -> None:
        super()._summarize_epoch(*args, **kwargs)
        for key, value in self._objective.metrics.items():
            self._tracker.log_metric(key, value, step=len(self._summary[key]))
            self._summary[key].append(value)
