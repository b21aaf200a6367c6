"""The likelihood at fixed designs, as sbi's potentials and posteriors see it."""

from collections.abc import Sequence

import torch
from sbi.neural_nets.estimators import ConditionalDensityEstimator
from torch import Tensor, nn

__all__ = ["DesignConditionedEstimator"]


class DesignConditionedEstimator(ConditionalDensityEstimator):
    r"""A likelihood :math:`q(x \mid \theta, \xi)` with its designs filled in.

        sbi evaluates a likelihood for a batch of parameters and one or several
        observations. Here each observation has a design: row :math:`i` of `x_o` was
        measured at row :math:`i` of `design`, and the rows are independent given
        :math:`\theta`. One design serves any number of observations (repeated
        measurements).

        The module shares the estimator's parameters, and the designs are a buffer: it
        moves between devices and pickles as a whole.

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
    ) -> None:
        """Initialize the likelihood at fixed designs.

        Args:
            estimator: Likelihood conditioned on `(theta, design)` in one row, or one
                for each design.
            design: Designs of shape `(num_designs, dim_design)` or `(dim_design,)`.

        Raises:
            ValueError: If `design` has a wrong shape or is not finite.
        """
        design = torch.atleast_2d(torch.as_tensor(design))
        estimators = [estimator] if isinstance(estimator, nn.Module) else [*estimator]
        if len(estimators) not in (1, len(design)):
            raise ValueError(
                f"There are {len(estimators)} estimators for {len(design)} designs: "
                "pass one estimator, or one for each design."
            )
        estimator = estimators[0]
        dim_design = design.shape[-1]
        (dim_condition,) = estimator.condition_shape
        if design.dim() != 2 or not 0 < dim_design < dim_condition:
            raise ValueError(
                f"design has shape {tuple(design.shape)}, but must have shape "
                "(num_designs, dim_design), with dim_design less than the "
                f"{dim_condition} values of (theta, design) that the estimator is "
                "conditioned on."
            )
        if not torch.isfinite(design).all():
            raise ValueError(f"design={design.tolist()} must be finite.")
        super().__init__(
            net=estimator,
            input_shape=estimator.input_shape,
            condition_shape=torch.Size((dim_condition - dim_design,)),
        )
        self.net: ConditionalDensityEstimator
        # Each different estimator once, and the rows of designs that it is for.
        different = list(dict.fromkeys(estimators))
        self.estimators = nn.ModuleList(different)
        self._rows = [
            [row for row, other in enumerate(estimators) if other is one]
            for one in different
        ]
        reference = next(estimator.parameters())
        self.register_buffer("design", design.detach().to(reference))

    @property
    def num_designs(self) -> int:
        """Number of designs, one per row of the observation."""
        return self.design.shape[0]

    def log_prob(self, input: Tensor, condition: Tensor, **kwargs) -> Tensor:
        r"""Return :math:`\log q(x_i \mid \theta_b, \xi_i)`.

        Args:
            input: Data of shape `(sample_dim, batch_dim, *x_event_shape)` or
                `(batch_dim, *x_event_shape)`, where `sample_dim` counts observations.
            condition: Parameters of shape `(batch_dim, dim_theta)` or
                `(sample_dim, batch_dim, dim_theta)`.
            **kwargs: Passed to the estimator.

        Returns:
            Log-likelihoods of shape `(sample_dim, batch_dim)`, in nats.

        Raises:
            ValueError: If there are several designs, but not as many observations.
        """
        self._check_input_shape(input)
        self._check_condition_shape(condition)
        input, condition, batch_dim = self._broadcast_and_align(input, condition)
        sample_dim = input.shape[0]
        designs = self._design_per_observation(sample_dim)
        if len(self.estimators) > 1:
            values = input.new_empty(sample_dim, batch_dim)
            for estimator, rows in zip(self.estimators, self._rows, strict=True):
                part = DesignConditionedEstimator(estimator, designs[rows])
                values[rows] = part.log_prob(input[rows], condition[rows], **kwargs)
            return values
        rows = torch.cat(
            [condition, designs.unsqueeze(1).expand(-1, batch_dim, -1)], dim=-1
        )
        # Flat pairs: the one form of call that all of sbi's estimators share.
        values = self.net.log_prob(
            input.reshape(1, sample_dim * batch_dim, *self.input_shape),
            rows.reshape(sample_dim * batch_dim, -1),
            **kwargs,
        )
        return values.reshape(sample_dim, batch_dim)

    def loss(self, input: Tensor, condition: Tensor, **kwargs) -> Tensor:
        """Return the negative log-likelihood.

        Args:
            input: Data of shape `(batch_dim, *x_event_shape)`.
            condition: Parameters of shape `(batch_dim, dim_theta)`.
            **kwargs: Passed to the estimator.

        Returns:
            Losses of shape `(batch_dim,)`, in nats.
        """
        return -self.log_prob(input.unsqueeze(0), condition, **kwargs)[0]

    def sample(self, sample_shape: torch.Size, condition: Tensor, **kwargs) -> Tensor:
        """Draw data at the designs.

        Args:
            sample_shape: Shape of the draw. With several designs its last entry must
                be their number: it counts the observations of one data set.
            condition: Parameters of shape `(batch_dim, dim_theta)`.
            **kwargs: Passed to the estimator.

        Returns:
            Data of shape `(*sample_shape, batch_dim, *x_event_shape)`.
        """
        self._check_condition_shape(condition)
        sample_shape = torch.Size(sample_shape)
        batch_dim = condition.shape[0]
        num_designs = self.num_designs
        if len(self.estimators) > 1:
            raise NotImplementedError(
                "Designs with an estimator each are for inference. To draw data, use "
                "the estimator of each design by itself."
            )
        if num_designs == 1:
            rows = torch.cat([condition, self.design.expand(batch_dim, -1)], dim=-1)
            return self.net.sample(sample_shape, rows, **kwargs)
        if not sample_shape or sample_shape[-1] != num_designs:
            raise ValueError(
                f"sample_shape={tuple(sample_shape)} must end with {num_designs}, the "
                "number of designs."
            )
        rows = torch.cat(
            [
                condition.repeat(num_designs, 1),
                self.design.repeat_interleave(batch_dim, dim=0),
            ],
            dim=-1,
        )
        x = self.net.sample(sample_shape[:-1], rows, **kwargs)
        return x.reshape(*sample_shape, batch_dim, *self.input_shape)

    def _design_per_observation(self, num_observations: int) -> Tensor:
        if self.num_designs == 1:
            return self.design.expand(num_observations, -1)
        if self.num_designs != num_observations:
            raise ValueError(
                f"The observation has {num_observations} rows, but the posterior was "
                f"built with {self.num_designs} designs, one for each row of x_o. Pass "
                "x_o with one row per design, or build the posterior with one design "
                "to sample for several observations at once."
            )
        return self.design
