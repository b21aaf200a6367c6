r"""The posterior given a history of experiments, by a network and by the likelihood."""

import math
from functools import partial
from typing import Any

import torch
from sbi.neural_nets.estimators import ConditionalDensityEstimator
from torch import Tensor, nn
from torch.distributions import Distribution
from torch.distributions.transforms import Transform

from sbi_boed_plugin._prior import finite_values, to_real_numbers
from sbi_boed_plugin.adaptive.encoder import PairEncoder
from sbi_boed_plugin.estimators.noise import EstimatorView
from sbi_boed_plugin.estimators.transformed import (
    build_categorical,
    transformed_posterior_nn,
)

__all__ = ["AmortizedPosterior", "HistoryLikelihood", "HistoryPosterior"]

# Components of the posterior's mixture, and the width of its networks.
_NUM_COMPONENTS, _WIDTH, _NUM_FEATURES = 24, 192, 96
_NUM_DRAWS = 1_000


class AmortizedPosterior(nn.Module):
    r"""A network :math:`r(\theta \mid h_t)` of histories of any length up to the last.

    `encoder` makes features of each experiment, `net` is a density of parameters, or of
    a target, given the sum of features and the share of experiments that are done.
    """

    def __init__(
        self,
        distribution: Distribution,
        dim_design: int,
        dim_x: int,
        num_experiments: int,
        *,
        x_transform: Transform,
        design_transform: Transform,
    ) -> None:
        """Build the networks, for what is distributed like this before any data."""
        super().__init__()
        self.num_experiments = num_experiments
        self.encoder = PairEncoder(
            dim_design,
            dim_x,
            hidden_features=_WIDTH,
            num_features=_NUM_FEATURES,
            tells_failures=False,
            x_transform=x_transform,
            design_transform=design_transform,
        )
        values = finite_values(distribution)
        theta = distribution.sample(torch.Size((_NUM_DRAWS,))).cpu().float()
        conditions = torch.randn(len(theta), _NUM_FEATURES + 1)
        build: Any = partial(build_categorical, values=values)
        if values is None:
            hidden = nn.Sequential(
                nn.Linear(_NUM_FEATURES + 1, _WIDTH),
                nn.SiLU(),
                nn.Linear(_WIDTH, _WIDTH),
                nn.SiLU(),
            )
            build = transformed_posterior_nn(
                "mdn",
                theta_transform=to_real_numbers(distribution),
                z_score_x="none",
                embedding_net=hidden,
                num_components=_NUM_COMPONENTS,
                hidden_features=_WIDTH,
            )
        self.net: ConditionalDensityEstimator = build(theta, conditions)

    def condition(self, features: Tensor, num: Tensor | int) -> Tensor:
        """Return conditions of `net` from summed features of `num` experiments."""
        share = torch.as_tensor(num, device=features.device) / self.num_experiments
        share = share.to(features).expand(features.shape[:-1]).unsqueeze(-1)
        features = features / math.sqrt(self.num_experiments)
        return torch.cat([features, share], dim=-1)

    def conditions(self, design: Tensor, x: Tensor) -> Tensor:
        """Return conditions after each experiment, `(num, batch_dim, ...)`.

        Of designs `(num, batch_dim, dim_design)` and data.
        """
        features = self.encoder(design, x).cumsum(dim=0)
        num = torch.arange(1, len(design) + 1, device=design.device)
        return self.condition(features, num.unsqueeze(1))


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
        features = self.posterior.encoder(design, x).sum(dim=-2)
        return self.posterior.condition(features, self.num)


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
