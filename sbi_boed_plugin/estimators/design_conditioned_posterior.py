"""The amortised posterior at a fixed design, as sbi's direct posterior sees it."""

import torch
from sbi.neural_nets.estimators import ConditionalDensityEstimator
from torch import Tensor

__all__ = ["DesignConditionedPosterior"]


class DesignConditionedPosterior(ConditionalDensityEstimator):
    r"""A posterior :math:`q(\theta \mid x, \xi)` with its design filled in.

    Example:
        >>> import torch
        >>> from sbi.neural_nets import posterior_nn
        >>> theta, data = torch.randn(100, 2), torch.randn(100, 3)
        >>> estimator = posterior_nn("mdn")(theta, data)  # x: 2, design: 1
        >>> fixed = DesignConditionedPosterior(estimator, torch.tensor([0.5]))
        >>> fixed.sample(torch.Size((7,)), torch.randn(4, 2)).shape
        torch.Size([7, 4, 2])
    """

    design: Tensor

    def __init__(self, estimator: ConditionalDensityEstimator, design: Tensor) -> None:
        """Initialize the posterior at a fixed design.

        Args:
            estimator: Posterior conditioned on `(x, design)` in one row.
            design: Design of shape `(dim_design,)` or `(1, dim_design)`.

        Raises:
            ValueError: If `design` has a wrong shape or is not finite.
        """
        design = torch.atleast_2d(torch.as_tensor(design))
        (dim_condition,) = estimator.condition_shape
        if len(design) != 1 or not 0 < design.shape[-1] < dim_condition:
            raise ValueError(
                f"design has shape {tuple(design.shape)}, but an amortised posterior "
                "has one design, of shape (dim_design,) with dim_design less than the "
                f"{dim_condition} values of (x, design). For several observations use "
                "a likelihood-based posterior, such as sample_with='mcmc'."
            )
        if not torch.isfinite(design).all():
            raise ValueError(f"design={design.tolist()} must be finite.")
        super().__init__(
            net=estimator,
            input_shape=estimator.input_shape,
            condition_shape=torch.Size((dim_condition - design.shape[-1],)),
        )
        self.net: ConditionalDensityEstimator
        reference = next(estimator.parameters())
        self.register_buffer("design", design.detach().to(reference))

    @property
    def embedding_net(self) -> torch.nn.Module | None:
        """Embedding network of the estimator."""
        return self.net.embedding_net

    def log_prob(self, input: Tensor, condition: Tensor, **kwargs) -> Tensor:
        r"""Return :math:`\log q(\theta \mid x, \xi)`.

        Args:
            input: Parameters of shape `(sample_dim, batch_dim, dim_theta)`.
            condition: Data of shape `(batch_dim, dim_x)`.
            **kwargs: Passed to the estimator.

        Returns:
            Log-densities of shape `(sample_dim, batch_dim)`, in nats.
        """
        return self.net.log_prob(input, self.with_design(condition), **kwargs)

    def loss(self, input: Tensor, condition: Tensor, **kwargs) -> Tensor:
        """Return the loss of the estimator.

        Args:
            input: Parameters of shape `(batch_dim, dim_theta)`.
            condition: Data of shape `(batch_dim, dim_x)`.
            **kwargs: Passed to the estimator.

        Returns:
            Losses of shape `(batch_dim,)`, in nats.
        """
        return self.net.loss(input, self.with_design(condition), **kwargs)

    def sample(self, sample_shape: torch.Size, condition: Tensor, **kwargs) -> Tensor:
        """Draw parameters.

        Args:
            sample_shape: Shape of the draw.
            condition: Data of shape `(batch_dim, dim_x)`.
            **kwargs: Passed to the estimator.

        Returns:
            Parameters of shape `(*sample_shape, batch_dim, dim_theta)`.
        """
        return self.net.sample(sample_shape, self.with_design(condition), **kwargs)

    def with_design(self, x: Tensor) -> Tensor:
        """Return `(x, design)` in one row each.

        Args:
            x: Data of shape `(*batch_shape, dim_x)`.

        Returns:
            Rows of shape `(*batch_shape, dim_x + dim_design)`.
        """
        return torch.cat([x, self.design.expand(*x.shape[:-1], -1)], dim=-1)
