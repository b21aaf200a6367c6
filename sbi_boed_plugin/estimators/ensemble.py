"""Several networks as one: the mean of their densities."""

import math
from collections.abc import Sequence

import torch
from sbi.neural_nets.estimators import ConditionalDensityEstimator
from torch import Tensor, nn

from sbi_boed_plugin.estimators.noise import reparameterize

__all__ = ["EnsembleEstimator"]


class EnsembleEstimator(ConditionalDensityEstimator):
    r"""The density :math:`\frac{1}{K} \sum_k q_k(x \mid c)` of :math:`K` networks.

    Where networks that learned from few simulations disagree, their mean is wider than
    each, and no one's overconfidence counts alone. Its log-density is at least the mean
    of theirs.
    """

    def __init__(self, members: Sequence[ConditionalDensityEstimator]) -> None:
        first = members[0]
        shapes = first.input_shape, first.condition_shape
        super().__init__(nn.ModuleList(members), *shapes)
        # Tells an ensemble from its weights.
        self.register_buffer("num_members", torch.tensor(len(members)))

    @property
    def members(self) -> list[ConditionalDensityEstimator]:
        """The networks."""
        return list(self.net)

    @property
    def embedding_net(self) -> nn.Module | None:
        """Embedding network of the first member."""
        return self.members[0].embedding_net

    def _log_probs(self, input: Tensor, condition: Tensor) -> Tensor:
        """Return the log-densities of all members, along a new first dimension."""
        return torch.stack([net.log_prob(input, condition) for net in self.members])

    def log_prob(self, input: Tensor, condition: Tensor, **kwargs) -> Tensor:
        """Return log-densities of shape `(sample_dim, batch_dim)`, in nats."""
        log_probs = self._log_probs(input, condition)
        return torch.logsumexp(log_probs, dim=0) - math.log(len(self.members))

    def loss(self, input: Tensor, condition: Tensor, **kwargs) -> Tensor:
        """Return the mean loss of the members, of shape `(batch_dim,)`, in nats."""
        losses = [net.loss(input, condition, **kwargs) for net in self.members]
        return torch.stack(losses).mean(dim=0)

    def sample(self, sample_shape: torch.Size, condition: Tensor, **kwargs) -> Tensor:
        """Draw samples of shape `(*sample_shape, batch_dim, *input_event_shape)`."""
        draws = [net.sample(sample_shape, condition, **kwargs) for net in self.members]
        shape = draws[0].shape[: len(sample_shape) + 1]
        chosen = torch.randint(len(draws), shape, device=draws[0].device)
        result = draws[0]
        for index, others in enumerate(draws[1:], start=1):
            event = chosen.reshape(*shape, *[1] * len(self.input_shape))
            result = torch.where(event == index, others, result)
        return result

    def reparameterize(self, input: Tensor, condition: Tensor) -> Tensor:
        """Return the same samples `(batch_dim, dim)`, moving with their conditions.

        Each as those of a member, drawn by the probability that it has made the sample:
        the gradient of an expectation is unbiased, since members' shares are constant.
        """
        input = input.detach()
        with torch.no_grad():
            log_probs = self._log_probs(input.unsqueeze(0), condition)[:, 0]
            weights = torch.softmax(log_probs, dim=0)
            made_by = torch.multinomial(weights.T, 1).squeeze(1)
        moved = input
        for index, net in enumerate(self.members):
            (rows,) = (made_by == index).nonzero(as_tuple=True)
            if len(rows):
                moving = reparameterize(net, input[rows], condition[rows])
                moved = moved.index_copy(0, rows, moving)
        return moved
