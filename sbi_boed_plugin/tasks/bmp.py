r"""A cell's response to a growth factor: the onestep model of BMP signalling.

The model is that of Su et al., *Ligand-Receptor Promiscuity Enables Cellular
Addressing*, Cell Systems 2022, in its simplest form: one ligand, one receptor of each
type, and one step of binding.
"""

import torch
from sbi.utils import BoxUniform
from torch import Tensor
from torch.distributions.transforms import ExpTransform

from sbi_boed_plugin._numbers import check_real
from sbi_boed_plugin.tasks._gaussian import GaussianTask

__all__ = ["BMP", "bound_fraction"]


def bound_fraction(k: Tensor) -> Tensor:
    r"""Return the fraction of receptors in a complex with the ligand.

    With :math:`k` the affinity times the concentration of the ligand it is :math:`T =
    (2k + 1 - \sqrt{4k + 1}) / 2k`, in a form that loses no digits for small :math:`k`.
    """
    root = torch.sqrt(4.0 * k + 1.0)
    return 4.0 * k / (root + 1.0).square()


class BMP(GaussianTask):
    r"""How much growth factor to give a cell whose response is measured.

    .. math:: x_j = \varepsilon\, T(K \xi_j) + \sigma \epsilon_j, \quad
        \epsilon_j \sim N(0, 1), \quad (K, \varepsilon) \sim U(0, 1)^2, \quad
        \xi_j \in [10^{-6}, 1000],

    where :math:`T` is `bound_fraction`: the ligand, at concentration :math:`\xi`, is
    not depleted by binding. Concentrations are logarithms for a network.

    The model as published has no noise (`noise=0.0`). There is then no likelihood, and
    the information gain is infinite at every design.

    Args:
        dim_design: Number of measurements, independent given the parameters.
        noise: Standard deviation of the noise; the largest response is one.

    Example:
        >>> value, standard_error = BMP().exact_eig(torch.tensor([10.0]))
        >>> f"{value:.2f} nats"
        '2.15 nats'
    """

    name = "bmp"
    parameter_names = ("affinity K", "efficiency ε")
    design_transform = ExpTransform().inv

    def __init__(self, *, dim_design: int = 1, noise: float = 0.02) -> None:
        remedy = "It is a standard deviation: 0 is the model without noise."
        self.noise = check_real("noise", noise, 0.0, remedy=remedy)
        self.prior = BoxUniform(torch.zeros(2), torch.ones(2))
        self.true_parameters = torch.tensor([[0.85, 0.85]])
        self._measure(dim_design, 1e-6, 1e3, "concentration ξ{}", "response x{}")

    @property
    def has_log_likelihood(self) -> bool:
        """Whether there is noise, and with it a likelihood."""
        return self.noise > 0.0

    # Without noise the information gain is infinite.
    has_exact_eig = has_log_likelihood

    def _mean(self, theta: Tensor, design: Tensor) -> Tensor:
        return theta[..., 1:] * bound_fraction(theta[..., :1] * design)

    def _mean_range(self, theta: Tensor) -> tuple[float, float]:
        return 0.0, 1.0
