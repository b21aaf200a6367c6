r"""Which of two baskets of goods does a person prefer, and by how much?

The model is that of Foster et al., *Variational Bayesian Optimal Experimental Design*,
NeurIPS 2019, https://arxiv.org/abs/1903.05480, with the utility of constant elasticity
of substitution (CES) that economists use.
"""

import math

import torch
from sbi.utils import MultipleIndependent
from torch import Tensor
from torch.distributions import Beta, Independent, LogNormal
from torch.distributions.transforms import CatTransform, ExpTransform, SigmoidTransform

from sbi_boed_plugin.tasks._gaussian import (
    HALF_LOG_2PI,
    GridTask,
    mixture_density,
    pool,
    share_among_nodes,
    sobol_replicates,
    with_pooled,
)

__all__ = ["CES", "utility", "weights"]

NOISE = 0.005
CENSORING = 2.0**-22
LOG_SLOPE_MEAN, LOG_SLOPE_SCALE = 1.0, 3.0

_CENSORED_LOGIT = math.log1p(-CENSORING) - math.log(CENSORING)
# Stands for the logarithm of zero: finite, so that gradients and zero times it are.
_LOG_ZERO = -1e30
# Range of the logarithm of |eta| / u. Smaller answers come together at the lower end,
# which has a probability below 1e-10; larger ones there are not.
_LOWEST_NODE, _HIGHEST_NODE = -30.0, 6.0


def weights(proportions: Tensor) -> Tensor:
    """Return the weights of three goods from two stick-breaking proportions."""
    first, second = proportions.unbind(dim=-1)
    rest = 1.0 - first
    return torch.stack([first, rest * second, rest * (1.0 - second)], dim=-1)


def utility(rho: Tensor, alpha: Tensor, basket: Tensor) -> Tensor:
    r"""Return :math:`(\sum_i \alpha_i x_i^\rho)^{1 / \rho}` of baskets `(..., 3)`.

    Accurate in single precision down to :math:`\rho = 0`, where the utility becomes
    :math:`\prod_i x_i^{\alpha_i}`, and for amounts of zero.
    """
    tiny = torch.finfo(basket.dtype).tiny
    log_basket = torch.where(basket > 0, basket.clamp(min=tiny).log(), _LOG_ZERO)
    # With the largest amount taken out, a power mean of numbers up to one is left; its
    # distance from one keeps its digits for small exponents, as a power would not.
    log_largest = log_basket.amax(dim=-1)
    rho = rho.clamp(min=1e-12)
    exponents = rho.unsqueeze(-1) * (log_basket - log_largest.unsqueeze(-1))
    distance = (alpha * torch.expm1(exponents)).sum(dim=-1)
    distance = distance.clamp(min=-1.0 + torch.finfo(distance.dtype).eps)
    return torch.exp(log_largest + torch.log1p(distance) / rho)


class CES(GridTask):
    r"""Which two baskets of three goods to let a person compare on a slider.

    .. math:: \eta \sim N\big(u\, [U(x) - U(x')],\;
        u^2 \tau^2 (1 + \lVert x - x' \rVert)^2\big), \quad
        y = \text{clip}(\text{sigmoid}(\eta), \epsilon, 1 - \epsilon),

    with the CES utility :math:`U` of `utility`, :math:`\tau = 0.005` and
    :math:`\epsilon = 2^{-22}`. A design holds the amounts in the first basket, then
    those in the second, all in [0, 100]. The prior is :math:`\rho \sim U(0, 1)`,
    :math:`\alpha \sim \text{Dirichlet}(1, 1, 1)`, :math:`\log u \sim N(1, 3^2)`.

    A row of parameters is :math:`(\rho, v_1, v_2, u)`: the weights :math:`\alpha` add
    up to one and are given by two independent stick-breaking proportions, Beta(1, 2)
    and Beta(1, 1): :math:`\alpha = (v_1, (1 - v_1) v_2, (1 - v_1)(1 - v_2))`.

    The data have point masses at both ends, where the slider stops. In single
    precision, data next to the upper end are rounded: their logit is known to within
    1/8; the point masses are not affected.

    Example:
        >>> design = torch.tensor([10.0, 40.0, 30.0, 30.0, 20.0, 40.0])
        >>> value, standard_error = CES().exact_eig(design)
        >>> f"{value:.2f} nats"
        '3.19 nats'
    """

    name = "ces"
    parameter_names = (
        "exponent ρ",
        "proportion v₁ of the first good",
        "proportion v₂ of the second good in the rest",
        "slope u",
    )
    x_names = ("slider y",)
    x_transform = SigmoidTransform().inv
    theta_transform = CatTransform(
        [SigmoidTransform().inv, ExpTransform().inv], dim=-1, lengths=[3, 1]
    )

    def __init__(self) -> None:
        unit_interval = Beta(torch.ones(3), torch.tensor([1.0, 2.0, 1.0]))
        slope = LogNormal(torch.tensor([LOG_SLOPE_MEAN]), LOG_SLOPE_SCALE)
        self.prior = MultipleIndependent([Independent(unit_interval, 1), slope])
        self.design_low = torch.zeros(6)
        self.design_high = torch.full((6,), 100.0)
        # Weights of 0.2, 0.3 and 0.5.
        self.true_parameters = torch.tensor([[0.9, 0.2, 0.375, 10.0]])
        self.dim_x = 1
        self.design_names = [
            f"good {i} in basket {j}" for j in (1, 2) for i in (1, 2, 3)
        ]

    def _simulate(self, theta: Tensor, design: Tensor) -> Tensor:
        self._check_domain(design, theta)
        mean, scale = _moments(theta, design)
        eta = mean + scale * torch.randn_like(mean)
        ends = mean.new_tensor([CENSORING, 1.0 - CENSORING])
        # Single precision would round numbers next to the upper end onto it, and with
        # that add up to a twentieth to its probability.
        low, high = torch.nextafter(ends, ends.flip(0))
        y = eta.sigmoid().clamp(low, high)
        y = torch.where(eta <= -_CENSORED_LOGIT, ends[0], y)
        return torch.where(eta >= _CENSORED_LOGIT, ends[1], y).unsqueeze(-1)

    def log_likelihood(self, x: Tensor, theta: Tensor, design: Tensor) -> Tensor:
        r"""Return `log p(x | theta, design)` in nats.

        Between the ends of the slider this is a density, and at the ends, beyond which
        nothing is, the logarithm of a probability.
        """
        mean, scale = _moments(theta, design)
        y = x.squeeze(-1).clamp(CENSORING, 1.0 - CENSORING)
        logit_derivative = y.log() + torch.log1p(-y)
        z = (y.log() - torch.log1p(-y) - mean) / scale
        between = -0.5 * z.square() - scale.log() - HALF_LOG_2PI - logit_derivative
        at_low = _log_normal_cdf((-_CENSORED_LOGIT - mean) / scale)
        at_high = _log_normal_cdf((mean - _CENSORED_LOGIT) / scale)
        result = torch.where(y <= CENSORING, at_low, between)
        return torch.where(y >= 1.0 - CENSORING, at_high, result)

    def _prior_quantiles(self, points: Tensor) -> Tensor:
        rho, first, second, slope = points.unbind(dim=-1)
        log_slope = LOG_SLOPE_MEAN + LOG_SLOPE_SCALE * torch.special.ndtri(slope)
        return torch.stack(
            [rho, 1.0 - torch.sqrt(1.0 - first), second, log_slope.exp()], dim=-1
        )

    def _grid_information(
        self, designs: Tensor, num_samples: int, seed: int
    ) -> tuple[Tensor, Tensor]:
        shares, conditional = [], []
        nodes = torch.linspace(_LOWEST_NODE, _HIGHEST_NODE, 1_601, dtype=designs.dtype)
        for points in sobol_replicates(5, num_samples, seed):
            theta = self._prior_quantiles(points[:, :4])
            noise = torch.special.ndtri(points[:, 4])
            mean, scale = _moments(theta, designs[:, None])
            conditional.append(_censored_entropy(mean, scale).mean(dim=1))
            # The answer over its slope: what is left when the slope is integrated out.
            z = (mean + scale * noise) / theta[:, 3]
            log_size = z.abs().clamp(min=1e-300).log()
            shares.append(_signed_shares(log_size, z < 0, nodes))
        shares, conditional = with_pooled(shares), with_pooled(conditional)
        entropy = _data_entropy(shares.flatten(0, 1), nodes)
        return pool(entropy.view_as(conditional) - conditional)


def _moments(theta: Tensor, design: Tensor) -> tuple[Tensor, Tensor]:
    """Return mean and standard deviation of the logit before it is censored."""
    rho, alpha, slope = theta[..., 0], weights(theta[..., 1:3]), theta[..., 3]
    first, second = design[..., :3], design[..., 3:]
    distance = torch.linalg.vector_norm(first - second, dim=-1)
    gap = utility(rho, alpha, first) - utility(rho, alpha, second)
    return slope * gap, slope * NOISE * (1.0 + distance)


def _signed_shares(log_size: Tensor, negative: Tensor, nodes: Tensor) -> Tensor:
    """Return histograms `(num_rows, 2 * num_nodes)`: positive, then negative."""
    # Moved by more than the range of the nodes, they have nodes of their own.
    shift = 2.0 * (_HIGHEST_NODE - _LOWEST_NODE)
    values = log_size.clamp(_LOWEST_NODE, _HIGHEST_NODE) + shift * negative
    return share_among_nodes(values, torch.cat([nodes, nodes + shift]))


def _data_entropy(shares: Tensor, nodes: Tensor) -> Tensor:
    r"""Return the entropy of the censored logit, point masses and density together.

    Given everything but the slope, the logarithm of the absolute logit is Gaussian.
    """
    one = torch.full_like(nodes, LOG_SLOPE_SCALE)
    means = nodes + LOG_SLOPE_MEAN
    low = _LOWEST_NODE - 9.0 * LOG_SLOPE_SCALE
    points = torch.linspace(low, math.log(_CENSORED_LOGIT), 2_001, dtype=nodes.dtype)
    beyond = torch.special.ndtr((means - points[-1]) / one)
    signed = shares.view(-1, len(nodes))
    density = mixture_density(signed, means, one, points)
    # The density of the logit itself is smaller by its absolute value.
    integrand = torch.special.xlogy(density, density) - density * points
    mass = signed @ beyond
    terms = torch.trapezoid(integrand, points) + torch.special.xlogy(mass, mass)
    return -terms.view(-1, 2).sum(dim=1)


def _censored_entropy(mean: Tensor, scale: Tensor) -> Tensor:
    """Return entropies of Gaussians cut at the slider's ends, with their masses."""
    low, high = ((end - mean) / scale for end in (-_CENSORED_LOGIT, _CENSORED_LOGIT))
    masses = torch.special.ndtr(low), torch.special.ndtr(-high)
    entropy = -sum(torch.special.xlogy(mass, mass) for mass in masses)
    between = 0.5 * (torch.erf(high * math.sqrt(0.5)) - torch.erf(low * math.sqrt(0.5)))
    moment = low * _density(low) - high * _density(high)
    return entropy + between * (scale.log() + HALF_LOG_2PI + 0.5) + 0.5 * moment


def _log_normal_cdf(z: Tensor) -> Tensor:
    """Return the logarithm of the normal distribution function."""
    body = torch.special.log_ndtr(z.clamp(min=-5.0))
    # Torch's gradient is wrong or NaN far in the tail.
    b = (-z).clamp(min=5.0)
    tail = torch.log(0.5 * torch.special.erfcx(b * math.sqrt(0.5))) - 0.5 * b.square()
    return torch.where(z < -5.0, tail, body)


def _density(z: Tensor) -> Tensor:
    """Return the standard normal density."""
    return torch.exp(-0.5 * z.square() - HALF_LOG_2PI)
