r"""Which noise samples of an estimator are made of, and how they move at fixed noise.

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
from torch import Tensor, nn

__all__ = [
    "EstimatorView",
    "FlowNoise",
    "draw_noise",
    "embed_condition",
    "has_noise",
    "log_prob_and_noise",
    "reparameterize",
    "to_noise",
]


class EstimatorView(ConditionalDensityEstimator):
    """An estimator that hands changed inputs and conditions to another, its `net`."""

    net: ConditionalDensityEstimator
    changes_input = False

    @property
    def embedding_net(self) -> nn.Module | None:
        """Embedding network of the estimator."""
        return self.net.embedding_net

    def input_of_net(self, input: Tensor) -> Tensor:
        """Return the input that the net is given."""
        return input

    def condition_of_net(self, condition: Tensor) -> Tensor:
        """Return the condition that the net is given."""
        return condition

    def log_abs_det(self, input: Tensor) -> Tensor | float:
        """Return the log-determinant of `input_of_net`, one for each input."""
        return 0.0

    def log_prob(self, input: Tensor, condition: Tensor, **kwargs) -> Tensor:
        """Return log-densities of shape `(sample_dim, batch_dim)`, in nats."""
        self._check_input_shape(input)
        self._check_condition_shape(condition)
        of_net = self.input_of_net(input), self.condition_of_net(condition)
        return self.net.log_prob(*of_net, **kwargs) + self.log_abs_det(input)

    def loss(self, input: Tensor, condition: Tensor, **kwargs) -> Tensor:
        """Return losses of shape `(batch_dim,)`, in nats."""
        of_net = self.input_of_net(input), self.condition_of_net(condition)
        return self.net.loss(*of_net, **kwargs) - self.log_abs_det(input)

    def sample(self, sample_shape: torch.Size, condition: Tensor, **kwargs) -> Tensor:
        """Draw samples of shape `(*sample_shape, batch_dim, *input_event_shape)`."""
        self._check_condition_shape(condition)
        return self.net.sample(sample_shape, self.condition_of_net(condition), **kwargs)

    def to_noise(self, input: Tensor, condition: Tensor) -> Tensor:
        """Return the noise of samples, as the function `to_noise` does."""
        condition = self.condition_of_net(condition)
        return to_noise(self.net, self.input_of_net(input), condition)


def to_noise(
    estimator: ConditionalDensityEstimator, input: Tensor, condition: Tensor
) -> Tensor:
    r"""Return the noise :math:`z = T(x; c)` that samples were made of.

    Args:
        estimator: A normalizing flow of nflows or zuko, or a mixture of Gaussians; for
            the mixture, logistic noise from its conditional distribution functions. An
            estimator of your own brings a method `to_noise(input, condition)` for
            inputs of shape `(batch_dim, dim)`, and needs nothing else.
        input: Samples of shape `(batch_dim, dim)` or `(sample_dim, batch_dim, dim)`.
        condition: Conditions of shape `(batch_dim, *condition_event_shape)`.

    Returns:
        Noise of the shape of `input`, differentiable in both arguments. That of a
        mixture at one sample for each condition is in double precision, on the CPU.

    Raises:
        NotImplementedError: If the estimator is of another kind.
    """
    if isinstance(estimator, EstimatorView):
        return estimator.to_noise(input, condition)
    is_one_each = input.dim() == 2
    own = getattr(estimator, "to_noise", None)
    if callable(own):
        if is_one_each:
            return cast(Tensor, own(input, condition))
        rows = condition.repeat(len(input), *[1] * (condition.dim() - 1))
        noise = cast(Tensor, own(input.flatten(0, 1), rows))
        return noise.reshape(*input.shape[:2], -1).to(input)
    if isinstance(estimator, ZukoFlow):
        return estimator.inverse_transform(input, condition)
    samples = input.unsqueeze(0) if is_one_each else input
    if _is_gaussian_flow(estimator):
        noise = _flow_to_noise(estimator, samples, condition)[0]
    elif isinstance(estimator, MixtureDensityEstimator):
        # Gradients of single samples are divided by one another.
        noise = _mixture_to_noise(estimator, samples, condition, is_one_each)
    else:
        raise NotImplementedError(
            f"{type(estimator).__name__} is neither a normalizing flow of nflows or "
            "zuko from Gaussian noise nor a mixture of Gaussians, and has no method "
            "to_noise, so its samples cannot be reparameterised. Use method='joint' "
            "with gradient='score', or one of 'maf', 'nsf', 'mdn' as density_estimator."
        )
    return noise[0] if is_one_each else noise


def has_noise(
    estimator: ConditionalDensityEstimator, input: Tensor, condition: Tensor
) -> bool:
    """Return whether an estimator can say which noise some samples were made of."""
    try:
        with torch.no_grad():
            to_noise(estimator, input[:2].unsqueeze(0), condition[:2])
    except NotImplementedError:
        return False
    return True


def embed_condition(
    estimator: ConditionalDensityEstimator, condition: Tensor
) -> Tensor:
    """Return conditions as an estimator sees them: standardized, embedded and flat."""
    if isinstance(estimator, EstimatorView):
        return embed_condition(estimator.net, estimator.condition_of_net(condition))
    if estimator.embedding_net is not None:
        condition = estimator.embedding_net(condition)
    return condition.flatten(1)


def _is_gaussian_flow(estimator: ConditionalDensityEstimator) -> bool:
    return isinstance(estimator, NFlowsFlow) and isinstance(
        cast(Any, estimator.net)._distribution, StandardNormal
    )


def _flow_to_noise(
    estimator: ConditionalDensityEstimator, input: Tensor, condition: Tensor
) -> tuple[Tensor, Tensor]:
    """Return noise of the shape of `input`, and logarithms of determinants."""
    flow = cast(Any, estimator.net)
    # The method inverse_transform of sbi leaves out the embedding of the condition, and
    # with it the standardization. Conditions are embedded once, not once per sample.
    context = flow._embedding_net(condition)
    context = context.expand(len(input), *context.shape).flatten(0, 1)
    noise, log_det = flow._transform(input.flatten(0, 1), context=context)
    return noise.reshape(input.shape), log_det.reshape(input.shape[:2])


def _mixture_to_noise(
    estimator: MixtureDensityEstimator, input: Tensor, condition: Tensor, double: bool
) -> Tensor:
    """Return log-odds of the conditional distribution functions, from last to first.

    Unlike the functions themselves, they keep a gradient however far out a sample is.
    The factor of a component's precision is upper triangular: standardized with it,
    each value depends on itself and on later ones.
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


def log_prob_and_noise(
    estimator: ConditionalDensityEstimator, input: Tensor, condition: Tensor
) -> tuple[Tensor, Tensor]:
    """Return log-densities in nats, and the noise, from one pass of a flow of nflows.

    Inputs have shape `(sample_dim, batch_dim, dim)`.
    """
    if isinstance(estimator, EstimatorView):
        of_net = estimator.input_of_net(input), estimator.condition_of_net(condition)
        log_prob, noise = log_prob_and_noise(estimator.net, *of_net)
        return log_prob + estimator.log_abs_det(input), noise
    if not _is_gaussian_flow(estimator):
        given = input, condition
        return estimator.log_prob(*given), to_noise(estimator, *given)
    noise, log_det = _flow_to_noise(estimator, input, condition)
    gaussian = cast(Any, estimator.net)._distribution.log_prob(noise.flatten(0, 1))
    return gaussian.reshape(log_det.shape) + log_det, noise


class FlowNoise:
    """Noise of a flow of nflows, of which samples are made when they are wanted.

    The samples are those that the flow's method `sample` would return, to the last bit.
    """

    def __init__(self, flow: NFlowsFlow, num_samples: int, condition: Tensor) -> None:
        """Draw noise for so many samples of each condition."""
        self._flow = cast(Any, flow.net)
        context = self._flow._embedding_net(condition)
        self._context = context.repeat_interleave(num_samples, dim=0)
        # One row per sample, those of a condition in succession, as the flow has them.
        like = {"device": context.device, "dtype": context.dtype}
        self._rows = torch.randn(len(self._context), *flow.input_shape, **like)
        self._shape = (len(condition), num_samples, *flow.input_shape)

    @property
    def noise(self) -> Tensor:
        """The noise, of shape `(num_samples, batch_dim, dim)`."""
        return self._rows.reshape(self._shape).transpose(0, 1)

    def from_noise(self, chosen: Tensor | None = None) -> Tensor:
        """Return what the flow makes of the noise, of the same shape.

        Samples that `chosen`, booleans of shape `(num_samples, batch_dim)`, leaves out
        are not made: they are NaN.
        """
        rows = slice(None)
        if chosen is not None and not bool(chosen.all()):
            rows = chosen.transpose(0, 1).flatten()
        samples = torch.full_like(self._rows, torch.nan)
        noise, context = self._rows[rows], self._context[rows]
        if len(noise):
            samples[rows] = self._flow._transform.inverse(noise, context=context)[0]
        return samples.reshape(self._shape).transpose(0, 1)


def draw_noise(
    estimator: ConditionalDensityEstimator, num_samples: int, condition: Tensor
) -> FlowNoise | None:
    """Return noise of new draws, or `None` if an estimator cannot draw noise alone."""
    if isinstance(estimator, EstimatorView) and not estimator.changes_input:
        condition = estimator.condition_of_net(condition)
        return draw_noise(estimator.net, num_samples, condition)
    if _is_gaussian_flow(estimator):
        return FlowNoise(cast(NFlowsFlow, estimator), num_samples, condition)
    return None


def reparameterize(
    estimator: ConditionalDensityEstimator, input: Tensor, condition: Tensor
) -> Tensor:
    """Return the same samples, now moving with the condition at fixed noise.

    Samples of shape `(batch_dim, dim)` may be those of the estimator itself, or data
    from a simulator that it describes. One vector-Jacobian product per dimension. No
    gradient reaches the parameters of the estimator through the samples if they do not
    require one, or if only the gradient in the condition is asked for.
    """
    fixed = input.detach().requires_grad_()
    noise = to_noise(estimator, fixed, condition)
    rows = [
        torch.autograd.grad(noise[:, j].sum(), fixed, retain_graph=True)[0]
        for j in range(noise.shape[1])
    ]
    # Zero, with the gradient of the noise in the condition.
    difference = (noise - noise.detach()).unsqueeze(-1)
    step = torch.linalg.solve(torch.stack(rows, dim=1).to(noise), difference)
    return input.detach() - step.squeeze(-1).to(input)
