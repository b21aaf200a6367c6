"""Likelihoods that work in other coordinates than their users."""

from collections.abc import Callable
from copy import copy, deepcopy
from dataclasses import dataclass
from typing import Any, cast

import torch
from sbi.neural_nets import likelihood_nn, posterior_nn
from sbi.neural_nets.estimators import ConditionalDensityEstimator
from torch import Tensor
from torch.distributions.transforms import (
    CatTransform,
    ExpTransform,
    Transform,
    identity_transform,
)

__all__ = [
    "INVERSE_TRANSFORM",
    "Coordinates",
    "TransformedEstimator",
    "coordinates_of",
    "move_transform",
    "transformed_likelihood_nn",
    "transformed_posterior_nn",
]


# A network that has diverged puts all of its mass there: it must not draw forever.
_MAX_ATTEMPTS = 20

# Torch does not export the kind of inverse transforms, which refer to another one.
INVERSE_TRANSFORM = type(ExpTransform().inv)


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


@dataclass(frozen=True)
class Coordinates:
    """Coordinates that suit networks, as transforms from natural units."""

    theta: Transform
    x: Transform
    design: Transform

    def to(self, device: str | torch.device) -> "Coordinates":
        """Return the same coordinates for tensors on a device."""
        return Coordinates(
            *(
                move_transform(transform, lambda tensor: tensor.to(device))
                for transform in (self.theta, self.x, self.design)
            )
        )


def move_transform(transform: Any, fn: Callable[[Tensor], Tensor]) -> Any:
    """Return a transform with a function applied to every tensor that it holds.

    Args:
        transform: A transform. It holds tensors as attributes, in lists, and in the
            transforms that it is made of. It is left as it is.
        fn: Function of a tensor, such as a move to a device.

    Returns:
        A copy; the identity itself, and what is a module, which moves with the network
        that it is part of.
    """
    if isinstance(transform, Tensor):
        return fn(transform)
    if type(transform) in (list, tuple):
        return type(transform)(move_transform(part, fn) for part in transform)
    is_module = isinstance(transform, torch.nn.Module)
    if is_module or not isinstance(transform, Transform):
        return transform
    if transform is identity_transform:
        return transform
    if isinstance(transform, INVERSE_TRANSFORM):
        return move_transform(transform.inv, fn).inv
    other = copy(transform)
    other._inv = None  # The inverse that torch keeps is of the original.
    vars(other).update({k: move_transform(v, fn) for k, v in vars(other).items()})
    return other


class _NamedModel:
    """Builds an sbi model of a name; a class, so that it pickles.

    Each network gets an embedding of its own: sbi would train the one that it is given,
    and share it between networks.
    """

    def __init__(
        self, factory: Callable[..., Any], model: str, rows: str, kwargs: dict[str, Any]
    ) -> None:
        self.factory = factory
        self.model = model
        self.rows = rows
        self.kwargs = kwargs
        factory(model, **kwargs)  # Refuses what it does not know now, not in training.

    def __call__(self, theta: Tensor, x: Tensor) -> ConditionalDensityEstimator:
        kwargs = dict(self.kwargs)
        embedding = kwargs.get("embedding_net")
        if embedding is not None:
            kwargs["embedding_net"] = embedding = deepcopy(embedding)
        if embedding is not None and hasattr(embedding, "standardize"):
            conditions = theta if self.rows == "theta" else x
            embedding.to(conditions.device).standardize(conditions)
            kwargs.setdefault(f"z_score_{self.rows}", "none")
        return self.factory(self.model, **kwargs)(theta, x)


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
        of_x = coordinates.x
        of_theta = self._beside_design(coordinates.theta, coordinates.design, theta)
        estimator = self.build(of_theta(theta), of_x(x))
        return TransformedEstimator(estimator, of_x, of_theta)


class _PosteriorBuilder(_TransformedBuilder):
    def __call__(self, theta: Tensor, x: Tensor) -> TransformedEstimator:
        coordinates = self.coordinates.to(theta.device)
        of_theta = coordinates.theta
        of_x = self._beside_design(coordinates.x, coordinates.design, x)
        estimator = self.build(of_theta(theta), of_x(x))
        return TransformedEstimator(estimator, of_theta, of_x)


def coordinates_of(build: object) -> Coordinates:
    """Return the coordinates that a builder of this module uses, else natural units."""
    if isinstance(build, _TransformedBuilder):
        return build.coordinates
    return Coordinates(identity_transform, identity_transform, identity_transform)


def transformed_likelihood_nn(
    model: str | Callable[[Tensor, Tensor], ConditionalDensityEstimator],
    *,
    dim_design: int = 0,
    x_transform: Transform = identity_transform,
    theta_transform: Transform = identity_transform,
    design_transform: Transform = identity_transform,
    **kwargs,
) -> Callable[[Tensor, Tensor], ConditionalDensityEstimator]:
    """Return a builder of likelihoods that work in other coordinates.

    Args:
        model: Name of an sbi model, as for `sbi.neural_nets.likelihood_nn`, or a
            builder function.
        dim_design: Number of values of a design; 0 without designs.
        x_transform: Transform of the data, for instance to logarithms.
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
    if isinstance(model, str):
        build: Any = _NamedModel(likelihood_nn, model, "theta", kwargs)
    else:
        build = model
    coordinates = Coordinates(theta_transform, x_transform, design_transform)
    return _LikelihoodBuilder(build, coordinates, dim_design)


def transformed_posterior_nn(
    model: str | Callable[[Tensor, Tensor], ConditionalDensityEstimator],
    *,
    dim_design: int = 0,
    theta_transform: Transform = identity_transform,
    x_transform: Transform = identity_transform,
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
        x_transform: Transform of the data.
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
    if isinstance(model, str):
        build: Any = _NamedModel(posterior_nn, model, "x", kwargs)
    else:
        build = model
    coordinates = Coordinates(theta_transform, x_transform, design_transform)
    return _PosteriorBuilder(build, coordinates, dim_design)
