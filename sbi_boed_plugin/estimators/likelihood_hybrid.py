r"""A posterior network corrected by a likelihood, and by nothing else.

A posterior estimator :math:`b(\theta \mid x)` proposes, and a likelihood
:math:`q(x \mid \theta)` says how much each draw weighs:

.. math:: w(\theta) = \frac{q(x \mid \theta) \, p(\theta)}{b(\theta \mid x)}.

Samples and densities are those of the likelihood's posterior, whatever the base, as
long as it covers that. The mean of the weights is the evidence :math:`p(x)`.
"""

from collections.abc import Callable
from typing import cast

import torch
from sbi.neural_nets.estimators import ConditionalDensityEstimator
from torch import Tensor
from torch.distributions import Distribution

from sbi_boed_plugin.estimators.hybrid import HybridEstimator
from sbi_boed_plugin.estimators.noise import EstimatorView
from sbi_boed_plugin.objectives.info_nce import (
    log_likelihood_matrix,
    nan_to_zero_density,
)

__all__ = ["JointLikelihood", "LikelihoodHybrid"]


class JointLikelihood(EstimatorView):
    """The likelihood of several independent observations, each a row of the input."""

    def __init__(
        self, likelihood: ConditionalDensityEstimator, num_observations: int
    ) -> None:
        """Initialize the view, which shares the network."""
        shape = torch.Size((num_observations, *likelihood.input_shape))
        super().__init__(likelihood, shape, likelihood.condition_shape)

    def log_prob(self, input: Tensor, condition: Tensor, **kwargs) -> Tensor:
        """Return log-likelihoods of sets `(sample_dim, batch_dim, num, *x_shape)`."""
        # One after another, as memory is planned for one.
        rows = input.unbind(dim=2)
        each = [self.net.log_prob(row, condition, **kwargs) for row in rows]
        return torch.stack(each).sum(dim=0)


class LikelihoodHybrid(HybridEstimator):
    r"""The posterior :math:`q(x \mid \theta) \, p(\theta) / Z(x)`, drawn from a base.

    Example:
        >>> import torch
        >>> from sbi.neural_nets import likelihood_nn, posterior_nn
        >>> from torch.distributions import MultivariateNormal
        >>> theta, x = torch.randn(100, 2), torch.randn(100, 3)
        >>> networks = posterior_nn("mdn")(theta, x), likelihood_nn("maf")(theta, x)
        >>> prior = MultivariateNormal(torch.zeros(2), torch.eye(2))
        >>> hybrid = LikelihoodHybrid(*networks, prior)
        >>> hybrid.sample(torch.Size((7,)), x[:4]).shape
        torch.Size([7, 4, 2])
    """

    prior: Distribution

    def __init__(
        self,
        base: ConditionalDensityEstimator,
        likelihood: ConditionalDensityEstimator,
        prior: Distribution,
        earlier: Callable[[Tensor], Tensor] | None = None,
    ) -> None:
        """Initialize the estimator.

        Args:
            base: Normalized estimator of the posterior, of `x` of one observation.
            likelihood: Estimator of the likelihood of `x`.
            prior: Prior distribution; its density may lack its constant.
            earlier: Module from parameters `(num, dim_theta)` to the log-likelihoods
                `(num,)` that they have from what was observed before `x`, in nats.

        Raises:
            ValueError: If base and likelihood are not of the same data and parameters.
        """
        shapes = base.condition_shape, base.input_shape
        others = likelihood.input_shape, likelihood.condition_shape
        if shapes != others:
            raise ValueError(
                f"The posterior estimator is of x {tuple(shapes[0])} and theta "
                f"{tuple(shapes[1])}, and the likelihood estimator of x "
                f"{tuple(others[0])} and theta {tuple(others[1])}: they must be of the "
                "same simulations."
            )
        super().__init__(base, likelihood, prior=prior, frozen_base=True)
        self.earlier = earlier
        self.eval()

    @property
    def likelihood(self) -> ConditionalDensityEstimator:
        """The likelihood."""
        return cast(ConditionalDensityEstimator, self.energy)

    def on_base(self, base: ConditionalDensityEstimator) -> "LikelihoodHybrid":
        """Return the same posterior on another base."""
        return self._view(base, self.prior)

    def _view(
        self, base: ConditionalDensityEstimator, prior: Distribution | None
    ) -> "LikelihoodHybrid":
        assert prior is not None
        return LikelihoodHybrid(base, self.likelihood, prior, self.earlier)

    def log_unnormalized(self, input: Tensor, condition: Tensor, **kwargs) -> Tensor:
        r"""Return :math:`\log q(x \mid \theta) + \log p(\theta)`, `-inf` outside.

        A likelihood that is not a number, as of a flow far from all simulations, counts
        as zero.
        """
        input, condition, _ = self._broadcast_and_align(input, condition)
        condition = condition[0]
        log_likelihood = log_likelihood_matrix(
            self.likelihood.log_prob, condition, input
        )
        # Priors may refuse to say anything about parameters outside.
        inside = self.inside(input)
        log_prob = torch.full_like(log_likelihood, -torch.inf)
        if not inside.any():
            return log_prob
        known = self.prior.log_prob(input[inside])
        if self.earlier is not None:
            known = known + self.earlier(input[inside])
        log_prob[inside] = known.to(log_prob) + log_likelihood[inside]
        return nan_to_zero_density(log_prob)

    def log_ratio(self, input: Tensor, condition: Tensor) -> Tensor:
        """Return the log-weights of parameters.

        They are `-inf` where the base has no finite density: a flow may overflow.
        """
        log_base = self.net.log_prob(input, condition)
        log_ratio = self.log_unnormalized(input, condition) - log_base
        return log_ratio.where(log_base.isfinite(), -torch.inf)

    def draw_weighted(
        self, num_draws: int, condition: Tensor, *, reject_outside_prior: bool = True
    ) -> tuple[Tensor, Tensor]:
        """Draw from the base, with log-weights.

        Outside of the prior there is no posterior, so that such draws never weigh.
        """
        draws = self.net.sample(torch.Size((num_draws,)), condition)
        return draws, self.log_ratio(draws, condition)

    def loss(self, input: Tensor, condition: Tensor, **kwargs) -> Tensor:
        """Refuse to be trained: base and likelihood were, each by itself."""
        raise NotImplementedError("Train the base and the likelihood instead.")
