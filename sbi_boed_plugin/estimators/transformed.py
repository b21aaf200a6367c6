"""Likelihoods that work in other coordinates than their users."""

from collections.abc import Callable
from typing import cast

import torch
from sbi.neural_nets import likelihood_nn
from sbi.neural_nets.estimators import ConditionalDensityEstimator
from torch import Tensor
from torch.distributions.transforms import CatTransform, Transform, identity_transform

__all__ = ["TransformedEstimator", "transformed_likelihood_nn"]


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

        Args:
            sample_shape: Shape of the draw.
            condition: Conditions of shape `(batch_dim, *condition_event_shape)`.
            **kwargs: Passed to the estimator.

        Returns:
            Samples of shape `(*sample_shape, batch_dim, *input_event_shape)`.
        """
        transformed = self.net.sample(
            sample_shape, self.condition_transform(condition), **kwargs
        )
        inverse = cast(Callable[[Tensor], Tensor], self.input_transform.inv)
        return inverse(transformed)


class _TransformedBuilder:
    """Builds a `TransformedEstimator`; a class, so that it pickles."""

    def __init__(
        self,
        build: Callable[[Tensor, Tensor], ConditionalDensityEstimator],
        input_transform: Transform,
        condition_transform: Transform,
    ) -> None:
        self.build = build
        self.input_transform = input_transform
        self.condition_transform = condition_transform

    def __call__(self, theta: Tensor, x: Tensor) -> TransformedEstimator:
        estimator = self.build(self.condition_transform(theta), self.input_transform(x))
        return TransformedEstimator(
            estimator, self.input_transform, self.condition_transform
        )


def transformed_likelihood_nn(
    model: str | Callable[[Tensor, Tensor], ConditionalDensityEstimator],
    *,
    dim_theta: int,
    dim_design: int = 0,
    x_transform: Transform = identity_transform,
    theta_transform: Transform = identity_transform,
    design_transform: Transform = identity_transform,
    **kwargs,
) -> Callable[[Tensor, Tensor], ConditionalDensityEstimator]:
    """Return a builder of a likelihood that works in transformed coordinates.

    Args:
        model: Name of an sbi model, as for `sbi.neural_nets.likelihood_nn`, or a
            builder function.
        dim_theta: Number of parameters.
        dim_design: Number of values of a design; 0 without designs.
        x_transform: Transform of the data, for instance to logarithms.
        theta_transform: Transform of the parameters.
        design_transform: Transform of the designs.
        **kwargs: Passed to `likelihood_nn` if `model` is a name.

    Returns:
        Builder to pass as `density_estimator`.

    Example:
        >>> import torch
        >>> from torch.distributions.transforms import ExpTransform
        >>> build = transformed_likelihood_nn(
        ...     "mdn", dim_theta=2, theta_transform=ExpTransform().inv
        ... )
        >>> theta, x = torch.rand(100, 2) + 0.1, torch.randn(100, 1)
        >>> build(theta, x).log_prob(x.unsqueeze(0), theta).shape
        torch.Size([1, 100])
    """
    build = likelihood_nn(model, **kwargs) if isinstance(model, str) else model
    condition_transform = theta_transform
    if dim_design:
        condition_transform = CatTransform(
            [theta_transform, design_transform], dim=-1, lengths=[dim_theta, dim_design]
        )
    return _TransformedBuilder(build, x_transform, condition_transform)
