r"""Gradients of the information with respect to the design policy.

Each function returns a scalar loss whose gradient in the policy's parameters
:math:`\psi` is minus the named estimate of
:math:`\nabla_\psi E_{\pi_\psi(\xi)}[g]`, where :math:`g` is a row's term of the
contrastive bound (:func:`~sbi_boed_plugin.objectives.info_nce.contrastive_bound`).
"""

from collections.abc import Callable

from torch import Tensor

__all__ = ["POLICY_GRADIENTS", "leave_one_out_baseline", "partial_loss", "score_loss"]


def leave_one_out_baseline(information: Tensor) -> Tensor:
    """Return, for each design, the mean over all other designs.

    Independent of the design's own draw, hence it reduces the variance of the
    score-function gradient and leaves its expectation as it is.

    Args:
        information: Values of shape `(num_designs,)`, at least two.

    Returns:
        Baselines of shape `(num_designs,)`.

    Example:
        >>> import torch
        >>> leave_one_out_baseline(torch.tensor([0.0, 1.0, 2.0]))
        tensor([1.5000, 1.0000, 0.5000])
    """
    num_designs = information.shape[0]
    return (information.sum() - information) / (num_designs - 1)


def score_loss(information: Tensor, log_prob: Tensor) -> Tensor:
    r"""Score-function estimate: :math:`E[(g - b) \nabla_\psi \log \pi_\psi(\xi)]`.

    Unbiased for the bound of the current likelihood and valid for any simulator. The
    design is a sampled value here: no derivative of :math:`g` enters.

    Args:
        information: Terms of the bound, averaged over the simulations of each design,
            of shape `(num_designs,)`.
        log_prob: Log-density of the designs under the policy, of shape
            `(num_designs,)`, with gradient.

    Returns:
        Scalar loss.
    """
    information = information.detach()
    advantage = information - leave_one_out_baseline(information)
    return -(advantage * log_prob).mean()


def partial_loss(information: Tensor, log_prob: Tensor) -> Tensor:
    r"""Partial derivative at fixed data: :math:`E[\partial_\xi g \, \nabla_\psi \xi]`.

    Differentiates the likelihood through its design argument while the simulated data
    stay as they are, as the code published with SBI-BOED does. It leaves out how the
    data depend on the design: with the true likelihood its expectation is exactly
    zero, by the score identity for the first term and by exchangeability of
    :math:`\theta_0, \dots, \theta_L` for the second. Offered to reproduce the paper.

    Args:
        information: Terms of the bound, of shape `(num_designs,)`, with gradient
            through reparameterised designs.
        log_prob: Log-density of the designs under the policy; not used.

    Returns:
        Scalar loss.
    """
    return -information.mean()


POLICY_GRADIENTS: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "score": score_loss,
    "partial": partial_loss,
}
