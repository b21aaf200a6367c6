r"""Linear regression with Gaussian noise, or with Gaussian plus Gamma noise.

The second has a tractable, skewed likelihood; it is that of Kleinegesse and Gutmann,
*Bayesian Experimental Design for Implicit Models by Mutual Information Neural
Estimation*, ICML 2020, https://arxiv.org/abs/2002.08129.
"""

import math

import torch
from torch import Tensor
from torch.distributions import Independent, Normal

from sbi_boed_plugin._numbers import check_integer
from sbi_boed_plugin.tasks._gaussian import HALF_LOG_2PI
from sbi_boed_plugin.tasks.task import Task

__all__ = ["GaussianLinear", "NoisyLinear", "noise_log_prob"]

PRIOR_SCALE = 3.0
_GAMMA_MEAN, _GAMMA_VARIANCE = 4.0, 8.0
_SQRT_HALF = math.sqrt(0.5)
# Below this point `a Phi(a) + phi(a)` loses digits to cancellation.
_TAIL = -5.0

# Quadrature nodes for each parameter, and residuals held at once, to limit the memory.
_NUM_NODES = 25
_MAX_RESIDUALS = 2_000_000


def regression_mean(theta: Tensor, design: Tensor) -> Tensor:
    """Return intercept plus slope times design; leading dimensions broadcast."""
    return theta[..., :1] + theta[..., 1:] * design


class GaussianLinear(Task):
    r"""Where to measure a straight line, with Gaussian noise.

    .. math:: x_j = \theta_0 + \theta_1 \xi_j + \epsilon_j, \quad
        \epsilon_j \sim N(0, 1), \quad \theta \sim N(0, 9 I), \quad
        \xi_j \in [-10, 10].

    With :math:`X = [1, \xi]` the expected information gain is
    :math:`\frac12 \log\det(I + 9 X^\top X)`.

    Example:
        >>> value, standard_error = GaussianLinear().exact_eig(torch.tensor([10.0]))
        >>> f"{value:.3f} nats"
        '3.407 nats'
    """

    name = "gaussian_linear"
    parameter_names = ("intercept θ₀", "slope θ₁")

    def __init__(self, *, dim_design: int = 1) -> None:
        scale = torch.full((2,), PRIOR_SCALE)
        self.prior = Independent(Normal(torch.zeros(2), scale), 1)
        # Within one standard deviation of the prior and two: neither special nor rare.
        self.true_parameters = torch.tensor([[2.0, 5.0]])
        self._measure(dim_design, -10.0, 10.0, "position ξ{}", "measurement x{}")

    def _simulate(self, theta: Tensor, design: Tensor) -> Tensor:
        mean = regression_mean(theta, design)
        return mean + torch.randn_like(mean)

    def log_likelihood(self, x: Tensor, theta: Tensor, design: Tensor) -> Tensor:
        """Return `log p(x | theta, design)` in nats."""
        mean = regression_mean(theta, design)
        return Normal(mean, 1.0, validate_args=False).log_prob(x).sum(dim=-1)

    def exact_eig(self, design: Tensor) -> tuple[float, float]:
        """Return the expected information gain of a design, and zero as its error."""
        design = self._single_design(design).detach().cpu().double()
        matrix = torch.stack([torch.ones_like(design), design], dim=-1)
        identity = torch.eye(2, dtype=matrix.dtype)
        precision = identity + PRIOR_SCALE**2 * matrix.T @ matrix
        return 0.5 * float(torch.logdet(precision)), 0.0


def noise_log_prob(z: Tensor, gaussian_scale: float = 1.0) -> Tensor:
    r"""Return the log-density of Gaussian noise plus Gamma(shape 2, scale 2) noise.

    With :math:`\sigma` the Gaussian's scale and :math:`a = z / \sigma - \sigma / 2`,

    .. math:: \log f(z) = \log\frac{\sigma}{4} + \frac{\sigma^2}{8} - \frac z2
        + \log[a \Phi(a) + \phi(a)],

    in nats. Accurate, with finite gradients, in both tails and in single precision.

    Example:
        >>> z = torch.linspace(-10.0, 60.0, 7001)
        >>> total = torch.trapezoid(noise_log_prob(z).exp(), z)
        >>> f"{total:.4f}"
        '1.0000'
    """
    sigma = gaussian_scale
    a = z / sigma - 0.5 * sigma
    constant = math.log(sigma / 4.0) + sigma**2 / 8.0
    return constant - 0.5 * z + _log_expected_excess(a)


def _log_expected_excess(a: Tensor) -> Tensor:
    """Return `log(a Phi(a) + phi(a))`: the log of E[max(0, a + N(0, 1))]."""
    # Each branch is clamped to where it holds, so that the other one's gradient is
    # finite, too.
    body = a.clamp(min=_TAIL)
    density = torch.exp(-0.5 * body.square() - HALF_LOG_2PI)
    # erfc keeps its relative accuracy in the lower tail, which `ndtr` does not.
    direct = torch.log(0.5 * body * torch.erfc(-body * _SQRT_HALF) + density)
    # The Mills ratio is R(b) = 1 / (b + 1 / r) with r = b + 2 / (b + 3 / ...), hence
    # phi(b) (1 - b R) = phi(b) / (1 + b r): no difference of nearly equal numbers. From
    # 5 upwards, eleven terms are enough for 1e-9.
    b = (-a).clamp(min=-_TAIL)
    fraction = b
    for numerator in range(12, 1, -1):
        fraction = b + numerator / fraction
    tail = -0.5 * b.square() - HALF_LOG_2PI - torch.log1p(b * fraction)
    return torch.where(a < _TAIL, tail, direct)


class NoisyLinear(GaussianLinear):
    r"""Where to measure a straight line, with Gaussian plus Gamma noise.

    .. math:: x_j = \theta_0 + \theta_1 \xi_j + \epsilon_j + \nu_j, \quad
        \epsilon_j \sim N(0, 1), \quad \nu_j \sim \text{Gamma}(2, \text{scale } 2),

    with :math:`\theta \sim N(0, 9 I)` and :math:`\xi_j \in [-10, 10]`.

    Example:
        >>> value, standard_error = NoisyLinear().exact_eig(torch.tensor([10.0]))
        >>> f"{value:.3f} nats"
        '2.416 nats'
    """

    name = "noisy_linear"

    def _simulate(self, theta: Tensor, design: Tensor) -> Tensor:
        x = super()._simulate(theta, design)
        # Two exponential numbers of mean 2 add up to a Gamma(2, scale 2) number.
        exponentials = torch.empty((2, *x.shape), dtype=x.dtype, device=x.device)
        return x + exponentials.exponential_(0.5).sum(dim=0)

    def log_likelihood(self, x: Tensor, theta: Tensor, design: Tensor) -> Tensor:
        """Return `log p(x | theta, design)` in nats."""
        return noise_log_prob(x - regression_mean(theta, design)).sum(dim=-1)

    def exact_eig(
        self, design: Tensor, *, num_samples: int = 500, seed: int = 0
    ) -> tuple[float, float]:
        r"""Return the expected information gain and its standard error, in nats.

        With one measurement, the data are Gaussian plus Gamma as well, and the gain is
        a difference of two integrals, without an error. Otherwise it is
        :math:`H[\theta] - E_x H[\theta \mid x, \xi]`, with `num_samples` simulated `x`,
        and the entropy of each posterior is a quadrature over the two parameters. The
        global random state is neither used nor changed.
        """
        design = self._single_design(design).detach().to("cpu", torch.float64)
        num_samples = check_integer("num_samples", num_samples, 2)
        if design.shape[0] == 1:
            signal_variance = PRIOR_SCALE**2 * float(1.0 + design.square())
            data_entropy = _noise_entropy(math.sqrt(1.0 + signal_variance))
            return data_entropy - _noise_entropy(1.0), 0.0
        x = _seeded_data(design, num_samples, seed)
        rows = max(1, _MAX_RESIDUALS // (_NUM_NODES**2 * design.shape[0]))
        entropy = torch.cat(
            [_posterior_entropy(chunk, design) for chunk in x.split(rows)]
        )
        prior_entropy = 2.0 * (math.log(PRIOR_SCALE) + HALF_LOG_2PI + 0.5)
        gains = prior_entropy - entropy
        return float(gains.mean()), float(gains.std() / math.sqrt(num_samples))


def _noise_entropy(gaussian_scale: float) -> float:
    """Return the entropy of Gaussian plus Gamma noise, in nats, by quadrature."""
    low, high = -9.0 * gaussian_scale, 9.0 * gaussian_scale + 90.0
    z = torch.linspace(low, high, 100_001, dtype=torch.float64)
    log_prob = noise_log_prob(z, gaussian_scale)
    return -float(torch.trapezoid(log_prob.exp() * log_prob, z))


def _seeded_data(design: Tensor, num_samples: int, seed: int) -> Tensor:
    """Return simulated data sets without the global random state."""
    like = {"dtype": design.dtype, "generator": torch.Generator().manual_seed(seed)}
    theta = PRIOR_SCALE * torch.randn((num_samples, 2), **like)
    noise = torch.randn((num_samples, len(design)), **like)
    for _ in range(2):
        noise += torch.empty_like(noise).exponential_(0.5, generator=like["generator"])
    return regression_mean(theta, design) + noise


def _posterior_entropy(x: Tensor, design: Tensor) -> Tensor:
    """Return the entropy of `p(theta | x, design)` for every row, in nats."""
    # Where to look: the posterior for Gaussian noise of the same mean and variance.
    matrix = torch.stack([torch.ones_like(design), design], dim=-1)
    precision = torch.eye(2, dtype=x.dtype) / PRIOR_SCALE**2
    precision += matrix.T @ matrix / (1.0 + _GAMMA_VARIANCE)
    covariance = torch.linalg.inv(precision)
    scale = torch.linalg.cholesky(covariance)
    mean = (x - _GAMMA_MEAN) @ matrix @ covariance / (1.0 + _GAMMA_VARIANCE)
    # Nodes at sinh(v) resolve the centre of the posterior and still reach far into its
    # exponential tail, in units of its approximate standard deviation.
    v = torch.linspace(-3.5, 3.5, _NUM_NODES, dtype=x.dtype)
    nodes = torch.cartesian_prod(v.sinh(), v.sinh())
    log_weights = torch.cartesian_prod(v.cosh(), v.cosh()).log().sum(dim=-1)
    log_cell = 2.0 * (v[1] - v[0]).log() + torch.linalg.slogdet(scale).logabsdet
    theta = mean.unsqueeze(1) + nodes @ scale.T
    log_joint = -0.5 * (theta / PRIOR_SCALE).square().sum(dim=-1)
    residuals = x.unsqueeze(1) - regression_mean(theta, design)
    log_joint += noise_log_prob(residuals).sum(dim=-1)
    log_mass = log_joint + log_weights + log_cell
    log_evidence = log_mass.logsumexp(dim=1, keepdim=True)
    probabilities = (log_mass - log_evidence).exp()
    return -(probabilities * (log_joint - log_evidence)).sum(dim=1)
