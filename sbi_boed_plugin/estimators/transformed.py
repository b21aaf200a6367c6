"""Likelihoods that work in other coordinates than their users."""

from collections.abc import Callable
from copy import deepcopy
from typing import Any, Literal, cast

import torch
from sbi.neural_nets import likelihood_nn, posterior_nn
from sbi.neural_nets.estimators import ConditionalDensityEstimator
from torch import Tensor
from torch.distributions.transforms import (
    CatTransform,
    Transform,
    identity_transform,
)

from sbi_boed_plugin.estimators.coordinates import Coordinates, move_transform
from sbi_boed_plugin.estimators.units import Units, warn_if_gaussian

__all__ = [
    "TransformedEstimator",
    "coordinates_of",
    "transformed_likelihood_nn",
    "transformed_posterior_nn",
]


# A network that has diverged puts all of its mass there: it must not draw forever.
_MAX_ATTEMPTS = 20


class TransformedEstimator(ConditionalDensityEstimator):
    r"""A density estimator seen through transforms of its input and condition.

    Counts that span decades or parameters that are positive are easier for a network
    as logarithms. With :math:`y = T(x)` the density of :math:`x` is
    :math:`q(T(x) \mid C(c)) \, |\det \partial T / \partial x|`, so that the user sees
    natural units throughout and log-probabilities are densities in these units.
    """

    def __init__(
        self,
        estimator: ConditionalDensityEstimator,
        input_transform: Transform = identity_transform,
        condition_transform: Transform = identity_transform,
    ) -> None:
        """Initialize the estimator.

        Args:
            estimator: Estimator in the transformed coordinates.
            input_transform: From natural units to the estimator's input, elementwise
                or over the last dimension.
            condition_transform: From natural units to the estimator's condition.
        """
        super().__init__(
            net=estimator,
            input_shape=estimator.input_shape,
            condition_shape=estimator.condition_shape,
        )
        self.net: ConditionalDensityEstimator
        self.input_transform = input_transform
        self.condition_transform = condition_transform

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True):
        """Move the tensors of the transforms as those of the network."""
        super()._apply(fn, recurse)
        self.input_transform = move_transform(self.input_transform, fn)
        self.condition_transform = move_transform(self.condition_transform, fn)
        return self

    @property
    def embedding_net(self) -> torch.nn.Module | None:
        """Embedding network of the estimator."""
        return self.net.embedding_net

    def log_prob(self, input: Tensor, condition: Tensor, **kwargs) -> Tensor:
        """Return log-densities in natural units.

        Args:
            input: Inputs of shape `(sample_dim, batch_dim, *input_event_shape)` or
                `(batch_dim, *input_event_shape)`.
            condition: Conditions of shape `(batch_dim, *condition_event_shape)`.
            **kwargs: Passed to the estimator.

        Returns:
            Log-densities of shape `(sample_dim, batch_dim)`, in nats.
        """
        # Units of several columns would broadcast one.
        self._check_input_shape(input)
        self._check_condition_shape(condition)
        transformed = self.input_transform(input)
        log_det = self.input_transform.log_abs_det_jacobian(input, transformed)
        # Elementwise transforms give one value per element, others one per event.
        num_elementwise = len(self.input_shape) - self.input_transform.domain.event_dim
        if num_elementwise > 0:
            log_det = log_det.flatten(log_det.dim() - num_elementwise).sum(dim=-1)
        values = self.net.log_prob(
            transformed, self.condition_transform(condition), **kwargs
        )
        return values + log_det

    def loss(self, input: Tensor, condition: Tensor, **kwargs) -> Tensor:
        """Return the negative log-density in natural units.

        Args:
            input: Inputs of shape `(batch_dim, *input_event_shape)`.
            condition: Conditions of shape `(batch_dim, *condition_event_shape)`.
            **kwargs: Passed to the estimator.

        Returns:
            Losses of shape `(batch_dim,)`, in nats.
        """
        return -self.log_prob(input.unsqueeze(0), condition, **kwargs)[0]

    def sample(self, sample_shape: torch.Size, condition: Tensor, **kwargs) -> Tensor:
        """Draw samples in natural units.

        Those that rounding puts onto the edge of their space, or beyond all numbers,
        have no coordinates any more and are drawn again, up to twenty times.

        Args:
            sample_shape: Shape of the draw.
            condition: Conditions of shape `(batch_dim, *condition_event_shape)`.
            **kwargs: Passed to the estimator.

        Returns:
            Samples of shape `(*sample_shape, batch_dim, *input_event_shape)`.
        """
        self._check_condition_shape(condition)
        of_net = cast(Tensor, self.condition_transform(condition))
        inverse = cast(Callable[[Tensor], Tensor], self.input_transform.inv)
        samples = inverse(self.net.sample(sample_shape, of_net, **kwargs))
        if self.input_transform is identity_transform:
            return samples
        before = (slice(None),) * len(sample_shape)
        event_dims = tuple(range(-len(self.input_shape), 0))
        for _ in range(_MAX_ATTEMPTS):
            coordinates = cast(Tensor, self.input_transform(samples))
            lost = ~torch.isfinite(coordinates)
            lost = lost.any(dim=event_dims, keepdim=True) if event_dims else lost
            rows = lost.movedim(len(sample_shape), 0).flatten(1).any(dim=1)
            if not rows.any():
                break
            again = inverse(self.net.sample(sample_shape, of_net[rows], **kwargs))
            place = (*before, rows)
            samples[place] = torch.where(lost[place], again, samples[place])
        return samples


class _NamedModel:
    """Builds an sbi model of a name in units that suit it; a class, so that it pickles.

    Each network gets an embedding of its own: sbi would train the one that it is given,
    and share it between networks. Values that meet an embedding, or a standardization
    that the user chose, keep their units.
    """

    def __init__(
        self,
        factory: Callable[..., Any],
        model: str,
        condition: Literal["theta", "x"],
        skew_x: bool,
        dim_design: int,
        kwargs: dict[str, Any],
    ) -> None:
        self.factory = factory
        self.model = model
        self.condition = condition
        self.skew_x = skew_x
        self.dim_design = dim_design
        self.kwargs = kwargs
        factory(model, **kwargs)  # Refuses what it does not know now, not in training.

    def __call__(self, theta: Tensor, x: Tensor) -> TransformedEstimator:
        of_theta, of_x = self._units("theta", theta), self._units("x", x)
        is_likelihood = self.condition == "theta"
        # The marginal, whose condition is the design alone, would say it once more.
        is_marginal = theta.shape[-1] == self.dim_design
        if is_likelihood and isinstance(of_x, Units) and not is_marginal:
            of_x.warn_if_skewed()
        if is_likelihood and not is_marginal:
            warn_if_gaussian(self.model, x)
        theta, x = cast(Tensor, of_theta(theta)), cast(Tensor, of_x(x))
        kwargs = dict(self.kwargs)
        embedding = kwargs.get("embedding_net")
        if embedding is not None:
            kwargs["embedding_net"] = embedding = deepcopy(embedding)
        if embedding is not None and hasattr(embedding, "standardize"):
            conditions = theta if is_likelihood else x
            embedding.to(conditions.device).standardize(conditions)
            kwargs.setdefault(f"z_score_{self.condition}", "none")
        network = self.factory(self.model, **kwargs)(theta, x)
        maps = (of_x, of_theta) if is_likelihood else (of_theta, of_x)
        return TransformedEstimator(network, *maps)

    def _units(self, name: str, values: Tensor) -> Transform:
        """Return the units of parameters or data, with the designs behind them."""
        is_condition = name == self.condition
        keeps = (
            self.kwargs.get(f"z_score_{name}", "independent") != "independent"
            or (is_condition and self.kwargs.get("embedding_net") is not None)
            # Some of the values that these models describe are labels.
            or (not is_condition and self.model in ("mnle", "mnpe"))
        )
        if keeps:
            return identity_transform
        return Units(values, may_skew=is_condition or name == "theta" or self.skew_x)


class _TransformedBuilder:
    """Builds a `TransformedEstimator`; a class, so that it pickles."""

    def __init__(
        self,
        build: Callable[[Tensor, Tensor], ConditionalDensityEstimator],
        coordinates: Coordinates,
        dim_design: int,
    ) -> None:
        self.build = build
        self.coordinates = coordinates
        self.dim_design = dim_design

    def _beside_design(
        self, transform: Transform, of_design: Transform, rows: Tensor
    ) -> Transform:
        """Return the transform of rows whose last values are the design."""
        if not self.dim_design:
            return transform
        if rows.shape[-1] == self.dim_design:
            return of_design
        return CatTransform(
            [transform, of_design],
            dim=-1,
            lengths=[rows.shape[-1] - self.dim_design, self.dim_design],
        )


class _LikelihoodBuilder(_TransformedBuilder):
    def __call__(self, theta: Tensor, x: Tensor) -> TransformedEstimator:
        coordinates = self.coordinates.to(theta.device)
        of_x = coordinates.of_x
        of_theta = self._beside_design(coordinates.theta, coordinates.design, theta)
        estimator = self.build(of_theta(theta), of_x(x))
        return TransformedEstimator(estimator, of_x, of_theta)


class _PosteriorBuilder(_TransformedBuilder):
    def __call__(self, theta: Tensor, x: Tensor) -> TransformedEstimator:
        coordinates = self.coordinates.to(theta.device)
        of_theta = coordinates.theta
        of_x = self._beside_design(coordinates.of_x, coordinates.design, x)
        estimator = self.build(of_theta(theta), of_x(x))
        return TransformedEstimator(estimator, of_theta, of_x)


def coordinates_of(build: object) -> Coordinates:
    """Return the coordinates that a builder of this module uses, else natural units."""
    if isinstance(build, _TransformedBuilder):
        return build.coordinates
    return Coordinates.of()


def transformed_likelihood_nn(
    model: str | Callable[[Tensor, Tensor], ConditionalDensityEstimator],
    *,
    dim_design: int = 0,
    x_transform: Transform | Literal["auto"] | None = "auto",
    theta_transform: Transform = identity_transform,
    design_transform: Transform = identity_transform,
    **kwargs,
) -> Callable[[Tensor, Tensor], ConditionalDensityEstimator]:
    """Return a builder of likelihoods that work in other coordinates.

    Args:
        model: Name of an sbi model, as for `sbi.neural_nets.likelihood_nn`, or a
            builder function.
        dim_design: Number of values of a design; 0 without designs.
        x_transform: Transform of the data, for instance to logarithms; `None` for
            natural units. With `"auto"` a named model sees a column of the data as
            `asinh((x - centre) / scale)` if in the first simulations all its values
            have one sign and the largest is more than 1,000 times the 5 % quantile of
            those that are not zero (`centre` 0, `scale` this quantile), or if it has
            both signs and the largest distance from the median is more than 30 times
            the median distance (`centre` and `scale` these medians), unless 5 % of the
            values are the largest. A warning says so.
        theta_transform: Transform of the parameters.
        design_transform: Transform of the designs.
        **kwargs: Passed to `likelihood_nn` if `model` is a name. An `embedding_net` is
            copied; if it has a method `standardize`, this gets the rows of the first
            simulations, and sbi does not standardize them.

    Returns:
        Builder to pass as `density_estimator`.

    Example:
        >>> import torch
        >>> from torch.distributions.transforms import ExpTransform
        >>> build = transformed_likelihood_nn("mdn", theta_transform=ExpTransform().inv)
        >>> theta, x = torch.rand(100, 2) + 0.1, torch.randn(100, 1)
        >>> build(theta, x).log_prob(x.unsqueeze(0), theta).shape
        torch.Size([1, 100])
    """
    coordinates = Coordinates.of(theta_transform, x_transform, design_transform)
    if isinstance(model, str):
        skew_x = coordinates.x == "auto"
        build: Any = _NamedModel(
            likelihood_nn, model, "theta", skew_x, dim_design, kwargs
        )
    else:
        build = model
    return _LikelihoodBuilder(build, coordinates, dim_design)


def transformed_posterior_nn(
    model: str | Callable[[Tensor, Tensor], ConditionalDensityEstimator],
    *,
    dim_design: int = 0,
    theta_transform: Transform = identity_transform,
    x_transform: Transform | Literal["auto"] | None = "auto",
    design_transform: Transform = identity_transform,
    **kwargs,
) -> Callable[[Tensor, Tensor], ConditionalDensityEstimator]:
    """Return a builder of posteriors that work in other coordinates.

    With parameters transformed from a bounded support to all real numbers, no mass of
    the posterior lies outside.

    Args:
        model: Name of an sbi model, as for `sbi.neural_nets.posterior_nn`, or a
            builder function.
        dim_design: Number of values of a design, the last ones of a row of `x`.
        theta_transform: Transform of the parameters.
        x_transform: Transform of the data. As a condition, a skewed column may be seen
            as logarithms whatever is given here.
        design_transform: Transform of the designs.
        **kwargs: Passed to `posterior_nn` if `model` is a name. An `embedding_net` is
            copied; if it has a method `standardize`, this gets the rows of the first
            simulations, and sbi does not standardize them.

    Returns:
        Builder to pass as `posterior_estimator`.

    Example:
        >>> import torch
        >>> from torch.distributions.transforms import SigmoidTransform
        >>> build = transformed_posterior_nn(
        ...     "mdn", theta_transform=SigmoidTransform().inv
        ... )
        >>> theta, x = torch.rand(100, 2), torch.randn(100, 1)
        >>> samples = build(theta, x).sample(torch.Size((5,)), x)
        >>> bool(((samples > 0) & (samples < 1)).all())
        True
    """
    coordinates = Coordinates.of(theta_transform, x_transform, design_transform)
    if isinstance(model, str):
        skew_x = coordinates.x == "auto"
        build: Any = _NamedModel(posterior_nn, model, "x", skew_x, dim_design, kwargs)
    else:
        build = model
    return _PosteriorBuilder(build, coordinates, dim_design)
