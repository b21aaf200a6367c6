"""Estimators that work in other coordinates than their users, and their builders."""

import warnings
from collections.abc import Callable
from copy import deepcopy
from functools import partial
from typing import Any, Literal, cast

import torch
from sbi.neural_nets import likelihood_nn, posterior_nn
from sbi.neural_nets.estimators import ConditionalDensityEstimator
from sbi.neural_nets.net_builders.categorial import build_categoricalmassestimator
from torch import Tensor, nn
from torch.distributions.transforms import CatTransform, Transform, identity_transform

from sbi_boed_plugin._sbi_compat import unless_config
from sbi_boed_plugin.estimators.coordinates import (
    Units,
    move_transform,
    warn_if_gaussian,
)
from sbi_boed_plugin.estimators.noise import EstimatorView
from sbi_boed_plugin.estimators.residual import LinearRegression, ResidualEstimator
from sbi_boed_plugin.estimators.vector_field import VECTOR_FIELDS, vector_field_nn

__all__ = [
    "TransformedEstimator",
    "as_transform",
    "build_categorical",
    "coordinates_of",
    "transformed_likelihood_nn",
    "transformed_posterior_nn",
]

# Features of a condition that mixtures are given.
_NUM_FEATURES = 100
# Values of data of which a mixture is still as fast as a flow.
_MOST_OF_MIXTURE = 128
# A network that has diverged rounds all of its mass to the boundary.
_MAX_ATTEMPTS = 20


class TransformedEstimator(EstimatorView):
    r"""A density estimator seen through transforms of its input and condition.

    With :math:`y = T(x)` the density of :math:`x` is :math:`q(T(x) \mid C(c)) \,
    |\det \partial T / \partial x|`: log-probabilities are densities in natural units.
    """

    def __init__(
        self,
        estimator: ConditionalDensityEstimator,
        input_transform: Transform = identity_transform,
        condition_transform: Transform = identity_transform,
    ) -> None:
        """Initialize with transforms from natural units, elementwise or over rows."""
        super().__init__(estimator, estimator.input_shape, estimator.condition_shape)
        self.input_transform = input_transform
        self.condition_transform = condition_transform

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True):
        """Move the tensors of the transforms as those of the network."""
        super()._apply(fn, recurse)
        self.input_transform = move_transform(self.input_transform, fn)
        self.condition_transform = move_transform(self.condition_transform, fn)
        return self

    def input_of_net(self, input: Tensor, condition: Tensor) -> Tensor:
        """Return the input in the coordinates of the network."""
        return cast(Tensor, self.input_transform(input))

    def condition_of_net(self, condition: Tensor) -> Tensor:
        """Return the condition in the coordinates of the network."""
        return cast(Tensor, self.condition_transform(condition))

    def log_abs_det(self, input: Tensor) -> Tensor:
        """Return the log-determinant of the input's transform, one per event."""
        transform = self.input_transform
        log_det = transform.log_abs_det_jacobian(input, transform(input))
        # Elementwise transforms give one value per element, others one per event.
        num_elementwise = len(self.input_shape) - transform.domain.event_dim
        if num_elementwise > 0:
            log_det = log_det.flatten(log_det.dim() - num_elementwise).sum(dim=-1)
        return log_det

    def sample(
        self, sample_shape: torch.Size, condition: Tensor, **kwargs: Any
    ) -> Tensor:
        """Draw samples in natural units, of shape `(*sample_shape, batch_dim, ...)`.

        Samples that round to the boundary of their space, or to infinity, are redrawn,
        at most 20 times.
        """
        self._check_condition_shape(condition)
        condition = self.condition_of_net(condition)
        inverse = cast(Callable[[Tensor], Tensor], self.input_transform.inv)
        samples = inverse(self.net.sample(sample_shape, condition, **kwargs))
        event_dims = tuple(range(-len(self.input_shape), 0))
        for _ in range(_MAX_ATTEMPTS):
            lost = ~torch.isfinite(cast(Tensor, self.input_transform(samples)))
            lost = lost.any(dim=event_dims, keepdim=True) if event_dims else lost
            if self.input_transform is identity_transform or not lost.any():
                break
            again = inverse(self.net.sample(sample_shape, condition, **kwargs))
            samples = torch.where(lost, again, samples)
        return samples


class _TransformedBuilder:
    """Builds a `TransformedEstimator`; a class, so that it pickles.

    A model of a name works in units that suit it, except values that meet an embedding
    or a standardization that the user chose. Each network gets a copy of the embedding,
    which sbi would share between networks.
    """

    def __init__(
        self,
        model: Any,
        condition: Literal["theta", "x"],
        *,
        dim_design: int = 0,
        linear_start: bool = False,
        theta_transform: Transform = identity_transform,
        x_transform: Transform | Literal["auto"] | None = "auto",
        design_transform: Transform = identity_transform,
        **kwargs: Any,
    ) -> None:
        """Raise if sbi does not know a model, or `x_transform` names no coordinates."""
        network = likelihood_nn if condition == "theta" else posterior_nn
        self.model, self.condition = unless_config(model, network), condition
        self.factory: Any = network
        self.kwargs = kwargs
        if isinstance(model, str) and model in VECTOR_FIELDS:
            describes = "x" if condition == "theta" else "theta"
            self.factory = partial(vector_field_nn, describes=describes)
        if isinstance(model, str):
            self.factory(model, **kwargs)  # Refuses what it does not know.
        x_transform = identity_transform if x_transform is None else x_transform
        if x_transform != "auto" and not isinstance(x_transform, Transform):
            raise ValueError(
                f"x_transform={x_transform!r} must be 'auto', None for natural units, "
                "or a Transform of torch.distributions from natural units."
            )
        self.dim_design, self.linear_start = dim_design, linear_start
        self.coordinates = {
            "theta_transform": theta_transform,
            "x_transform": x_transform,
            "design_transform": design_transform,
        }

    def __call__(self, theta: Tensor, x: Tensor) -> TransformedEstimator:
        of_theta, of_x, of_design = (
            move_transform(
                as_transform(self.coordinates[name]), lambda v: v.to(theta.device)
            )
            for name in ("theta_transform", "x_transform", "design_transform")
        )
        if self.condition == "theta":
            of_theta = self._beside_design(of_theta, of_design, theta)
        else:
            of_x = self._beside_design(of_x, of_design, x)
        build = self._build_named if isinstance(self.model, str) else self.model
        network = build(cast(Tensor, of_theta(theta)), cast(Tensor, of_x(x)))
        return self._view(network, of_theta, of_x)

    def _beside_design(
        self, transform: Transform, of_design: Transform, rows: Tensor
    ) -> Transform:
        """Return the transform of rows whose last values are the design."""
        if not self.dim_design:
            return transform
        if rows.shape[-1] == self.dim_design:
            return of_design
        lengths = [rows.shape[-1] - self.dim_design, self.dim_design]
        return CatTransform([transform, of_design], dim=-1, lengths=lengths)

    def _view(
        self, network: Any, of_theta: Transform, of_x: Transform
    ) -> TransformedEstimator:
        is_likelihood = self.condition == "theta"
        transforms = (of_x, of_theta) if is_likelihood else (of_theta, of_x)
        return TransformedEstimator(network, *transforms)

    def _build_named(self, theta: Tensor, x: Tensor) -> TransformedEstimator:
        of_theta, of_x = self._units("theta", theta), self._units("x", x)
        # The marginal, whose condition is the design alone, has the data of the
        # likelihood, which has warned.
        if self.condition == "theta" and theta.shape[-1] != self.dim_design:
            if isinstance(of_x, Units):
                of_x.warn_if_skewed()
            warn_if_gaussian(self.model, x)
            _warn_of_matrices(self.model, x.shape[-1])
        theta, x = cast(Tensor, of_theta(theta)), cast(Tensor, of_x(x))
        kwargs = dict(self.kwargs)
        embedding = kwargs.get("embedding_net")
        if embedding is not None:
            kwargs["embedding_net"] = embedding = deepcopy(embedding)
        if embedding is not None and hasattr(embedding, "standardize"):
            conditions = theta if self.condition == "theta" else x
            embedding.to(conditions.device).standardize(conditions)
            kwargs.setdefault(f"z_score_{self.condition}", "none")
        in_units = isinstance(of_theta, Units) and isinstance(of_x, Units)
        if not (self.linear_start and in_units):
            network = self.factory(self.model, **kwargs)(theta, x)
            return self._view(network, of_theta, of_x)
        rows = (x, theta) if self.condition == "theta" else (theta, x)
        regression = LinearRegression(*rows, self.dim_design)
        with torch.no_grad():
            left = regression.residuals(*rows)
        if self.condition == "theta" and self.model == "mdn":
            kwargs["embedding_net"] = _features(theta.shape[-1]).to(theta.device)
        pair = (theta, left) if self.condition == "theta" else (left, x)
        network = self.factory(self.model, **kwargs)(*pair)
        network = ResidualEstimator(network, regression)
        return self._view(network, of_theta, of_x)

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
        may_skew = (
            is_condition or name == "theta" or self.coordinates["x_transform"] == "auto"
        )
        return Units(values, may_skew=may_skew)


def _warn_of_matrices(model: str, num_values: int) -> None:
    """Warn where the matrices of a mixture are huge."""
    if model == "mdn" and num_values > _MOST_OF_MIXTURE:
        warnings.warn(
            f"A mixture ('mdn') of {num_values} values has a matrix of {num_values} x "
            f"{num_values} numbers for each row and component: a step takes seconds. "
            "Use density_estimator='maf' or 'flow_matching', or None for posteriors "
            "alone.",
            stacklevel=5,
        )


def _features(num_values: int) -> nn.Module:
    """Return a network of features of a condition, for a mixture.

    sbi's own network of a mixture is too shallow and not smooth enough for the response
    to parameters and designs, on which climbs and bounds depend.
    """
    first = nn.Linear(num_values, _NUM_FEATURES)
    second = nn.Linear(_NUM_FEATURES, _NUM_FEATURES)
    return nn.Sequential(first, nn.SiLU(), second, nn.SiLU())


def build_categorical(
    theta: Tensor, x: Tensor, *, values: list[Tensor]
) -> TransformedEstimator:
    """Build sbi's categorical network of the sorted values of each parameter.

    Its probabilities sum to one, so that its bound of the information never exceeds the
    entropy of the prior. A density over the same values has no such limit.
    """
    # sbi reads the values from rows, of which a batch may lack some.
    num_values = torch.tensor([len(some) for some in values])
    rows = torch.arange(int(num_values.max()))
    every = torch.stack([some[rows % len(some)].to(theta) for some in values], dim=1)
    units = Units(x)
    network = build_categoricalmassestimator(
        every,
        cast(Tensor, units(x)),
        num_categories_per_variable=num_values,
        num_hidden=50,
    )
    return TransformedEstimator(network, condition_transform=units)


def as_transform(given: Transform | Literal["auto"]) -> Transform:
    """Return a transform; `"auto"` stands for natural units."""
    return given if isinstance(given, Transform) else identity_transform


def coordinates_of(build: object) -> dict[str, Any]:
    """Return the transforms of a builder, as arguments of those of this module."""
    if isinstance(build, _TransformedBuilder):
        return build.coordinates
    return _TransformedBuilder(build, "theta").coordinates


def transformed_likelihood_nn(
    model: str | Callable[[Tensor, Tensor], ConditionalDensityEstimator],
    *,
    dim_design: int = 0,
    linear_start: bool = False,
    x_transform: Transform | Literal["auto"] | None = "auto",
    theta_transform: Transform = identity_transform,
    design_transform: Transform = identity_transform,
    **kwargs: Any,
) -> Callable[[Tensor, Tensor], ConditionalDensityEstimator]:
    """Return a builder of likelihoods that work in other coordinates.

    Args:
        model: Name of an sbi model, as for `sbi.neural_nets.likelihood_nn`;
            `"flow_matching"` or `"score"`, sbi's vector fields as densities
            (:class:`VectorFieldDensity`); or a builder function.
        dim_design: Number of values of a design; 0 without designs.
        linear_start: Whether a named model describes what a linear regression of the
            first simulations leaves. The regression, whose features are also products
            with the design, learns with the network, and an `"mdn"` sees its condition
            through two layers of 100 features. Searches do so with models of a name.
            Data or parameters with an embedding or another standardization than the
            default are left as they are.
        x_transform: Transform of the data, for instance to logarithms; `None` for
            natural units. With `"auto"` a named model sees a column of the data as
            `asinh((x - centre) / scale)`, and warns, if the first simulations are
            skewed: values of one sign, whose largest is more than 1,000 times the 5 %
            quantile of those that are not zero (the `scale`, with `centre` 0), or of
            both signs, whose largest distance from the median is more than 30 times
            the median distance, unless 5 % of the values are the largest.
        theta_transform: Transform of the parameters.
        design_transform: Transform of the designs.
        **kwargs: Passed to `likelihood_nn`, or to `posterior_flow_nn` and
            `posterior_score_nn`, if `model` is a name. An `embedding_net` is
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
    return _TransformedBuilder(
        model,
        "theta",
        dim_design=dim_design,
        linear_start=linear_start,
        theta_transform=theta_transform,
        x_transform=x_transform,
        design_transform=design_transform,
        **kwargs,
    )


def transformed_posterior_nn(
    model: str | Callable[[Tensor, Tensor], ConditionalDensityEstimator], **kwargs: Any
) -> Callable[[Tensor, Tensor], ConditionalDensityEstimator]:
    """Return a builder of posteriors that work in other coordinates.

    With parameters transformed from a bounded support to all real numbers, no mass of
    the posterior lies outside. Arguments are those of
    :func:`transformed_likelihood_nn`, for a model of `sbi.neural_nets.posterior_nn`;
    designs are the last values of a row of `x`. A skewed column of data, which is a
    condition here, may be seen as logarithms whatever `x_transform` is.

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
    return _TransformedBuilder(model, "x", **kwargs)
