r"""The posterior given a history of experiments, by a network and by the likelihood."""

from functools import partial
from typing import Any

import torch
from sbi.neural_nets.estimators import ConditionalDensityEstimator
from torch import Tensor, nn
from torch.distributions import Distribution

from sbi_boed_plugin._prior import finite_values, to_real_numbers
from sbi_boed_plugin.adaptive.encoder import HistoryEncoder
from sbi_boed_plugin.estimators.noise import EstimatorView
from sbi_boed_plugin.estimators.transformed import (
    build_categorical,
    transformed_posterior_nn,
)

__all__ = ["AmortizedPosterior", "HistoryLikelihood", "HistoryPosterior"]

# Components of the posterior's mixture.
_NUM_COMPONENTS = 24
_NUM_DRAWS = 1_000


class AmortizedPosterior(nn.Module):
    r"""A network :math:`r(\theta \mid h_t)` of histories of any length up to the last.

    `encoder` makes features of a history, which a policy may share, and `net` is a
    density of parameters, or of a target, given the features.
    """

    def __init__(self, distribution: Distribution, encoder: HistoryEncoder) -> None:
        """Build the network, for what is distributed like this before any data."""
        super().__init__()
        self.encoder, width = encoder, encoder.hidden_features
        values = finite_values(distribution)
        theta = distribution.sample(torch.Size((_NUM_DRAWS,))).cpu().float()
        conditions = torch.randn(len(theta), width)
        build: Any = partial(build_categorical, values=values)
        if values is None:
            build = transformed_posterior_nn(
                "mdn",
                theta_transform=to_real_numbers(distribution),
                z_score_x="none",
                num_components=_NUM_COMPONENTS,
                hidden_features=width,
            )
        self.net: ConditionalDensityEstimator = build(theta, conditions)

    def conditions(self, design: Tensor, x: Tensor) -> Tensor:
        """Return conditions of `net` after each experiment, `(num, batch_dim, ...)`.

        Of designs `(num, batch_dim, dim_design)` and data.
        """
        return self.encoder.after_each(self.encoder.pairs(design, x))

    def condition(self, design: Tensor, x: Tensor) -> Tensor:
        """Return the condition after all of them, `(batch_dim, hidden_features)`."""
        return self.encoder.after_all(self.encoder.pairs(design, x))


class HistoryPosterior(EstimatorView):
    """The posterior given histories of one length, each a row `(designs, data)`."""

    def __init__(
        self, posterior: AmortizedPosterior, num: int, dim_design: int, dim_x: int
    ) -> None:
        """Initialize the view, which shares the networks."""
        shape = torch.Size((num * (dim_design + dim_x),))
        super().__init__(posterior.net, posterior.net.input_shape, shape)
        self.posterior, self.num, self.dim_design = posterior, num, dim_design

    def condition_of_net(self, condition: Tensor) -> Tensor:
        """Return what the network makes of histories."""
        design, x = pairs_of_rows(condition, self.num, self.dim_design)
        design, x = (part.flatten(0, -3).transpose(0, 1) for part in (design, x))
        return self.posterior.condition(design, x).unflatten(0, condition.shape[:-1])


class HistoryLikelihood(EstimatorView):
    """The likelihood of histories of one length, each a row `(designs, data)`.

    An experiment that failed tells nothing.
    """

    def __init__(
        self,
        likelihood: ConditionalDensityEstimator,
        num: int,
        dim_design: int,
    ) -> None:
        """Initialize the view, which shares the network."""
        dim_x = likelihood.input_shape.numel()
        dim_theta = likelihood.condition_shape.numel() - dim_design
        shapes = torch.Size((num * (dim_design + dim_x),)), torch.Size((dim_theta,))
        super().__init__(likelihood, *shapes)
        self.num, self.dim_design = num, dim_design

    def log_prob(self, input: Tensor, condition: Tensor, **kwargs) -> Tensor:
        """Return log-likelihoods `(sample_dim, batch_dim)`, in nats."""
        designs, x = pairs_of_rows(input, self.num, self.dim_design)
        total = torch.zeros(input.shape[:2]).to(condition)
        for step in range(self.num):
            design, datum = designs[..., step, :], x[..., step, :]
            theta = condition.expand(*design.shape[:-1], -1)
            rows = torch.cat([theta, design], dim=-1).flatten(0, 1)
            valid = datum.isfinite().all(dim=-1)
            datum = torch.where(valid.unsqueeze(-1), datum, 0.0).flatten(0, 1)
            values = self.net.log_prob(datum.unsqueeze(0), rows, **kwargs)[0]
            total = total + values.reshape(total.shape).where(valid, 0.0)
        return total


def pairs_of_rows(rows: Tensor, num: int, dim_design: int) -> tuple[Tensor, Tensor]:
    """Return designs and data `(..., num, dim)` of histories in one row each."""
    num_values = num * dim_design
    design = rows[..., :num_values].unflatten(-1, (num, dim_design))
    return design, rows[..., num_values:].unflatten(-1, (num, -1))
