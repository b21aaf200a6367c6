"""What an experiment consists of: simulator, prior, designs and known answers."""

from collections.abc import Sequence

from sbi.utils import BoxUniform
from torch import Tensor
from torch.distributions import Distribution
from torch.distributions.transforms import Transform, identity_transform

__all__ = ["Task", "check_not_negative", "check_rows", "numbered"]


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
        """Return data `(batch, dim_x)` of one experiment per row.

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

        Data `(..., dim_x)`, parameters `(..., dim_theta)` and designs
        `(..., dim_design)` broadcast, and give log-densities `(...)`.
        """
        raise NotImplementedError(
            f"The likelihood of task {self.name!r} is intractable: test "
            "`task.has_log_likelihood` first, or learn one from simulations."
        )

    def exact_eig(self, design: Tensor) -> tuple[float, float]:
        """Return the expected information gain and its standard error, in nats.

        The design has shape `(dim_design,)` or `(1, dim_design)`. The error of a closed
        form is zero.
        """
        raise NotImplementedError(
            f"No exact information gain is known for task {self.name!r}: test "
            "`task.has_exact_eig` first, or estimate it from simulations."
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
    if not isinstance(value, Tensor):
        raise ValueError(
            f"`{name}` must be a torch.Tensor, got {type(value).__name__}: convert it "
            "with `torch.as_tensor(...)`."
        )
    if value.dim() != 2 or value.shape[1] != width:
        raise ValueError(
            f"`{name}` must have shape (batch, {width}), got {tuple(value.shape)}."
        )
    if not value.is_floating_point():
        raise ValueError(
            f"`{name}` must be floating point, got {value.dtype}: call `.float()`."
        )
    finite = value.isfinite()
    if not finite.all():
        row = int((~finite.all(dim=1)).nonzero()[0])
        raise ValueError(
            f"`{name}` must be finite, row {row} is {value[row].tolist()}: drop or "
            "replace such rows."
        )


def check_not_negative(name: str, value: Tensor, what: str, remedy: str) -> None:
    """Refuse negative values; `what` says what the argument holds, in the plural."""
    if (value < 0).any():
        raise ValueError(
            f"`{name}` holds {what}, which are not negative, got "
            f"{float(value.min()):g}: {remedy}."
        )


def numbered(single: str, several: str, num: int) -> tuple[str, ...]:
    """Return the label of one value, or labels of several with a number in each."""
    return (single,) if num == 1 else tuple(several.format(j + 1) for j in range(num))
