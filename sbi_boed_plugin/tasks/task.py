"""What an experiment consists of: simulator, prior, designs and known answers."""

from collections.abc import Sequence
from typing import Any, cast

import torch
from sbi.utils import BoxUniform
from torch import Tensor
from torch.distributions import Distribution
from torch.distributions.transforms import Transform, identity_transform

from sbi_boed_plugin._numbers import check_integer

__all__ = ["Task", "check_rows"]


class Task:
    """A simulator with its prior, its designs and what is known about it.

    A subclass implements `_simulate`, and where the mathematics allows also
    `log_likelihood` and `exact_eig`. The properties `has_log_likelihood` and
    `has_exact_eig` say which of the two there are.

    Attributes:
        name: Name under which `get_task` finds the task.
        prior: Distribution of the parameters, with event shape `(dim_theta,)`.
        design_low: Smallest design, of shape `(dim_design,)`.
        design_high: Largest design, of shape `(dim_design,)`.
        true_parameters: Parameters behind "observed" data, of shape `(1, dim_theta)`.
        dim_x: Number of values that one experiment yields.
        x_shape: Shape of data that are for an embedding, and for no likelihood; `None`
            where data are rows of `dim_x` values.
        parameter_names: Labels of the parameters, with units.
        design_names: Labels of the design's values, with units.
        x_names: Labels of the data, with units.
        theta_transform: From natural units to coordinates that suit a network.
        x_transform: The same for data.
        design_transform: The same for designs.
    """

    name: str
    prior: Distribution
    design_low: Tensor
    design_high: Tensor
    true_parameters: Tensor
    dim_x: int
    parameter_names: Sequence[str]
    design_names: Sequence[str]
    x_names: Sequence[str]
    theta_transform: Transform = identity_transform
    x_transform: Transform = identity_transform
    design_transform: Transform = identity_transform
    x_shape: tuple[int, ...] | None = None

    @property
    def dim_theta(self) -> int:
        """Number of parameters."""
        return self.true_parameters.shape[-1]

    @property
    def dim_design(self) -> int:
        """Number of values that make up a design."""
        return self.design_low.shape[-1]

    @property
    def design_space(self) -> BoxUniform:
        """Uniform distribution over the box of designs."""
        return BoxUniform(self.design_low, self.design_high)

    @property
    def has_log_likelihood(self) -> bool:
        """Whether `log_likelihood` is implemented."""
        return type(self).log_likelihood is not Task.log_likelihood

    @property
    def has_exact_eig(self) -> bool:
        """Whether `exact_eig` is implemented."""
        return type(self).exact_eig is not Task.exact_eig

    def simulator(self, theta: Tensor, design: Tensor) -> Tensor:
        """Return data `(batch, dim_x)`, or `(batch, *x_shape)`, an experiment per row.

        Parameters `(batch, dim_theta)` and designs `(batch, dim_design)` are in natural
        units; device and dtype are those of `theta`. The noise comes from torch's
        global generator.
        """
        check_rows("theta", theta, self.dim_theta)
        check_rows("design", design, self.dim_design)
        if theta.shape[0] != design.shape[0]:
            raise ValueError(
                f"`theta` has {theta.shape[0]} rows and `design` {design.shape[0]}: "
                "give one design per row, as `design.expand(len(theta), -1)` does."
            )
        return self._simulate(theta, design.to(theta))

    def _simulate(self, theta: Tensor, design: Tensor) -> Tensor:
        """Return data; parameters and designs have the right shapes and are finite."""
        raise NotImplementedError

    def log_likelihood(self, x: Tensor, theta: Tensor, design: Tensor) -> Tensor:
        """Return `log p(x | theta, design)` in nats.

        Data `(..., dim_x)`, in rows, parameters `(..., dim_theta)` and designs
        `(..., dim_design)` broadcast, and give log-densities `(...)`.
        """
        raise NotImplementedError(
            f"No likelihood is known for {self.name!r}: test "
            "`task.has_log_likelihood` first, or learn one from simulations."
        )

    def exact_eig(self, design: Tensor) -> tuple[float, float]:
        """Return the expected information gain and its standard error, in nats.

        The design has shape `(dim_design,)` or `(1, dim_design)`. The error of a closed
        form is zero.
        """
        raise NotImplementedError(
            f"No exact information gain is known for {self.name!r}: test "
            "`task.has_exact_eig` first, or estimate it from simulations."
        )

    def _measure(
        self, dim_design: int, low: float, high: float, design_name: str, x_name: str
    ) -> None:
        """Take a measurement at each value of the design; `{}` is where numbers go."""
        num = check_integer("dim_design", dim_design, 1)
        self.design_low = torch.full((num,), low)
        self.design_high = torch.full((num,), high)
        self.dim_x = num
        numbers = [f" {j + 1}" for j in range(num)] if num > 1 else [""]
        self.design_names = [design_name.format(number) for number in numbers]
        self.x_names = [x_name.format(number) for number in numbers]

    def _check_domain(self, design: Tensor, theta: Tensor | None = None) -> None:
        """Refuse values at which a model is not defined.

        Designs are not negative if the design space holds none that are, and
        parameters are in the support of the prior.
        """
        if (design < 0).any() and (self.design_low >= 0).all():
            raise ValueError(
                f"`design` must not be negative, got {float(design.min()):g}: choose "
                f"between {self.design_low.tolist()} and {self.design_high.tolist()}."
            )
        if theta is None or len(theta) == 0:
            return
        inside = cast(Any, self.prior.support).check(theta.detach().cpu())
        if not inside.all():
            outside = theta[~inside.to(theta.device)][0].tolist()
            raise ValueError(
                f"`theta` must be in the support of the prior, got {outside}: pass "
                "natural units, not logits or logarithms."
            )

    def _single_design(self, design: Tensor) -> Tensor:
        """Check one design and return it in shape `(dim_design,)`."""
        if design.dim() == 1:
            design = design.unsqueeze(0)
        check_rows("design", design, self.dim_design)
        if design.shape[0] != 1:
            raise ValueError(
                f"`design` must be a single design, got {design.shape[0]} rows: "
                "call once per row."
            )
        return design[0]

    def __repr__(self) -> str:
        return (
            f"{type(self).__name__}(dim_theta={self.dim_theta}, "
            f"dim_design={self.dim_design}, dim_x={self.dim_x})"
        )


def check_rows(name: str, value: Tensor, width: int) -> None:
    """Refuse what is not a matrix of finite floating-point rows of this width."""
    is_real = isinstance(value, Tensor) and value.is_floating_point()
    if not is_real or value.dim() != 2 or value.shape[1] != width:
        got = type(value).__name__
        if isinstance(value, Tensor):
            got = f"{tuple(value.shape)} of {value.dtype}"
        raise ValueError(
            f"`{name}` must be a torch.Tensor of shape (batch, {width}) of floating "
            f"point numbers, got {got}."
        )
    finite = value.isfinite()
    if not finite.all():
        row = int((~finite.all(dim=1)).nonzero()[0])
        raise ValueError(
            f"`{name}` must be finite, row {row} is {value[row].tolist()}: drop or "
            "replace such rows."
        )
