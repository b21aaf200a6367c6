r"""Tasks whose data are an image or a trace, with information by brute force, in nats.

Data given the parameters are of an exponential family, :math:`\log p(x \mid \theta,
\xi) = x \cdot a - b + c(x)`, where :math:`c` does not tell designs apart.
"""

import math
from typing import Any

import torch
from torch import Tensor
from torch.distributions import Independent, LogNormal, Normal
from torch.distributions.transforms import ExpTransform

from sbi_boed_plugin.tasks._gaussian import (
    HALF_LOG_2PI,
    GridTask,
    pool,
    sobol_replicates,
)

__all__ = ["Camera", "Trace"]

# Data for each so many parameters that stand for the prior, and seeds of their noise.
_PARAMETERS_PER_DATUM, _NOISE_SEED = 16, 1_000_003


class _StructuredTask(GridTask):
    """A task with data of any shape, of an exponential family."""

    x_shape: tuple[int, ...]

    def _signal(self, theta: Tensor, design: Tensor) -> Tensor:
        """Return what data are without noise, `(..., dim_x)`."""
        raise NotImplementedError

    def _noisy(self, signal: Tensor, generator: torch.Generator | None) -> Tensor:
        """Return data with this signal."""
        raise NotImplementedError

    def _natural(self, signal: Tensor) -> tuple[Tensor, Tensor]:
        """Return `a` `(..., dim_x)` and `b` `(...)`."""
        raise NotImplementedError

    def _base_measure(self, x: Tensor) -> Tensor:
        """Return `c(x)` `(...)`."""
        raise NotImplementedError

    def _simulate(self, theta: Tensor, design: Tensor) -> Tensor:
        self._check_domain(design, theta)
        x = self._noisy(self._signal(theta, design), None)
        return x.reshape(len(theta), *self.x_shape)

    def log_likelihood(self, x: Tensor, theta: Tensor, design: Tensor) -> Tensor:
        """Return `log p(x | theta, design)` in nats.

        Of data in their shape, `(..., *x_shape)`, or in rows `(..., dim_x)`.
        """
        num_dims = len(self.x_shape)
        if x.shape[-num_dims:] == self.x_shape:
            x = x.flatten(x.dim() - num_dims)
        factor, offset = self._natural(self._signal(theta, design))
        return (x * factor).sum(dim=-1) - offset + self._base_measure(x)

    def _grid_information(
        self, designs: Tensor, num_samples: int, seed: int
    ) -> tuple[Tensor, Tensor]:
        """Nested Monte Carlo: all parameters for the density, data of every 16th."""
        values: list[Tensor] = []
        num_data = max(2, num_samples // _PARAMETERS_PER_DATUM)
        replicates = sobol_replicates(2 * self.dim_theta, num_samples, seed)
        for number, points in enumerate(replicates):
            # Those of the data, and of the prior.
            own, theta = map(self._prior_quantiles, points.chunk(2, dim=1))
            of_designs = []
            for design in designs:
                generator = torch.Generator().manual_seed(_NOISE_SEED * seed + number)
                signal = self._signal(own[:num_data], design)
                x = self._noisy(signal, generator)
                factor, offset = self._natural(signal)
                given = (x * factor).sum(dim=1) - offset
                factor, offset = self._natural(self._signal(theta, design))
                marginal = torch.logsumexp(x @ factor.T - offset, dim=1)
                # Far out in the prior there may be no other parameter.
                marginal = torch.logaddexp(marginal, given)
                terms = given - marginal + math.log(num_samples + 1)
                of_designs.append(terms.mean())
            values.append(torch.stack(of_designs))
        return pool(torch.stack(values))


class Camera(_StructuredTask):
    r"""How far to zoom a camera, to find where a star is.

    .. math:: x_{jk} \sim \text{Poisson}\big(30 \, p_j(\theta_1) \, p_k(\theta_2)
        + 10 \, \Delta^2\big), \quad \theta \sim N(0, 0.5^2 I), \quad
        \xi \in [0.2, 4],

    photons in the 16 times 16 pixels of an image of the square :math:`[-\xi, \xi]^2`.
    The star is blurred: :math:`p_j` is the share of a Normal of width 0.2 within the
    columns, :math:`\Delta` the width of a pixel. Far out the star is one pixel; too
    close it is not in the image. Data have the shape `(1, 16, 16)`.

    Example:
        >>> value, standard_error = Camera().exact_eig(torch.tensor([1.5]))
        >>> f"{value:.1f} nats"
        '4.6 nats'
    """

    name = "camera"
    x_shape = (1, 16, 16)
    dim_x = 256
    brightness, background, blur = 30.0, 10.0, 0.2
    parameter_names = ("position θ1", "position θ2")
    design_names = ("half width ξ",)
    x_names = tuple(f"photons {j},{k}" for j in range(1, 17) for k in range(1, 17))

    def __init__(self) -> None:
        self.prior = Independent(Normal(torch.zeros(2), 0.5), 1)
        self.design_low, self.design_high = torch.tensor([0.2]), torch.tensor([4.0])
        self.true_parameters = torch.tensor([[0.4, -0.2]])

    def _signal(self, theta: Tensor, design: Tensor) -> Tensor:
        side = self.x_shape[-1]
        edges = torch.linspace(-1.0, 1.0, side + 1).to(theta) * design
        offsets = (edges.unsqueeze(-2) - theta.unsqueeze(-1)) / self.blur
        share = torch.special.ndtr(offsets).diff(dim=-1)
        image = share[..., 0, :, None] * share[..., 1, None, :]
        area = (2.0 * design / side).square().unsqueeze(-1)
        rate = self.brightness * image + self.background * area
        return rate.flatten(-2)

    def _noisy(self, signal: Tensor, generator: torch.Generator | None) -> Tensor:
        return torch.poisson(signal, generator=generator)

    def _natural(self, signal: Tensor) -> tuple[Tensor, Tensor]:
        return signal.log(), signal.sum(dim=-1)

    def _base_measure(self, x: Tensor) -> Tensor:
        return -torch.lgamma(x + 1.0).sum(dim=-1)


class Trace(_StructuredTask):
    r"""At which frequency to drive a system, to learn its gain and its rate.

    .. math:: x_j \sim N\Big(\frac{\theta_2}{\sqrt{1 + r^2}}
        \sin(2 \pi \xi t_j - \arctan r),\; 0.3^2\Big), \quad
        r = \frac{2 \pi \xi}{\theta_1}, \quad
        \log \theta \sim N(0, 0.5^2 I), \quad \xi \in [0.01, 0.5],

    the response of a linear system of rate :math:`\theta_1` and gain :math:`\theta_2`
    to a sine, at a hundred times up to 10 s. Slow waves do not tell the rate, and the
    system hardly follows fast ones.

    Example:
        >>> value, standard_error = Trace().exact_eig(torch.tensor([0.1]))
        >>> f"{value:.1f} nats"
        '3.6 nats'
    """

    name = "trace"
    dim_x, noise = 100, 0.3
    x_shape = (100,)
    parameter_names = ("rate θ1 [1/s]", "gain θ2")
    design_names = ("frequency ξ [Hz]",)
    x_names = tuple(f"response at {0.1 * j:.1f} s" for j in range(1, 101))
    theta_transform = ExpTransform().inv
    design_transform = ExpTransform().inv

    def __init__(self) -> None:
        self.prior = Independent(LogNormal(torch.zeros(2), 0.5), 1)
        self.design_low, self.design_high = torch.tensor([0.01]), torch.tensor([0.5])
        self.true_parameters = torch.tensor([[1.5, 0.8]])

    def _signal(self, theta: Tensor, design: Tensor) -> Tensor:
        rate, gain = theta[..., :1], theta[..., 1:]
        times = torch.arange(1, 101).to(theta) / 10.0
        ratio = 2.0 * math.pi * design / rate
        phase = 2.0 * math.pi * design * times - ratio.arctan()
        return gain / (1.0 + ratio.square()).sqrt() * phase.sin()

    def _noisy(self, signal: Tensor, generator: torch.Generator | None) -> Tensor:
        like: Any = {"device": signal.device, "dtype": signal.dtype}
        noise = torch.randn(signal.shape, generator=generator, **like)
        return signal + self.noise * noise

    def _natural(self, signal: Tensor) -> tuple[Tensor, Tensor]:
        variance = self.noise**2
        return signal / variance, 0.5 * signal.square().sum(dim=-1) / variance

    def _base_measure(self, x: Tensor) -> Tensor:
        constant = self.dim_x * (HALF_LOG_2PI + math.log(self.noise))
        return -0.5 * (x / self.noise).square().sum(dim=-1) - constant
