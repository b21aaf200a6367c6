r"""A policy that sees the history of experiments and proposes the next design."""

import hashlib
import io
from collections.abc import Iterator
from copy import deepcopy
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributions import Categorical, Independent, Normal
from torch.distributions.transforms import Transform, identity_transform
from typing_extensions import Self
from zuko.nn import MLP

from sbi_boed_plugin._atomic import write_bytes
from sbi_boed_plugin._numbers import check_integer
from sbi_boed_plugin._rng import isolated_rng
from sbi_boed_plugin.adaptive.encoder import HistoryEncoder
from sbi_boed_plugin.policies.categorical import CategoricalPolicy
from sbi_boed_plugin.policies.constrained import ConstrainedPolicy
from sbi_boed_plugin.policies.policy import DesignPolicy
from sbi_boed_plugin.policies.product import ProductPolicy

__all__ = ["HistoryPolicy", "check_history"]

# Possible designs of which the nearest takes the place of an impossible one.
_NUM_POSSIBLE = 4_096
# Scale of the exploring noise at first, in real numbers before they become designs.
_FIRST_SCALE = 0.5
# Histories whose answers tell one policy from another.
_NUM_ANSWERS = 64
# Real numbers to start from: farther out there is hardly a gradient.
_FARTHEST = 3.0


class HistoryPolicy(nn.Module):
    r"""A policy :math:`\pi(\xi_{t+1} \mid h_t)` of what was measured so far.

    The policy reads those features of the history :math:`h_t = \{(\xi_i, x_i)\}` that
    the amortised posterior reads, and that its `encoder` learns with the posterior. The
    order of experiments tells nothing, and an experiment that failed only that there is
    one less to come. `NLE_INCE.optimize_policy` trains policy and posterior;
    :meth:`propose` then takes milliseconds.

    Args:
        design_policy: Policy whose space the designs are of: a box, a list, ordered
            values, shares, products of these, or what of them is possible.
        num_experiments: Number of experiments that there will be.
        dim_x: Number of values of the data of one experiment.
        adapts: Whether designs depend on data. If not, the policy is the best list of
            designs to measure at, whatever is found.
        hidden_features: Width of the networks, those of the posterior among them.
        num_features: Number of features of each pair.
        num_before: Number of experiments before, which are no part of its histories.
        x_transform: Transform of data to coordinates that suit a network.
        design_transform: The same of designs.

    References:
        Foster et al., *Deep Adaptive Design*, ICML 2021,
        https://arxiv.org/abs/2103.02438.

    Example:
        >>> import torch
        >>> from sbi_boed_plugin import TruncatedNormalPolicy
        >>> space = TruncatedNormalPolicy(torch.zeros(2), torch.ones(2))
        >>> policy = HistoryPolicy(space, num_experiments=10, dim_x=1)
        >>> policy.propose().shape
        torch.Size([2])
        >>> designs, x = torch.rand(3, 2), torch.randn(3, 1)  # Three experiments.
        >>> policy.propose(designs, x).shape
        torch.Size([2])
    """

    scale: Tensor
    offset: Tensor
    possible: Tensor | None

    def __init__(
        self,
        design_policy: DesignPolicy,
        num_experiments: int,
        dim_x: int = 1,
        *,
        adapts: bool = True,
        hidden_features: int = 192,
        num_features: int = 96,
        num_before: int = 0,
        x_transform: Transform = identity_transform,
        design_transform: Transform = identity_transform,
    ) -> None:
        super().__init__()
        if not isinstance(design_policy, DesignPolicy):
            raise TypeError(
                "design_policy must be a DesignPolicy, got "
                f"{type(design_policy).__name__}."
            )
        self.settings = {
            "num_experiments": check_integer("num_experiments", num_experiments, 1),
            "dim_x": check_integer("dim_x", dim_x, 1),
            "adapts": adapts,
            "hidden_features": check_integer("hidden_features", hidden_features, 1),
            "num_features": check_integer("num_features", num_features, 1),
            "num_before": check_integer("num_before", num_before, 0),
        }
        self.num_experiments, self.adapts = num_experiments, adapts
        self.num_before = num_before
        self.dim_design, self.dim_x = design_policy.dim_design, dim_x
        self.space = deepcopy(design_policy).requires_grad_(False)
        self._parts = list(_parts_of(self.space))
        self._sizes = [_num_outputs(part) for part in self._parts]
        self.encoder = HistoryEncoder(
            self.dim_design,
            dim_x,
            num_experiments,
            hidden_features=hidden_features,
            num_features=num_features,
            x_transform=x_transform,
            design_transform=design_transform,
        )
        hidden = [hidden_features]
        self.of_features = MLP(hidden_features, hidden_features, hidden, nn.SiLU)
        self.of_step = nn.Embedding(num_experiments, hidden_features)
        outputs = sum(self._sizes)
        self.head = MLP(hidden_features, outputs, hidden, nn.SiLU)
        self.register_buffer("offset", torch.zeros(outputs))
        self.register_buffer("scale", torch.tensor(_FIRST_SCALE))
        self.register_buffer("possible", _possible_designs(self.space))

    @torch.no_grad()
    def start_at(self, design: Tensor) -> None:
        """Let designs `(dim_design,)` start around this one, before any training."""
        sizes = [part.dim_design for part in self._parts]
        reals = [
            torch.zeros(part.num_designs)
            if isinstance(part, CategoricalPolicy)
            else part.to_reals(value).clamp(-_FARTHEST, _FARTHEST)
            for part, value in zip(self._parts, design.split(sizes), strict=True)
        ]
        self.offset.copy_(torch.cat([value.to(self.offset) for value in reals]))

    def start(self, batch_size: int) -> Tensor:
        """Return what is kept of empty histories, `(0, batch_size, dim_memory)`."""
        return self.scale.new_zeros(0, batch_size, self.encoder.dim_memory)

    def update(self, pairs: Tensor, design: Tensor, x: Tensor) -> Tensor:
        """Return what is kept of histories with one more experiment in each."""
        return torch.cat([pairs, self.encoder.pairs(design, x).unsqueeze(0)])

    def forward(
        self,
        pairs: Tensor,
        *,
        chooses: bool = False,
        explores: bool = False,
        follows_noise: bool = False,
    ) -> tuple[Tensor, Tensor]:
        """Return next designs `(batch_dim, dim_design)` and how likely they were.

        If it `chooses`, what comes from lists is drawn, and if it `explores`, there is
        noise on the rest. The log-probabilities `(batch_dim,)` are of these draws, but
        of the noise only where designs do not carry its gradient (`follows_noise`).
        Without any draw designs are the most likely ones.
        """
        number = torch.tensor(len(pairs), device=pairs.device)
        hidden = self.of_step(number).expand(pairs.shape[1], -1)
        if self.adapts:
            hidden = hidden + self.of_features(self.encoder.after_all(pairs))
        outputs = self.head(nn.functional.silu(hidden)) + self.offset
        outputs = outputs.split(self._sizes, dim=1)
        designs, log_prob = [], pairs.new_zeros(pairs.shape[1])
        for part, output in zip(self._parts, outputs, strict=True):
            if isinstance(part, CategoricalPolicy):
                choice = Categorical(logits=output, validate_args=False)
                index = choice.sample() if chooses else output.argmax(dim=1)
                log_prob = log_prob + choice.log_prob(index) * chooses
                designs.append(part.candidates.to(output)[index])
                continue
            if explores:
                normal = Normal(output, self.scale, validate_args=False)
                noise = Independent(normal, 1, validate_args=False)
                output = noise.rsample() if follows_noise else noise.sample()
                if not follows_noise:
                    log_prob = log_prob + noise.log_prob(output)
            designs.append(part.from_reals(output))
        return self._made_possible(torch.cat(designs, dim=1)), log_prob

    def _made_possible(self, design: Tensor) -> Tensor:
        """Return designs, the nearest possible ones in the place of impossible ones."""
        if self.possible is None:
            return design
        rows = design.detach()
        wrong = ~self.space.support.check(rows)  # type: ignore[operator]
        if not wrong.any():
            return design
        width = self.space.width.to(rows)  # type: ignore[union-attr]
        distances = torch.cdist(rows[wrong] / width, self.possible.to(rows) / width)
        nearest = rows.clone()
        nearest[wrong] = self.possible.to(rows)[distances.argmin(dim=1)]
        # The gradient is that of the design before: there is none of the nearest.
        return nearest + (design - rows)

    @torch.no_grad()
    def propose(
        self,
        design: Tensor | None = None,
        x: Tensor | None = None,
        *,
        stochastic: bool = False,
    ) -> Tensor:
        """Return the next design, given what was measured.

        Args:
            design: Designs so far, of shape `(num, dim_design)`, or `(batch_dim, num,
                dim_design)` for several histories; `None` before the first experiment.
            x: Their data, of shape `(num, dim_x)`, or `(batch_dim, num, dim_x)`; NaN of
                an experiment that failed.
            stochastic: Whether to draw the design, with the noise at the end of the
                training, and choices by their probabilities.

        Returns:
            Design of shape `(dim_design,)`, or `(batch_dim, dim_design)`.

        Raises:
            ValueError: If a shape is wrong, a design is not finite, or there are
                `num_experiments` already.
        """
        design, x = check_history(design, x, self.dim_design, self.dim_x)
        num = design.shape[-2]
        if num >= self.num_experiments:
            raise ValueError(
                f"design has {num} experiments, but the policy is for "
                f"num_experiments={self.num_experiments} in all, and was not trained "
                "to propose another. Search for it with optimize_design(), or train a "
                "policy for more."
            )
        is_one = design.dim() == 2
        pairs = self.encoder.pairs(design.to(self.scale), x.to(self.scale))
        pairs = pairs.unsqueeze(1) if is_one else pairs.transpose(0, 1)
        proposed, _ = self(pairs, chooses=stochastic, explores=stochastic)
        return proposed[0] if is_one else proposed

    def digest(self) -> str:
        """Return what tells the policy from others: a hash of its weights."""
        parts = [value.cpu().numpy().tobytes() for value in self.state_dict().values()]
        return hashlib.sha256(b"".join(parts)).hexdigest()

    def save(self, path: str | Path) -> None:
        """Write the policy to a file, as numbers alone."""
        content = io.BytesIO()
        # The designs that there are belong to the one who loads it.
        weights = {
            name: value
            for name, value in self.state_dict().items()
            if not name.startswith(("space.", "possible"))
        }
        saved = {"settings": self.settings, "weights": weights}
        saved["answers"] = self._answers().cpu()
        torch.save(saved, content)
        write_bytes(Path(path), content.getvalue())

    @classmethod
    def load(
        cls,
        path: str | Path,
        design_policy: DesignPolicy,
        *,
        x_transform: Transform = identity_transform,
        design_transform: Transform = identity_transform,
    ) -> Self:
        """Read a policy that was saved, over the same designs; no code runs.

        Raises:
            ValueError: If it is of other designs or coordinates.
        """
        saved = torch.load(Path(path), map_location="cpu", weights_only=True)
        transforms = {"x_transform": x_transform, "design_transform": design_transform}
        policy = cls(design_policy, **saved["settings"], **transforms)
        try:
            policy.load_state_dict(saved["weights"], strict=False)
            differences = policy._answers() - saved["answers"]
            width: Any = policy.space.width
            unit = saved["answers"].std(dim=0).maximum(1e-3 * width.to(differences))
            # What processors differ by, far from zero.
            rounding = 1e-6 * saved["answers"].abs().amax(dim=0)
            same = bool((differences.abs() < 1e-2 * unit + rounding).all())
        except RuntimeError:
            same = False
        if not same:
            raise ValueError(
                f"path={str(path)!r} is a policy over other designs than those of "
                "design_policy, or in other coordinates: pass those that it was "
                "trained with."
            )
        return policy

    def _answers(self) -> Tensor:
        """Return what is proposed after histories that tell policies apart."""
        shape = _NUM_ANSWERS, min(2, self.num_experiments - 1)
        with isolated_rng(0):
            design = self.space.spread(shape[0] * shape[1] or 1)  # type: ignore[operator]
            x = torch.randn(*shape, self.dim_x)
        design = design[: shape[0] * shape[1]].reshape(*shape, self.dim_design)
        return torch.cat([self.propose(design, x), self.propose()[None]])


def check_history(
    design: Tensor | None, x: Tensor | None, dim_design: int, dim_x: int
) -> tuple[Tensor, Tensor]:
    """Return a history as two tensors, or raise if it is none."""
    if (design is None) != (x is None):
        raise ValueError("design and x belong together: give both of them or neither.")
    if design is None or x is None:
        return torch.zeros(0, dim_design), torch.zeros(0, dim_x)
    design, x = torch.as_tensor(design), torch.as_tensor(x)
    is_history = design.dim() in (2, 3) and design.shape[:-1] == x.shape[:-1]
    if not is_history or (design.shape[-1], x.shape[-1]) != (dim_design, dim_x):
        raise ValueError(
            f"design has shape {tuple(design.shape)} and x {tuple(x.shape)}, but a "
            f"history has designs (num, {dim_design}) and data (num, {dim_x}), or a "
            "batch of them, (batch_dim, num, dim)."
        )
    if not design.isfinite().all():
        raise ValueError("design is not finite. Data may be NaN, designs may not.")
    return design, x


def _parts_of(policy: DesignPolicy) -> Iterator[DesignPolicy]:
    """Yield the parts of a space: lists, and what is smooth."""
    if isinstance(policy, ConstrainedPolicy):
        yield from _parts_of(policy.policy)
    elif isinstance(policy, ProductPolicy):
        for part in policy.policies:
            yield from _parts_of(part)  # type: ignore[arg-type]
    else:
        yield policy


def _num_outputs(part: DesignPolicy) -> int:
    """Return how many numbers of a network a part of a design is made of."""
    if isinstance(part, CategoricalPolicy):
        return part.num_designs
    part.from_reals(torch.zeros(part.num_reals))
    return part.num_reals


def _possible_designs(policy: DesignPolicy) -> Tensor | None:
    """Return designs that are possible, or `None` where all are."""
    if not _is_constrained(policy):
        return None
    with isolated_rng(0):
        return policy.spread(_NUM_POSSIBLE).float()


def _is_constrained(policy: Any) -> bool:
    parts = getattr(policy, "policies", ())
    return isinstance(policy, ConstrainedPolicy) or any(map(_is_constrained, parts))
