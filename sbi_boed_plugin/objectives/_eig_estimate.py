"""What an estimate of the information says."""

from dataclasses import asdict, dataclass
from typing import Any

from sbi_boed_plugin.objectives._eig_terms import Bound

__all__ = ["EIGEstimate", "NoEstimateError"]


class NoEstimateError(ValueError):
    """Simulations of a design from which nothing can be estimated, and their number."""

    # Python makes errors from other processes of the message, then fills in the rest.
    def __init__(
        self, message: str, num_simulations: int = 0, num_invalid_simulations: int = 0
    ) -> None:
        super().__init__(message)
        self.num_simulations = num_simulations
        self.num_invalid_simulations = num_invalid_simulations


@dataclass(frozen=True)
class EIGEstimate:
    r"""An estimate of the expected information gain of one design.

    Attributes:
        value: Estimate, in nats.
        standard_error: Its standard error, in nats.
        bound: What the estimate is, as in :func:`estimate_eig`.
        cap: Largest value that the estimate can take, in nats, or `None`.
        num_simulations: Number of rows that the simulator got, those of its check and
            those repeated after errors included.
        num_invalid_simulations: How many of them failed, and count as telling nothing.
        num_contrastive: Number :math:`L` of contrastive parameters of each simulation,
            0 for bounds without.
        effective_sample_size: Mean over simulations of the effective sample size
            :math:`(\sum_l w_l)^2 / \sum_l w_l^2` of the :math:`L` parameters, of their
            weights in the bound. Bounds that rise with :math:`L` need many.
    """

    value: float
    standard_error: float
    bound: Bound
    cap: float | None = None
    num_simulations: int = 0
    num_invalid_simulations: int = 0
    num_contrastive: int = 0
    effective_sample_size: float | None = None

    def to_dict(self) -> dict[str, Any]:
        """Return the fields as a dictionary of plain Python values."""
        return asdict(self)
