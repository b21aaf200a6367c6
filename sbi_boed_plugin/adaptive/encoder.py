"""Features of a history of experiments that do not depend on their order."""

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributions.transforms import Transform, identity_transform
from zuko.nn import MLP

from sbi_boed_plugin.estimators.coordinates import move_transform

__all__ = ["HistoryEncoder"]

_LEAST_SPREAD = 1e-7
# Logits of what is not to be seen, which are finite so that all of them may be.
_NOTHING = -1e9
# Heads of the attention, their width, and how often it looks.
_NUM_HEADS, _HEAD_WIDTH, _NUM_LOOKS = 6, 16, 2


class HistoryEncoder(nn.Module):
    r"""Features of a history, which is pairs of a design and its data.

    The sum of features over pairs asks a first question, and attention to the pairs
    answers it; the answer asks the next. The order of experiments tells nothing. What
    is kept of a pair (:meth:`pairs`) does not change when more come. There may be as
    many as `num_experiments`.

    Values are seen as distances from their median, on a scale that is logarithmic far
    out. An experiment that failed, whose data are NaN, tells nothing: the features are
    those of the others.

    References:
        Foster et al., *Deep Adaptive Design*, ICML 2021,
        https://arxiv.org/abs/2103.02438 (sums over pairs); Lee et al., *Set
        Transformer*, ICML 2019, https://arxiv.org/abs/1810.00825 (attention to them).
    """

    centre: Tensor
    spread: Tensor

    def __init__(
        self,
        dim_design: int,
        dim_x: int,
        num_experiments: int,
        *,
        hidden_features: int,
        num_features: int,
        x_transform: Transform = identity_transform,
        design_transform: Transform = identity_transform,
    ) -> None:
        super().__init__()
        self.dim_x, self.num_experiments = dim_x, num_experiments
        self.hidden_features, self.num_features = hidden_features, num_features
        self.x_transform, self.design_transform = x_transform, design_transform
        self.dim_pair = dim_pair = dim_design + dim_x
        self.register_buffer("centre", torch.zeros(dim_pair))
        self.register_buffer("spread", torch.ones(dim_pair))
        hidden = [hidden_features] * 2
        self.of_pair = MLP(dim_pair, num_features, hidden, nn.SiLU)
        width = _NUM_HEADS * _HEAD_WIDTH
        self.to_memory = nn.Linear(num_features, 2 * _NUM_LOOKS * width)
        self.of_sum = nn.Linear(num_features + 1, hidden_features)
        questions = [nn.Linear(hidden_features, width) for _ in range(_NUM_LOOKS)]
        self.questions = nn.ModuleList(questions)
        num_inputs = hidden_features + width + _NUM_HEADS * dim_pair
        of_answer = [num_inputs, hidden_features, [hidden_features], nn.SiLU]
        self.answers = nn.ModuleList([MLP(*of_answer) for _ in range(_NUM_LOOKS)])
        self.dim_memory = num_features + 2 * _NUM_LOOKS * width + dim_pair + 1

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True):
        """Move the tensors of the transforms as those of the network."""
        super()._apply(fn, recurse)
        self.x_transform = move_transform(self.x_transform, fn)
        self.design_transform = move_transform(self.design_transform, fn)
        return self

    def _in_coordinates(self, design: Tensor, x: Tensor) -> Tensor:
        of_design: Any = self.design_transform
        of_x: Any = self.x_transform
        return torch.cat([of_design(design), of_x(x)], dim=-1)

    @torch.no_grad()
    def standardize(self, design: Tensor, x: Tensor) -> None:
        """Take centre and spread from simulations, of which some may have failed."""
        values = self._in_coordinates(design, x).cpu().double()
        values = values[values.isfinite().all(dim=1)]
        centre = values.median(dim=0).values
        distances = (values - centre).abs()
        spread = 1.5 * distances.median(dim=0).values
        # Values of which most are the same, and then constants, which keep their unit.
        least = _LEAST_SPREAD * values.abs().amax(dim=0)
        spread = torch.where(spread > least, spread, values.std(dim=0))
        spread = torch.where(spread > least, spread, 1.0)
        self.centre.copy_(centre)
        self.spread.copy_(spread)

    def pairs(self, design: Tensor, x: Tensor) -> Tensor:
        """Return what is kept of pairs `(..., dim)`, of shape `(..., dim_memory)`."""
        failed = ~x.isfinite().all(dim=-1, keepdim=True)
        if failed.any():
            inverse: Any = self.x_transform.inv
            x = torch.where(failed, inverse(self.centre[-self.dim_x :]), x)
        values = self._in_coordinates(design, x)
        values = ((values - self.centre) / self.spread).asinh()
        features = self.of_pair(values)
        memory = self.to_memory(nn.functional.silu(features))
        features = features.masked_fill(failed, 0.0)
        return torch.cat([features, (~failed).to(values), memory, values], dim=-1)

    def after_all(self, pairs: Tensor) -> Tensor:
        """Return the features of histories, `(batch_dim, hidden_features)`.

        Of pairs `(num, batch_dim, dim_memory)`, of which there may be none.
        """
        return self._read(self._summed(pairs).sum(dim=0, keepdim=True), pairs, None)[0]

    def after_each(self, pairs: Tensor) -> Tensor:
        """Return the features after each experiment, `(num, batch_dim, ...)`."""
        number = torch.arange(len(pairs), device=pairs.device)
        is_later = number > number.unsqueeze(1)
        return self._read(self._summed(pairs).cumsum(dim=0), pairs, is_later)

    def _summed(self, pairs: Tensor) -> Tensor:
        """Return what is summed of pairs: features, and whether data did not fail."""
        return pairs[..., : self.num_features + 1]

    def _read(self, sums: Tensor, pairs: Tensor, is_later: Tensor | None) -> Tensor:
        """Return features `(num_sums, batch_dim, hidden_features)`.

        Of sums over pairs `(num_sums, batch_dim, num_features + 1)`; `is_later` says
        which pairs `(num_sums, num)` are no part of a sum.
        """
        sizes = [self.num_features, 1, self.to_memory.out_features, self.dim_pair]
        _, succeeded, memory, values = pairs.split(sizes, dim=-1)
        total, num = sums.split(sizes[:2], dim=-1)
        memory = memory.unflatten(-1, (_NUM_LOOKS, 2, _NUM_HEADS, _HEAD_WIDTH))
        total = total / math.sqrt(self.num_experiments)
        share = num / self.num_experiments
        features = self.of_sum(torch.cat([total, share], dim=-1))
        unseen = (succeeded == 0.0).permute(2, 1, 0).unsqueeze(2)
        if is_later is not None:
            unseen = unseen | is_later[:, None, None]
        looks = zip(self.questions, self.answers, memory.unbind(dim=2), strict=True)
        for question, answer, look in looks:
            key, value = look.unbind(dim=2)
            asked = nn.functional.silu(features)
            query = question(asked).unflatten(-1, (_NUM_HEADS, _HEAD_WIDTH))
            logits = torch.einsum("qbhd,nbhd->qbhn", query, key)
            logits = (logits / math.sqrt(_HEAD_WIDTH)).masked_fill(unseen, _NOTHING)
            # Zero also where there is nothing to see.
            weights = torch.softmax(logits, dim=-1).masked_fill(unseen, 0.0)
            of_memory = torch.einsum("qbhn,nbhd->qbhd", weights, value)
            of_values = torch.einsum("qbhn,nbr->qbhr", weights, values)
            found = [asked, of_memory.flatten(2), of_values.flatten(2)]
            features = features + answer(torch.cat(found, dim=-1))
        return features
