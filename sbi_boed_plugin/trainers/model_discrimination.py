"""Which of several models is right: experiments that tell them apart."""

import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
from sbi.neural_nets import likelihood_nn
from sbi.neural_nets.estimators import ConditionalDensityEstimator
from sbi.utils.sbiutils import within_support
from torch import Tensor, nn
from torch.distributions import Categorical, Distribution, Independent, constraints

from sbi_boed_plugin._sbi_compat import unless_config
from sbi_boed_plugin.adaptive.config import PolicyResult
from sbi_boed_plugin.estimators.noise import reparameterize
from sbi_boed_plugin.estimators.transformed import transformed_likelihood_nn
from sbi_boed_plugin.policies.policy import DesignPolicy
from sbi_boed_plugin.policies.product import Parts
from sbi_boed_plugin.search.config import MOST_OF_ROUNDS
from sbi_boed_plugin.search.result import DesignResult
from sbi_boed_plugin.trainers.nle_ince import NLE_INCE

__all__ = ["ModelDiscrimination"]

Simulator = Callable[[Tensor, Tensor], Tensor]
Model = tuple[Distribution, Simulator]


class ModelPrior(Distribution):
    """The number of a model, and the parameters of all models, independent."""

    arg_constraints = {}  # type: ignore[assignment]

    def __init__(self, priors: Sequence[Distribution], probabilities: Tensor) -> None:
        self.priors = list(priors)
        self.index = Categorical(probabilities, validate_args=False)
        self.sizes = [prior.event_shape.numel() for prior in self.priors]
        shape = torch.Size((1 + sum(self.sizes),))
        super().__init__(event_shape=shape, validate_args=False)

    @property
    def support(self) -> Any:
        """Numbers of models beside the supports of all priors."""
        numbers = constraints.integer_interval(0, len(self.priors) - 1)
        of_model = constraints.independent(numbers, 1)
        supports = [of_model, *(prior.support for prior in self.priors)]
        return Parts(supports, [1, *self.sizes])  # type: ignore[arg-type]

    def sample(self, sample_shape: torch.Size = torch.Size()) -> Tensor:
        """Draw `(*sample_shape, 1 + sum of dimensions)`."""
        index = self.index.sample(sample_shape).unsqueeze(-1)
        parts = [prior.sample(sample_shape) for prior in self.priors]
        return torch.cat([index.to(parts[0]), *parts], dim=-1)

    def log_prob(self, value: Tensor) -> Tensor:
        """Return log-densities, `-inf` where there is no such model."""
        index, *parts = value.split([1, *self.sizes], dim=-1)
        index, log_p = index.squeeze(-1), self.index.logits.to(value)
        is_model = (index == index.round()) & (index >= 0) & (index < len(log_p))
        chosen = index.clamp(0, len(log_p) - 1).long()
        total = torch.where(is_model, log_p[chosen], -torch.inf)
        for prior, part in zip(self.priors, parts, strict=True):
            inside = within_support(prior, part)
            allowed = torch.where(inside.unsqueeze(-1), part, prior.sample())
            known = prior.log_prob(allowed)
            total = total + torch.where(inside, known.to(value), -torch.inf)
        return total

    def marginal(self, columns: list[int]) -> Distribution | None:
        """Return the distribution of the number of the model, if that is asked for."""
        if columns != [0]:
            return None
        return Independent(Categorical(self.index.probs.unsqueeze(0)), 1)


class ModelLikelihood(ConditionalDensityEstimator):
    """Likelihoods of several models, of which each row has its own.

    Conditions are the number of a model, the parameters of all, and the design.
    """

    def __init__(
        self, nets: Sequence[ConditionalDensityEstimator], sizes: Sequence[int]
    ) -> None:
        self.sizes = list(sizes)
        (rest,) = nets[0].condition_shape
        dim_design = rest - self.sizes[0]
        shape = torch.Size((1 + sum(self.sizes) + dim_design,))
        super().__init__(nn.ModuleList(nets), nets[0].input_shape, shape)

    def _of_model(self, number: int, condition: Tensor) -> tuple[Tensor, Tensor]:
        """Return the rows of a model, and what its network is given of them."""
        (rows,) = (condition[:, 0].round() == number).nonzero(as_tuple=True)
        return rows, _condition_of(number, condition[rows], self.sizes)

    def log_prob(self, input: Tensor, condition: Tensor, **kwargs) -> Tensor:
        """Return log-densities of shape `(sample_dim, batch_dim)`, in nats."""
        self._check_input_shape(input)
        self._check_condition_shape(condition)
        result = input.new_full(input.shape[:2], -torch.inf)
        for number, net in enumerate(self.net):
            rows, given = self._of_model(number, condition)
            if len(rows):
                values = net.log_prob(input[:, rows], given, **kwargs)
                result = result.index_copy(1, rows, values)
        return result

    def loss(self, input: Tensor, condition: Tensor, **kwargs) -> Tensor:
        """Return the losses of each row's network, of shape `(batch_dim,)`."""
        result = input.new_zeros(len(input))
        for number, net in enumerate(self.net):
            rows, given = self._of_model(number, condition)
            if len(rows):
                values = net.loss(input[rows], given, **kwargs)
                result = result.index_copy(0, rows, values)
        return result

    def sample(self, sample_shape: torch.Size, condition: Tensor, **kwargs) -> Tensor:
        """Draw samples of shape `(*sample_shape, batch_dim, *input_event_shape)`."""
        shape = (*sample_shape, len(condition), *self.input_shape)
        result = condition.new_zeros(shape)
        for number, net in enumerate(self.net):
            rows, given = self._of_model(number, condition)
            if len(rows):
                draws = net.sample(sample_shape, given, **kwargs)
                result = result.index_copy(len(sample_shape), rows, draws)
        return result

    def reparameterize(self, input: Tensor, condition: Tensor) -> Tensor:
        """Return the same samples `(batch_dim, dim)`, moving with their conditions."""
        result = input.detach()
        for number, net in enumerate(self.net):
            rows, given = self._of_model(number, condition)
            if len(rows):
                moved = reparameterize(net, input[rows], given)
                result = result.index_copy(0, rows, moved)
        return result


def _condition_of(number: int, condition: Tensor, sizes: Sequence[int]) -> Tensor:
    """Return the parameters of a model and the design, out of all."""
    start = 1 + sum(sizes[:number])
    own = condition[:, start : start + sizes[number]]
    return torch.cat([own, condition[:, 1 + sum(sizes) :]], dim=1)


class _LikelihoodBuilder:
    """Builds a network for each model; a class, so that it pickles."""

    def __init__(self, model: str | Callable, sizes: Sequence[int]) -> None:
        self.model, self.sizes = unless_config(model, likelihood_nn), list(sizes)

    def __call__(self, conditions: Tensor, x: Tensor) -> ModelLikelihood:
        nets, dim_design = [], conditions.shape[1] - 1 - sum(self.sizes)
        for number in range(len(self.sizes)):
            rows = conditions[:, 0].round() == number
            # All rows, where there are hardly any of this model.
            rows = rows if int(rows.sum()) > 1 else torch.ones_like(rows)
            build: Any = self.model
            if isinstance(build, str):
                build = transformed_likelihood_nn(
                    build, dim_design=dim_design, linear_start=True
                )
            given = _condition_of(number, conditions[rows], self.sizes)
            nets.append(build(given, x[rows]))
        return ModelLikelihood(nets, self.sizes)


class _ModelSimulator:
    """Simulates each row by its model."""

    def __init__(self, simulators: Sequence[Simulator], sizes: Sequence[int]) -> None:
        self.simulators, self.sizes = list(simulators), list(sizes)

    @property
    def num_parts(self) -> int:
        """Number of simulators."""
        return len(self.simulators)

    def parts(
        self, theta: Tensor, design: Tensor
    ) -> list[tuple[Simulator, Tensor, Tensor]]:
        """Return each simulator with its parameters and designs of all rows."""
        both, made = torch.cat([theta, design.to(theta)], dim=1), []
        for number, simulator in enumerate(self.simulators):
            own, size = _condition_of(number, both, self.sizes), self.sizes[number]
            made.append((simulator, own[:, :size], own[:, size:]))
        return made

    def __call__(self, theta: Tensor, design: Tensor) -> Tensor:
        result: Tensor | None = None
        for number, (simulator, own, own_design) in enumerate(
            self.parts(theta, design)
        ):
            (rows,) = (theta[:, 0].round() == number).nonzero(as_tuple=True)
            if not len(rows):
                continue
            x = torch.as_tensor(simulator(own[rows], own_design[rows])).to(theta)
            if result is None:
                result = theta.new_full((len(theta), *x.shape[1:]), torch.nan)
            if x.shape[1:] != result.shape[1:]:
                shapes = tuple(x.shape[1:]), tuple(result.shape[1:])
                raise ValueError(
                    f"models[{number}] returned data of shape {shapes[0]} for each "
                    f"simulation and another model {shapes[1]}: they must describe the "
                    "same data."
                )
            result[rows] = x
        assert result is not None
        return result


class ModelDiscrimination(NLE_INCE):
    r"""Finds experiments that tell several models apart, and which of them is right.

    The information about the number :math:`m` of the model, :math:`I(m; x \mid \xi) =
    H(m) + E[\log c(m \mid x, \xi)]` with a classifier :math:`c`, is a lower bound and
    at most the entropy of the models' probabilities. The likelihood of each model is
    learned beside it, so that `observe` gives probabilities of models and posteriors
    of the parameters of each.

    It is an `NLE_INCE` with parameters :math:`(m, \theta_1, \dots, \theta_M)`, where
    data of model :math:`m` depend on :math:`\theta_m` alone. `simulator` is that of all
    models together; everything else takes it as any other.

    Args:
        models: A prior and a simulator of each model; the simulators of the same data.
        density_estimator: Model of the likelihood of each, by name or a function that
            builds it from `(theta, design)` in one row and `x`.
        probabilities: Probability of each model beforehand; equal ones if `None`.
        design_policy: As for `NLE_INCE`, likewise all further arguments.

    Raises:
        ValueError: If there are fewer than two models, `density_estimator` is `None`,
            or probabilities are not positive or do not sum to one.

    Example:
        >>> import torch
        >>> from torch.distributions import MultivariateNormal
        >>> from sbi_boed_plugin import TruncatedNormalPolicy
        >>> prior = MultivariateNormal(torch.zeros(1), torch.eye(1))
        >>> line = lambda theta, d: theta * d + torch.randn_like(d)
        >>> parabola = lambda theta, d: theta * d**2 + torch.randn_like(d)
        >>> inference = ModelDiscrimination(
        ...     [(prior, line), (prior, parabola)],
        ...     design_policy=TruncatedNormalPolicy(torch.zeros(1), torch.ones(1)),
        ... )
        >>> inference.probabilities
        tensor([0.5000, 0.5000])
    """

    def __init__(
        self,
        models: Sequence[Model],
        density_estimator: str | Callable = "mdn",
        *,
        probabilities: Sequence[float] | Tensor | None = None,
        design_policy: DesignPolicy | None = None,
        **kwargs: Any,
    ) -> None:
        models = list(models)
        if len(models) < 2:
            raise ValueError(f"models: {len(models)} given, but two are the least.")
        if density_estimator is None:
            raise ValueError(
                "density_estimator=None: models are told apart by their likelihoods. "
                "Use 'mdn', another name, or a function that builds one."
            )
        weights = _check_probabilities(probabilities, len(models))
        priors, simulators = zip(*models, strict=True)
        prior = ModelPrior(priors, weights)
        super().__init__(
            prior,
            _LikelihoodBuilder(density_estimator, prior.sizes),
            design_policy=design_policy,
            **kwargs,
        )
        self.simulator = _ModelSimulator(simulators, prior.sizes)
        self._prior_of_models = prior

    def optimize_design(self, simulator: Any = None, **settings: Any) -> DesignResult:
        """Learn the design that tells the models apart, as `NLE_INCE.optimize_design`.

        `simulator` is the own one if `None`, and `target` the model. With more than
        30,000 simulations or no budget the search is a multi-start one: information
        about a model is often small, and a policy follows the noise of its classifier.
        """
        budget = settings.get("max_num_simulations")
        if budget is None or budget > MOST_OF_ROUNDS:
            settings.setdefault("method", "multi_start")
        self._set_target(settings)
        return super().optimize_design(simulator or self.simulator, **settings)

    def optimize_policy(
        self, simulator: Any = None, num_experiments: int = 1, **settings: Any
    ) -> PolicyResult:
        """Learn a policy that tells the models apart, as `NLE_INCE.optimize_policy`.

        `simulator` is the own one if `None`, and `target` the model.
        """
        self._set_target(settings)
        simulator = simulator or self.simulator
        return super().optimize_policy(simulator, num_experiments, **settings)

    def _set_target(self, settings: dict[str, Any]) -> None:
        """Let a search ask for the model, or raise if it is known."""
        settings.setdefault("target", self.default_target)
        if settings["target"] == 0 and self.is_settled:
            raise ValueError(
                f"Only model {int(self.probabilities.argmax())} is left among the "
                "particles of the belief: there is nothing to tell apart."
            )

    # What a search asks for: the number of the model.
    default_target = 0

    @property
    def is_settled(self) -> bool:
        """Whether all particles of the belief have the same model."""
        return bool((self.probabilities == 1.0).any())

    def build_posterior(self, *args: Any, **kwargs: Any) -> Any:
        """Refuse: chains do not move between models. Use `parameters_of`."""
        raise NotImplementedError(
            "ModelDiscrimination has the posteriors of its models as particles: "
            "observe(design, x), then probabilities and parameters_of(model)."
        )

    @property
    def probabilities(self) -> Tensor:
        """Probability of each model by what is known, of shape `(num_models,)`."""
        if self.belief is None:
            return self._prior_of_models.index.probs
        index = self.belief.particles[:, 0].round().long()
        counts = torch.bincount(index, minlength=len(self._prior_of_models.priors))
        return counts / counts.sum()

    def parameters_of(self, model: int) -> Tensor:
        """Return draws `(num, dim_theta)` of the parameters of a model, if it is right.

        Particles of the belief that have this model, or draws of its prior before any
        observation.

        Raises:
            ValueError: If there is no such model, or no particle has it.
        """
        sizes = self._prior_of_models.sizes
        if not 0 <= model < len(sizes):
            raise ValueError(f"model={model} must be from 0 to {len(sizes) - 1}.")
        if self.belief is None:
            return self._prior_of_models.priors[model].sample(torch.Size((4_096,)))
        particles = self.belief.particles
        rows = particles[particles[:, 0].round() == model]
        if not len(rows):
            raise ValueError(
                f"model={model} has no particle left: its probability is below "
                f"{1.0 / len(particles):.1g}."
            )
        return _condition_of(model, rows, sizes)


def _check_probabilities(given: Any, num_models: int) -> Tensor:
    """Return probabilities of the models, or raise if they are none."""
    if given is None:
        return torch.full((num_models,), 1.0 / num_models)
    weights = torch.as_tensor(given, dtype=torch.float32)
    is_right = weights.shape == (num_models,) and bool((weights > 0.0).all())
    if not is_right or not math.isclose(float(weights.sum()), 1.0, abs_tol=1e-4):
        raise ValueError(
            f"probabilities={weights.tolist()} must be {num_models} positive numbers "
            "that sum to one, one for each model."
        )
    return weights
