"""Likelihoods of data that take a few values: yes or no, choices, small counts."""

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import torch
from sbi.neural_nets.estimators import ConditionalDensityEstimator
from torch import Tensor

from sbi_boed_plugin.estimators.transformed import build_categorical

__all__ = ["categorical_likelihood_nn", "check_values"]

_MOST_VALUES = 1_000


def categorical_likelihood_nn(
    values: Sequence[float] | Sequence[Sequence[float]] | Tensor,
) -> Callable[[Tensor, Tensor], ConditionalDensityEstimator]:
    """Return a builder of probabilities of data that take a few values.

    A density would describe them badly: what `observe` and Markov chains learn from it
    is wrong. For a choice with a reaction time there is sbi's `likelihood_nn("mnle")`.

    Args:
        values: All values that data can take, such as `[0, 1]`; or such a list for each
            value of `x`.

    Returns:
        Function of conditions and data that builds sbi's categorical network.

    Raises:
        ValueError: If values repeat, are not finite, or are fewer than two or more than
            1,000.

    Example:
        >>> import torch
        >>> from torch.distributions import MultivariateNormal
        >>> from sbi_boed_plugin import NLE_INCE
        >>> prior = MultivariateNormal(torch.zeros(1), torch.eye(1))
        >>> inference = NLE_INCE(prior, categorical_likelihood_nn([0, 1]))
    """
    try:
        lists = [torch.as_tensor(values, dtype=torch.float32)]
    except (TypeError, ValueError):
        lists = [torch.as_tensor(some, dtype=torch.float32) for some in values]
    if len(lists) == 1 and lists[0].dim() == 2:
        lists = list(lists[0])
    checked = []
    for some in lists:
        ordered = some.sort().values if some.dim() == 1 else some
        is_right = some.dim() == 1 and 2 <= len(some) <= _MOST_VALUES
        if (
            not is_right
            or not (ordered.diff() > 0).all()
            or not ordered.isfinite().all()
        ):
            raise ValueError(
                f"values={some.tolist()} must be from 2 to {_MOST_VALUES} different "
                "finite numbers, or a list of such lists, one for each value of x."
            )
        checked.append(ordered)
    return partial(_build, values=checked)


def _build(conditions: Tensor, x: Tensor, *, values: list[Tensor]) -> Any:
    """Build the network, with a list for each column."""
    if len(values) == 1:
        values = values * x.shape[1]
    if len(values) != x.shape[1]:
        raise ValueError(
            f"values has {len(values)} lists, but x has {x.shape[1]} values."
        )
    for column, known in zip(x.unbind(dim=1), values, strict=True):
        unknown = column[~torch.isin(column, known.to(column))]
        if len(unknown):
            raise ValueError(
                f"x={float(unknown[0]):g} is none of values={known.tolist()}. Give all "
                "values that data can take."
            )
    return build_categorical(x, conditions, values=values)


def check_values(likelihood: ConditionalDensityEstimator, x: Tensor) -> None:
    """Raise if data are none of the values that a likelihood has probabilities for."""
    for module in likelihood.modules():
        lists = getattr(module, "categorical_values_per_var", None)
        if lists is None or len(lists) != x.flatten(1).shape[1]:
            continue
        for column, known in zip(x.flatten(1).unbind(dim=1), lists, strict=True):
            other = column[~torch.isin(column.float(), known.to(column.device).float())]
            if len(other):
                raise ValueError(
                    f"x={float(other[0]):g} is none of the values of the likelihood, "
                    f"{known.tolist()}."
                )
