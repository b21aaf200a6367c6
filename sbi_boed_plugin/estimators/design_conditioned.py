"""Designs in conditions: rows `(values, design)`, and estimators at fixed designs."""

from collections.abc import Sequence
from itertools import chain

import torch
from sbi.neural_nets.estimators import ConditionalDensityEstimator
from torch import Tensor, nn

from sbi_boed_plugin.estimators.noise import EstimatorView

__all__ = [
    "DataShapedEstimator",
    "DesignConditionedEstimator",
    "check_fixed_design",
    "join",
    "posterior_at_design",
]


def join(values: Tensor, design: Tensor) -> Tensor:
    """Return rows `(values, design)`, with the design expanded to the batch of values.

    Example:
        >>> join(torch.zeros(2, 1), torch.tensor([5.0])).tolist()
        [[0.0, 5.0], [0.0, 5.0]]
    """
    return torch.cat([values, design.expand(*values.shape[:-1], -1)], dim=-1)


def check_fixed_design(design: Tensor, dim_condition: int, values: str) -> Tensor:
    """Return designs as a matrix, or raise if no row `(values, design)` has them."""
    design = torch.atleast_2d(torch.as_tensor(design))
    if design.dim() != 2 or not 0 < design.shape[-1] < dim_condition:
        raise ValueError(
            f"design has shape {tuple(design.shape)}, but must have shape (num_designs,"
            f" dim_design), with dim_design less than the {dim_condition} values of "
            f"({values}, design) that the estimator is conditioned on."
        )
    if not torch.isfinite(design).all():
        raise ValueError(f"design={design.tolist()} must be finite.")
    return design


class DesignConditionedEstimator(EstimatorView):
    r"""An estimator conditioned on `(values, design)`, with its designs filled in.

    Of a likelihood :math:`q(x \mid \theta, \xi)` row :math:`i` of `x_o` was measured at
    row :math:`i` of `design`, and rows are independent given :math:`\theta`. One design
    serves any number of observations (repeated measurements). An amortised posterior
    :math:`q(\theta \mid x, \xi)` has one design. Parameters are shared.

    Example:
        >>> import torch
        >>> from sbi.neural_nets import likelihood_nn
        >>> condition, x = torch.randn(100, 3), torch.randn(100, 2)
        >>> estimator = likelihood_nn("mdn")(condition, x)  # theta: 2, design: 1
        >>> fixed = DesignConditionedEstimator(estimator, torch.tensor([[0.5], [1.0]]))
        >>> fixed.log_prob(x[:2].unsqueeze(1), torch.randn(1, 2)).shape
        torch.Size([2, 1])
    """

    design: Tensor

    def __init__(
        self,
        estimator: ConditionalDensityEstimator | Sequence[ConditionalDensityEstimator],
        design: Tensor,
        values_shape: torch.Size | None = None,
    ) -> None:
        """Initialize the estimator at fixed designs.

        Args:
            estimator: Estimator conditioned on `(values, design)` in one row, or one
                for each design.
            design: Designs of shape `(num_designs, dim_design)` or `(dim_design,)`.
            values_shape: Shape in which the values of a condition come, if not in a
                row.

        Raises:
            ValueError: If `design` has a wrong shape or is not finite.
        """
        estimators = [estimator] if isinstance(estimator, nn.Module) else [*estimator]
        (dim_condition,) = estimators[0].condition_shape
        design = check_fixed_design(design, dim_condition, "theta")
        if len(estimators) not in (1, len(design)):
            raise ValueError(
                f"There are {len(estimators)} estimators for {len(design)} designs: "
                "pass one estimator, or one for each design."
            )
        row_shape = torch.Size((dim_condition - design.shape[-1],))
        values_shape = values_shape or row_shape
        super().__init__(estimators[0], estimators[0].input_shape, values_shape)
        of_design = estimators * (len(design) // len(estimators))
        # Each different estimator once, and the rows of designs that it is for.
        self.estimators = nn.ModuleList(dict.fromkeys(estimators))
        self._rows = [
            [row for row, other in enumerate(of_design) if other is one]
            for one in self.estimators
        ]
        reference = next(chain(self.net.parameters(), self.net.buffers()))
        self.register_buffer("design", design.detach().to(reference))

    def condition_of_net(self, condition: Tensor) -> Tensor:
        """Return `(values, design)` in one row each; there must be one design."""
        self._check_number(1)
        return join(self._as_rows(condition), self.design[0])

    def _as_rows(self, values: Tensor) -> Tensor:
        """Return values of the condition, `(..., *condition_shape)`, in rows."""
        return values.flatten(values.dim() - len(self.condition_shape))

    def log_prob(self, input: Tensor, condition: Tensor, **kwargs) -> Tensor:
        r"""Return :math:`\log q(x_i \mid \theta_b, \xi_i)`, in nats.

        Inputs have shape `(sample_dim, batch_dim, *input_event_shape)`, where with
        several designs `sample_dim` counts observations, and conditions `(batch_dim,
        dim)`. A `ValueError` says if there are not as many observations as designs.
        """
        if len(self.design) == 1:
            return super().log_prob(input, condition, **kwargs)
        self._check_input_shape(input)
        self._check_condition_shape(condition)
        input, condition, batch_dim = self._broadcast_and_align(input, condition)
        self._check_number(len(input))
        conditions = join(self._as_rows(condition), self.design.unsqueeze(1))
        values = input.new_empty(len(input), batch_dim)
        for estimator, rows in zip(self.estimators, self._rows, strict=True):
            # Flat pairs: the one form of call that all of sbi's estimators share.
            part = estimator.log_prob(
                input[rows].reshape(1, -1, *self.input_shape),
                conditions[rows].flatten(0, 1),
                **kwargs,
            )
            values[rows] = part.reshape(-1, batch_dim)
        return values

    def sample(self, sample_shape: torch.Size, condition: Tensor, **kwargs) -> Tensor:
        """Draw samples of shape `(*sample_shape, batch_dim, *input_event_shape)`.

        With several designs the last entry of `sample_shape` must be their number: it
        counts the observations of one data set.
        """
        sample_shape, num_designs = torch.Size(sample_shape), len(self.design)
        if len(self.estimators) > 1:
            raise NotImplementedError(
                "Designs with an estimator each are for inference. To draw data, use "
                "the estimator of each design by itself."
            )
        if num_designs == 1:
            return super().sample(sample_shape, condition, **kwargs)
        if not sample_shape or sample_shape[-1] != num_designs:
            raise ValueError(
                f"sample_shape={tuple(sample_shape)} must end with {num_designs}, the "
                "number of designs."
            )
        self._check_condition_shape(condition)
        condition = self._as_rows(condition)
        rows = join(condition.expand(num_designs, -1, -1), self.design.unsqueeze(1))
        x = self.net.sample(sample_shape[:-1], rows.flatten(0, 1), **kwargs)
        return x.reshape(*sample_shape, len(condition), *self.input_shape)

    def _check_number(self, num_observations: int) -> None:
        if num_observations != len(self.design):
            raise ValueError(
                f"The observation has {num_observations} rows, but the posterior was "
                f"built with {len(self.design)} designs. Pass x_o with one row per "
                "design, or build the posterior with one design to sample for several "
                "observations at once."
            )


def posterior_at_design(
    estimator: ConditionalDensityEstimator,
    design: Tensor,
    x_shape: torch.Size | None = None,
) -> DesignConditionedEstimator:
    """Return a posterior conditioned on `(x, design)` at one design, or raise.

    Data of the posterior have the shape `x_shape`, by default that of a row.
    """
    design = check_fixed_design(design, estimator.condition_shape[0], "x")
    if len(design) != 1:
        raise ValueError(
            f"design has shape {tuple(design.shape)}, but an amortised posterior has "
            "one design, of shape (dim_design,). For several observations use a "
            "likelihood-based posterior, such as sample_with='mcmc'."
        )
    return DesignConditionedEstimator(estimator, design, x_shape)


class DataShapedEstimator(EstimatorView):
    """A likelihood of data in rows, seen as one of data of another shape."""

    def __init__(
        self, estimator: ConditionalDensityEstimator, x_shape: torch.Size
    ) -> None:
        """Initialize the view, which shares the network."""
        super().__init__(estimator, x_shape, estimator.condition_shape)

    def input_of_net(self, input: Tensor, condition: Tensor) -> Tensor:
        """Return the data in rows."""
        return input.flatten(input.dim() - len(self.input_shape))

    def sample(self, sample_shape: torch.Size, condition: Tensor, **kwargs) -> Tensor:
        """Draw samples of shape `(*sample_shape, batch_dim, *input_event_shape)`."""
        draws = super().sample(sample_shape, condition, **kwargs)
        return draws.reshape(*draws.shape[:-1], *self.input_shape)
