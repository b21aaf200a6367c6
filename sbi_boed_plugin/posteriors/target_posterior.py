"""The posterior of a part of the parameters, or of a function of them."""

from typing import Any

import torch
from sbi.inference.posteriors.base_posterior import NeuralPosterior
from torch import Tensor
from torch.distributions import Distribution

from sbi_boed_plugin._sbi_compat import finite_check_of
from sbi_boed_plugin.search.target import TargetLike, probed_target

__all__ = ["TargetPosterior"]


class TargetPosterior(NeuralPosterior):
    """Draws of a target: those of a posterior of all parameters, of which it is a part.

    All other parameters are integrated out. The density of a target is not known: fit
    one to draws, for instance with :class:`~sbi_boed_plugin.FittedPrior`.

    Args:
        posterior: Posterior of all parameters.
        target: Columns of them, or a function from `(batch_dim, dim_theta)` to
            `(batch_dim,)` or `(batch_dim, dim_target)`.
        prior: Prior of all parameters.

    Raises:
        TypeError: If `posterior` or `prior` is something else.
        ValueError: If there are no such columns, or the function returns a wrong shape.
    """

    def __init__(
        self, posterior: NeuralPosterior, target: TargetLike, prior: Distribution
    ) -> None:
        if not isinstance(posterior, NeuralPosterior):
            raise TypeError(
                f"posterior must be a NeuralPosterior, got {type(posterior).__name__}."
            )
        of_all: Any = posterior
        checks = finite_check_of(of_all)
        self._target = probed_target(target, prior)
        self.posterior = posterior
        super().__init__(of_all.potential_fn, device=of_all._device, **checks)
        self._x = posterior.default_x

    def sample(
        self,
        sample_shape: Any = torch.Size(),
        x: Tensor | None = None,
        show_progress_bars: bool = True,
        **kwargs: Any,
    ) -> Tensor:
        """Draw targets of shape `(*sample_shape, dim_target)`.

        Further arguments are those of the posterior of all parameters.
        """
        theta = self.posterior.sample(
            sample_shape,
            self._x_else_default_x(x),
            show_progress_bars=show_progress_bars,
            **kwargs,
        )
        return self._of(theta)

    def sample_batched(
        self,
        sample_shape: Any,
        x: Tensor,
        show_progress_bars: bool = True,
        **kwargs: Any,
    ) -> Tensor:
        """Draw targets of shape `(*sample_shape, batch_dim, dim_target)`."""
        theta = self.posterior.sample_batched(
            sample_shape, x, show_progress_bars=show_progress_bars, **kwargs
        )
        return self._of(theta)

    def log_prob(self, *args: Any, **kwargs: Any) -> Tensor:
        """Raise, as the density of a target is not known."""
        raise NotImplementedError(
            "The density of a target is not known, only its draws: fit one with "
            "FittedPrior(posterior.sample((10_000,), x=x_o)).log_prob(target)."
        )

    potential = map = log_prob

    def _of(self, theta: Tensor) -> Tensor:
        rows = self._target(theta.reshape(-1, theta.shape[-1]))
        return rows.reshape(*theta.shape[:-1], -1)
