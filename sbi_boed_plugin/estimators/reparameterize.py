r"""How samples of a density estimator move when its condition does.

A sample :math:`x` of :math:`q(x \mid c)` belongs to noise :math:`z = T(x; c)` whose
distribution does not depend on the condition. With the noise held fixed,

.. math:: \frac{dx}{dc} = -\Big(\frac{\partial T}{\partial x}\Big)^{-1}
    \frac{\partial T}{\partial c},

which needs :math:`T` alone and not its inverse: it serves samples drawn from the
estimator, data from a simulator, and mixtures, whose inverse has no closed form.

References:
    Figurnov, Mohamed and Mnih, *Implicit Reparameterization Gradients*, NeurIPS 2018,
    https://arxiv.org/abs/1805.08498.
"""

from typing import Any, cast

import torch
from nflows.distributions.normal import StandardNormal
from sbi.neural_nets.estimators import ConditionalDensityEstimator, NFlowsFlow, ZukoFlow
from sbi.neural_nets.estimators.mixture_density_estimator import MixtureDensityEstimator
from torch import Tensor

from sbi_boed_plugin.estimators.transformed import TransformedEstimator

__all__ = ["mixture_to_noise", "reparameterize", "to_noise"]


def to_noise(
    estimator: ConditionalDensityEstimator, input: Tensor, condition: Tensor
) -> Tensor:
    r"""Return the noise :math:`z = T(x; c)` that a sample was made of.

    Args:
        estimator: A normalizing flow of nflows or zuko, or a mixture of Gaussians; for
            the mixture, logistic noise from its conditional distribution functions. An
            estimator of your own brings a method `to_noise(input, condition)` that
            returns this noise, and needs nothing else.
        input: Samples of shape `(batch_dim, dim)`.
        condition: Conditions of shape `(batch_dim, *condition_event_shape)`.

    Returns:
        Noise of shape `(batch_dim, dim)`, differentiable in both arguments. That of a
        mixture is in double precision, on the CPU.

    Raises:
        NotImplementedError: If the estimator is of another kind.
    """
    if isinstance(estimator, TransformedEstimator):
        return to_noise(
            estimator.net,
            estimator.input_transform(input),
            estimator.condition_transform(condition),
        )
    own = getattr(estimator, "to_noise", None)
    if callable(own):
        return cast(Tensor, own(input, condition))
    if isinstance(estimator, NFlowsFlow):
        # Its own inverse_transform leaves out the embedding of the condition, and
        # with it the standardization.
        flow = cast(Any, estimator.net)
        if isinstance(flow._distribution, StandardNormal):
            return flow._transform(input, context=flow._embedding_net(condition))[0]
    if isinstance(estimator, ZukoFlow):
        return estimator.inverse_transform(input, condition)
    if isinstance(estimator, MixtureDensityEstimator):
        # Gradients are divided by one another.
        samples = input.unsqueeze(0)
        return mixture_to_noise(estimator, samples, condition, double=True)[0]
    raise NotImplementedError(
        f"{type(estimator).__name__} is neither a normalizing flow of nflows or zuko "
        "from Gaussian noise nor a mixture of Gaussians, and has no method to_noise, "
        "so its samples cannot be reparameterised. Use method='joint' with "
        "gradient='score', or one of 'maf', 'nsf', 'mdn' as density_estimator."
    )


def mixture_to_noise(
    estimator: MixtureDensityEstimator,
    input: Tensor,
    condition: Tensor,
    *,
    double: bool = False,
) -> Tensor:
    """Return log-odds of the conditional distribution functions, from last to first.

    Unlike the functions themselves, they keep a gradient however far out a sample is.
    The factor of a component's precision is upper triangular: standardized with it,
    each value depends on itself and on later ones.

    Args:
        estimator: The mixture, which is computed once for each condition.
        input: Samples of shape `(sample_dim, batch_dim, dim)`.
        condition: Conditions of shape `(batch_dim, *condition_event_shape)`.
        double: Whether to compute in double precision, on the CPU: not every device
            has it.

    Returns:
        Noise of shape `(sample_dim, batch_dim, dim)`.
    """
    mixture = estimator.get_uncorrected_mog(condition)
    centred = estimator._transform_input(input).unsqueeze(2) - mixture.means
    given = [centred, mixture.logits, cast(Tensor, mixture.precision_factors)]
    # Not every device has double precision, or log_ndtr.
    if double or not input.is_cuda:
        given = [values.cpu() for values in given]
    centred, logits, factors = [v.double() for v in given] if double else given
    standard = torch.einsum("bkij,sbkj->sbki", factors, centred)
    log_scale = factors.diagonal(dim1=-2, dim2=-1).abs().log()
    log_density = log_scale - 0.5 * standard.square()
    # Weight of the components once all later values are known.
    later = log_density.flip(-1).cumsum(-1).flip(-1) - log_density
    weights = torch.log_softmax(logits.unsqueeze(-1) + later, dim=2)
    below = torch.logsumexp(weights + torch.special.log_ndtr(standard), dim=2)
    above = torch.logsumexp(weights + torch.special.log_ndtr(-standard), dim=2)
    return below - above if double else (below - above).to(input.device)


def reparameterize(
    estimator: ConditionalDensityEstimator, input: Tensor, condition: Tensor
) -> Tensor:
    """Return the same samples, now moving with the condition at fixed noise.

    One vector-Jacobian product per dimension of the input.

    Args:
        estimator: As for :func:`to_noise`. No gradient reaches its parameters through
            the samples if they do not require one, or if only the gradient in the
            condition is asked for.
        input: Samples of shape `(batch_dim, dim)`; of the estimator itself, or data
            from a simulator that the estimator describes.
        condition: Conditions of shape `(batch_dim, *condition_event_shape)`, with
            gradient.

    Returns:
        Samples of shape `(batch_dim, dim)`, equal to `input`.

    Raises:
        NotImplementedError: If the estimator is of another kind.
    """
    fixed = input.detach().requires_grad_()
    noise = to_noise(estimator, fixed, condition)
    jacobian = torch.stack(
        [
            torch.autograd.grad(noise[:, j].sum(), fixed, retain_graph=True)[0]
            for j in range(noise.shape[1])
        ],
        dim=1,
    ).to(noise)
    # Zero, with the gradient of the noise in the condition.
    difference = (noise - noise.detach()).unsqueeze(-1)
    step = torch.linalg.solve(jacobian, difference).squeeze(-1)
    return input.detach() - step.to(input)
