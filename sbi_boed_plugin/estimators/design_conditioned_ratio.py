"""A likelihood-to-evidence ratio at fixed designs, as sbi's potentials see it."""

import torch
from sbi.inference.potentials.ratio_based_potential import RatioBasedPotential
from sbi.neural_nets.ratio_estimators import RatioEstimator
from torch import Tensor

__all__ = ["DesignConditionedRatio", "DesignRatioPotential"]


class DesignConditionedRatio(RatioEstimator):
    r"""A ratio :math:`p(x \mid \theta, \xi) / p(x \mid \xi)` at given designs.

    Example:
        >>> import torch
        >>> from sbi.neural_nets import classifier_nn
        >>> theta, data = torch.randn(100, 2), torch.randn(100, 3)
        >>> estimator = classifier_nn("mlp")(theta, data)  # x: 2, design: 1
        >>> fixed = DesignConditionedRatio(estimator, torch.tensor([0.5]))
        >>> fixed(theta[:7], data[:7, :2]).shape
        torch.Size([7])
    """

    design: Tensor

    def __init__(self, estimator: RatioEstimator, design: Tensor) -> None:
        """Initialize the ratio at fixed designs, sharing the network.

        Args:
            estimator: Ratio of parameters and `(x, design)` in one row.
            design: Designs of shape `(num_designs, dim_design)` or `(dim_design,)`.

        Raises:
            ValueError: If `design` has a wrong shape or is not finite.
        """
        design = torch.atleast_2d(torch.as_tensor(design))
        (dim_data,) = estimator.x_shape
        if design.dim() != 2 or not 0 < design.shape[-1] < dim_data:
            raise ValueError(
                f"design has shape {tuple(design.shape)}, but must have shape "
                "(num_designs, dim_design), with dim_design less than the "
                f"{dim_data} values of (x, design) that the ratio was trained with."
            )
        if not torch.isfinite(design).all():
            raise ValueError(f"design={design.tolist()} must be finite.")
        super().__init__(
            net=estimator,
            theta_shape=estimator.theta_shape,
            x_shape=torch.Size((dim_data - design.shape[-1],)),
        )
        reference = next(estimator.parameters())
        self.register_buffer("design", design.detach().to(reference))

    @property
    def num_designs(self) -> int:
        """Number of designs, one per row of the observation."""
        return self.design.shape[0]

    def unnormalized_log_ratio(self, theta: Tensor, x: Tensor) -> Tensor:
        """Return log-ratios of pairs.

        Args:
            theta: Parameters of shape `(batch_dim, dim_theta)`.
            x: Data of shape `(batch_dim, dim_x)`; with several designs, all rows of the
                first, then all of the second, and so on.

        Returns:
            Log-ratios of shape `(batch_dim,)`, in nats.
        """
        rows = self.design.repeat_interleave(len(x) // self.num_designs, dim=0)
        return self.net(theta, torch.cat([x, rows], dim=-1))


class DesignRatioPotential(RatioBasedPotential):
    """The potential of a ratio at fixed designs."""

    def set_x(self, x_o: Tensor | None, x_is_iid: bool | None = True) -> None:
        """Set the observation.

        Args:
            x_o: Data of shape `(num_observations, dim_x)`.
            x_is_iid: Whether the rows are observations of the same parameters.

        Raises:
            ValueError: If there are several designs, but not as many observations.
        """
        # The base class calls this before it stores the ratio.
        ratio = getattr(self, "ratio_estimator", None)
        num_designs = getattr(ratio, "num_designs", 1)
        num_rows = 1 if x_o is None else len(torch.atleast_2d(x_o))
        if x_o is not None and num_designs > 1 and num_rows != num_designs:
            raise ValueError(
                f"The observation has {num_rows} rows, but the posterior was built "
                f"with {num_designs} designs: pass one row per design."
            )
        super().set_x(x_o, x_is_iid=x_is_iid)
