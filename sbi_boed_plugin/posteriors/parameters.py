"""What `build_posterior` can be told about hybrid posteriors."""

from dataclasses import dataclass

from sbi.inference.posteriors.posterior_parameters import DirectPosteriorParameters

from sbi_boed_plugin._numbers import check_fields, check_real
from sbi_boed_plugin.estimators.rejection import DEFAULT_QUANTILE, MIN_ACCEPTANCE_RATE

__all__ = ["HybridPosteriorParameters"]


@dataclass(frozen=True)
class HybridPosteriorParameters(DirectPosteriorParameters):
    """Parameters for initializing `HybridPosterior`, for `build_posterior`.

    Example:
        >>> parameters = HybridPosteriorParameters(ceiling_quantile=1.0)
        >>> parameters.min_acceptance_rate
        0.001
    """

    ceiling_quantile: float = DEFAULT_QUANTILE
    min_acceptance_rate: float = MIN_ACCEPTANCE_RATE

    def validate(self) -> None:
        """Check the values."""
        super().validate()
        shares = ["ceiling_quantile", "min_acceptance_rate"]
        check_fields(self, check_real, shares, 0.0, 1.0)
