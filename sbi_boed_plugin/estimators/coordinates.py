"""In which units and coordinates networks work."""

import math
import warnings
from collections.abc import Callable
from copy import copy
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributions import constraints
from torch.distributions.transforms import ExpTransform, Transform, identity_transform

from sbi_boed_plugin._sbi_compat import is_built_by_sbi

__all__ = [
    "Units",
    "move_transform",
    "warn_if_gaussian",
    "warn_of_scales",
]

_INVERSE = type(ExpTransform().inv)
# A column of one sign is skewed if its largest size exceeds this many times the size
# below which a twentieth lies; one of both signs, if its largest distance from the
# median exceeds this many times the median distance (5 in 256 draws of a Normal, 163 of
# a Cauchy distribution).
_DECADES, _TAILS = 1_000.0, 30.0
# Share of values at the largest that tell a limit, near which small differences count.
_CLIPPED = 0.05
# Relative spread of a column that single precision cannot tell from a constant.
_CONSTANT = 1e-7
# Standard deviations that sbi standardizes: at least 1e-7, and with a finite square.
_LEAST, _MOST = 1e-6, 1e15


def move_transform(transform: Any, fn: Callable[[Tensor], Tensor]) -> Any:
    """Return a copy of a transform with a function applied to every tensor in it.

    The identity is returned itself, and so are modules, which move with their network.
    """
    if isinstance(transform, Tensor):
        return fn(transform)
    if type(transform) in (list, tuple):
        return type(transform)(move_transform(part, fn) for part in transform)
    is_transform = isinstance(transform, Transform)
    is_module = isinstance(transform, nn.Module)
    if is_module or not is_transform or transform is identity_transform:
        return transform
    if isinstance(transform, _INVERSE):
        return move_transform(transform.inv, fn).inv
    moved = copy(transform)
    moved._inv = None  # The inverse that torch keeps is of the original.
    vars(moved).update({k: move_transform(v, fn) for k, v in vars(moved).items()})
    return moved


class Units(Transform, nn.Module):
    r"""Elementwise map from natural units to numbers around one, exactly invertible.

    .. math:: y = v / s \quad\text{or, for skewed columns,}\quad
        y = \operatorname{asinh}\big((v - c) / s\big).

    The scale of an ordinary column is a power of two, so that no bit of its values is
    lost. The inverse hyperbolic sine is a logarithm far from :math:`c` and linear near
    it: every later value has coordinates. The numbers are buffers of the network.
    """

    domain = constraints.real
    codomain = constraints.real
    bijective = True

    centre: Tensor
    scale: Tensor
    skewed: Tensor

    def __init__(self, values: Tensor, *, may_skew: bool = True) -> None:
        """Measure the units of first simulations `(num_simulations, *event_shape)`.

        Rows that are not finite do not count.
        """
        super().__init__()
        # On the CPU: not every device has double precision.
        rows = values.detach().cpu().double()
        rows = rows[torch.isfinite(rows).flatten(1).all(dim=1)]
        if len(rows) < 2:
            rows = rows.new_zeros(2, *values.shape[1:])
        one_sign = (rows >= 0.0).all(dim=0) | (rows <= 0.0).all(dim=0)
        centre = rows.median(dim=0).values.masked_fill(one_sign, 0.0)
        sizes = (rows - centre).abs().sort(dim=0).values
        num_zero = (sizes == 0.0).sum(dim=0)
        share = torch.where(one_sign, 0.05, 0.5)
        place = num_zero + (share * (len(rows) - num_zero)).long()
        unit = sizes.gather(0, place.clamp_max(len(rows) - 1).unsqueeze(0))[0]
        skewed = sizes[-1] > torch.where(one_sign, _DECADES, _TAILS) * unit
        skewed &= sizes[int((1.0 - _CLIPPED) * len(rows))] < sizes[-1]
        skewed &= may_skew

        spread = rows.std(dim=0)
        constant = spread <= _CONSTANT * rows.abs().amax(dim=0)
        power = torch.exp2(torch.frexp(spread).exponent.double())
        scale = torch.where(skewed, unit, power.masked_fill(constant, 1.0))
        tiny = torch.finfo(torch.float32).tiny
        self.register_buffer("centre", centre.masked_fill(~skewed, 0.0).to(values))
        self.register_buffer("scale", scale.clamp(tiny, 2.0**127).to(values))
        self.register_buffer("skewed", skewed.to(values.device))

    def __hash__(self) -> int:
        """Hash by identity, by which transforms compare; parts of networks need one."""
        return id(self)

    def _call(self, x: Tensor) -> Tensor:
        standard = (x - self.centre) / self.scale
        return torch.where(self.skewed, torch.asinh(standard), standard)

    def _inverse(self, y: Tensor) -> Tensor:
        # An overflow of sinh in a column that is not skewed would spoil its gradient.
        size = torch.sinh(y.masked_fill(~self.skewed, 0.0))
        return self.centre + self.scale * torch.where(self.skewed, size, y)

    def log_abs_det_jacobian(self, x: Tensor, y: Tensor) -> Tensor:
        r"""Return :math:`\log |dy / dv|` of each element, in nats."""
        # The derivative of asinh is 1 / cosh(y), whose terms would overflow.
        size = y.abs()
        log_cosh = size + torch.log1p(torch.exp(-2.0 * size)) - math.log(2.0)
        return torch.where(self.skewed, -log_cosh, 0.0) - self.scale.log()

    def warn_if_skewed(self) -> None:
        """Say which columns of the data networks see as logarithms, if any."""
        columns = self.skewed.reshape(-1).nonzero().flatten().tolist()
        if columns:
            warnings.warn(
                f"Column(s) {_listed(columns)} of x spread over decades or have far "
                "outliers in the first simulations. The networks see asinh((x - centre)"
                " / scale) of them, nearly a logarithm; densities stay those of x. Pass"
                " x_transform=None to keep natural units, or a Transform of your own.",
                stacklevel=3,
            )


def warn_of_scales(build: Callable | None, theta: Tensor, x: Tensor) -> None:
    """Warn of columns whose scale is out of reach for a network that sbi builds."""
    if not is_built_by_sbi(build):
        return
    for name, values in (("theta", theta), ("x", x)):
        rows = values[:1_000].detach().cpu().double().flatten(1)
        rows = rows[torch.isfinite(rows).all(dim=1)]
        spread = rows.std(dim=0) if len(rows) > 1 else rows.new_ones(rows.shape[1])
        varies = spread > _CONSTANT * rows.abs().sum(dim=0) / max(1, len(rows))
        wrong = varies & ((spread < _LEAST) | (spread > _MOST))
        columns = wrong.nonzero().flatten().tolist()
        if columns:
            warnings.warn(
                f"Column(s) {_listed(columns)} of {name} have a standard deviation of "
                f"{spread[columns[0]].item():.3g}, and networks of sbi learn nothing "
                f"below about {_LEAST:g} or above {_MOST:g}. Use other units, or "
                "transformed_likelihood_nn(model) or transformed_posterior_nn(model).",
                stacklevel=3,
            )


def warn_if_gaussian(model: object, x: Tensor) -> None:
    """Warn where a named flow is a Gaussian, since a simulation has one value."""
    if model in ("maf", "zuko_maf") and x[:1].numel() == 1:
        warnings.warn(
            f"x has one value per simulation: there, density_estimator={model!r} is a "
            "Gaussian given theta. Use 'nsf' or 'mdn' unless your data are Gaussian.",
            stacklevel=3,
        )


def _listed(columns: list[int]) -> str:
    return ", ".join(map(str, columns[:8])) + (", …" if len(columns) > 8 else "")
