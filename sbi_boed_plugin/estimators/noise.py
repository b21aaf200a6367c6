r"""Which noise samples of an estimator are made of, and how they move at fixed noise.

A sample :math:`x` of :math:`q(x \mid c)` belongs to noise :math:`z = T(x; c)` whose
distribution does not depend on the condition. With the noise held fixed,

.. math:: \frac{dx}{dc} = -\Big(\frac{\partial T}{\partial x}\Big)^{-1}
    \frac{\partial T}{\partial c},

which needs :math:`T` alone and not its inverse: it also serves data from a simulator,
and mixtures, whose inverse has no closed form.

References:
    Figurnov, Mohamed and Mnih, *Implicit Reparameterization Gradients*, NeurIPS 2018,
    https://arxiv.org/abs/1805.08498.
"""

from collections.abc import Callable
from typing import Any, cast

import torch
from nflows.distributions.normal import StandardNormal
from sbi.neural_nets.estimators import ConditionalDensityEstimator, NFlowsFlow, ZukoFlow
from sbi.neural_nets.estimators.mixture_density_estimator import MixtureDensityEstimator
from torch import Tensor, nn

__all__ = [
    "EstimatorView",
    "embed_condition",
    "has_noise",
    "reparameterize",
    "draw_noise",
    "to_noise",
]


class EstimatorView(ConditionalDensityEstimator):
    """An estimator that hands changed inputs and conditions to another, its `net`."""

    net: ConditionalDensityEstimator

    @property
    def embedding_net(self) -> nn.Module | None:
        """Embedding network of the estimator."""
        return self.net.embedding_net

    def input_of_net(self, input: Tensor, condition: Tensor) -> Tensor:
        """Return the input that the net is given, with the condition before its own."""
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
        of_net = self.input_of_net(input, condition), self.condition_of_net(condition)
        return self.net.log_prob(*of_net, **kwargs) + self.log_abs_det(input)

    def loss(self, input: Tensor, condition: Tensor, **kwargs) -> Tensor:
        """Return losses of shape `(batch_dim,)`, in nats."""
        of_net = self.input_of_net(input, condition), self.condition_of_net(condition)
        return self.net.loss(*of_net, **kwargs) - self.log_abs_det(input)

    def sample(self, sample_shape: torch.Size, condition: Tensor, **kwargs) -> Tensor:
        """Draw samples of shape `(*sample_shape, batch_dim, *input_event_shape)`."""
        self._check_condition_shape(condition)
        return self.net.sample(sample_shape, self.condition_of_net(condition), **kwargs)


def _keeps_input(estimator: ConditionalDensityEstimator) -> bool:
    """Return whether an estimator is a view that changes the condition alone."""
    input_of_net = getattr(type(estimator), "input_of_net", None)
    return input_of_net is EstimatorView.input_of_net


def to_noise(
    estimator: ConditionalDensityEstimator, input: Tensor, condition: Tensor
) -> Tensor:
    r"""Return the noise :math:`z = T(x; c)` that samples were made of, or raise.

    Samples have shape `(batch_dim, dim)`, of which noise of mixtures has double
    precision, or `(sample_dim, batch_dim, dim)`. Of flows the noise is Normal, of
    mixtures logistic; an estimator of your own brings `to_noise(input, condition)`.
    """
    if isinstance(estimator, EstimatorView):
        inner = estimator.input_of_net(input, condition)
        return to_noise(estimator.net, inner, estimator.condition_of_net(condition))
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
        noise = _flow_to_noise(estimator, samples, condition)
    elif isinstance(estimator, MixtureDensityEstimator):
        # Gradients of single samples are divided by one another.
        noise = _mixture_to_noise(estimator, samples, condition, is_one_each)
    else:
        raise NotImplementedError(
            f"{type(estimator).__name__} is no flow from Gaussian noise and no mixture "
            "of Gaussians, and has no method to_noise, so its samples cannot be "
            "reparameterised. Use method='joint' with gradient='score', or one of "
            "'maf', 'nsf', 'mdn' as density_estimator."
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
) -> Tensor:
    """Return noise of the shape of `input`.

    The method inverse_transform of sbi leaves out the embedding of the condition.
    """
    flow = cast(Any, estimator.net)
    context = flow._embedding_net(condition)
    context = context.expand(len(input), *context.shape).flatten(0, 1)
    return flow._transform(input.flatten(0, 1), context=context)[0].reshape(input.shape)


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


def draw_noise(
    estimator: ConditionalDensityEstimator, num_samples: int, condition: Tensor
) -> tuple[Tensor, Callable[..., Tensor]]:
    """Return noise and the function that makes samples of it, `(num, batch_dim, dim)`.

    The samples are those that the method `sample` would return, to the last bit. A flow
    of nflows has the noise before the samples: those that the function's argument,
    booleans `(num, batch_dim)`, leaves out are not made, but NaN.
    """
    if _keeps_input(estimator):
        view = cast(EstimatorView, estimator)
        return draw_noise(view.net, num_samples, view.condition_of_net(condition))
    if not _is_gaussian_flow(estimator):
        samples = estimator.sample(torch.Size((num_samples,)), condition)
        return to_noise(estimator, samples, condition), lambda chosen=None: samples
    flow = cast(Any, estimator.net)
    # One row per sample, those of a condition in succession, as the flow has them.
    context = flow._embedding_net(condition).repeat_interleave(num_samples, dim=0)
    like = {"device": context.device, "dtype": context.dtype}
    rows = torch.randn(len(context), *estimator.input_shape, **like)
    shape = (len(condition), num_samples, *estimator.input_shape)

    def from_noise(chosen: Tensor | None = None) -> Tensor:
        made = slice(None) if chosen is None else chosen.transpose(0, 1).flatten()
        samples = torch.full_like(rows, torch.nan)
        if len(rows[made]):
            samples[made] = flow._transform.inverse(rows[made], context[made])[0]
        return samples.reshape(shape).transpose(0, 1)

    return rows.reshape(shape).transpose(0, 1), from_noise


def reparameterize(
    estimator: ConditionalDensityEstimator, input: Tensor, condition: Tensor
) -> Tensor:
    """Return the same samples `(batch_dim, dim)`, now moving with their conditions.

    They may be data from a simulator. At fixed noise there is one vector-Jacobian
    product per dimension. Weights of the estimator that require one get a gradient.
    Estimators with a method `reparameterize(input, condition)` do it themselves.
    """
    own = getattr(estimator, "reparameterize", None)
    if callable(own):
        return cast(Tensor, own(input, condition))
    if _keeps_input(estimator):
        view = cast(EstimatorView, estimator)
        return reparameterize(view.net, input, view.condition_of_net(condition))
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
