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
# Heads of the attention, their width, and how often it looks.
_NUM_HEADS, _HEAD_WIDTH, _NUM_LOOKS = 6, 16, 2


class HistoryEncoder(nn.Module):
    r"""Features of histories of any length, of pairs of a design and its data.

    The sum of features over pairs asks a first question, and attention to the pairs
    answers it; the answer asks the next. The order of experiments tells nothing. What
    is kept of a pair (:meth:`pairs`) does not change when more come.

    Values are seen as distances from their median, on a scale that is logarithmic far
    out. Data of an experiment that failed are NaN: it has features of its own.

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
        self.of_pair = MLP(dim_pair + 1, num_features, hidden, nn.SiLU)
        width = _NUM_HEADS * _HEAD_WIDTH
        self.to_memory = nn.Linear(num_features, 2 * _NUM_LOOKS * width)
        self.of_sum = nn.Linear(num_features + 1, hidden_features)
        questions = [nn.Linear(hidden_features, width) for _ in range(_NUM_LOOKS)]
        self.questions = nn.ModuleList(questions)
        num_inputs = hidden_features + width + _NUM_HEADS * dim_pair
        of_answer = [num_inputs, hidden_features, [hidden_features], nn.SiLU]
        self.answers = nn.ModuleList([MLP(*of_answer) for _ in range(_NUM_LOOKS)])
        self.dim_memory = num_features + 2 * _NUM_LOOKS * width + dim_pair

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
        features = self.of_pair(torch.cat([values, failed.to(values)], dim=-1))
        memory = self.to_memory(nn.functional.silu(features))
        return torch.cat([features, memory, values], dim=-1)

    def after_all(self, pairs: Tensor) -> Tensor:
        """Return the features of histories, `(batch_dim, hidden_features)`.

        Of pairs `(num, batch_dim, dim_memory)`, of which there may be none.
        """
        total = pairs[..., : self.num_features].sum(dim=0, keepdim=True)
        num = torch.full((1, 1, 1), float(len(pairs))).to(total)
        return self._read(total, num, pairs, None)[0]

    def after_each(self, pairs: Tensor) -> Tensor:
        """Return the features after each experiment, `(num, batch_dim, ...)`."""
        total = pairs[..., : self.num_features].cumsum(dim=0)
        num = torch.arange(1, len(pairs) + 1, device=pairs.device).to(total)
        is_later = num > num.unsqueeze(1)
        return self._read(total, num.reshape(-1, 1, 1), pairs, is_later)

    def _read(
        self, total: Tensor, num: Tensor, pairs: Tensor, hidden_pairs: Tensor | None
    ) -> Tensor:
        """Return features of sums `(num_sums, batch_dim, num_features)` and pairs."""
        _, memory, values = pairs.split(
            [self.num_features, self.to_memory.out_features, self.dim_pair], dim=-1
        )
        memory = memory.unflatten(-1, (_NUM_LOOKS, 2, _NUM_HEADS, _HEAD_WIDTH))
        share = (num / self.num_experiments).expand(*total.shape[:2], 1)
        total = total / math.sqrt(self.num_experiments)
        features = self.of_sum(torch.cat([total, share], dim=-1))
        looks = zip(self.questions, self.answers, memory.unbind(dim=2), strict=True)
        for question, answer, look in looks:
            key, value = look.unbind(dim=2)
            asked = nn.functional.silu(features)
            query = question(asked).unflatten(-1, (_NUM_HEADS, _HEAD_WIDTH))
            logits = torch.einsum("qbhd,nbhd->qbhn", query, key)
            logits = logits / math.sqrt(_HEAD_WIDTH)
            if hidden_pairs is not None:
                hidden = hidden_pairs[:, None, None]
                logits = logits.masked_fill(hidden, -torch.inf)
            weights = torch.softmax(logits, dim=-1)
            of_memory = torch.einsum("qbhn,nbhd->qbhd", weights, value)
            of_values = torch.einsum("qbhn,nbr->qbhr", weights, values)
            found = [asked, of_memory.flatten(2), of_values.flatten(2)]
            features = features + answer(torch.cat(found, dim=-1))
        return features
