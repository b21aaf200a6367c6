"""Flow matching and score models as densities, by the probability flow."""

from collections.abc import Callable
from typing import Any, Literal

import torch
from sbi.neural_nets import posterior_flow_nn, posterior_score_nn
from sbi.neural_nets.estimators import ConditionalDensityEstimator
from torch import Tensor, nn
from torch.distributions import Normal

from sbi_boed_plugin._numbers import check_integer
from sbi_boed_plugin._rng import isolated_rng

__all__ = [
    "VECTOR_FIELDS",
    "VectorFieldDensity",
    "is_slow",
    "is_vector_field",
    "takes_context",
    "vector_field_nn",
]

_PROBE_SEED = 20_261_130
# Rows of which the flow is solved at once where nothing needs a gradient.
_AT_ONCE = 10_000
# The steps of the classical Runge-Kutta method: where each slope is taken, and how
# often it counts.
_STAGES, _WEIGHTS = (0.0, 0.5, 0.5, 1.0), (1 / 6, 1 / 3, 1 / 3, 1 / 6)


def _score(**kwargs: Any) -> Callable:
    # The default of sbi has noise of 1e-4 to 10, over which no few steps can solve.
    return posterior_score_nn(**{"sde_type": "vp", **kwargs})


VECTOR_FIELDS: dict[str, Callable] = {
    "flow_matching": posterior_flow_nn,
    "score": _score,
}


class VectorFieldDensity(ConditionalDensityEstimator):
    r"""A flow matching or score model of sbi with samples and log-densities.

    A vector field :math:`v` moves samples to Normal noise along the probability flow
    :math:`\dot x = v(x, t; c)`. A sample is noise that is moved back, and

    .. math:: \log q(x \mid c) = \log N(z) + \int \nabla \cdot v \, dt,

    where :math:`z` is the noise at the end of the path from :math:`x`. Both take
    `num_steps` steps of the classical Runge-Kutta method, shorter ones next to the
    data. It learns by the loss of its model, `loss`, which is no log-density: in
    :class:`NLE_INCE` it has no contrastive term.

    Args:
        estimator: Vector field estimator of sbi that is conditioned on features.
        embedding_net: Makes these features of a condition.
        condition_shape: Shape of a condition before it is embedded.
        num_steps: Number of steps of the solver; each evaluates the field four times.
        num_probes: Number of random directions that estimate the divergence, where the
            exact one, 0, which takes a gradient for each value, is too slow. Then
            log-densities have the right mean, and noise that posteriors should not
            learn from.

    Raises:
        ValueError: If a number is out of range.

    References:
        Lipman et al., *Flow Matching for Generative Modeling*, ICLR 2023,
        https://arxiv.org/abs/2210.02747; Song et al., *Score-Based Generative Modeling
        through Stochastic Differential Equations*, ICLR 2021,
        https://arxiv.org/abs/2011.13456.
    """

    def __init__(
        self,
        estimator: Any,
        embedding_net: nn.Module,
        condition_shape: torch.Size,
        *,
        num_steps: int = 10,
        num_probes: int = 0,
    ) -> None:
        """Initialize with a model and the embedding of its condition."""
        net: Any = estimator
        super().__init__(net, estimator.input_shape, condition_shape)
        self.num_steps = check_integer("num_steps", num_steps, 1)
        self.num_probes = check_integer("num_probes", num_probes, 0)
        self._embedding = embedding_net

    @property
    def embedding_net(self) -> nn.Module:
        """What makes features of a condition."""
        return self._embedding

    def loss(self, input: Tensor, condition: Tensor, **kwargs: Any) -> Tensor:
        """Return the loss of the model, `(batch_dim,)`: squared errors, not nats."""
        return self.net.loss(input, self._embedding(condition), **kwargs)

    def log_prob(self, input: Tensor, condition: Tensor, **kwargs: Any) -> Tensor:
        """Return log-densities of shape `(sample_dim, batch_dim)`, in nats."""
        self._check_input_shape(input)
        self._check_condition_shape(condition)
        each_its_own = condition.dim() > len(self.condition_shape) + 1
        rows = condition.flatten(0, 1) if each_its_own else condition
        features, num = self._embedding(rows), len(condition)
        input, condition, batch_dim = self._broadcast_and_align(input, condition)
        if each_its_own:
            features = features.reshape(num, -1, features.shape[1])
        features = features.expand(len(input), batch_dim, -1).flatten(0, 1)
        start = input.reshape(len(features), -1)
        values = self._in_parts(self._log_prob, start, features)
        return values.reshape(len(input), batch_dim)

    def to_noise(self, input: Tensor, condition: Tensor) -> Tensor:
        """Return the Normal noise that samples `(batch_dim, dim)` are made of."""
        features = self._embedding(condition)
        start = input.reshape(len(input), -1)
        ends = self._in_parts(self._noise_of, start, features)
        return (ends - self._mean) / self._std

    def reparameterize(self, input: Tensor, condition: Tensor) -> Tensor:
        """Return the same samples, which move with their condition at fixed noise."""
        features = self._embedding(condition)
        with torch.no_grad():
            noise = self._noise_of(input, features)
        moved, _ = self._flow(noise, features, to_data=True)
        return input.detach() + (moved - moved.detach())

    def sample(
        self, sample_shape: torch.Size, condition: Tensor, **kwargs: Any
    ) -> Tensor:
        """Draw samples of shape `(*sample_shape, batch_dim, *input_event_shape)`."""
        self._check_condition_shape(condition)
        with torch.no_grad():
            num = torch.Size(sample_shape).numel()
            features = self._embedding(condition).repeat(num, 1)
            like = {"device": features.device, "dtype": features.dtype}
            noise = torch.randn(len(features), self.input_shape.numel(), **like)
            start = self._mean + self._std * noise
            samples = self._in_parts(self._data_of, start, features)
        return samples.reshape(*sample_shape, len(condition), *self.input_shape)

    @property
    def _mean(self) -> Tensor:
        return self.net._mean_base.flatten(1)

    @property
    def _std(self) -> Tensor:
        return self.net._std_base.flatten(1)

    def _in_parts(
        self, solve: Callable[[Tensor, Tensor], Tensor], start: Tensor, features: Tensor
    ) -> Tensor:
        """Solve a part of the rows at a time, unless there may be a gradient."""
        if torch.is_grad_enabled():
            return solve(start, features)
        pairs = zip(start.split(_AT_ONCE), features.split(_AT_ONCE), strict=True)
        return torch.cat([solve(*pair) for pair in pairs])

    def _noise_of(self, input: Tensor, features: Tensor) -> Tensor:
        return self._flow(input, features, to_data=False)[0]

    def _data_of(self, noise: Tensor, features: Tensor) -> Tensor:
        return self._flow(noise, features, to_data=True)[0]

    def _log_prob(self, input: Tensor, features: Tensor) -> Tensor:
        ends, log_det = self._flow(input, features, to_data=False, with_log_det=True)
        noise = Normal(self._mean, self._std, validate_args=False)
        return noise.log_prob(ends).sum(dim=1) + log_det

    def _flow(
        self,
        start: Tensor,
        features: Tensor,
        *,
        to_data: bool,
        with_log_det: bool = False,
    ) -> tuple[Tensor, Tensor]:
        """Move rows along the flow; also return by how much it expands them."""
        low, high = float(self.net.t_min), float(self.net.t_max)
        # Fields bend next to the data.
        times = low + (high - low) * torch.linspace(0.0, 1.0, self.num_steps + 1) ** 2
        times = times.flip(0) if to_data else times
        probes = self._probes(start) if with_log_det else None
        place, total = start, start.new_zeros(len(start))
        for now, then in zip(times[:-1].tolist(), times[1:].tolist(), strict=True):
            step, of_step = then - now, torch.zeros_like(total)
            slope, moved = torch.zeros_like(place), place
            for share, weight in zip(_STAGES, _WEIGHTS, strict=True):
                at = place + share * step * slope
                slope, divergence = self._slope(
                    at, features, now + share * step, probes
                )
                moved = moved + weight * step * slope
                of_step = of_step + weight * step * divergence
            place, total = moved, total + of_step
        return place, total

    def _slope(
        self, place: Tensor, features: Tensor, time: float, probes: Tensor | None
    ) -> tuple[Tensor, Tensor]:
        """Return the field and, with probes, its divergence, else zeros."""
        needs_graph = torch.is_grad_enabled()
        times = place.new_full((len(place),), time)
        if probes is None:
            return self._field(place, features, times), place.new_zeros(len(place))
        with torch.enable_grad():
            at = place if place.requires_grad else place.detach().requires_grad_()
            field = self._field(at, features, times)
            divergence = torch.zeros_like(times)
            for probe in probes:
                (product,) = torch.autograd.grad(
                    (field * probe).sum(),
                    at,
                    create_graph=needs_graph,
                    retain_graph=True,
                )
                divergence = divergence + (product * probe).sum(dim=1)
        if not needs_graph:
            field, divergence = field.detach(), divergence.detach()
        num = len(probes) if self.num_probes else 1
        return field, divergence / num

    def _field(self, place: Tensor, features: Tensor, times: Tensor) -> Tensor:
        rows = place.reshape(-1, *self.input_shape)
        return self.net.ode_fn(rows, features, times).flatten(1)

    def _probes(self, start: Tensor) -> Tensor:
        """Return directions of the divergence, `(num_probes, num_rows or 1, dim)`."""
        dim = start.shape[1]
        if not self.num_probes:
            return torch.eye(dim).unsqueeze(1).to(start)
        with isolated_rng(_PROBE_SEED):
            signs = torch.randint(2, (self.num_probes, len(start), dim))
        return (2 * signs - 1).to(start)


def is_vector_field(estimator: nn.Module) -> bool:
    """Return whether an estimator, or what it is made of, is a vector field."""
    return any(isinstance(part, VectorFieldDensity) for part in estimator.modules())


def takes_context(estimator: nn.Module) -> bool:
    """Return whether an estimator is given simulations in the place of a training.

    sbi's `TabPFNFlow` is one: its network has seen many problems, and reads this one.
    """
    return callable(getattr(estimator, "set_context", None))


def is_slow(estimator: nn.Module) -> bool:
    """Return whether densities are too slow for climbs and contrastive bounds."""
    return is_vector_field(estimator) or any(map(takes_context, estimator.modules()))


def vector_field_nn(
    model: Literal["flow_matching", "score"],
    describes: Literal["theta", "x"],
    *,
    embedding_net: nn.Module | None = None,
    num_steps: int = 10,
    num_probes: int = 0,
    z_score_theta: str = "independent",
    z_score_x: str = "independent",
    **kwargs: Any,
) -> Callable[[Tensor, Tensor], VectorFieldDensity]:
    """Return a builder of a flow matching or score model as a density.

    It describes parameters on the condition of data, or the other way round; features
    of an embedding are standardized as they are at first. Further arguments are those
    of sbi's `posterior_flow_nn` and `posterior_score_nn`.
    """
    if kwargs.get("compose_standardization"):
        raise ValueError(
            "compose_standardization=True: the densities here work in units of their "
            "own, and leave out those of sbi. Leave it out."
        )
    check_integer("num_steps", num_steps, 1)
    check_integer("num_probes", num_probes, 0)
    VECTOR_FIELDS[model](**kwargs)  # Refuses what it does not know.
    scores = {"theta": z_score_theta, "x": z_score_x}
    of_input = scores.pop(describes)
    (of_condition,) = scores.values()

    def build(theta: Tensor, x: Tensor) -> VectorFieldDensity:
        input, condition = (theta, x) if describes == "theta" else (x, theta)
        embedding = nn.Identity() if embedding_net is None else embedding_net
        with torch.no_grad():
            features = embedding.to(condition.device)(condition)
        given = {"z_score_theta": of_input, "z_score_x": of_condition, **kwargs}
        estimator = VECTOR_FIELDS[model](**given)(input, features)
        sizes = {"num_steps": num_steps, "num_probes": num_probes}
        return VectorFieldDensity(estimator, embedding, condition[0].shape, **sizes)

    return build
