"""In which coordinates networks work."""

from collections.abc import Callable
from copy import copy
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor
from torch.distributions.transforms import ExpTransform, Transform, identity_transform

__all__ = ["INVERSE_TRANSFORM", "Coordinates", "move_transform"]

# Torch does not export the kind of inverse transforms, which refer to another one.
INVERSE_TRANSFORM = type(ExpTransform().inv)


@dataclass(frozen=True)
class Coordinates:
    """Coordinates that suit networks, as transforms from natural units.

    Those of the data can be `"auto"`: natural units in which the named networks take
    the inverse hyperbolic sine of columns that are skewed in the first simulations.
    """

    theta: Transform
    x: Transform | Literal["auto"]
    design: Transform

    @property
    def of_x(self) -> Transform:
        """Transform of the data before the networks."""
        return identity_transform if isinstance(self.x, str) else self.x

    @classmethod
    def of(
        cls,
        theta: Transform = identity_transform,
        x: Transform | Literal["auto"] | None = "auto",
        design: Transform = identity_transform,
    ) -> "Coordinates":
        """Return coordinates, or raise if `x` names none."""
        if not (x is None or x == "auto" or isinstance(x, Transform)):
            raise ValueError(
                f"x_transform={x!r} must be 'auto', None for natural units, or a "
                "Transform of torch.distributions from natural units."
            )
        return cls(theta, identity_transform if x is None else x, design)

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
