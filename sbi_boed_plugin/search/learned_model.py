"""The information of designs where data come from the learned likelihood."""

import math
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import partial

import torch
from torch import Tensor
from torch.distributions import Distribution
from torch.utils.checkpoint import checkpoint

from sbi_boed_plugin._memory import rows_at_once
from sbi_boed_plugin._prior import draw_parameters
from sbi_boed_plugin._rng import get_rng_state, isolated_rng
from sbi_boed_plugin.estimators.likelihood_with_failures import LikelihoodWithFailures
from sbi_boed_plugin.estimators.noise import reparameterize
from sbi_boed_plugin.search.estimators import DesignEstimators
from sbi_boed_plugin.search.gradients import draw_data
from sbi_boed_plugin.search.information import POLICY_OBJECTIVES, Densities
from sbi_boed_plugin.search.utility import Utility

__all__ = ["LearnedModel"]


@dataclass(frozen=True)
class LearnedModel:
    """The information of designs where data come from the learned likelihood.

    `num_samples` parameters serve all designs alike: differences are more accurate than
    values. The contrastive bound has `num_contrastive` parameters in its mean, if that
    is more; its estimates are at most the logarithm of it.
    """

    estimators: DesignEstimators
    prior: Distribution
    objective: str
    utility: Utility = field(default_factory=Utility)

    def information(
        self, designs: Tensor, num_samples: int, num_contrastive: int = 0
    ) -> Tensor:
        """Return differentiable estimates of shape `(num_designs,)`, in nats."""
        parts = self.parts(designs, num_samples, num_contrastive)
        return torch.cat([values for _, values in parts])

    def data_move(self, designs: Tensor) -> bool:
        """Whether data of the likelihood follow the design, with a gradient."""
        with isolated_rng(get_rng_state()):  # What is drawn does not depend on it.
            theta = draw_parameters(self.prior, len(designs)).to(designs.device)
            condition = torch.cat([theta.float(), designs.float()], dim=1)
            with torch.no_grad():
                x = self.estimators.likelihood.sample(torch.Size((1,)), condition)[0]
            try:
                reparameterize(self.estimators.likelihood, x, condition)
            except NotImplementedError:
                return False
        return True

    def parts(
        self, designs: Tensor, num_samples: int, num_contrastive: int
    ) -> Iterator[tuple[Tensor, Tensor]]:
        """Yield as many designs as fit into one evaluation, and their estimates."""
        num_theta = num_samples
        if self.objective == "info_nce":
            num_theta = max(num_samples, num_contrastive)
        # The networks of sbi are in single precision, whatever the policy is.
        theta = draw_parameters(self.prior, num_theta).to(designs.device).float()
        net = self.estimators.likelihood
        num_values = net.input_shape.numel() + net.condition_shape.numel()
        pairs = min(rows_at_once(each, num_values) for each in self.estimators.all())
        for some in designs.split(max(1, pairs // (num_theta * num_samples))):
            yield some, self._estimates(theta, some.float(), num_samples, pairs)

    def _estimates(
        self, theta: Tensor, designs: Tensor, num_samples: int, max_pairs: int
    ) -> Tensor:
        """Return the estimates of designs.

        The first `num_samples` parameters have data; all of them are contrasts.
        """
        likelihood, num_designs = self.estimators.likelihood, len(designs)
        # Rows: all designs for the first parameters, then for the second, and so on.
        rows = (
            theta.repeat_interleave(num_designs, dim=0),
            designs.repeat(len(theta), 1),
        )
        conditions = torch.cat(rows, dim=-1)
        own = slice(num_samples * num_designs)
        x = draw_data(likelihood, conditions[own])
        if self.objective == "info_nce":
            terms = self._contrastive_terms(x, conditions, num_designs, max_pairs)
        else:
            own_theta, design = (part[own] for part in rows)
            no_contrast = own_theta.unsqueeze(0)[:0]
            networks = self.estimators.trained
            densities = Densities(
                networks, self.prior, own_theta, x, design, no_contrast
            )
            terms = POLICY_OBJECTIVES[self.objective].terms(densities)
        terms = terms.reshape(num_samples, num_designs)
        if isinstance(likelihood, LikelihoodWithFailures):
            # Data that failed would have told nothing.
            success = likelihood.log_success(conditions[own]).exp()
            terms = terms * success.reshape(num_samples, num_designs)
        return terms.mean(dim=0)

    def _contrastive_terms(
        self, x: Tensor, conditions: Tensor, num_designs: int, max_pairs: int
    ) -> Tensor:
        """Return terms of the contrastive bound, `(num_samples, num_designs)`.

        Networks that compute their condition apart from their input do so once for each
        pair of parameters and design, whatever the number of data.
        """
        num_samples, num_theta = (len(rows) // num_designs for rows in (x, conditions))
        x_by_design = x.reshape(num_samples, 1, num_designs, *x.shape[1:])
        evaluate = self.estimators.likelihood.log_prob
        size = max(1, max_pairs // len(x))
        # What does not fit at once is evaluated again for its gradient.
        if size < num_theta and conditions.requires_grad:
            evaluate = partial(checkpoint, evaluate, use_reentrant=False)
        parts = []
        for part in conditions.split(size * num_designs):
            shape = (-1, len(part) // num_designs, *x_by_design.shape[2:])
            parts.append(evaluate(x_by_design.expand(shape).flatten(1, 2), part))
        matrix = torch.cat(parts, dim=1).reshape(num_samples, num_theta, num_designs)
        own = matrix.diagonal(dim1=0, dim2=1)  # (designs, samples)
        mean = torch.logsumexp(matrix, dim=1).T - math.log(num_theta)
        return (own - mean).T
